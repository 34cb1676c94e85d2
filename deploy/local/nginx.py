"""nginx as the single origin: routes by prefix, limits, and problem+json for the errors that are its own."""

import grp
import json
import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from health import why_not_200
from packages import find
from supervisor import Program


class Route(NamedTuple):
    """Paths (a regular expression of whole segments from the root) and the service that answers them."""

    pattern: str
    service: str
    body: str = "256k"
    websocket: bool = False


ROUTES = (
    Route("api/sync/feeds", "sync_gateway", body="1m"),
    Route("api/sync", "sync_gateway"),
    Route("ws/sync", "sync_gateway", websocket=True),
    Route("docs", "sync_gateway"),
    Route(r"api/auth|\.well-known|oauth", "identity"),
    Route("api/accounts|api/transfers|api/transactions|api/auto-replenish", "ledger_transfer"),
    Route("api/wealth", "wealth"),
    Route("api/notifications", "notifier"),
    Route("ws/notifications", "notifier", websocket=True),
    Route("api/search", "search"),
)

IDENTITY_HEADERS = (
    "Forwarded",
    "Remote-User",
    "X-Auth-Request-Email",
    "X-Auth-Request-User",
    "X-Client-Cert",
    "X-Customer-Id",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-User",
    "X-Original-URL",
    "X-Remote-User",
    "X-Rewrite-URL",
    "X-Roles",
    "X-Scopes",
    "X-User",
    "X-User-Email",
    "X-User-Id",
    "X-User-Roles",
)
"""Headers by which proxies tell a service who is calling. Nobody outside may say so."""


class Failure(NamedTuple):
    """One of nginx's own errors, as a problem document; codes are those that services use for the same."""

    statuses: str
    status: int
    code: str
    detail: str
    retry_after_s: int | None = None


FAILURES = (
    Failure("400 494 495 496 497", 400, "invalid_request", "The request could not be understood"),
    Failure("404", 404, "not_found", "There is nothing at this address"),
    Failure("405", 405, "method_not_allowed", "This method is not allowed here"),
    Failure("408", 408, "request_timeout", "The request took too long to arrive"),
    Failure("413", 413, "payload_too_large", "The request body is too large"),
    Failure("414", 414, "uri_too_long", "The address is too long"),
    Failure("429", 429, "rate_limited", "Too many requests from this address", 1),
    Failure("500 501 502 503", 503, "unavailable", "The service is not available at the moment", 1),
    Failure("504", 504, "timeout", "The service did not answer in time; what it was asked may still happen", 1),
)

HEALTH_PATH = "/-/health"
_FILES = 32_768
_HEALTHY = '{"status":"ok"}'


