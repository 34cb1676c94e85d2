"""Everything that can be found, one row per document, and the account names their texts need.

It is what each replica's index is made from, and what answers while an index is not there (`fallback.py`). Each row
tells the position of the event that wrote it last, and `search_removed` what is gone since when, so that an index
asks for what is new since its own position.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import banking, contract_of, encode, identity, ledger, ledger_rules, notification, trading, wealth
from events.contracts.registry import Event
from events.envelope import RecordedEvent
from events.notification_texts import open_text
from events.platform_items import LINK_CONFIRMED, PlatformItems
from events.sealing import SubjectKeys

from search.documents import (
    AccountName,
    AllRead,
    Change,
    Document,
    Removed,
    Restated,
    State,
    account_name,
    accounts_of,
    changes_of,
)
from search.folding import words
from search.scoring import AMOUNT

_ITEMS_AND_LINKS = frozenset(
    contract_of(struct).type
    for struct in (
        trading.TradeExecuted,
        trading.PositionChanged,
        banking.FundChanged,
        identity.LinkConfirmed,
        identity.LinkRemoved,
        identity.UserErased,
    )
)
_LINK_REMOVED, _ERASED = contract_of(identity.LinkRemoved).type, contract_of(identity.UserErased).type
_UNLINKS = frozenset({_LINK_REMOVED, _ERASED})
_LINK_EVENTS = _UNLINKS | {LINK_CONFIRMED}
_OWN_STREAM = frozenset(
    contract_of(struct).type
    for struct in (
        ledger.AccountOpened,
        ledger.AccountPosted,
        ledger.AccountFrozen,
        ledger.AccountUnfrozen,
        ledger.AccountClosed,
        ledger.TransferCompleted,
        ledger_rules.RuleCreated,
        ledger_rules.RuleChanged,
        ledger_rules.RulePaused,
        ledger_rules.RuleResumed,
        ledger_rules.RuleDeleted,
        notification.NotificationRaised,
        notification.NotificationRevised,
        notification.NotificationRead,
        notification.NotificationSnoozed,
        wealth.InsightRaised,
        wealth.InsightCleared,
        wealth.InsightDismissed,
    )
)
"""On the streams `<category>-<user>`."""

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Document)


class _Key(NamedTuple):
    user_id: UUID
    type: str
    id: str


class _Written(NamedTuple):
    """A row to be written."""

    document: Document
    state: State
    position: int


class DocumentProjection:
    """The read model behind `/api/search`."""

    name = "document"
    repeatable = False
    """What an event does depends on what is so when it comes: whose link a platform's item belongs to, which
    notifications are unread (docs/decisions/0057)."""
    types = _OWN_STREAM | _ITEMS_AND_LINKS
    _own_ddl = """
        CREATE TABLE IF NOT EXISTS account_name (
            account_id uuid PRIMARY KEY,
            user_id uuid NOT NULL,
            platform text NOT NULL,
            name text NOT NULL
        );
        CREATE INDEX IF NOT EXISTS account_name_by_user ON account_name (user_id);
        CREATE TABLE IF NOT EXISTS search_document (
            user_id uuid NOT NULL,
            type text NOT NULL,
            id text NOT NULL,
            platform text,
            paise bigint,
            category text NOT NULL,
            state text NOT NULL,
            date timestamptz NOT NULL,
            version bigint NOT NULL,
            position bigint NOT NULL,
            document text NOT NULL,
            words text[] NOT NULL,
            PRIMARY KEY (user_id, type, id)
        );
        CREATE INDEX IF NOT EXISTS search_document_by_date ON search_document (user_id, date DESC);
        CREATE INDEX IF NOT EXISTS search_document_by_position ON search_document (position);
        CREATE TABLE IF NOT EXISTS search_removed (
            position bigint NOT NULL,
            user_id uuid NOT NULL,
            type text,
            id text
        );
        CREATE INDEX IF NOT EXISTS search_removed_by_position ON search_removed (position);
        CREATE INDEX IF NOT EXISTS search_removed_by_document ON search_removed (user_id, type, id);
        CREATE TABLE IF NOT EXISTS search_erased (
            user_id uuid PRIMARY KEY
        );
        CREATE TABLE IF NOT EXISTS document_applied (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            position bigint NOT NULL
        );
    """

    def __init__(self, keys: SubjectKeys | None) -> None:
        """`keys` open what notifications say."""
        self._keys = keys
        self._platform_items = PlatformItems()
        self.ddl = self._own_ddl + self._platform_items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Raises:
        KeyError: a money event on an account that was never opened.
        """
        if not events:
            return
        due = [(UUID(event.stream_id), event, event.position) for event in events if event.type in _OWN_STREAM]
        due += await self._items(db, [event for event in events if event.type in _ITEMS_AND_LINKS])
        erasures = [event for event in events if event.type == _ERASED]
        erased = await _erased(db, [user_id for user_id, _, _ in due])
        due = [one for one in due if one[0] not in erased]
        accounts = await _account_names(db, [(user_id, event) for user_id, event, _ in due])
        changes = _Changes(db)
        for user_id, event, position in await self._with_words(due):
            for change in changes_of(event, accounts):
                await changes.take(user_id, change, position)
        await changes.write()
        for event in erasures:
            assert isinstance(event.payload, identity.UserErased)
            await self._erase(db, event.payload.user_id, event.position)
        await db.execute(
            "INSERT INTO document_applied (position) VALUES ($1) "
            "ON CONFLICT (only_row) DO UPDATE SET position = excluded.position",
            events[-1].position,
        )

    async def _with_words(
        self, due: Sequence[tuple[UUID, RecordedEvent, int]]
    ) -> list[tuple[UUID, RecordedEvent, int]]:
        """The same with the words of notifications in the clear, without those of people who were erased meanwhile."""
        sealed = {user for user, event, _ in due if _is_sealed(event.payload)}
        if not sealed:
            return list(due)
        assert self._keys is not None, "texts are sealed, and there are no keys"
        await self._keys.fetch(sealed)
        opened: list[tuple[UUID, RecordedEvent, int]] = []
        for user, event, position in due:
            if not isinstance(event.payload, notification.Notification):
                opened.append((user, event, position))
            elif (text := await open_text(self._keys, user, event.payload)) is not None:
                opened.append((user, msgspec.structs.replace(event, data=encode(text)), position))
        return opened

    async def _items(
        self, db: asyncpg.Connection, events: Sequence[RecordedEvent]
    ) -> list[tuple[UUID, RecordedEvent, int]]:
        """The platform items that take effect, each with the position at which it does: an item that waited for a
        link has that of the link, for what is written then must be newer than every index."""
        due: list[tuple[UUID, RecordedEvent, int]] = []
        for kind, run in groupby(events, lambda event: event.type if event.type in _LINK_EVENTS else None):
            if kind is None:
                due += [
                    (user, event, event.position) for user, event in await self._platform_items.resolve(db, list(run))
                ]
                continue
            for link in run:
                if kind in _UNLINKS:
                    await _unlink(db, link.payload)
                else:
                    resolved = await self._platform_items.resolve(db, [link])
                    due += [(user, event, link.position) for user, event in resolved]
        return due

    async def _erase(self, db: asyncpg.Connection, user_id: UUID, position: int) -> None:
        """Everything of a person goes, and nothing of theirs comes again."""
        for table in ("search_document", "search_removed", "account_name"):
            await db.execute(f"DELETE FROM {table} WHERE user_id = $1", user_id)
        await db.execute("INSERT INTO search_erased (user_id) VALUES ($1) ON CONFLICT DO NOTHING", user_id)
        await db.execute("INSERT INTO search_removed (position, user_id) VALUES ($1, $2)", position, user_id)
        # No read model, so not there in a rebuild.
        if await db.fetchval("SELECT to_regclass('recent_search') IS NOT NULL"):
            await db.execute("DELETE FROM recent_search WHERE user_id = $1", user_id)


