"""How well search finds what customers mean, beside PostgreSQL full text, pg_trgm and plain BM25.

    .venv/bin/python bench/search_relevance.py [--misses]

Needs the group `bench` (`uv sync --group bench`): ranx computes nDCG@10 and MRR. Figures of the half that was held
out are the ones to quote. Zero results: the share of queries that mean something and got nothing. False positives:
the share of queries that mean nothing of the caller's (nonsense, another customer's) and got something.
"""

import asyncio
import random
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy" / "local"))

import asyncpg
import tantivy
from events.contracts import ledger, ledger_rules, trading
from events.contracts.registry import Event
from events.envelope import Metadata, RecordedEvent, derived_id
from ranx import Qrels, Run, evaluate
from rich.console import Console
from rich.table import Table
from search.documents import AccountName, Document, changes_of
from search.engine import Origin, SearchIndex
from search.filters import IST
from search.grammar import parse
from search.scoring import Query
from search_queries import AMOUNTS, DATES, FOREIGN, NONSENSE, PREFIXES, Thing, Wish, things, wishes
from stack import Stack

NOW = datetime(2026, 3, 15, 12, tzinfo=UTC)
CALLER, OTHER = UUID(int=1), UUID(int=2)
SAVINGS, WALLET = UUID(int=11), UUID(int=12)
ACCOUNTS = {
    SAVINGS: AccountName("bfc", "BFC savings account SB-1001"),
    WALLET: AccountName("vyomo", "Vyomo trading wallet VW-1001"),
}
AMOUNT_OF = {"landlord": 25_000_00, "acme": 1_85_000_00, "ppf": 5_00_000_00, "petrol": 1_234_50}
MEANT_BY_AMOUNT = {
    "rent_amount": "landlord",
    "salary_amount": "acme",
    "loan_amount": "ppf",
    "odd_amount": "petrol",
}
HITS = 10

Searcher = Callable[[str], Awaitable[list[str]]]


class Corpus:
    """The caller's documents, and the thing each is of."""

    def __init__(self) -> None:
        self.thing_of: dict[str, Thing] = {}
        self.documents: list[Document] = []
        dice = random.Random(2026)
        for thing in things():
            for number in range(1 if thing.category in ("position", "trade", "rule") else 3):
                at = NOW - timedelta(days=dice.randrange(430), hours=dice.randrange(24))
                (document,) = _made(thing, number, at, AMOUNT_OF.get(thing.key, dice.randrange(100_01, 90_000_00)))
                self.documents.append(document)
                self.thing_of[document.id] = thing

    def wishes(self) -> list[tuple[Wish, dict[str, int]]]:
        """Every query with its graded documents."""
        every = [(wish, self._graded(wish)) for wish in wishes()]
        every += [(Wish("prefix", text, {}), self._beginning(text)) for text in PREFIXES]
        for meant, texts in AMOUNTS.items():
            of = MEANT_BY_AMOUNT[meant]
            grades = {d.id: 3 for d in self.documents if self.thing_of[d.id].key == of and d.paise == AMOUNT_OF[of]}
            every += [(Wish("amount", text, {}), grades) for text in texts]
        for text, first, last in DATES:
            days = date.fromisoformat(first), date.fromisoformat(last)
            inside = {d.id: 3 for d in self.documents if days[0] <= d.date.astimezone(IST).date() <= days[1]}
            every.append((Wish("date", text, {}), inside))
        every += [(Wish("nonsense", text, {}), {}) for text in NONSENSE]
        every += [(Wish("foreign", part, {}), {}) for text in FOREIGN for part in (text, text.split()[0])]
        return every

    def _graded(self, wish: Wish) -> dict[str, int]:
        grades = {
            document.id: wish.grades[thing.key]
            for document in self.documents
            if (thing := self.thing_of[document.id]).key in wish.grades
        }
        if wish.kind in ("exact", "contains"):
            for document in self.documents:
                thing = self.thing_of[document.id]
                if wish.text.lower() in f"{thing.title} {thing.memo} {thing.category}".lower():
                    grades.setdefault(document.id, 2)
        return grades

    def _beginning(self, text: str) -> dict[str, int]:
        grades = {}
        for document in self.documents:
            thing = self.thing_of[document.id]
            if thing.title.lower().startswith(text):
                grades[document.id] = 3
            elif any(word.startswith(text) for word in f"{thing.title} {thing.memo}".lower().split()):
                grades[document.id] = 2
        return grades


