"""Logs: JSON lines that can be joined by ids, and that nobody's secrets or addresses end up in."""

import json
import logging
import subprocess
import sys

import pytest
from chassis.telemetry import REDACTED, redact

SECRETS = {
    "authorization": "Bearer abc",
    "password": "hunter2",
    "new_password": "hunter2",
    "otp": "123456",
    "email": "alice@example.com",
    "e_mail": "alice@example.com",
    "refresh_token": "r1",
    "cookie": "sid=1",
    "client_secret": "s",
    "phone": "+919812345678",
}


@pytest.mark.parametrize("name", SECRETS)
def test_fields_by_name(name: str) -> None:
    assert redact(None, "info", {"event": "x", name: SECRETS[name]})[name] == REDACTED
    nested = redact(None, "info", {"event": "x", "body": [{name.upper(): SECRETS[name]}]})
    assert nested["body"] == [{name.upper(): REDACTED}]


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("no user alice.b+x@mail.example.co.in found", "alice"),
        ("connect to postgresql://wealth:Zq8vT2@db/wealth failed", "Zq8vT2"),
        ("header eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln refused", "eyJzdWIiOiIxIn0"),
        ("feed secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8"),
    ],
)
def test_text_by_pattern(text: str, gone: str) -> None:
    event = redact(None, "info", {"event": text, "error": ValueError(text)})
    assert gone not in json.dumps(dict(event))
    assert REDACTED in event["event"]


def test_numbers_ids_and_plain_text_stay() -> None:
    event = {"event": "request", "status": 200, "ok": True, "route": "/api/accounts/{id}", "stream": None}
    assert redact(None, "info", dict(event)) == event


def test_lines_of_a_process() -> None:
    program = """
import logging, structlog
from chassis import telemetry
from events.tracing import configure_tracing
from chassis.request import REQUEST_ID
from opentelemetry import trace
telemetry.configure_logging("wealth", "info")
configure_tracing("wealth", None)
REQUEST_ID.set("request-1")
log = structlog.get_logger()
with trace.get_tracer("t").start_as_current_span("s"):
    log.info("moved", amount_minor=5, email="alice@example.com")
log.debug("not this")
try:
    raise ValueError("of bob@example.com")
except ValueError:
    log.exception("failed")
logging.getLogger("some.library").warning("password is %s for carol@example.com", "x")
logging.getLogger("some.library").info("not this either")
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    moved, failed, library = [json.loads(line) for line in output.splitlines()]
    assert moved | {"timestamp": "", "trace_id": ""} == {
        "event": "moved",
        "level": "info",
        "service": "wealth",
        "correlation_id": "request-1",
        "amount_minor": 5,
        "email": REDACTED,
        "timestamp": "",
        "trace_id": "",
    }
    assert len(moved["trace_id"]) == 32
    assert "ValueError" in failed["exception"]
    assert library["level"] == logging.getLevelName(logging.WARNING).lower()
    assert "example.com" not in output
