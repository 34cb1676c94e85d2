"""The index against the definitions it has to keep to: every answer equals the scoring of every document by hand."""

import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast, get_args
from uuid import UUID

import msgspec
import pytest
from search import engine, vocabulary
from search.documents import AMOUNT_CURRENCY, Document, DocumentType, money
from search.engine import IndexDamaged, Origin, SearchIndex
from search.filters import Filters
from search.index_schema import SHAPE, own
from search.results import Place, facets, ranked
from search.scoring import AMOUNT, Field, Query

AT = datetime(2026, 2, 12, tzinfo=UTC)
ORIGIN = Origin(epoch="e", table="t")
OWNER, OTHER = UUID(int=1), UUID(int=2)
EVERYTHING = Filters()

TITLES = (
    "NIFTY",
    "NIFTY CALL",
    "NIFTY 22000 CALL",
    "Bank NIFTY",
    "Reliance Industries",
    "Reliance Fresh",
    "Lakshmi Stores",
    "लक्ष्मी स्टोर",
    "Chaudhary & Sons",
    "चौधरी ट्रेडर्स",
    "Zomato",
    "Salary",
    "solar panels",
    "Café Coffee Day",
    "Transfer to Vyomo trading wallet W-1",
)
MEMOS = ("Feb salary", "order 778812", "rent for March", "rant about rent", "5 lakh deposit", "", "nifty", "call money")
QUERIES = (
    *TITLES,
    *("nifty call", "call nifty", "nif", "ifty", "nfty", "bank nifty 22000", "relianse", "relaince frsh", "laxmi"),
    *(
        "chaudhary",
        "zomatto",
        "salry",
        "rent",
        "50000",
        "₹50k",
        "5 lakh",
        "500000",
        "778812",
        "77881",
        "7788",
        "778813",
    ),
    *("cafe", "a", "s", "₹", "qqqq", "coffee day", "day coffee", "transfer wallet", "transfr walet", "for", "1"),
    *("salary 50000", "ind", "dust", "lakshmi store", "वेतन", "लक्ष्मी", "relibncw"),
)


def document(dice: random.Random, number: int, title: str | None = None) -> Document:
    memo = dice.choice(MEMOS)
    title = title or dice.choice(TITLES)
    minor = dice.choice((50_000_00, 500_00, 500_050, 5_00_000_00, 1_25))
    currency = dice.choice((AMOUNT_CURRENCY, AMOUNT_CURRENCY, "USD"))
    subtitle = dice.choice(("From BFC savings account SB-1001", "Bought 50 at ₹22,000, option"))
    fields = [
        Field("title", title, True),
        Field("subtitle", subtitle, False),
        Field(AMOUNT, money(minor, currency), False),
    ]
    if memo:
        fields.append(Field("memo", memo, dice.random() < 0.5))
    return Document(
        type=dice.choice(("transaction", "trade", "position", "notification")),
        id=f"D{number}",
        platform=dice.choice(("bfc", "vyomo", None)),
        title=title,
        subtitle=subtitle,
        amount_minor=minor,
        currency=currency,
        category=dice.choice(("rent", "salary", "option", "odd\x1fone")),
        state=dice.choice(("", "open", "closed")),
        date=AT + timedelta(hours=dice.randrange(2000)),
        target="",
        fields=fields,
    )


def filters(dice: random.Random) -> Filters:
    if dice.random() < 0.4:
        return Filters()
    since = AT + timedelta(hours=dice.randrange(1000))
    return Filters(
        types=dice.choice((None, ("trade",), ("position", "transaction"))),
        platforms=dice.choice((None, None, ("vyomo",))),
        states=dice.choice((None, None, ("open",))),
        categories=dice.choice((None, None, ("rent", "option"))),
        since=dice.choice((None, since)),
        until=dice.choice((None, since + timedelta(hours=dice.randrange(1000)))),
        min_amount_minor=dice.choice((None, 500_00)),
        max_amount_minor=dice.choice((None, 50_000_00)),
    )


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SearchIndex]:
    created = SearchIndex.create(tmp_path / "index", ORIGIN)
    yield created
    created.close()


