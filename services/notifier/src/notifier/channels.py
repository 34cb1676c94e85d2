"""The channels out of the house: what a message looks like on each, and what an answer means."""

import base64
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr, parsedate_to_datetime
from functools import cached_property
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import aiosmtplib
import msgspec
import structlog
from chassis.egress import Egress, Reply, signed_headers
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from events.contracts.notification import Language
from py_vapid import Vapid02
from pywebpush import WebPusher, WebPushException

from notifier import texts
from notifier.deliveries import Outcome
from notifier.projections.inbox import Notification
from notifier.settings import Settings

log = structlog.get_logger(__name__)

_PUSH_TTL_S_MAX = 4 * 3600
_PUSH_BYTES_MAX = 3_500
"""Push services take 4,096 bytes of ciphertext (RFC 8030, 7.2)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u2028\u2029]+")


class Subscription(NamedTuple):
    """A browser's push subscription (W3C Push API)."""

    endpoint: str
    p256dh: str
    auth: str


class Message(NamedTuple):
    """What is to be said in one message: one notification, or several that quiet hours held back."""

    id: UUID
    items: Sequence[Notification]
    language: Language
    expires_at: datetime

    @property
    def title(self) -> str:
        if len(self.items) == 1:
            return self.items[0].title
        return texts.single("digest", "title", {"count": str(len(self.items))}, self.language, {})

    @property
    def body(self) -> str:
        if len(self.items) == 1:
            return self.items[0].body
        return "\n".join(f"{item.emoji} {item.title}" for item in self.items)


class Mailer(Protocol):
    async def send(self, to: str, message: EmailMessage) -> Outcome: ...


class Mail:
    """E-mail over SMTP."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def send(self, to: str, message: EmailMessage) -> Outcome:
        """Hands one message to the mail server. A connection of its own: mails are few."""
        settings = self._settings
        if settings.smtp_host is None:
            return Outcome("failed", "channel_off")
        message["To"] = Address(addr_spec=to)
        try:
            refused, _ = await aiosmtplib.send(
                message,
                hostname=settings.smtp_host,
                port=settings.smtp_port,
                username=settings.smtp_user,
                password=settings.smtp_password,
                use_tls=settings.smtp_security == "tls",
                start_tls=settings.smtp_security == "starttls",
                timeout=settings.send_timeout_s,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            codes = [recipient.code for recipient in error.recipients]
            return _mail_answer(codes[0] if codes else 550, "recipient_refused")
        except aiosmtplib.SMTPResponseException as error:
            return _mail_answer(error.code, "refused")
        except (aiosmtplib.SMTPTimeoutError, TimeoutError):
            return Outcome("retry", "timeout")
        except (aiosmtplib.SMTPException, OSError):
            return Outcome("retry", "connection_failed")
        return Outcome("failed", "recipient_refused") if refused else Outcome("delivered", None, 250)


def _mail_answer(code: int, reason: str) -> Outcome:
    """RFC 5321, 4.2.1: 4yz is for now, 5yz for good."""
    return Outcome("retry" if 400 <= code < 500 else "failed", reason, code)


def mail_of(message: Message, settings: Settings, now: datetime) -> EmailMessage:
    """A notification, or a digest, as an e-mail."""
    parts = []
    for item in message.items:
        links = [
            f"{action.label}: {settings.token_issuer}{action.href}" for action in item.actions if action.method == "GET"
        ]
        parts.append("\n".join([f"{item.emoji} {item.title}", item.body, *links]))
    emoji = f"{message.items[0].emoji} " if len(message.items) == 1 else ""
    return _mail(
        message.id,
        f"{emoji}{message.title}",
        "\n\n".join([*parts, texts.mail("footer", message.language)]),
        settings,
        now,
        message.language,
    )


def mail_of_code(
    delivery_id: UUID, purpose: str, code: str, expires_at: datetime, settings: Settings, now: datetime
) -> EmailMessage:
    """A code of identity's as an e-mail, in both languages: it may be the first thing we ever send."""
    languages = texts.LANGUAGES
    subject = " / ".join(texts.mail(f"subject_{purpose}", language) for language in languages)
    body = "\n\n".join(
        texts.mail("code", language, code=code, until=texts.moment(expires_at, language)) for language in languages
    )
    return _mail(delivery_id, subject, body, settings, now, "en-IN")


