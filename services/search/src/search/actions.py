"""What a client can do next with what it found, as far as its state allows. Pure.

An `href` is a route of this API, or (`vyomo:`) a link into the broker's app, for what only the broker can do.
"""

from datetime import timedelta, timezone
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec

from search.documents import Document

_IST = timezone(timedelta(hours=5, minutes=30))


class Action(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    label: str
    method: Literal["GET", "POST", "PUT", "PATCH"]
    href: str
    body: dict[str, str] | None = None


def actions_of(document: Document) -> list[Action]:
    """What can be done with the document as it is."""
    target, state = document.target, document.state
    match document.type:
        case "transaction":
            return _of_transaction(document)
        case "trade":
            return [_search("Show position", target, "position")]
        case "position":
            return _of_position(document)
        case "account":
            actions = [_get("View account", target)]
            if state == "active":
                actions.append(Action(label="Freeze account", method="POST", href=f"{target}/freeze"))
            elif state == "frozen":
                actions.append(Action(label="Unfreeze account", method="POST", href=f"{target}/unfreeze"))
            return actions
        case "rule":
            change, to = ("Resume rule", "active") if state == "paused" else ("Pause rule", "paused")
            return [
                _get("View rule", target),
                Action(label=change, method="PATCH", href=f"{target}/status", body={"status": to}),
                _get("View history", f"{target}/history"),
            ]
        case "notification":
            if state == "read":
                return []
            return [Action(label="Mark as read", method="PUT", href=f"{target}/read")]
        case "insight":
            return [
                _get("View insights", "/api/wealth/insights"),
                Action(label="Dismiss", method="POST", href=f"{target}/dismiss"),
            ]


def _of_transaction(document: Document) -> list[Action]:
    if document.target.startswith("/api/transfers/"):
        return [_get("View transfer", document.target)]
    month = document.date.astimezone(_IST).strftime("%Y-%m")
    return [
        _get("View account", document.target),
        _get("View statement", f"{document.target}/statement?month={month}"),
    ]


def _of_position(document: Document) -> list[Action]:
    if document.platform == "bfc":
        return [_get("View net worth", "/api/wealth/net-worth")]
    actions = [_search("Show trades", document.target, "trade"), _get("View net worth", "/api/wealth/net-worth")]
    if document.state == "open":
        # Only the broker can close it; there is no route of ours for it.
        actions.append(_get("Close position", f"vyomo://positions/{quote(document.id, safe='')}/close"))
    return actions


def _get(label: str, href: str) -> Action:
    return Action(label=label, method="GET", href=href)


def _search(label: str, text: str, document_type: str) -> Action:
    query = urlencode({"q": text, "types": document_type})
    return _get(label, f"/api/search?{query}")
