"""What is outside: a real SMTP server and real HTTP endpoints, a browser, and the sender driven step by step."""

import asyncio
import base64
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.policy import default as modern
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import http_ece
import pytest
from aiohttp import web
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from chassis.egress import Egress
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from events.contracts import identity
from events.envelope import new_id, platform_stream
from events.sealing import SubjectKeys
from notifier import deliveries
from notifier.channels import Mail, Webhook, WebPush
from notifier.deliveries import OutsideChannel
from notifier.further import AppriseServices
from notifier.sending import Channels, Sender
from notifier.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))

from deployed import MASTER, settings_of

if TYPE_CHECKING:
    from provision import Cell

    from conftest import Desk

BROKER = platform_stream("vyomo", "VY-1")
EMAIL = "asha@example.in"


class Mailbox:
    """What the SMTP server got; `answer` is what it says to a recipient, `pause_s` how long it thinks before."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.recipients: list[str] = []
        self.answer = "250 OK"
        self.pause_s = 0.0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.answer

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        await asyncio.sleep(self.pause_s)
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content, policy=modern))
        self.recipients += envelope.rcpt_tos
        return "250 Taken"


class Endpoint:
    """A push service, or a webhook's receiver."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.status = 201
        self.pause_s = 0.0
        self.headers: dict[str, str] = {}
        self.url = ""
        self.port = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(({name.lower(): value for name, value in request.headers.items()}, body))
        await asyncio.sleep(self.pause_s)
        return web.Response(status=self.status, headers=self.headers)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint()
    app = web.Application()
    app.router.add_route("*", "/{name}", made.take)  # a redirected POST may come as a GET
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    made.url = f"http://127.0.0.1:{made.port}"
    yield made
    await runner.cleanup()


@pytest.fixture
def mailbox() -> Any:
    box: Any = Mailbox()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        box.port = probe.getsockname()[1]
    controller = Controller(box, hostname="127.0.0.1", port=box.port)
    controller.start()
    yield box
    controller.stop()


class Post:
    """The sender, driven step by step, with the keys that open addresses."""

    def __init__(self, desk: "Desk", sender: Sender, seal: SubjectKeys) -> None:
        self.desk = desk
        self.sender = sender
        self.seal = seal

    async def customer(self) -> UUID:
        user = new_id()
        profile = json.dumps({"email": EMAIL, "full_name": "Asha", "phone": "+91"})
        sealed = await self.seal.seal(user, profile, "profile")
        link = identity.LinkConfirmed(
            link_id=new_id(), platform="vyomo", platform_customer_id="VY-1", platform_stream=BROKER
        )
        await self.desk.append(f"user-{user}", identity.UserRegistered(user_id=user, sealed_profile=sealed), link)
        return user

    async def send(self, channel: OutsideChannel, at: datetime | None = None) -> int:
        """What is due on a channel at an instant (now); how many attempts that were."""
        claimed = await deliveries.claim(self.desk.world.db, channel, at or datetime.now(UTC), 100)
        await asyncio.gather(*(self.sender.deliver(delivery) for delivery in claimed))
        return len(claimed)

    async def rows(self, channel: OutsideChannel) -> list[Any]:
        return await self.desk.world.db.fetch(
            "SELECT * FROM delivery WHERE channel = $1 ORDER BY updated_at, id", channel
        )


@asynccontextmanager
async def open_post(cell: "Cell", desk: "Desk", settings: Settings) -> AsyncIterator[Post]:
    seal = await SubjectKeys.connect(cell.keys_url("identity"), MASTER)
    keys = await SubjectKeys.connect(cell.keys_url("notifier"), MASTER)
    async with Egress(settings.allowed_targets.split(","), timeout_s=settings.send_timeout_s) as egress:
        further = None
        if settings.apprise_urls is not None:
            further = AppriseServices(settings.apprise_urls, allowed=settings.allowed_targets.split(","))
        channels = Channels(Mail(settings), WebPush(settings, egress), Webhook(egress), further)
        yield Post(desk, Sender(desk.world.db, keys, channels, settings), seal)
    await seal.close()
    await keys.close()


@pytest.fixture
async def post(cell: "Cell", desk: "Desk", mailbox: Any, endpoint: Endpoint) -> AsyncIterator[Post]:
    settings = settings_of(
        smtp_host="127.0.0.1",
        smtp_port=mailbox.port,
        smtp_security="none",
        allowed_targets=f"127.0.0.1:{endpoint.port}",
        send_timeout_s=0.5,
    )
    async with open_post(cell, desk, settings) as opened_post:
        yield opened_post


def soon(seconds: float = 6) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def add_webhook(post: Post, user: UUID, endpoint: Endpoint) -> str:
    secret = "whsec_" + base64.b64encode(os.urandom(24)).decode()
    await post.desk.world.db.execute(
        "INSERT INTO webhook_target (user_id, id, url, secret) VALUES ($1, $2, $3, $4)",
        user,
        new_id(),
        f"{endpoint.url}/hook",
        secret,
    )
    return secret


class Browser:
    """A subscription and the keys to read what comes over it (RFC 8291)."""

    def __init__(self, endpoint: Endpoint, name: str) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.auth = os.urandom(16)
        self.endpoint = f"{endpoint.url}/{name}"

    @property
    def subscription(self) -> dict[str, Any]:
        point = self.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return {"endpoint": self.endpoint, "keys": {"p256dh": _b64(point), "auth": _b64(self.auth)}}

    def read(self, body: bytes) -> Any:
        return json.loads(http_ece.decrypt(body, private_key=self.private, auth_secret=self.auth))


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


async def subscribe(post: Post, user: UUID, browser: Browser) -> None:
    keys = browser.subscription["keys"]
    await post.desk.world.db.execute(
        "INSERT INTO push_subscription (id, user_id, endpoint, p256dh, auth) VALUES ($1, $2, $3, $4, $5)",
        new_id(),
        user,
        browser.endpoint,
        keys["p256dh"],
        keys["auth"],
    )
