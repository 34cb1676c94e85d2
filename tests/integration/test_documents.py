"""The documents that people and tools rely on are those of the running product."""

import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stack import Stack

ROOT = Path(__file__).resolve().parents[2]
# As printed, but for this: a refusal and an answer of nothing are failures.
_STRICTLY = """
set -euo pipefail
curl() { command curl --fail-with-body "$@"; }
jq() { command jq -e "$@"; }
"""


@pytest.mark.integration
def test_the_merged_api_document_is_that_of_the_running_services(sangam: "Stack") -> None:
    from api_document import DOCUMENT, SERVICES, fetch, render

    ports = {service: int(sangam.url(service).rsplit(":", 1)[1]) for service in SERVICES}
    assert DOCUMENT.read_text() == render(fetch(ports)), "make openapi writes it again"


def _document(schema: dict[str, Any], *, path: str, operation: str) -> dict[str, Any]:
    answer = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Item"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"version": "1"},
        "paths": {path: {"get": {"operationId": operation, "responses": {"200": answer}}}},
        "components": {"schemas": {"Item": schema, "Same": {"type": "null"}}, "securitySchemes": {}},
    }


def test_schemas_that_differ_are_told_apart_and_equal_ones_shared() -> None:
    from api_document import merge

    merged = merge(
        {
            "wealth": _document({"type": "string"}, path="/a", operation="a"),
            "sync_gateway": _document({"type": "integer"}, path="/b", operation="b"),
        }
    )
    assert merged["components"]["schemas"] == {
        "Same": {"type": "null"},
        "SyncGatewayItem": {"type": "integer", "title": "SyncGatewayItem"},
        "WealthItem": {"type": "string", "title": "WealthItem"},
    }
    text = json.dumps(merged["paths"]["/b"])
    assert "SyncGatewayItem" in text
    assert "schemas/Item" not in text
    assert merged["paths"]["/b"]["get"]["tags"] == ["sync-gateway"]


@pytest.mark.parametrize("field", ["path", "operation"])
def test_two_services_at_one_address_or_with_one_operation_are_refused(field: str) -> None:
    from api_document import Clash, merge

    names = [{"path": "/a", "operation": "a"}, {"path": "/b", "operation": "b"}]
    names[1][field] = names[0][field]
    documents = [_document({}, **one) for one in names]
    with pytest.raises(Clash):
        merge({"wealth": documents[0], "search": documents[1]})


@pytest.fixture(scope="module")
def workplace(sangam: "Stack", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's folder, its `.run` that of the running product."""
    from packages import require

    require(["curl", "jq"], print)
    folder = tmp_path_factory.mktemp("workplace")
    (folder / ".run").symlink_to(sangam.directory)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


@pytest.mark.integration
@pytest.mark.usefixtures("first_story")
@pytest.mark.parametrize(("document", "after"), [("README.md", "## Try it by hand"), ("docs/api.md", "")])
def test_the_examples_run_as_printed(workplace: Path, document: str, after: str) -> None:
    text = (ROOT / document).read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text[text.index(after) :], re.DOTALL)
    assert len(blocks) > 1
    script = _STRICTLY + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script], cwd=workplace, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
