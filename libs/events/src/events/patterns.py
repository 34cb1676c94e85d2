"""Patterns of event types, as people write them and as AMQP topics have them."""

import re


def type_regex(pattern: str) -> str:
    """An AMQP topic pattern as a regular expression over the type with a dot behind it.

    `*` is one word, `#` any number of words, none included. The expression means the same to PostgreSQL and Python.
    """
    words = {"*": r"[^.]+\.", "#": r"([^.]+\.)*"}
    return "^" + "".join(words.get(word, re.escape(word) + r"\.") for word in pattern.split(".")) + "$"


def matching(pattern: str | None, types: frozenset[str]) -> list[str]:
    """The types that a pattern means; all of them without one."""
    if pattern is None:
        return sorted(types)
    expression = re.compile(type_regex(pattern))
    return sorted(each for each in types if expression.search(each + "."))
