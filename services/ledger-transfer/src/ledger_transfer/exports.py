"""The history as files that other accounting tools accept: CSV, OFX, hledger, beancount. Pure.

- hledger journal: https://hledger.org/hledger.html#journal
- beancount: https://beancount.github.io/docs/beancount_language_syntax.html
- OFX 2.2 (XML): https://financialdataexchange.org/ofx, statements of BANKMSGSRSV1

One event of the log is one journal entry: an own transfer touches two accounts of the customer, anything else has its
other side in Income, Expenses or Equity. Each journal ends by asserting the balances we report, so that the tool
itself refuses a file that does not add up. Days are India's.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import Final, Literal
from uuid import UUID
from xml.sax.saxutils import escape

import msgspec
from chassis.money import format_amount

from ledger_transfer.limits import IST
from ledger_transfer.projections.accounts import AccountRow
from ledger_transfer.projections.transactions import TransactionRow

ExportFormat = Literal["csv", "hledger", "beancount", "ofx"]

MEDIA_TYPES: Final[Mapping[ExportFormat, tuple[str, str]]] = {
    "csv": ("text/csv; charset=utf-8", "csv"),
    "hledger": ("text/plain; charset=utf-8", "journal"),
    "beancount": ("text/plain; charset=utf-8", "beancount"),
    "ofx": ("application/x-ofx", "ofx"),
}
"""Media type and file extension of each format."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_OFX_KINDS: Final = {
    "savings": "SAVINGS",
    "current": "CHECKING",
    "fixed_deposit": "CD",
    "trading_wallet": "MONEYMRKT",
}


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported."""

    accounts: Sequence[AccountRow]
    before: Mapping[UUID, int]
    """Each account's balance before the first row, in minor units; absent: zero."""
    rows: Sequence[TransactionRow]
    """In order of their time."""
    until: datetime
    """Exclusive: everything before it is in."""


def render(export: Export, format_: ExportFormat) -> str:
    """The file."""
    match format_:
        case "csv":
            return csv_of(export.rows)
        case "hledger":
            return "".join(_hledger(export))
        case "beancount":
            return "".join(_beancount(export))
        case "ofx":
            return "".join(_ofx(export))