class _Changes:
    """Changes of documents in their order, written a table at a time."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self._db = db
        self._documents: dict[_Key, _Written] = {}
        self._states: dict[_Key, tuple[State, int]] = {}
        self._removed: dict[_Key, int] = {}

    async def take(self, user_id: UUID, change: Change, position: int) -> None:
        match change:
            case AllRead():
                await self.write()  # those before it in this batch are read, too
                await self._db.execute(
                    "UPDATE search_document SET state = 'read', position = $3"
                    " WHERE user_id = $1 AND type = 'notification' AND state = 'unread' AND version <= $2",
                    user_id,
                    change.version,
                    position,
                )
            case Document():
                key = _Key(user_id, change.type, change.id)
                # A position's items may come out of order: an older state never replaces a newer one.
                if key not in self._documents or change.date >= self._documents[key].document.date:
                    self._documents[key] = _Written(change, change.state, position)
                    if key in self._states:
                        await self.write_states()
            case Restated():
                key = _Key(user_id, change.type, change.id)
                if key in self._documents:
                    # As in a row: a state changes beside the document, in whatever batch it comes.
                    self._documents[key] = _Written(self._documents[key].document, change.state, position)
                else:
                    self._states[key] = change.state, position
            case Removed():
                key = _Key(user_id, change.type, change.id)
                self._documents.pop(key, None)
                self._states.pop(key, None)
                self._removed[key] = position

    async def write(self) -> None:
        await self.write_states()
        if self._removed:
            rows = [(*key, position) for key, position in self._removed.items()]
            columns = [list(column) for column in zip(*rows, strict=True)]
            # Of several removals the last one stays, in whatever batches they come.
            for table in ("search_document", "search_removed"):
                await self._db.execute(
                    f"DELETE FROM {table} AS of USING unnest($1::uuid[], $2::text[], $3::text[])"
                    " AS gone (user_id, type, id)"
                    " WHERE of.user_id = gone.user_id AND of.type = gone.type AND of.id = gone.id",
                    *columns[:3],
                )
            await self._db.execute(
                "INSERT INTO search_removed (user_id, type, id, position)"
                " SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[])",
                *columns,
            )
            self._removed.clear()
        if self._documents:
            await _upsert(self._db, self._documents)
            self._documents.clear()

    async def write_states(self) -> None:
        if not self._states:
            return
        rows = [(*key, state, position) for key, (state, position) in self._states.items()]
        await self._db.execute(
            "UPDATE search_document SET state = new.state, position = new.position"
            " FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[])"
            " AS new (user_id, type, id, state, position)"
            " WHERE search_document.user_id = new.user_id AND search_document.type = new.type"
            " AND search_document.id = new.id",
            *[list(column) for column in zip(*rows, strict=True)],
        )
        self._states.clear()


def _is_sealed(payload: Event) -> bool:
    return isinstance(payload, notification.Notification) and payload.sealed_text is not None


async def _unlink(db: asyncpg.Connection, payload: Event) -> None:
    """What the platform tells from here on is not this customer's any more: it waits for whoever links it next."""
    match payload:
        case identity.LinkRemoved():
            streams = [payload.platform_stream]
        case identity.UserErased():
            streams = list(payload.platform_streams)
            await db.execute("DELETE FROM platform_link WHERE user_id = $1", payload.user_id)
        case _:
            raise TypeError(type(payload))
    await db.execute("DELETE FROM platform_link WHERE platform_stream = ANY($1)", streams)


