"""Everything that can be found, one row per document, and the account names their texts need."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from events.contracts import contract_of, identity, ledger, trading
from events.envelope import RecordedEvent
from events.platform_items import PlatformItems

from search.documents import AccountName, Document, account_name, accounts_of, documents_of
from search.filters import AMOUNT_CURRENCY, Filters
from search.folding import fold, words
from search.scoring import Field, Query

CANDIDATES_MAX = 1_000
"""How many documents are scored for one answer, the newest first. Scoring a thousand takes some tens of
milliseconds; a query that more of the caller's documents match is too wide to be ranked usefully here, and
the answer says so."""

VOCABULARY_MAX = 20_000
"""How many different words of the caller's documents are compared with a query's words for typing errors."""

_ITEMS_AND_LINKS = frozenset(
    contract_of(struct).type for struct in (trading.TradeExecuted, trading.PositionChanged, identity.LinkConfirmed)
)
_LEDGER = frozenset(
    contract_of(struct).type for struct in (ledger.AccountOpened, ledger.AccountPosted, ledger.TransferCompleted)
)


class Candidates(NamedTuple):
    """The documents worth scoring, of one state of the read model."""

    position: int
    """The position of the last event applied to the read model; 0 before the first."""
    documents: list[Document]
    truncated: bool
    """There were more than `CANDIDATES_MAX`: only the newest are here."""


class DocumentProjection:
    """The read model behind `/api/search`."""

    name = "document"
    types = _LEDGER | _ITEMS_AND_LINKS
    _own_ddl = """
        CREATE TABLE IF NOT EXISTS account_name (
            account_id uuid PRIMARY KEY,
            platform text NOT NULL,
            name text NOT NULL
        );
        CREATE TABLE IF NOT EXISTS search_document (
            user_id uuid NOT NULL,
            type text NOT NULL,
            id text NOT NULL,
            platform text NOT NULL,
            title text NOT NULL,
            subtitle text NOT NULL,
            amount_minor bigint NOT NULL,
            currency text NOT NULL,
            category text NOT NULL,
            date timestamptz NOT NULL,
            target text NOT NULL,
            fields text NOT NULL,
            folded text NOT NULL,
            words text[] NOT NULL,
            PRIMARY KEY (user_id, type, id)
        );
        CREATE INDEX IF NOT EXISTS search_document_by_date ON search_document (user_id, date DESC);
        CREATE TABLE IF NOT EXISTS document_applied (
            only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
            position bigint NOT NULL
        );
    """

    def __init__(self) -> None:
        self._platform_items = PlatformItems()
        self.ddl = self._own_ddl + self._platform_items.ddl

    async def apply(self, db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> None:
        """Raises:
        KeyError: a money event on an account that was never opened.
        """
        if not events:
            return
        accounts = await _account_names(db, events)
        owned = [(UUID(event.stream_id), event) for event in events if event.type in _LEDGER]
        items_and_links = [event for event in events if event.type in _ITEMS_AND_LINKS]
        if items_and_links:
            owned += await self._platform_items.resolve(db, items_and_links)
        # One statement may not touch a row twice: of several states of a position the newest is written.
        # A position's items may come out of order, an older state never replaces a newer one.
        newest: dict[tuple[UUID, str, str], Document] = {}
        for user_id, event in owned:
            for document in documents_of(event, accounts):
                key = (user_id, document.type, document.id)
                if key not in newest or document.date >= newest[key].date:
                    newest[key] = document
        if newest:
            await _upsert(db, [(user_id, document) for (user_id, _, _), document in newest.items()])
        await db.execute(
            "INSERT INTO document_applied (position) VALUES ($1) "
            "ON CONFLICT (only_row) DO UPDATE SET position = excluded.position",
            events[-1].position,
        )


async def _account_names(db: asyncpg.Connection, events: Sequence[RecordedEvent]) -> dict[UUID, AccountName]:
    """Records the accounts opened in this batch; gives the names of all accounts it mentions."""
    names = {
        event.payload.account_id: account_name(event.payload)
        for event in events
        if isinstance(event.payload, ledger.AccountOpened)
    }
    if names:
        await db.execute(
            "INSERT INTO account_name (account_id, platform, name) "
            "SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[])",
            list(names),
            [account.platform for account in names.values()],
            [account.name for account in names.values()],
        )
    mentioned = {account for event in events for account in accounts_of(event.payload)} - names.keys()
    if mentioned:
        rows = await db.fetch(
            "SELECT account_id, platform, name FROM account_name WHERE account_id = ANY($1)", list(mentioned)
        )
        names.update((row["account_id"], AccountName(row["platform"], row["name"])) for row in rows)
    return names


async def _upsert(db: asyncpg.Connection, documents: Sequence[tuple[UUID, Document]]) -> None:
    rows = []
    for user_id, document in documents:
        # A line break folds to a space, so it never occurs inside a field and nothing matches across it.
        folded = "\n".join(fold(field.value).text for field in document.fields)
        rows.append(
            (
                user_id,
                document.type,
                document.id,
                document.platform,
                document.title,
                document.subtitle,
                document.amount_minor,
                document.currency,
                document.category,
                document.date,
                document.target,
                msgspec.json.encode(document.fields).decode(),
                folded,
                # As text: unnest would flatten an array of arrays.
                " ".join(dict.fromkeys(words(folded))),
            )
        )
    await db.execute(
        """
        INSERT INTO search_document (user_id, type, id, platform, title, subtitle, amount_minor, currency,
                                     category, date, target, fields, folded, words)
        SELECT user_id, type, id, platform, title, subtitle, amount_minor, currency,
               category, date, target, fields, folded, string_to_array(words, ' ')
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[],
                    $8::text[], $9::text[], $10::timestamptz[], $11::text[], $12::text[], $13::text[],
                    $14::text[])
             AS new (user_id, type, id, platform, title, subtitle, amount_minor, currency,
                     category, date, target, fields, folded, words)
        ON CONFLICT (user_id, type, id) DO UPDATE
        SET title = excluded.title, subtitle = excluded.subtitle, amount_minor = excluded.amount_minor,
            currency = excluded.currency, category = excluded.category, date = excluded.date,
            target = excluded.target, fields = excluded.fields, folded = excluded.folded,
            words = excluded.words
        WHERE excluded.date >= search_document.date
        """,
        *[list(column) for column in zip(*rows, strict=True)],
    )


# Who the caller is comes from the token, and everything is asked for the caller only.
_CALLERS_FILTERED = """
    user_id = $1
    AND ($2::text[] IS NULL OR type = ANY($2)) AND ($3::text[] IS NULL OR platform = ANY($3))
    AND ($4::timestamptz IS NULL OR date >= $4) AND ($5::timestamptz IS NULL OR date < $5)
    AND ($6::bigint IS NULL OR amount_minor >= $6) AND ($7::bigint IS NULL OR amount_minor <= $7)
    AND (($6 IS NULL AND $7 IS NULL) OR currency = $8) AND ($9::text IS NULL OR category = $9)
