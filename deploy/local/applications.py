"""The product's own processes: services, relay, simulators, and the environment each of them gets."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

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
_LOOPBACK = "127.0.0.1"
_PASSED_ON = ("PATH", "LANG", "TZ", "LOG_LEVEL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_BSP_SCHEDULE_DELAY")


class Place(NamedTuple):
    """Where the other processes reach one."""

    port: int
    host: str = _LOOPBACK
    address: str = _LOOPBACK
    """The host as an IP address."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


def replicas_of(service: str, count: int) -> list[str]:
    """The process names of a service: the first one's is the service's."""
    return [service, *(f"{service}-{number}" for number in range(2, count + 1))]


class Applications:
    """What runs on a provisioned cell.

    Args:
        directory: where the processes keep what they write.
        places: by process name; must have every key of `PREFERRED_PORTS`.
        origin: the public origin, as clients know it.
        listen_on: the address that each process binds.
        feeds_to: the origin as the simulators reach it, where that is another.
        extra: further environment by process name or, for all replicas, by service; wins.
        replicas: of each service.
    """

    def __init__(
        self,
        directory: Path,
        *,
        cell: Cell,
        credentials: Credentials,
        places: Mapping[str, Place],
        origin: str,
        listen_on: str = _LOOPBACK,
        feeds_to: str | None = None,
        extra: Mapping[str, Mapping[str, str]] | None = None,
        replicas: int = 1,
    ) -> None:
        self._directory = directory
        self._cell = cell
        self._credentials = credentials
        self._places = places
        self._origin = origin
        self._listen_on = listen_on
        self._feeds_to = feeds_to or origin
        self._extra = extra or {}
        self._replicas = replicas

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
        return [self._service(service, name) for service in SERVICES for name in replicas_of(service, self._replicas)]

    def simulators(self) -> list[Program]:
        return [self._simulator(platform) for platform in PLATFORMS]

    def _service(self, service: str, name: str) -> Program:
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
                # The platforms run on our own network: their receivers are what webhooks may be tried with here.
                "WEBHOOK_ALLOWED_TARGETS": self._receivers(),
            }
            for platform in PLATFORMS:
                specific[f"FEED_SECRET_{platform.upper()}"] = self._credentials.feed_secrets[platform]
                specific[f"ANNOUNCE_SECRET_{platform.upper()}"] = self._credentials.announce_secrets[platform]
                specific[f"{platform.upper()}_URL"] = self.url(SIMULATORS[platform])
        elif service == "search":
            specific = {"INDEX_DIRECTORY": str(self._directory / name.replace("search", "search-index"))}
        elif service == "notifier":
            specific = {
                "VAPID_PRIVATE_KEY": self._credentials.vapid_private_key,
                "ALLOWED_TARGETS": self._receivers(),
            }
        if service in KEY_RIGHTS:
            specific["SUBJECT_KEYS_URL"] = self._cell.keys_url(service)
            specific["SUBJECT_MASTER_KEY"] = self._credentials.subject_master_key
        return self._program(
            name,
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
        return self._program(
            name,
            "simulators.platform",
            platform,
            ready_path="/.well-known/jwks.json",
            PLATFORM_HTTP_HOST=self._listen_on,
            PLATFORM_HTTP_PORT=str(self._places[name].port),
            FEED_URL=f"{self._feeds_to}/api/sync/feeds/{platform}",
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
                "HTTP_HOST": self._listen_on,
                "HTTP_PORT": str(self._places[name].port),
                **environment,
                **self._extra.get(module, {}),
                **self._extra.get(name, {}),
            },
            directory=self._directory,
            address=self.url(name) + ready_path,
            ready=lambda: why_not_200(self.url(name) + ready_path),
        )

    def url(self, name: str) -> str:
        """Where the process `name` serves HTTP, past nginx."""
        return self._places[name].url

    def _receivers(self) -> str:
        places = (self._places[name] for name in SIMULATORS.values())
        return ",".join(f"{place.address}:{place.port}" for place in places)