def csv_of(rows: Iterable[TransactionRow]) -> str:
    """RFC 4180, with a header line. Amounts are signed: a debit is negative."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(
        [
            *("occurred_at", "id", "platform", "account_id", "type", "category", "amount", "currency"),
            *("balance_after", "counterparty", "memo", "reference", "transfer_id"),
        ]
    )
    for row in rows:
        writer.writerow(
            [
                row.occurred_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                row.transaction_id,
                row.platform,
                row.account_id,
                row.type,
                _cell(row.category),
                format_amount(_signed(row), row.currency),
                row.currency,
                format_amount(row.balance_after_minor, row.currency),
                _cell(row.counterparty),
                _cell(row.memo),
                _cell(row.reference),
                row.transfer_id or "",
            ]
        )
    return file.getvalue()


class _Entry(msgspec.Struct, frozen=True):
    """One journal entry. The amounts of each currency sum to zero."""

    day: date
    payee: str
    memo: str
    reference: str
    postings: list[tuple[str, int, str]]


def _entries(export: Export, names: Mapping[UUID, str]) -> Iterator[_Entry]:
    first = export.rows[0].occurred_at if export.rows else export.until - timedelta(seconds=1)
    carried = [
        (names[account.account_id], balance, account.currency)
        for account in export.accounts
        if (balance := export.before.get(account.account_id, 0))
    ]
    for name, balance, currency in carried:
        postings = [(name, balance, currency), ("Equity:Carried-Forward", -balance, currency)]
        yield _Entry(_day(first), "", "Balance carried forward", "", postings)
    for _, group in groupby(export.rows, key=lambda row: (row.occurred_at, row.position)):
        rows = list(group)
        main = rows[0]
        postings = [(names[row.account_id], _signed(row), row.currency) for row in rows]
        sums: dict[str, int] = {}
        for row in rows:
            sums[row.currency] = sums.get(row.currency, 0) + _signed(row)
        postings += [(_other_side(main, total), -total, currency) for currency, total in sums.items() if total]
        yield _Entry(
            _day(main.occurred_at),
            _one_line(main.counterparty),
            _one_line(main.memo or main.type.replace("_", " ").capitalize()),
            _one_line(main.reference or (str(main.transfer_id) if main.transfer_id else None)),
            postings,
        )


def _used(names: Mapping[UUID, str], entries: Sequence[_Entry]) -> Iterable[str]:
    """Every account name: both tools, when strict, want them declared."""
    return dict.fromkeys([*names.values(), *(name for entry in entries for name, _, _ in entry.postings)])


def _hledger(export: Export) -> Iterator[str]:
    names = _names(export.accounts)
    for currency in sorted({account.currency for account in export.accounts}):
        yield f"commodity {format_amount(100_000, currency)} {currency}\n"
    yield "\n"
    entries = list(_entries(export, names))
    for name in _used(names, entries):
        yield f"account {name}\n"
    for entry in entries:
        # `|` parts payee from note, `;` begins a comment, and brackets hold the code.
        words = [text.translate(_HLEDGER_SPECIAL) for text in (entry.payee, entry.memo)]
        reference = entry.reference.translate(_HLEDGER_SPECIAL)
        code = f"({reference}) " if reference else ""
        yield f"\n{entry.day} * {code}{' | '.join(word for word in words if word)}\n"
        for name, minor, currency in entry.postings:
            yield f"    {name}  {format_amount(minor, currency)} {currency}\n"
    if export.accounts:
        yield f"\n{_last_day(export)} * Balances as reported\n"
    for account, balance in _closing(export):
        amount = f"{format_amount(balance, account.currency)} {account.currency}"
        yield f"    {names[account.account_id]}  0 {account.currency} = {amount}\n"


def _beancount(export: Export) -> Iterator[str]:
    names = _names(export.accounts)
    entries = list(_entries(export, names))
    first = min((entry.day for entry in entries), default=_last_day(export))
    yield 'option "title" "Sangam"\n'
    for currency in sorted({account.currency for account in export.accounts}):
        yield f'option "operating_currency" "{currency}"\n'
    yield "\n"
    for name in _used(names, entries):
        yield f"{first} open {name}\n"
    for entry in entries:
        payee = f'"{_quoted(entry.payee)}" ' if entry.payee else ""
        yield f'\n{entry.day} * {payee}"{_quoted(entry.memo)}"\n'
        if entry.reference:
            yield f'    reference: "{_quoted(entry.reference)}"\n'
        for name, minor, currency in entry.postings:
            yield f"    {name}  {format_amount(minor, currency)} {currency}\n"
    # A beancount assertion is about the beginning of its day.
    day = _last_day(export) + timedelta(days=1)
    yield "\n"
    for account, balance in _closing(export):
        amount = f"{format_amount(balance, account.currency)} {account.currency}"
        yield f"{day} balance {names[account.account_id]}  {amount}\n"


def _ofx(export: Export) -> Iterator[str]:
    now = _ofx_time(export.until)
    yield '<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'
    yield '<?OFX OFXHEADER="200" VERSION="220" SECURITY="NONE" OLDFILEUID="NONE" NEWFILEUID="NONE"?>\n'
    yield "<OFX><SIGNONMSGSRSV1><SONRS><STATUS><CODE>0</CODE><SEVERITY>INFO</SEVERITY></STATUS>"
    yield f"<DTSERVER>{now}</DTSERVER><LANGUAGE>ENG</LANGUAGE></SONRS></SIGNONMSGSRSV1>\n<BANKMSGSRSV1>\n"
    start = _ofx_time(export.rows[0].occurred_at if export.rows else export.until)
    for number, (account, balance) in enumerate(_closing(export)):
        yield f"<STMTTRNRS><TRNUID>{number}</TRNUID><STATUS><CODE>0</CODE><SEVERITY>INFO</SEVERITY></STATUS>"
        yield f"<STMTRS><CURDEF>{account.currency}</CURDEF>"
        yield f"<BANKACCTFROM><BANKID>{account.platform.upper()}</BANKID>"
        yield f"<ACCTID>{_xml(account.platform_account_id, 22)}</ACCTID>"
        yield f"<ACCTTYPE>{_OFX_KINDS[account.kind]}</ACCTTYPE></BANKACCTFROM>\n"
        yield f"<BANKTRANLIST><DTSTART>{start}</DTSTART><DTEND>{now}</DTEND>\n"
        for row in export.rows:
            if row.account_id == account.account_id:
                yield f"<STMTTRN><TRNTYPE>{'XFER' if row.transfer_id else row.direction.upper()}</TRNTYPE>"
                yield f"<DTPOSTED>{_ofx_time(row.occurred_at)}</DTPOSTED>"
                yield f"<TRNAMT>{format_amount(_signed(row), row.currency)}</TRNAMT><FITID>{row.transaction_id}</FITID>"
                yield f"<NAME>{_xml(row.counterparty or row.category, 32)}</NAME>"
                yield f"<MEMO>{_xml(row.memo or row.type, 255)}</MEMO></STMTTRN>\n"
        yield f"</BANKTRANLIST><LEDGERBAL><BALAMT>{format_amount(balance, account.currency)}</BALAMT>"
        yield f"<DTASOF>{now}</DTASOF></LEDGERBAL></STMTRS></STMTTRNRS>\n"
    yield "</BANKMSGSRSV1></OFX>\n"


def _closing(export: Export) -> list[tuple[AccountRow, int]]:
    balances = dict(export.before)
    for row in export.rows:
        balances[row.account_id] = balances.get(row.account_id, 0) + _signed(row)
    return [(account, balances.get(account.account_id, 0)) for account in export.accounts]


def _names(accounts: Sequence[AccountRow]) -> dict[UUID, str]:
    """An account name per account that both hledger and beancount take: parts of letters, digits and dashes."""
    names: dict[UUID, str] = {}
    for account in accounts:
        kind = _part(account.kind.replace("_", " ").title())
        name = f"Assets:{account.platform.upper()}:{kind}-{_part(account.platform_account_id)}"
        # Two ids may differ in signs alone.
        names[account.account_id] = name if name not in names.values() else f"{name}-{account.account_id.hex}"
    return names


def _other_side(row: TransactionRow, total: int) -> str:
    if row.type == "opening_balance":
        return "Equity:Opening-Balances"
    return f"{'Income' if total > 0 else 'Expenses'}:{_part(row.category.replace('_', ' ').title())}"


def _part(text: str) -> str:
    part = _NOT_IN_A_NAME.sub("-", text).strip("-")
    return part[0].upper() + part[1:] if part else "Other"


def _one_line(text: str | None) -> str:
    return " ".join(_CONTROL.sub(" ", text or "").split())


_HLEDGER_SPECIAL: Final = str.maketrans({";": ",", "|": "/", "(": "[", ")": "]"})


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _xml(text: str, length: int) -> str:
    return escape(_one_line(text)[:length])


def _cell(text: str | None) -> str:
    """A spreadsheet must not take a memo for a formula."""
    return f"'{text}" if text and text.startswith(_FORMULA) else text or ""


def _signed(row: TransactionRow) -> int:
    return row.amount_minor if row.direction == "credit" else -row.amount_minor


def _day(at: datetime) -> date:
    return at.astimezone(IST).date()


def _last_day(export: Export) -> date:
    return max(
        _day(export.rows[-1].occurred_at) if export.rows else date.min, _day(export.until - timedelta(seconds=1))
    )


def _ofx_time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y%m%d%H%M%S.000[0:GMT]")
