"""Asking a loopback HTTP server whether it works."""

import http.client
import socket
import urllib.error
import urllib.request

# A proxy from the environment must not see, nor break, what is on loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def why_not_200(url: str, timeout_s: float = 3.0) -> str | None:
    """None when `url` answers 200, else what it does instead."""
    try:
        with _OPENER.open(url, timeout=timeout_s) as response:
            return None if response.status == 200 else f"{url} answers {response.status}"
    except urllib.error.HTTPError as refusal:
        return f"{url} answers {refusal.code}: {refusal.read(500).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {error}"


def why_closed(port: int) -> str | None:
    """None when something accepts connections on that loopback port, else what happens instead."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError as error:
        return f"port {port}: {error}"
    return None