async def _erased(db: asyncpg.Connection, user_ids: Sequence[UUID]) -> set[UUID]:
    if not user_ids:
        return set()
    rows = await db.fetch("SELECT user_id FROM search_erased WHERE user_id = ANY($1)", list(set(user_ids)))
    return {UUID(int=row["user_id"].int) for row in rows}


async def _account_names(db: asyncpg.Connection, due: Sequence[tuple[UUID, RecordedEvent]]) -> dict[UUID, AccountName]:
    """Records the accounts opened in this batch; gives the names of all accounts it mentions."""
    names: dict[UUID, AccountName] = {}
    owners: list[UUID] = []
    for user_id, event in due:
        if isinstance(event.payload, ledger.AccountOpened):
            names[event.payload.account_id] = account_name(event.payload)
            owners.append(user_id)
    if names:
        await db.execute(
            "INSERT INTO account_name (account_id, user_id, platform, name) "
            "SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])",
            list(names),
            owners,
            [account.platform for account in names.values()],
            [account.name for account in names.values()],
        )
    mentioned = {account for _, event in due for account in accounts_of(event.payload)} - names.keys()
    if mentioned:
        rows = await db.fetch(
            "SELECT account_id, platform, name FROM account_name WHERE account_id = ANY($1)", list(mentioned)
        )
        names.update((row["account_id"], AccountName(row["platform"], row["name"])) for row in rows)
    return names


async def _upsert(db: asyncpg.Connection, documents: dict[_Key, _Written]) -> None:
    rows = [
        (
            key.user_id,
            document.type,
            document.id,
            document.platform,
            document.paise,
            document.category,
            state,
            document.date,
            document.version,
            position,
            _encode(document).decode(),
            # As text: unnest would flatten an array of arrays.
            " ".join(words_of(document)),
        )
        for key, (document, state, position) in documents.items()
    ]
    await db.execute(
        """
        INSERT INTO search_document (user_id, type, id, platform, paise, category, state, date, version, position,
                                     document, words)
        SELECT user_id, type, id, platform, paise, category, state, date, version, position,
               document, string_to_array(words, ' ')
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::text[],
                    $8::timestamptz[], $9::bigint[], $10::bigint[], $11::text[], $12::text[])
             AS new (user_id, type, id, platform, paise, category, state, date, version, position, document, words)
        ON CONFLICT (user_id, type, id) DO UPDATE
        SET platform = excluded.platform, paise = excluded.paise, category = excluded.category,
            state = excluded.state, date = excluded.date, version = excluded.version, position = excluded.position,
            document = excluded.document, words = excluded.words
        WHERE excluded.date >= search_document.date
        """,
        *[list(column) for column in zip(*rows, strict=True)],
    )


def words_of(document: Document) -> tuple[str, ...]:
    """The words a document is found by, each once."""
    return tuple(
        dict.fromkeys(word for field in document.fields if field.name != AMOUNT for word in words(field.value))
    )


def document_in(row: asyncpg.Record) -> Document:
    """The document of a row with its `document` and `state`: the state changes without the text."""
    document = _decoder.decode(row["document"])
    return document if document.state == row["state"] else msgspec.structs.replace(document, state=row["state"])
