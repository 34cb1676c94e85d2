"""OpenTelemetry traces: one request from HTTP through the log, the relay and every consumer.

An event keeps the `traceparent` of the request that appended it. The relay and the consumers work on many requests at
once, so their spans are traces of their own, linked to those of the events.
"""

from collections.abc import Callable, Iterable
from itertools import islice

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_LINKS_MAX = 64
_propagator = TraceContextTextMapPropagator()


def configure_tracing(service: str, otlp_endpoint: str | None) -> Callable[[], None]:
    """Sets the process's tracer up and returns what flushes and ends it.

    Without an endpoint nothing is recorded, but ids are still made and passed on: logs and events of one
    request stay connected.
    """
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.namespace": "sangam"}),
        sampler=ParentBased(ALWAYS_ON) if otlp_endpoint else ALWAYS_OFF,
    )
    if otlp_endpoint:
        exporter = OTLPSpanExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/traces", timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return provider.shutdown


def link(span: trace.Span, parents: Iterable[str | None]) -> None:
    """Links the span to the requests that appended some events, by their `traceparent`; to no more than 64 of them."""
    if not span.is_recording():
        return
    for parent in {each for each in islice(parents, _LINKS_MAX) if each is not None}:
        span.add_link(trace.get_current_span(_propagator.extract({"traceparent": parent})).get_span_context())
