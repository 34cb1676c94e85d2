"""A feed batch cut into its items without recursion, for the batch that a recursive parser gives up on. Pure."""

import re

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)
_OPENING = re.compile(rb'\s*\{\s*"items"\s*:\s*\[')


def split_items(body: bytes) -> list[bytes]:
    """The bytes of each item of `{"items": [...]}`, whatever is inside them.

    Raises:
        ValueError: the body is not of exactly that form.
    """
    opening = _OPENING.match(body)
    if opening is None:
        raise ValueError("the body must be an object with `items` alone")
    items: list[bytes] = []
    depth, start = 0, opening.end()
    for token in _TOKEN.finditer(body, opening.end()):
        mark = token[0]
        if mark in b"[{":
            depth += 1
        elif mark in b"]}" and depth:
            depth -= 1
        elif depth == 0 and mark in (b",", b"]"):
            item = body[start : token.start()].strip()
            if item or items or mark == b",":
                items.append(item)
            start = token.end()
            if mark == b"]":
                if body[start:].strip() != b"}":
                    raise ValueError("there is something after the items")
                return items
    raise ValueError("the items do not end")
