"""The product's own processes: services, relay, simulators, and the environment each of them gets."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from credentials import PLATFORMS, Credentials
from health import why_not_200
from provision import KEY_RIGHTS, Cell
from rabbitmq import RELAY, SERVICES
from supervisor import Program

RELAYS = ("relay-1", "relay-2")
SIMULATORS = {"bfc": "simulator-bfc", "vyomo": "simulator-vyomo"}
PREFERRED_PORTS = {
    **{service: 4101 + index for index, service in enumerate(SERVICES)},
    SIMULATORS["bfc"]: 4111,
    SIMULATORS["vyomo"]: 4112,
    RELAYS[0]: 4121,
    RELAYS[1]: 4122,
}
_PASSED_ON = ("PATH", "LANG", "TZ", "LOG_LEVEL", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Applications:
    """What runs on a provisioned cell.

    Args:
        directory: the stack's data directory.
        ports: by process name; must have every key of `PREFERRED_PORTS`.
        extra: further environment by process name; wins.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cell: Cell,
        credentials: Credentials,
        ports: Mapping[str, int],
        origin: str,
        extra: Mapping[str, Mapping[str, str]],
    ) -> None:
        self._directory = directory
        self._cell = cell
        self._credentials = credentials
        self._ports = ports
        self._origin = origin
        self._extra = extra

    def relays(self) -> list[Program]:
        """The relay and its standby."""
        return [
            self._program(
                name,
                "events.relay",
                EVENT_STORE_URL=self._cell.store_url(RELAY),
                AMQP_URL=self._cell.amqp_url(RELAY),
                ANCHOR_FILE=str(self._directory / f"{name}.anchors"),
            )
            for name in RELAYS
        ]

    def services(self) -> list[Program]:
        return [self._service(service) for service in SERVICES]

    def simulators(self) -> list[Program]:
        return [self._simulator(platform) for platform in PLATFORMS]

    def _service(self, service: str) -> Program:
        specific: dict[str, str] = {}
        if service == "identity":
            specific = {
                "IDENTITY_KEY": self._credentials.identity_key,
                "APPS": json.dumps([self._app(platform) for platform in PLATFORMS]),
                "OPS_CLIENT_ID": self._credentials.ops_client_id,
                "OPS_CLIENT_SECRET": self._credentials.ops_client_secret,
                **{
                    f"{platform.upper()}_JWKS_URL": f"{self.url(SIMULATORS[platform])}/.well-known/jwks.json"
                    for platform in PLATFORMS
                },
            }
        elif service == "sync_gateway":
            specific = {
                "GATEWAY_KEY": self._credentials.gateway_key,
                # The platforms run on this machine: their receivers are what webhooks may be tried with here.
                "WEBHOOK_ALLOWED_TARGETS": ",".join(f"127.0.0.1:{self._ports[name]}" for name in SIMULATORS.values()),
            }
            for platform in PLATFORMS:
                specific[f"FEED_SECRET_{platform.upper()}"] = self._credentials.feed_secrets[platform]
                specific[f"ANNOUNCE_SECRET_{platform.upper()}"] = self._credentials.announce_secrets[platform]
                specific[f"{platform.upper()}_URL"] = self.url(SIMULATORS[platform])
        elif service == "search":
            specific = {"INDEX_DIRECTORY": str(self._directory / "search-index")}
        elif service == "notifier":
            specific = {
                "VAPID_PRIVATE_KEY": self._credentials.vapid_private_key,
                "ALLOWED_TARGETS": ",".join(f"127.0.0.1:{self._ports[name]}" for name in SIMULATORS.values()),
            }
        if service in KEY_RIGHTS:
            specific["SUBJECT_KEYS_URL"] = self._cell.keys_url(service)
            specific["SUBJECT_MASTER_KEY"] = self._credentials.subject_master_key
        return self._program(
            service,
            service,
            DATABASE_URL=self._cell.database_url(service),
            EVENT_STORE_URL=self._cell.store_url(service),
            AMQP_URL=self._cell.amqp_url(service),
            TOKEN_ISSUER=self._origin,
            CURSOR_SECRET=self._credentials.cursor_secrets[service],
            **specific,
        )

    def _app(self, platform: str) -> dict[str, object]:
        """The platform's own app, as identity knows it (OpenID Connect)."""
        home = self.url(SIMULATORS[platform])
        return {
            "client_id": f"{platform}-app",
            "name": {"bfc": "BFC", "vyomo": "Vyomo"}[platform],
            "platform": platform,
            "redirect_uris": [f"{home}/callback"],
            "post_logout_redirect_uris": [f"{home}/"],
        }

    def _simulator(self, platform: str) -> Program:
        name = SIMULATORS[platform]
        state = self._directory / "simulators" / platform
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._program(
            name,
            "simulators.platform",
            platform,
            ready_path="/.well-known/jwks.json",
            PLATFORM_HTTP_PORT=str(self._ports[name]),
            FEED_URL=f"{self._origin}/api/sync/feeds/{platform}",
            FEED_SECRET=self._credentials.feed_secrets[platform],
            ANNOUNCE_SECRET=self._credentials.announce_secrets[platform],
            PLATFORM_KEY_FILE=str(state / "key.pem"),
            PLATFORM_STATE_DIR=str(state),
        )

    def _program(
        self, name: str, module: str, *arguments: str, ready_path: str = "/health/ready", **environment: str
    ) -> Program:
        return Program(
            name=name,
            argv=[sys.executable, "-m", module, *arguments],
            environment={
                **{variable: os.environ[variable] for variable in _PASSED_ON if variable in os.environ},
                "HOME": str(self._directory),
                "PYTHONUNBUFFERED": "1",
                "HTTP_HOST": "127.0.0.1",
                "HTTP_PORT": str(self._ports[name]),
                **environment,
                **self._extra.get(name, {}),
            },
            directory=self._directory,
            address=self.url(name) + ready_path,
            ready=lambda: why_not_200(self.url(name) + ready_path),
        )

    def url(self, name: str) -> str:
        """Where the process `name` serves HTTP, past nginx."""
        return f"http://127.0.0.1:{self._ports[name]}"