def _mail(
    delivery_id: UUID, subject: str, body: str, settings: Settings, now: datetime, language: Language
) -> EmailMessage:
    mail = EmailMessage()
    name, address = parseaddr(settings.mail_from)
    mail["From"] = Address(name, addr_spec=address)
    # A counterparty's name is part of a subject, and must not become a header of its own.
    mail["Subject"] = _CONTROL.sub(" ", subject)[:200]
    mail["Date"] = format_datetime(now)
    mail["Message-ID"] = f"<{delivery_id}@{address.rpartition('@')[2]}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["Content-Language"] = language
    mail.set_content(body)
    return mail


class WebPush:
    """Web push: encrypted for the browser (RFC 8291), signed with our key (RFC 8292)."""

    def __init__(self, settings: Settings, egress: Egress) -> None:
        self._settings = settings
        self._egress = egress

    @cached_property
    def _vapid(self) -> Vapid02 | None:
        key = self._settings.vapid_private_key
        return None if key is None else Vapid02.from_string(str(key))

    @property
    def public_key(self) -> str | None:
        """What a browser subscribes with (`applicationServerKey`); None where web push is off."""
        if self._vapid is None:
            return None
        key = self._vapid.public_key
        assert isinstance(key, ec.EllipticCurvePublicKey)
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return base64.urlsafe_b64encode(point).rstrip(b"=").decode()

    async def send(self, subscription: Subscription, message: Message, now: datetime) -> Outcome:
        """Sends to one browser. `failed` with the reason `gone`: the subscription is no more."""
        if self._vapid is None:
            return Outcome("failed", "channel_off")
        try:
            encrypted = WebPusher(
                {"endpoint": subscription.endpoint, "keys": {"p256dh": subscription.p256dh, "auth": subscription.auth}}
            ).encode(_push_payload(message))
        except (WebPushException, ValueError):
            return Outcome("failed", "unusable_subscription")
        parts = urlsplit(subscription.endpoint)
        claims: dict[str, str | int] = {
            "aud": f"{parts.scheme}://{parts.netloc}",
            "exp": int(now.timestamp()) + 12 * 3600,
            "sub": self._settings.vapid_subject,
        }
        urgent = any(item.priority in ("critical", "high") for item in message.items)
        headers = {
            **self._vapid.sign(claims),
            "Content-Type": "application/octet-stream",
            "Content-Encoding": "aes128gcm",
            "TTL": str(max(0, min(_PUSH_TTL_S_MAX, int((message.expires_at - now).total_seconds())))),
            "Urgency": "high" if urgent else "normal",
            # RFC 8030, 5.4: a second copy replaces the first one, where that is still waiting.
            "Topic": base64.urlsafe_b64encode(message.id.bytes).rstrip(b"=").decode(),
        }
        reply = await self._egress.post(subscription.endpoint, headers, encrypted["body"])
        if reply.status in (404, 410):
            return Outcome("failed", "gone", reply.status)
        return _http_answer(reply)


def _push_payload(message: Message) -> bytes:
    first = message.items[0]
    actions = first.actions if len(message.items) == 1 else []
    body = message.body
    while True:
        payload = msgspec.json.encode(
            {
                "id": message.id,
                "notification_ids": [item.id for item in message.items],
                "title": message.title,
                "body": body,
                "emoji": first.emoji,
                "priority": first.priority,
                "actions": actions,
            }
        )
        if len(payload) <= _PUSH_BYTES_MAX or not body:
            return payload
        body = body[: len(body) // 2]


class Webhook:
    """A customer's own webhook, signed by Standard Webhooks."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress

    async def send(self, url: str, secret: str, message: Message, now: datetime) -> Outcome:
        """Posts one notification. `failed` with the reason `gone`: the receiver wants no more (410)."""
        body = msgspec.json.encode(
            {"type": "notification.notification.raised", "timestamp": now, "data": message.items[0]}
        )
        headers = signed_headers([secret], str(message.id), now, body)
        reply = await self._egress.post(url, headers, body)
        if reply.status == 410:
            return Outcome("failed", "gone", 410)
        return _http_answer(reply)


def _http_answer(reply: Reply) -> Outcome:
    if reply.status is None:
        return Outcome("failed" if reply.error == "url_not_allowed" else "retry", reply.error)
    if 200 <= reply.status < 300:
        return Outcome("delivered", None, reply.status)
    if reply.status in (400, 401, 403, 404, 413):
        return Outcome("failed", f"http_{reply.status}", reply.status)
    return Outcome("retry", f"http_{reply.status}", reply.status, _seconds(reply.retry_after))


def _seconds(retry_after: str | None) -> float | None:
    """RFC 9110, 10.2.3: seconds or a date; nonsense is as if it were not there, and an hour the most."""
    if retry_after is None:
        return None
    try:
        seconds = float(int(retry_after))
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), 3600.0)