Settle = Callable[[SearchIndex, int], None]


@pytest.fixture(params=["committed", "shown"])
def settle(request: pytest.FixtureRequest) -> Settle:
    """Makes findable what was written, in the files or beside them: there is no difference."""
    return SearchIndex.commit if request.param == "committed" else SearchIndex.show


def every(index: SearchIndex, user: UUID, query: str, wanted: Filters = EVERYTHING, limit: int = 7) -> list[Any]:
    """All pages: score, match and id of every result; counts are the same on each page."""
    seen = []
    after: Place | None = None
    counts = None
    while True:
        found = index.search(user, Query(query), wanted, after, limit)
        assert counts in (None, (found.total, found.facets))
        counts = found.total, found.facets
        seen += [(r.scored.score, r.scored.match, r.document.id) for r in found.results]
        after = found.next_place
        if after is None:
            assert len(seen) == found.total
            return seen


def test_every_answer_is_what_scoring_each_document_by_hand_gives(index: SearchIndex, settle: Settle) -> None:
    dice = random.Random(20260212)
    held: dict[UUID, dict[str, Document]] = {OWNER: {}, OTHER: {}}
    for number in range(240):
        for user in (OWNER, OTHER):
            held[user][f"D{number}"] = document(dice, number)
            index.put(user, held[user][f"D{number}"])
        if number % 60 == 59:
            index.commit(number)
    # Documents change and go, segments merge: nothing of what was before is found.
    for number in range(0, 240, 7):
        held[OWNER][f"D{number}"] = msgspec.structs.replace(document(dice, number), type=held[OWNER][f"D{number}"].type)
        index.put(OWNER, held[OWNER][f"D{number}"])
        gone = held[OTHER].pop(f"D{number}")
        index.remove(OTHER, gone.type, gone.id)
        settle(index, 240 + number)
    for number in range(240, 260):
        held[OWNER][f"D{number}"] = document(dice, number)
        index.put(OWNER, held[OWNER][f"D{number}"])
    settle(index, 1000)
    assert (index.position, index.committed) == (1000, 1000 if settle is SearchIndex.commit else 239)
    classes = set()
    for text in QUERIES:
        for wanted in (Filters(), filters(dice), filters(dice)):
            for user, documents in held.items():
                by_hand = ranked(Query(text), [each for each in documents.values() if wanted.lets_through(each)])
                expected = [(r.scored.score, r.scored.match, r.document.id) for r in by_hand]
                assert every(index, user, text, wanted) == expected, (text, wanted)
                assert index.search(user, Query(text), wanted, None, 5).facets == facets(by_hand)
                classes |= {score for score, _, _ in expected}
    assert classes == {100, 90, 80, 78, 72, 66, 60, 55, 50, 45}


@pytest.mark.parametrize("before", [20, 60])
def test_pages_do_not_shift_while_more_is_written(index: SearchIndex, settle: Settle, before: int) -> None:
    """Whether the results are read or counted, and when writing makes the one the other."""
    dice = random.Random(3)
    for number in range(before):
        index.put(OWNER, document(dice, number, dice.choice(("NIFTY", "NIFTY CALL", "Bank NIFTY", "NFTY"))))
        if number % 3 == 0:
            index.commit(0)  # the last ones come as they may
    settle(index, 1)
    expected = every(index, OWNER, "nifty")
    seen, after = [], None
    while True:
        found = index.search(OWNER, Query("nifty"), Filters(), after, 6)
        seen += [(r.scored.score, r.scored.match, r.document.id) for r in found.results]
        after = found.next_place
        if after is None:
            break
        # The best and the newest there are: above the place where the next page begins.
        for _ in range(5):
            newest = document(dice, before + len(seen) * 10 + dice.randrange(10), "NIFTY")
            index.put(OWNER, msgspec.structs.replace(newest, date=AT + timedelta(days=900)))
        settle(index, len(seen))
    assert seen == expected
    assert found.total > before


