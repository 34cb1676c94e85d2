"""What a token's scopes let its holder do, by address: a token that was narrowed is good for that much only.

A login's token has all of a customer's scopes. One that an app was granted, or that was exchanged for less, has fewer.
"""

from chassis.problems import Problem

_BY_PREFIX = (
    ("/api/accounts", "accounts:read", "transfers:write"),
    ("/api/transactions", "accounts:read", "accounts:read"),
    ("/api/transfers", "accounts:read", "transfers:write"),
    ("/api/auto-replenish", "accounts:read", "transfers:write"),
    ("/api/sync", "sync:read", "sync:read"),
    ("/ws/sync", "sync:read", "sync:read"),
    ("/api/wealth", "wealth:read", "wealth:read"),
    ("/api/notifications", "notifications:read", "notifications:read"),
    ("/ws/notifications", "notifications:read", "notifications:read"),
    ("/api/search", "search:read", "search:read"),
    ("/api/auth", "account:manage", "account:manage"),
)
"""Prefix, what reading needs, what anything else needs."""

_FOR_EVERYBODY = frozenset(
    f"/api/auth/{name}" for name in ("status", "logout", "logout-all", "sync-session", "exchange-token")
)
"""Whatever the scope: a token may always say what it is, be given up, and be made less."""


def check_scope(scopes: frozenset[str], method: str, path: str) -> None:
    """
    Raises:
        Problem: 403 `insufficient_scope`.
    """
    if not scopes or path in _FOR_EVERYBODY:
        return
    for prefix, reading, otherwise in _BY_PREFIX:
        if path == prefix or path.startswith(f"{prefix}/"):
            needed = reading if method in ("GET", "HEAD") else otherwise
            if needed not in scopes:
                raise Problem(
                    403,
                    "insufficient_scope",
                    f"This needs a token with the scope {needed}",
                    headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'},
                )
            return
