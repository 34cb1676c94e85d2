"""Two replicas of each service: a rolling restart that fails no request, and one transfer's trace over all of them."""

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import aiohttp
import pytest
from customers import make_customer, transfer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from rolling import REPLICAS, roll
from stack import Stack

pytestmark = pytest.mark.integration


class Span(NamedTuple):
    service: str
    name: str
    trace: str
    id: str
    parent: str
    links: frozenset[str]
    """Trace ids."""


class Receiver:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/traces"
                for resource in request.resource_spans:
                    (service,) = (
                        each.value.string_value for each in resource.resource.attributes if each.key == "service.name"
                    )
                    spans.extend(
                        Span(
                            service,
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            frozenset(link.trace_id.hex() for link in span.links),
                        )
                        for scope in resource.scope_spans
                        for span in scope.spans
                    )
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def pairs(receiver: Receiver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The product with two replicas of each service, tracing to the receiver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "500")
        with Stack(
            tmp_path_factory.mktemp("pairs"),
            replicas=REPLICAS,
            disposable=True,
            durable=False,
            requests_per_s=20_000,
        ) as stack:
            yield stack


def test_restarting_all_replicas_of_all_services_fails_no_request(pairs: Stack) -> None:
    load = asyncio.run(roll(pairs, print, rate=30, customers=2))
    print(f"{load.failed.total()} failed of {load.sent} requests; the slowest took {load.slowest_s:.2f} s")
    assert not load.failed, load.failed
    assert load.sent > 100


async def test_one_transfer_is_traced_through_all_services(pairs: Stack, receiver: Receiver) -> None:
    async with aiohttp.ClientSession() as http:
        customer = await make_customer(pairs, http)
        moved = await transfer(pairs, http, customer, "1.00", "traced")
        assert moved.status == 201
        trace = moved.headers["traceparent"].split("-")[1]
    expected = {
        ("relay", "publish sangam.log"),
        ("relay", "publish sangam.events"),
        ("ledger_transfer", "consume ledger_transfer.projections"),
        ("wealth", "consume wealth.projections"),
        ("search", "consume search.projections"),
        ("sync_gateway", "consume sync_gateway.projections"),
        ("notifier", "consume notifier.grouping"),
    }
    async with asyncio.timeout(20):
        while not expected <= {(span.service, span.name) for span in receiver.spans if trace in span.links}:
            await asyncio.sleep(0.1)
    (request,) = (span for span in receiver.spans if span.trace == trace and span.name == "POST /api/transfers")
    (append,) = (span for span in receiver.spans if span.trace == trace and span.name == "append")
    assert request.service == append.service == "ledger_transfer"
    assert append.parent == request.id