def test_nothing_of_another_customer_is_in_any_answer(
    index: SearchIndex, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results, totals, facets, suggestions: the same as if the other customer were not there."""
    monkeypatch.setattr(engine, "FRESH_OF_ONE_MAX", 1_000)
    dice = random.Random(7)
    letters = "aeiklmnrstलक्ष 0123"
    secrets = ["".join(dice.choices(letters, k=dice.randrange(3, 12))).strip() or "x" for _ in range(300)]
    for number, secret in enumerate(secrets):
        index.put(OTHER, document(dice, number, secret))
        index.put(OTHER, document(dice, 1000 + number, f"{secret} {dice.choice(secrets)}"))
    index.put(OWNER, document(dice, 1, "Salary"))
    settle(index, 1)
    assert index.committed == (1 if settle is SearchIndex.commit else 0)
    texts = [
        *secrets,
        *("50000", "500", "₹5000.50", "5 lakh", "125"),
        *(s[: dice.randrange(1, len(s) + 1)] for s in secrets),
        OTHER.hex,
        f"{OTHER.hex}\x1fx",
        "\x1f",
        "D1",
    ]
    for text in texts:
        found = index.search(OWNER, Query(text), Filters(), None, 10)
        mine = [result.document.title for result in found.results]
        assert set(mine) <= {"Salary"}
        assert found.total == len(mine) == sum(found.facets.type.values()) == sum(found.facets.category.values())
        assert {each.title for each in index.suggest(OWNER, text, 10)} <= {"Salary"}
    assert [each.title for each in index.suggest(OWNER, "sal", 5)] == ["Salary"]


def test_suggestions_are_titles_as_they_are_written(index: SearchIndex, settle: Settle) -> None:
    dice = random.Random(1)
    for number, title in enumerate(
        ("Reliance Fresh", "Reliance Fresh", "Reliance Industries", "Fresh Farms", "लक्ष्मी स्टोर")
    ):
        index.put(OWNER, document(dice, number, title))
        settle(index, number)
    gone = document(dice, 9, "Reliance Gone")
    index.put(OWNER, gone)
    index.commit(10)
    index.put(OWNER, document(dice, 10, "Freshwater"))
    index.remove(OWNER, gone.type, gone.id)
    settle(index, 20)
    assert [s.title for s in index.suggest(OWNER, "freshw", 5)] == ["Freshwater"]
    index.remove(OWNER, "trade", "D10")
    index.remove(OWNER, "transaction", "D10")
    index.remove(OWNER, "position", "D10")
    index.remove(OWNER, "notification", "D10")
    settle(index, 21)
    assert [s.title for s in index.suggest(OWNER, "rel", 5)] == ["Reliance Fresh", "Reliance Industries"]
    assert [s.title for s in index.suggest(OWNER, "fresh", 5)] == ["Fresh Farms", "Reliance Fresh"]
    assert [s.title for s in index.suggest(OWNER, "लक्ष", 5)] == ["लक्ष्मी स्टोर"]
    assert [s.documents for s in index.suggest(OWNER, "reliance f", 5)] == [2]
    for type_ in get_args(DocumentType):
        index.remove(OWNER, type_, "D0")
    settle(index, 30)
    assert [s.documents for s in index.suggest(OWNER, "reliance f", 5)] == [1]


def test_a_word_with_a_digit_is_not_a_misspelt_one_among_many_either(index: SearchIndex) -> None:
    dice = random.Random(1)
    for number in range(60):
        index.put(OWNER, document(dice, number, "Zebra7"))
    index.commit(60)
    assert len(every(index, OWNER, "zebra7")) == 60
    assert every(index, OWNER, "zebraz") == []


def test_what_is_erased_is_gone_from_answers_and_words(index: SearchIndex) -> None:
    index.put(OWNER, document(random.Random(1), 1, "Zebra"))
    index.put(OTHER, document(random.Random(1), 1, "Zebra"))
    index.commit(1)
    assert len(every(index, OWNER, "zebar")) == 1
    index.put(OWNER, document(random.Random(1), 2, "Zebra"))
    index.show(2)
    assert len(every(index, OWNER, "zebra")) == 2
    index.erase(OWNER)
    index.show(3)
    assert every(index, OWNER, "zebra") == every(index, OWNER, "zebar") == []
    assert index.suggest(OWNER, "z", 5) == []
    assert len(every(index, OTHER, "zebra")) == 1


class Counted:
    """A searcher that counts how often a customer's words are read from the files."""

    def __init__(self, index: SearchIndex) -> None:
        self.index = index._index
        self.reads: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None
        index._index = cast(Any, self)
        index._view = index._view._replace(searcher=cast(Any, self.searcher()))

    def searcher(self) -> "Counted":
        self._searcher = self.index.searcher()
        return self

    def terms_with_prefix(self, field: str, start: str, **more: Any) -> Any:
        if field == "letters":
            self.reads.append(start)
        found = self._searcher.terms_with_prefix(field, start, **more)
        self.meanwhile()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.index if hasattr(self.index, name) else self._searcher, name)


