"""`/docs`, asked as a browser and as a generator of clients would. Needs no servers."""

from collections.abc import Iterator

import pytest
from litestar.testing import TestClient, create_test_client
from sync_gateway.api_docs import api_docs_routes


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:  # type: ignore[type-arg]
    with create_test_client(api_docs_routes()) as client:
        yield client


def test_the_page_has_every_route_and_runs_no_script(client: TestClient) -> None:  # type: ignore[type-arg]
    document = client.get("/docs/openapi.json").json()
    answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    for path, item in document["paths"].items():
        for method in item:
            assert f"<code>{method.upper()} {path}</code>" in answer.text
    for name in document["components"]["schemas"]:
        assert f"<details id='{name}'>" in answer.text