"""


async def candidates(database: asyncpg.Pool, user_id: UUID, query: Query, filters: Filters) -> Candidates:
    """The documents of `user_id` that can answer `query`: each of its words is in the document, or, but for
    typing errors, is one of the document's words."""
    restriction = (
        user_id,
        filters.types,
        filters.platforms,
        filters.since,
        filters.until,
        filters.min_amount_minor,
        filters.max_amount_minor,
        AMOUNT_CURRENCY,
        filters.category,
    )
    query_words = list(dict.fromkeys(query.words))
    spellings = await _spellings(database, restriction, query, query_words)
    conditions = [
        f"(strpos(folded, ${10 + 2 * index}) > 0 OR words && ${11 + 2 * index}::text[])"
        for index in range(len(query_words))
    ]
    values = [value for word in query_words for value in (word, spellings[word])]
    limit = 10 + 2 * len(query_words)
    # The only text put into the statement are the numbers of its own parameters.
    statement = f"""
        SELECT coalesce(applied.position, 0) AS applied_position, found.*
        FROM (SELECT 1) AS one
        LEFT JOIN document_applied AS applied ON true
        LEFT JOIN (
            SELECT type, id, platform, title, subtitle, amount_minor, currency, category, date, target, fields
            FROM search_document
            WHERE {_CALLERS_FILTERED} AND {" AND ".join(conditions)}
            ORDER BY date DESC, type, id
            LIMIT ${limit}
        ) AS found ON true
        """
    rows = await database.fetch(statement, *restriction, *values, CANDIDATES_MAX + 1)
    documents = [_document(row) for row in rows if row["id"] is not None]
    return Candidates(
        position=rows[0]["applied_position"],
        documents=documents[:CANDIDATES_MAX],
        truncated=len(documents) > CANDIDATES_MAX,
    )


async def _spellings(
    database: asyncpg.Pool, restriction: tuple[Any, ...], query: Query, query_words: Sequence[str]
) -> dict[str, list[str]]:
    """For each word of the query, the words of the caller's documents that it may be a misspelling of."""
    if not query.can_be_misspelt:
        return {word: [] for word in query_words}
    statement = f"""
        SELECT DISTINCT word FROM search_document, unnest(words) AS word
        WHERE {_CALLERS_FILTERED}
        ORDER BY word
        LIMIT {VOCABULARY_MAX}
        """
    rows = await database.fetch(statement, *restriction)
    vocabulary = [row["word"] for row in rows]
    return {word: [other for other in vocabulary if query.edits(word, other) is not None] for word in query_words}


def _document(row: asyncpg.Record) -> Document:
    date: datetime = row["date"]
    return Document(
        type=row["type"],
        id=row["id"],
        platform=row["platform"],
        title=row["title"],
        subtitle=row["subtitle"],
        amount_minor=row["amount_minor"],
        currency=row["currency"],
        category=row["category"],
        date=date,
        target=row["target"],
        fields=msgspec.json.decode(row["fields"], type=list[Field]),
    )