def _recorded(payload: Event, key: str, at: datetime) -> RecordedEvent:
    event = RecordedEvent(
        position=1,
        stream=f"ledger-{CALLER}",
        version=1,
        event_id=derived_id(CALLER, key),
        type="",
        schema_version=1,
        subject=CALLER,
        data=b"",
        metadata=Metadata(),
        recorded_at=at,
    )
    event.__dict__["payload"] = payload
    return event


def _made(thing: Thing, number: int, at: datetime, minor: int) -> list[Document]:
    key = f"{thing.key}-{number}"
    item: dict[str, Any] = {
        "item_id": key,
        "customer_id": "VY-1",
        "occurred_at": at,
        "currency": "INR",
        "instrument": "option",
    }
    payload: Event
    if thing.category == "trade":
        payload = trading.TradeExecuted(
            **item, trade_id=key, wallet_id="VW-1001", symbol=thing.title, underlying=thing.title.split()[0],
            side="buy", quantity=50, price_minor=120_50, charges_minor=0,
        )  # fmt: skip
    elif thing.category == "position":
        payload = trading.PositionChanged(
            **item, position_id=key, symbol=thing.title, underlying=thing.title, quantity=50,
            average_price_minor=100_00, mark_price_minor=120_00, unrealized_pnl_minor=0,
        )  # fmt: skip
    elif thing.category == "rule":
        payload = ledger_rules.RuleCreated(
            rule_id=derived_id(CALLER, "rule", key),
            terms=ledger_rules.RuleTerms(
                name=thing.title, source_account_id=SAVINGS, target_account_id=WALLET, currency="INR",
                trigger=ledger_rules.BalanceBelow(threshold_minor=10_000_00),
                amount=ledger_rules.FixedAmount(amount_minor=minor),
            ),
            worst_case=ledger_rules.WorstCase(per_day_minor=1, per_week_minor=1, per_month_minor=1),
            created_at=at,
        )  # fmt: skip
    else:
        leg = ledger.Leg(account_id=str(SAVINGS), amount_minor=-minor, currency="INR", balance_after_minor=0)
        payload = ledger.AccountPosted(
            account_id=SAVINGS, platform="bfc", legs=(leg,), type="transaction", category=thing.category,
            counterparty=thing.title, memo=thing.memo, reference=f"UPI{crc32(key.encode())}", item_id=key,
            occurred_at=at,
        )  # fmt: skip
    changes = changes_of(_recorded(payload, key, at), ACCOUNTS)
    return [change for change in changes if isinstance(change, Document)]


def _text(document: Document) -> str:
    return " ".join(field.value for field in document.fields)


# --- Who searches -------------------------------------------------------------------------------------


def ours(corpus: Corpus, foreign: list[Document], directory: Path) -> Searcher:
    index = SearchIndex.create(directory, Origin(epoch="", table=""))
    for document in corpus.documents:
        index.put(CALLER, document)
    for document in foreign:
        index.put(OTHER, document)
    index.commit(1)

    async def search(text: str) -> list[str]:
        parsed = parse(text, NOW)
        found = index.search(CALLER, Query(parsed.text), parsed.filters, None, HITS)
        return [result.document.id for result in found.results]

    return search


def bm25(corpus: Corpus) -> Searcher:
    """tantivy as it comes: its default tokenizer and query parser."""
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("id", stored=True, tokenizer_name="raw")
    builder.add_text_field("text")
    index = tantivy.Index(builder.build())
    writer = index.writer(20_000_000, 1)
    for document in corpus.documents:
        writer.add_document(tantivy.Document(id=document.id, text=_text(document)))
    writer.commit()
    index.reload()

    async def search(text: str) -> list[str]:
        searcher = index.searcher()
        query, _ = index.parse_query_lenient(text, ["text"])
        return [str(searcher.doc(address).get_first("id")) for _, address in searcher.search(query, HITS).hits]

    return search


