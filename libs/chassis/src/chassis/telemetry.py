"""The log lines of a process: structlog JSON on stdout, without what is personal or secret."""

import logging
import re
import sys
from collections.abc import MutableMapping
from functools import lru_cache
from typing import Any

import msgspec
import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor

from chassis.request import REQUEST_ID

REDACTED = "[redacted]"

_SECRET_NAMES = re.compile(
    r"authorization|password|passwd|secret|token|cookie|otp|\bpin\b|e_?mail|phone|full_name|private_key|api_key",
    re.IGNORECASE,
)
_PLAIN = frozenset({bool, int, float, type(None)})
_EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")
_URL_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^@/\s]+@")
_TOKEN = re.compile(r"\beyJ[A-Za-z0-9_-]{5,}(?:\.[A-Za-z0-9_-]*){1,4}|\bwhsec_[A-Za-z0-9+/=_-]+")

_encode = msgspec.json.Encoder(enc_hook=repr, decimal_format="string").encode


def redacted(text: str) -> str:
    """`text` without e-mail addresses, tokens, and passwords in URLs."""
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\1{REDACTED}@", text)
    if "@" in text:
        text = _EMAIL.sub(REDACTED, text)
    if "eyJ" in text or "whsec_" in text:
        text = _TOKEN.sub(REDACTED, text)
    return text


def redact(logger: Any, method: str, event: EventDict) -> EventDict:
    """structlog processor: nothing secret or personal leaves with a log line, at any depth."""
    for name, value in event.items():
        if type(value) not in _PLAIN:
            event[name] = _redacted_value(name, value)
    return event


def _redacted_value(name: str, value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if _names_a_secret(name):
        return REDACTED
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {key: _redacted_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redacted_value("", inner) for inner in value]
    return redacted(str(value))


@lru_cache(maxsize=1024)  # the names of log fields are few; looking each up costs more than the line itself
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAMES.search(name) is not None


def add_context(logger: Any, method: str, event: EventDict) -> EventDict:
    """structlog processor: the request and the trace that the line belongs to."""
    if (request_id := REQUEST_ID.get()) is not None:
        event.setdefault("correlation_id", request_id)
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
    return event


def configure_logging(service: str, level: str = "info") -> None:
    """One JSON object per line on stdout, for structlog and for libraries that use `logging`."""
    number = logging.getLevelNamesMapping().get(level.upper(), logging.INFO)

    def add_service(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_service,
        add_context,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_render)],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stdout.buffer),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_render_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries speak up from warnings on; their chatter at info is not ours to store.
    root.setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


def _render(event: Any, **_: Any) -> bytes:
    return _encode(event)


def _render_text(event: Any, **_: Any) -> str:
    return _encode(event).decode()
