"""What a customer reads: the templates of each language are data (`<language>.toml`), this fills them.

A value keeps its meaning until it is written, so that one fact can be told in any language: `Money`, `Account`,
`Moment`, `Word`, or plain text, which is put in as it is and never read as a template.
"""

import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from datetime import timezone as fixed_zone
from importlib import resources
from typing import Any, get_args
from uuid import UUID

import msgspec
from chassis.money import format_amount, rupees
from events.contracts.notification import Language

LANGUAGES: tuple[Language, ...] = get_args(Language)
IST = fixed_zone(timedelta(hours=5, minutes=30), "IST")
"""India has one zone and no daylight saving time."""


class Money(msgspec.Struct, frozen=True, gc=False, tag="money", array_like=True):
    """₹50,000 in rupees, "USD 50.00" in anything else; with `plus` a gain gets its sign."""

    minor: int
    currency: str
    plus: bool = False


class Account(msgspec.Struct, frozen=True, gc=False, tag="account", array_like=True):
    """What the customer calls the account, e.g. "BFC savings account SB-1001"."""

    account_id: UUID


class Moment(msgspec.Struct, frozen=True, gc=False, tag="moment", array_like=True):
    at: datetime


class Word(msgspec.Struct, frozen=True, gc=False, tag="word", array_like=True):
    """An entry of `[words]` or `[names]`, itself perhaps a template over one value."""

    key: str
    values: "dict[str, str | Money]" = {}


Value = str | Money | Account | Moment | Word


class AccountName(msgspec.Struct, frozen=True):
    """What an account's name is made of."""

    platform: str
    kind: str
    number: str


Names = Mapping[UUID, AccountName]


# Read at the start: the first one who is told something does not wait for it.
_CATALOGUES: dict[Language, dict[str, Any]] = {
    language: tomllib.loads(resources.files(__name__).joinpath(f"{language}.toml").read_text("utf-8"))
    for language in LANGUAGES
}


def catalogue(language: Language) -> dict[str, Any]:
    """All templates of a language."""
    return _CATALOGUES[language]


def money(minor: int, currency: str, *, plus: bool = False) -> str:
    """An amount as a person in India reads it."""
    if currency == "INR":
        return rupees(minor, plus=plus)
    return f"{currency} {'+' if plus and minor > 0 else ''}{format_amount(minor, currency)}"


def moment(at: datetime, language: Language) -> str:
    """12 Feb 2026, 14:30 IST."""
    names = catalogue(language)["names"]
    local = at.astimezone(IST)
    text: str = names["moment"].format(
        day=local.day, month=names["months"][local.month - 1], year=local.year, time=f"{local:%H:%M} IST"
    )
    return text


def written(value: Value, language: Language, names: Names) -> str:
    """A value as it is read in `language`. An account that nobody has named is "an account"."""
    match value:
        case str():
            return value
        case Money(minor, currency, plus):
            return money(minor, currency, plus=plus)
        case Moment(at):
            return moment(at.astimezone(UTC), language)
        case Account(account_id):
            words = catalogue(language)["names"]
            name = names.get(account_id)
            if name is None:
                return str(words["an_account"])
            return str(
                words["account"].format(
                    platform=words[name.platform], kind=words.get(name.kind, name.kind), number=name.number
                )
            )
        case Word(key, values):
            texts = catalogue(language)
            template = texts["words"].get(key) or texts["names"].get(key) or key
            return str(template).format_map({name: written(inner, language, names) for name, inner in values.items()})


def single(key: str, part: str, values: Mapping[str, Value], language: Language, names: Names) -> str:
    """The `part` ("title" or "body") of a notification that tells one fact."""
    template: str = catalogue(language)["single"][key][part]
    return template.format_map({name: written(value, language, names) for name, value in values.items()})


def several(key: str, part: str, values: Mapping[str, Value], language: Language, names: Names) -> str:
    """The `part` ("title", "title_unsummed" or "body") of a notification that tells several facts."""
    template: str = catalogue(language)["several"][key][part]
    return template.format_map({name: written(value, language, names) for name, value in values.items()})


def label(action: str, language: Language) -> str:
    """What a button says. An operator's own label is used as it is."""
    return str(catalogue(language)["words"]["actions"].get(action, action))


def mail(key: str, language: Language, **values: str) -> str:
    """A text of an e-mail that is no notification."""
    texts = catalogue(language)["mail"]
    return str(texts.get(key) or texts["subject_code"]).format_map(values)
