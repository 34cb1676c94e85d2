"""The notifier's settings, as a deployment would have them."""

import base64
from typing import Any

from chassis.settings import Secret
from notifier.settings import Settings
from read_side import ISSUER

MASTER = base64.b64encode(bytes(range(32))).decode()
"""The tests' master key of the data subjects' keys."""


def settings_of(**changes: Any) -> Settings:
    """Settings as a deployment would have them; nothing is sent anywhere unless a test names a server."""
    from py_vapid import Vapid02

    vapid = Vapid02()
    vapid.generate_keys()
    key = vapid.private_key.private_numbers().private_value.to_bytes(32, "big")
    values: dict[str, Any] = {
        "database_url": Secret("postgresql://"),
        "event_store_url": Secret("postgresql://"),
        "amqp_url": Secret("amqp://"),
        "http_port": 0,
        "token_issuer": ISSUER,
        "cursor_secret": Secret("a secret of the tests"),
        "subject_keys_url": Secret("postgresql://"),
        "subject_master_key": Secret(MASTER),
        "vapid_private_key": Secret(base64.urlsafe_b64encode(key).rstrip(b"=").decode()),
        "send_timeout_s": 1.0,
        **changes,
    }
    return Settings(**values)
