"""`/docs/events`, asked as a browser and as a generator of code would. Needs no servers."""

from collections.abc import Iterator

import pytest
from events.contracts import registered
from litestar.testing import TestClient, create_test_client
from sync_gateway.event_docs import event_docs_routes


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:  # type: ignore[type-arg]
    with create_test_client(event_docs_routes()) as client:
        yield client


def test_the_document_is_served(client: TestClient) -> None:  # type: ignore[type-arg]
    document = client.get("/docs/events/asyncapi.json").json()
    assert document["asyncapi"] == "3.0.0"
    assert "ledger.transfer.completed" in document["channels"]
    assert "identity.user.registered" not in document["channels"], "private"


def test_the_page_names_every_public_type_and_runs_no_script(client: TestClient) -> None:  # type: ignore[type-arg]
    answer = client.get("/docs/events")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    for contract in registered():
        assert (f"{contract.type} (schema" in answer.text) is contract.public