def test_words_are_kept_at_hand_until_their_customer_writes(
    index: SearchIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "CUSTOMERS_MAX", 2)
    dice, users = random.Random(1), [UUID(int=number) for number in range(1, 5)]
    for user in users:
        index.put(user, document(dice, 1, "Zebra"))
    index.commit(1)
    counted = Counted(index)

    def reads(user: UUID, query: str = "zebar") -> int:
        counted.reads.clear()
        assert len(every(index, user, query)) == 1
        assert set(counted.reads) <= {own(user, "")}
        return len(counted.reads)

    assert [reads(users[0]), reads(users[0]), reads(users[0], "ebra")] == [1, 0, 0]
    every(index, users[3], "50001")  # a number is never misspelt: no word can be meant
    assert counted.reads == []
    # Somebody else's writing changes nothing; one's own is seen at once.
    index.put(users[1], document(dice, 2, "Quagga"))
    index.commit(2)
    assert reads(users[0]) == 0
    index.put(users[0], document(dice, 2, "Quagga"))
    index.commit(3)
    assert [reads(users[0], "quabga"), reads(users[0], "quabga")] == [1, 0]
    # The ones not asked for the longest time make room.
    assert [reads(users[n]) for n in (2, 3, 2, 0, 2, 3)] == [1, 1, 0, 1, 0, 1]


def test_words_read_before_a_commit_are_not_kept_after_it(index: SearchIndex) -> None:
    index.put(OWNER, document(random.Random(1), 1, "Zebra"))
    index.commit(1)
    counted = Counted(index)

    def written_meanwhile() -> None:
        counted.meanwhile = lambda: None
        index.put(OWNER, document(random.Random(1), 2, "Quagga"))
        index.commit(2)

    counted.meanwhile = written_meanwhile
    every(index, OWNER, "quabga")
    assert len(every(index, OWNER, "quabga")) == 1


def test_an_index_is_opened_at_its_last_commit(tmp_path: Path) -> None:
    index = SearchIndex.create(tmp_path / "index", ORIGIN)
    index.put(OWNER, document(random.Random(1), 1, "Zebra"))
    index.commit(41)
    index.put(OWNER, document(random.Random(1), 2, "Zebra"))
    index.close()
    opened = SearchIndex.open(tmp_path / "index")
    assert (opened.position, opened.origin, opened.documents) == (41, ORIGIN, 1)
    opened.close()


