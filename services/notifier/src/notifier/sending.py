"""Sends what the delivery ledger holds: one loop per channel, so that one that hangs holds up nobody else."""

import asyncio
import random
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import structlog
from chassis.egress import Egress
from events.contracts import identity
from events.contracts.notification import Notification
from events.outage import is_outage, until_it_works
from events.sealing import SealBroken, SubjectKeys
from prometheus_client import Counter

from notifier import deliveries
from notifier.channels import Mail, Message, Subscription, Webhook, WebPush, mail_of, mail_of_code
from notifier.deliveries import Delivery, Outcome, OutsideChannel
from notifier.further import Further
from notifier.projections.contact import sealed_profile
from notifier.projections.inbox import opened, shown
from notifier.settings import Settings

log = structlog.get_logger(__name__)

_SENT = Counter("notifier_deliveries_total", "Attempts by channel and what came of them", ["channel", "outcome"])

OUTSIDE: tuple[OutsideChannel, ...] = ("email", "web_push", "webhook", "apprise")
AT_ONCE_MAX = 16
"""Messages of one channel under way at a time."""
_IDLE_S = 1.0
_TIDY_EVERY_S = 15.0

_profile_decoder = msgspec.json.Decoder(dict[str, str | None])
_code_decoder = msgspec.json.Decoder(identity.CodeIssued)


class Channels(NamedTuple):
    mail: Mail
    web_push: WebPush
    webhook: Webhook
    further: Further | None = None


