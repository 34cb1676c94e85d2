"""The generated clients, as their README shows them, against the running product."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from customers import PASSWORD, Customer, make_customer

if TYPE_CHECKING:
    from stack import Stack

pytestmark = pytest.mark.integration

CLIENTS = Path(__file__).resolve().parents[2] / "clients"
sys.path.insert(0, str(CLIENTS))


@pytest.fixture(scope="module")
def customer(sangam: "Stack") -> Customer:
    async def make() -> Customer:
        async with aiohttp.ClientSession() as http:
            return await make_customer(sangam, http)

    return asyncio.run(make())


def example(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (CLIENTS / "README.md").read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_the_python_client(sangam: "Stack", customer: Customer, tmp_path: Path) -> None:
    from generate_clients import environment, generate_python

    program = tmp_path / "program.py"
    program.write_text(
        f"origin, email, password = {(sangam.origin, customer.email, PASSWORD)!r}\n{example('python')}\n"
        "again = create_transfer.sync(client=sangam, idempotency_key='other',"
        " body=TransferBody(savings.id, wallet.id, '1e9', 'INR'))\n"
        "print(done.status, done.from_balance, again.code)\n"
    )
    path = {**environment(), "PYTHONPATH": str(generate_python())}
    done = subprocess.run([sys.executable, program], env=path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["completed", "999500.00", "invalid_amount"]


def test_the_typescript_client(sangam: "Stack", customer: Customer) -> None:
    from generate_clients import TYPESCRIPT, environment, generate_typescript

    generate_typescript()
    given = f"const [origin, email, password] = {json.dumps([sangam.origin, customer.email, PASSWORD])};\n"
    story = given + example("ts").replace('"sangam-client"', '"./index.js"').replace("rent-2026-11", "rent-2026-12")
    program = TYPESCRIPT / "src" / "program.ts"

    def compile_and_run(text: str) -> subprocess.CompletedProcess[str]:
        program.write_text(text)
        try:
            return subprocess.run(
                ["bash", "-c", "npx tsc && node dist/program.js"],
                cwd=TYPESCRIPT,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
        finally:
            program.unlink()

    told = compile_and_run(story + "console.log(done.status);\nexport {};\n")
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stdout.split() == ["completed"]
    # The types are the document's: an amount that is no text does not compile.
    wrong = compile_and_run(story.replace('"500.00"', "500"))
    assert "Type 'number' is not assignable to type 'string'" in wrong.stdout