async def postgresql(corpus: Corpus, db: asyncpg.Connection) -> dict[str, Searcher]:
    await db.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")
    await db.execute("CREATE TABLE relevance (id text, text text, date timestamptz)")
    await db.executemany(
        "INSERT INTO relevance VALUES ($1, $2, $3)", [(d.id, _text(d), d.date) for d in corpus.documents]
    )

    def searcher(statement: str) -> Searcher:
        async def search(text: str) -> list[str]:
            return [row["id"] for row in await db.fetch(f"{statement} DESC, date DESC LIMIT {HITS}", text)]

        return search

    return {
        "PostgreSQL full text": searcher(
            "SELECT id FROM relevance WHERE to_tsvector('simple', text) @@ plainto_tsquery('simple', $1)"
            " ORDER BY ts_rank(to_tsvector('simple', text), plainto_tsquery('simple', $1))"
        ),
        "pg_trgm": searcher("SELECT id FROM relevance WHERE $1 <% text ORDER BY word_similarity($1, text)"),
    }


# --- The report ---------------------------------------------------------------------------------------


async def _measure() -> None:
    corpus = Corpus()
    every = corpus.wishes()
    foreign = [
        document
        for number, title in enumerate(FOREIGN)
        for document in _made(Thing(f"foreign{number}", title, "shopping", "theirs"), 0, NOW, 500_00)
    ]
    with (
        tempfile.TemporaryDirectory(prefix="sangam-bench-") as directory,
        Stack(Path(directory, "servers"), applications=False, disposable=True) as stack,
    ):
        db = await asyncpg.connect(stack.fresh_cell().admin_url("search"))
        searchers = {
            "Sangam": ours(corpus, foreign, Path(directory, "index")),
            "BM25": bm25(corpus),
            **await postgresql(corpus, db),
        }
        answers = {name: [await search(wish.text) for wish, _ in every] for name, search in searchers.items()}
        await db.close()
    shutil.rmtree(directory, ignore_errors=True)
    held_out = [crc32(wish.text.encode()) % 2 == 1 for wish, _ in every]
    console = Console(width=150)
    console.print(f"{len(every)} graded queries, {sum(held_out)} of them held out; {len(corpus.documents)} documents")
    for title, chosen in (("held out", True), ("seen while tuning", False)):
        console.print(_table(title, every, answers, [index for index, held in enumerate(held_out) if held == chosen]))
    console.print(_by_kind(every, answers, [index for index, held in enumerate(held_out) if held]))
    if "--misses" in sys.argv:
        for (wish, grades), got, held in zip(every, answers["Sangam"], held_out, strict=True):
            if not held and (not set(got) & set(grades) if grades else got):
                console.print(wish.kind, repr(wish.text), [corpus.thing_of[id_].title for id_ in got[:3]])


def _scores(
    every: list[tuple[Wish, dict[str, int]]], answers: list[list[str]], chosen: list[int]
) -> tuple[float, float]:
    meaning = [index for index in chosen if every[index][1]]
    qrels = Qrels({str(index): every[index][1] for index in meaning})
    run = Run(
        # ranx wants a document for every query: one that is never relevant stands for "nothing".
        {
            str(index): {id_: float(HITS - place) for place, id_ in enumerate(answers[index])} or {"-": 1.0}
            for index in meaning
        }
    )
    found = evaluate(qrels, run, ["ndcg@10", "mrr"])
    return float(found["ndcg@10"]), float(found["mrr"])


def _table(
    title: str, every: list[tuple[Wish, dict[str, int]]], answers: dict[str, list[list[str]]], chosen: list[int]
) -> Table:
    table = Table("who", "nDCG@10", "MRR", "zero results", "false positives", title=f"{title}: {len(chosen)} queries")
    for name, got in answers.items():
        ndcg, mrr = _scores(every, got, chosen)
        meaning = [index for index in chosen if every[index][1]]
        nothing = [index for index in chosen if not every[index][1]]
        table.add_row(
            name,
            f"{ndcg:.3f}",
            f"{mrr:.3f}",
            f"{sum(not got[index] for index in meaning) / len(meaning):.1%}",
            f"{sum(bool(got[index]) for index in nothing) / len(nothing):.1%}",
        )
    return table


def _by_kind(every: list[tuple[Wish, dict[str, int]]], answers: dict[str, list[list[str]]], chosen: list[int]) -> Table:
    kinds = list(dict.fromkeys(wish.kind for wish, grades in every if grades))
    table = Table("who", *kinds, title="nDCG@10 of the held out, by kind")
    for name, got in answers.items():
        cells = []
        for kind in kinds:
            mine = [index for index in chosen if every[index][0].kind == kind and every[index][1]]
            cells.append(f"{_scores(every, got, mine)[0]:.3f} ({len(mine)})")
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    asyncio.run(_measure())
