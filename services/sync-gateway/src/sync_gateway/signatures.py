"""Proof that a feed batch comes from its platform: Standard Webhooks signatures (https://www.standardwebhooks.com)."""

import binascii
from collections.abc import Mapping, Sequence

from standardwebhooks import Webhook

from sync_gateway.feeds import Platform

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public prefix, not a secret
KEY_BYTES_MIN = 24


class InvalidSecret(ValueError):
    """The configured secret is no Standard Webhooks secret. The message never contains it."""


class InvalidSignature(Exception):
    """The batch is unsigned, tampered with, stale, malformed or signed with another key."""


class FeedSignatures:
    """Verifies each platform's batches with that platform's secret only."""

    def __init__(self, secrets: Mapping[Platform, str | Sequence[str]]) -> None:
        """Several secrets of a platform are all valid: the former and the next one while it is rotated.

        Raises:
            InvalidSecret: a secret is not `whsec_` and at least 24 bytes in base64.
        """
        self._webhooks = {
            platform: [_webhook(platform, secret) for secret in ([given] if isinstance(given, str) else given)]
            for platform, given in secrets.items()
        }

    def verify(self, platform: Platform, headers: Mapping[str, str], body: bytes) -> None:
        """Accepts a batch signed within the last five minutes.

        Raises:
            InvalidSignature: for whatever reason; which one is not told to the sender.
        """
        fault: Exception = InvalidSignature("no secret")
        for webhook in self._webhooks[platform]:
            try:
                webhook.verify(body, dict(headers), json_parse=False)
            except Exception as error:
                # Not only WebhookVerificationError: standardwebhooks 1.1.0 lets through what its parsing of
                # malformed headers and bodies raises (binascii.Error, ValueError, UnicodeError, …).
                fault = error
            else:
                return
        raise InvalidSignature(type(fault).__name__) from fault


def _webhook(platform: Platform, secret: str) -> Webhook:
    encoded = secret.removeprefix(SECRET_PREFIX)
    try:
        key = binascii.a2b_base64(encoded + "=" * (-len(encoded) % 4), strict_mode=True)
    except ValueError:
        key = b""
    if encoded == secret or len(key) < KEY_BYTES_MIN:
        raise InvalidSecret(f"the feed secret of {platform} must be whsec_ and base64 of {KEY_BYTES_MIN} bytes or more")
    return Webhook(key)