def test_what_is_shown_is_found_and_comes_again_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "FRESH_OF_ONE_MAX", 3)
    monkeypatch.setattr(engine, "FRESH_MAX", 5)
    index = SearchIndex.create(tmp_path / "index", ORIGIN)
    index.put(OWNER, document(random.Random(1), 1, "Zebra"))
    index.show(41)
    assert (index.position, index.committed, len(every(index, OWNER, "zebra"))) == (41, 0, 1)
    index.close()
    index = SearchIndex.open(tmp_path / "index")
    assert (index.position, every(index, OWNER, "zebra")) == (0, [])
    # What is too much for memory, of one customer or of all, is committed.
    for number in range(4):
        index.put(OWNER, document(random.Random(1), number, "Zebra"))
        index.show(number)
    assert (index.committed, len(every(index, OWNER, "zebra"))) == (3, 4)
    for number in range(6):
        index.put(UUID(int=100 + number), document(random.Random(1), number, "Zebra"))
        index.show(10 + number)
    assert (index.committed, index.documents) == (15, 10)
    index.close()


def test_an_index_of_another_shape_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SearchIndex.create(tmp_path / "index", ORIGIN).close()
    monkeypatch.setattr(engine, "SHAPE", SHAPE + 1)
    with pytest.raises(IndexDamaged, match="shape"):
        SearchIndex.open(tmp_path / "index")


def test_damage_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "index"
    index = SearchIndex.create(path, ORIGIN)
    for number in range(50):
        index.put(OWNER, document(random.Random(number), number))
    index.commit(1)
    index.close()
    files = [file for file in path.iterdir() if file.suffix not in (".lock", ".json")]
    assert len(files) >= 6
    for file in [*files, path / "meta.json"]:
        whole = file.read_bytes()
        for broken in (whole[: len(whole) // 2], bytes([whole[0] ^ 1]) + whole[1:], b"", None):
            # A file of its own each time: one that is cut off under a mapping of the engine's ends the process.
            file.unlink()
            if broken is not None:
                file.write_bytes(broken)
            with pytest.raises(IndexDamaged):
                SearchIndex.open(path).close()
            file.unlink(missing_ok=True)
            file.write_bytes(whole)
    # What a kill has left is no damage: no commit names it.
    (path / files[0].name.replace(files[0].suffix, ".999.del")).write_bytes(b"")
    SearchIndex.open(path).close()


def test_documents_and_their_position_are_committed_at_once(tmp_path: Path) -> None:
    """A crash just after any commit of the library leaves both or neither."""
    index = SearchIndex.create(tmp_path / "index", ORIGIN)
    writer: Any = index._writer

    class Dying:
        def __getattr__(self, name: str) -> Any:
            return getattr(writer, name)

        def commit(self) -> None:
            writer.commit()
            raise ConnectionAbortedError("killed")

    index._writer = cast(Any, Dying())
    index.put(OWNER, document(random.Random(1), 1))
    with pytest.raises(IndexDamaged):
        index.commit(7)
    index._writer = writer
    index.close()
    writer = None
    opened = SearchIndex.open(tmp_path / "index")
    assert (opened.documents, opened.position) == (1, 7)
    opened.close()


WRITER = textwrap.dedent("""
    import random, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from test_engine import ORIGIN, OWNER, document
    from search.engine import SearchIndex
    index = SearchIndex.create(Path(sys.argv[1]), ORIGIN)
    for position in range(1, 100_000):
        for number in range(20):
            index.put(OWNER, document(random.Random(number), position * 20 + number))
        print(position, flush=True)
        index.commit(position)
""")


@pytest.mark.chaos
def test_killed_in_the_middle_of_commits_it_is_whole_at_one_of_them(tmp_path: Path) -> None:
    """A position that is committed holds all of its documents and none of the next."""
    dice = random.Random(5)
    for attempt in range(4):
        path = tmp_path / str(attempt)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        last = 0
        for _ in range(dice.randrange(5, 25)):
            last = int(writer.stdout.readline())
        # A commit is under way: the kill meets it somewhere in its ~10 ms.
        try:
            writer.wait(dice.uniform(0, 0.01))
        except subprocess.TimeoutExpired:
            writer.send_signal(signal.SIGKILL)
        writer.wait()
        opened = SearchIndex.open(path)
        assert opened.position >= last - 1
        assert opened.documents == opened.position * 20
        opened.close()