class Sender:
    """Claims rows, sends, notes what came of it."""

    def __init__(
        self,
        database: "asyncpg.Pool[asyncpg.Record]",
        keys: SubjectKeys,
        channels: Channels,
        settings: Settings,
    ) -> None:
        self._database = database
        self._keys = keys
        self._channels = channels
        self._settings = settings
        self._filled = {channel: asyncio.Event() for channel in OUTSIDE}

    def wake(self) -> None:
        """There may be new rows."""
        for event in self._filled.values():
            event.set()

    async def run(self, egress: Egress) -> None:
        """Sends on all channels until cancelled."""
        async with egress, asyncio.TaskGroup() as tasks:
            for channel in OUTSIDE:
                tasks.create_task(self.send_forever(channel), name=f"send {channel}")
            tasks.create_task(self.tidy_forever(), name="tidy deliveries")

    async def send_forever(self, channel: OutsideChannel) -> None:
        """Sends what is due, as it becomes due."""
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._filled[channel].clear()
                free = AT_ONCE_MAX - len(under_way)
                claimed = await until_it_works(
                    f"notifier.{channel}",
                    lambda free=free: deliveries.claim(self._database, channel, datetime.now(UTC), free),  # type: ignore[misc]
                )
                for delivery in claimed:
                    task = asyncio.create_task(self.deliver(delivery))
                    under_way.add(task)
                if under_way and len(under_way) >= AT_ONCE_MAX:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                elif not claimed:
                    await self._pause(channel)
                for task in [task for task in under_way if task.done()]:
                    under_way.discard(task)
                    task.result()
        finally:
            # What is under way is finished, so that nobody has to guess whether it went out.
            if under_way:
                await asyncio.wait(under_way, timeout=self._settings.send_timeout_s)

    async def _pause(self, channel: OutsideChannel) -> None:
        due = await until_it_works(f"notifier.{channel}", lambda: deliveries.next_due(self._database, channel))
        pause_s = _IDLE_S
        if due is not None:
            pause_s = min(pause_s, max(0.01, (due - datetime.now(UTC)).total_seconds()))
        try:
            async with asyncio.timeout(pause_s):
                await self._filled[channel].wait()
                # Woken inside the consumer's transaction: a moment until it commits.
                await asyncio.sleep(0.01)
        except TimeoutError:
            pass

    async def tidy_forever(self) -> None:
        while True:
            await until_it_works("notifier.tidy", lambda: deliveries.tidy(self._database, datetime.now(UTC)))
            await asyncio.sleep(_TIDY_EVERY_S)

    async def deliver(self, delivery: Delivery) -> None:
        """One attempt and its outcome. A fault of ours is noted as one, and tried again."""
        try:
            async with asyncio.timeout(self._settings.send_timeout_s + 5):
                outcome = await self._attempt(delivery)
        except TimeoutError:
            outcome = Outcome("retry", "timeout")
        except Exception as error:
            if not is_outage(error):
                log.exception("delivery_failed", channel=delivery.channel, delivery_id=str(delivery.id))
            outcome = Outcome("retry", "outage" if is_outage(error) else "internal")
        _SENT.labels(delivery.channel, outcome.status).inc()
        if outcome.reason == "gone" and delivery.target_id is not None:
            await until_it_works("notifier.prune", lambda: self._forget_target(delivery))
        await until_it_works(
            "notifier.settle",
            lambda: deliveries.settle(self._database, delivery, outcome, datetime.now(UTC), random.random()),  # noqa: S311 - jitter
        )

    async def _forget_target(self, delivery: Delivery) -> None:
        table = "push_subscription" if delivery.channel == "web_push" else "webhook_target"
        await self._database.execute(f"DELETE FROM {table} WHERE id = $1", delivery.target_id)

    async def _attempt(self, delivery: Delivery) -> Outcome:
        now = datetime.now(UTC)
        if delivery.code is not None:
            return await self._send_code(delivery, now)
        message = await self._message(delivery)
        if message is None:
            # The consumer of the inbox may be behind the one of the ledger; of who was erased there is nothing left.
            return Outcome("retry", "not_in_inbox_yet")
        match delivery.channel:
            case "email":
                return await self._send_mail(delivery, message, now)
            case "web_push":
                row = await self._database.fetchrow(
                    "SELECT endpoint, p256dh, auth FROM push_subscription WHERE id = $1", delivery.target_id
                )
                if row is None:
                    return Outcome("failed", "gone")
                return await self._channels.web_push.send(Subscription(*row), message, now)
            case "webhook":
                row = await self._database.fetchrow(
                    "SELECT url, secret FROM webhook_target WHERE id = $1", delivery.target_id
                )
                if row is None:
                    return Outcome("failed", "gone")
                return await self._channels.webhook.send(row["url"], row["secret"], message, now)
            case "apprise":
                if self._channels.further is None:
                    return Outcome("failed", "channel_off")
                return await self._channels.further.send(message)

    async def _message(self, delivery: Delivery) -> Message | None:
        rows = await self._database.fetch(
            "SELECT content, created_at, read_at FROM notification WHERE id = ANY($1) ORDER BY created_at, id",
            delivery.notification_ids,
        )
        if len(rows) < len(delivery.notification_ids):
            return None
        contents: list[tuple[Notification, asyncpg.Record]] = []
        for row in rows:
            content = await opened(self._keys, delivery.user_id, row["content"])
            if content is None:
                return None
            contents.append((content, row))
        return Message(
            id=delivery.id,
            items=[shown(content, row["created_at"], row["read_at"]) for content, row in contents],
            language=contents[0][0].language,
            expires_at=delivery.expires_at,
        )

    async def _send_mail(self, delivery: Delivery, message: Message, now: datetime) -> Outcome:
        sealed = await sealed_profile(self._database, delivery.user_id)
        if sealed is None:
            return Outcome("failed", "no_address")
        opened = await self._open(delivery.user_id, sealed, "profile")
        address = None if opened is None else _profile_decoder.decode(opened).get("email")
        if address is None:
            return Outcome("failed", "no_address")
        return await self._channels.mail.send(address, mail_of(message, self._settings, now))

    async def _send_code(self, delivery: Delivery, now: datetime) -> Outcome:
        assert delivery.code is not None
        issued = _code_decoder.decode(delivery.code)
        to = await self._open(issued.user_id, issued.to_sealed, "to")
        code = await self._open(issued.user_id, issued.code_sealed, "code")
        if to is None or code is None:
            return Outcome("failed", "no_address")
        mail = mail_of_code(delivery.id, issued.purpose, code, issued.expires_at, self._settings, now)
        return await self._channels.mail.send(to, mail)

    async def _open(self, user_id: UUID, sealed: str, place: str) -> str | None:
        try:
            return await self._keys.open(user_id, sealed, place)
        except SealBroken:
            log.warning("contact_does_not_open", place=place)
            return None