class NginxServer:
    """nginx with its files under `directory/nginx`, listening on loopback.

    Args:
        upstreams: the ports of a service's replicas.
        requests_per_s: allowed to one client address, with a burst of twice as many.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int,
        upstreams: Mapping[str, Sequence[int]],
        requests_per_s: int,
        disposable: bool,
    ) -> None:
        self.directory = directory / "nginx"
        self.port = port
        self._upstreams = upstreams
        self._requests_per_s = requests_per_s
        self._disposable = disposable

    def prepare(self) -> None:
        # nginx hands its temporary folders to the worker's user; it only has to be able to get there.
        self.directory.mkdir(mode=0o711, exist_ok=True)
        (self.directory / "nginx.conf").write_text(self.configuration())

    def program(self) -> Program:
        binary = find("nginx")
        assert binary is not None, "packages.require comes first"
        health = f"http://127.0.0.1:{self.port}{HEALTH_PATH}"
        return Program(
            name="nginx",
            argv=[
                str(binary),
                "-p",
                str(self.directory),
                "-c",
                str(self.directory / "nginx.conf"),
                "-e",
                "stderr",
            ],
            environment={"PATH": os.environ.get("PATH", "")},
            directory=self.directory,
            address=health,
            ready=lambda: why_not_200(health),
            stop_signal=signal.SIGTERM,  # "fast"; a graceful stop would wait for every WebSocket
            disposable=self._disposable,
        )

    def configuration(self) -> str:
        listen = [f"127.0.0.1:{self.port}"]
        if _has_ipv6_loopback():
            listen.append(f"[::1]:{self.port}")  # what "localhost" means to some clients
        hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        return configuration(
            self.directory,
            listen=listen,
            upstreams={
                service: [f"127.0.0.1:{port}" for port in replicas] for service, replicas in self._upstreams.items()
            },
            requests_per_s=self._requests_per_s,
            files=min(_FILES, hard_limit) if hard_limit > 0 else _FILES,
            user=_worker_user() if os.geteuid() == 0 else None,
        )


def configuration(
    directory: Path,
    *,
    listen: Sequence[str],
    upstreams: Mapping[str, Sequence[str]],
    requests_per_s: int,
    files: int = _FILES,
    user: str | None = None,
    behind: str | None = None,
) -> str:
    """nginx.conf.

    Args:
        directory: where nginx may write; its temporary files go there.
        listen: addresses with port.
        upstreams: `host:port` of each replica by service.
        files: open files allowed to it.
        user: that the workers run as, where nginx is started by root.
        behind: files to include (a pattern that may match none) which say what proxies are in front of nginx.
    """
    lines = [
        *([f"user {user};"] if user else []),
        "daemon off;",
        f"pid {directory}/nginx.pid;",
        "error_log stderr warn;",
        "worker_processes 1;",
        f"worker_rlimit_nofile {files};",
        f"events {{ worker_connections {files // 2}; }}",  # a proxied request takes two
        "http {",
        *(f"  {name}_temp_path {directory}/{name};" for name in _TEMPORARY),
        _HTTP,
        *([f"  include {behind};"] if behind else []),
        f"  limit_req_zone $binary_remote_addr zone=client:1m rate={requests_per_s}r/s;",
        *(_upstream(service, replicas) for service, replicas in upstreams.items()),
        "  server {",
        *(f"    listen {address};" for address in listen),
        "    server_name _;",
        f"    limit_req zone=client burst={requests_per_s * 2} nodelay;",
        "    client_max_body_size 256k;",
        *(f"    error_page {failure.statuses} = @{failure.code};" for failure in FAILURES),
        f"    location = {HEALTH_PATH} {{ default_type application/json; return 200 '{_HEALTHY}'; }}",
        *(_location(route) for route in ROUTES),
        "    location / { return 404; }",
        *(_failure_location(failure) for failure in FAILURES),
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")

_HTTP = """\
  access_log off;
  default_type application/octet-stream;
  server_tokens off;
  tcp_nodelay on;
  keepalive_timeout 65s;
  client_header_timeout 10s;
  client_body_timeout 20s;
  large_client_header_buffers 4 16k;
  reset_timedout_connection on;
  gzip on;
  gzip_min_length 1024;
  gzip_proxied any;
  gzip_vary on;
  gzip_types application/json application/problem+json application/cloudevents+json text/css text/csv
             application/javascript image/svg+xml;
  limit_req_status 429;
  map $http_upgrade $connection_of_upgrade { default upgrade; '' ''; }"""


def _location(route: Route) -> str:
    headers = {
        "Host": "$http_host",
        "Connection": "$connection_of_upgrade" if route.websocket else '""',
        "X-Forwarded-For": "$remote_addr",  # replaces what the client claims
        "X-Real-IP": "$remote_addr",
        "X-Forwarded-Proto": "$scheme",
        **({"Upgrade": "$http_upgrade"} if route.websocket else {}),
        **dict.fromkeys(IDENTITY_HEADERS, '""'),
    }
    timeout = "3600s" if route.websocket else "30s"
    lines = [
        f"location ~ ^/(?:{route.pattern})(?:/|$) {{",
        f"  client_max_body_size {route.body};",
        f"  proxy_pass http://{route.service};",
        "  proxy_http_version 1.1;",
        "  proxy_connect_timeout 3s;",
        f"  proxy_read_timeout {timeout};",
        f"  proxy_send_timeout {timeout};",
        *(f"  proxy_set_header {name} {value};" for name, value in headers.items()),
        "}",
    ]
    return "\n".join("    " + line for line in lines)


def _upstream(service: str, replicas: Sequence[str]) -> str:
    """A replica that refuses the connection is passed over, whatever the request: it has not been sent yet. One that
    breaks afterwards is not, except for requests that may be sent twice (nginx's `proxy_next_upstream error timeout`).
    None is put aside for having failed: on this machine a refused connection costs nothing, and where all were, there
    would be nobody to ask."""
    servers = " ".join(f"server {address} max_fails=0;" for address in replicas)
    return f"  upstream {service} {{ {servers} keepalive 64; keepalive_timeout 4s; }}"


def _failure_location(failure: Failure) -> str:
    document = json.dumps(
        {
            "type": f"urn:sangam:problem:{failure.code}",
            "title": failure.code.replace("_", " ").capitalize(),
            "status": failure.status,
            "detail": failure.detail,
            "code": failure.code,
            "instance": "urn:sangam:request:$request_id",
            "request_id": "$request_id",
        }
    )
    retry = f'add_header Retry-After "{failure.retry_after_s}" always; ' if failure.retry_after_s else ""
    return (
        f"    location @{failure.code} {{ internal; default_type application/problem+json; "
        f"add_header X-Request-Id $request_id always; {retry}return {failure.status} '{document}'; }}"
    )


def _has_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _worker_user() -> str:
    for group in ("nogroup", "nobody"):
        try:
            grp.getgrnam(group)
        except KeyError:
            continue
        return f"nobody {group}"
    return "root"
