"""Generates the typed clients from the merged OpenAPI document: `make clients`.

Python by openapi-python-client into `python/sangam-client`, TypeScript by openapi-typescript into `typescript/dist`.
Nothing generated is committed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "services" / "sync-gateway" / "src" / "sync_gateway" / "openapi.json"
PYTHON = HERE / "python" / "sangam-client"
TYPESCRIPT = HERE / "typescript"
# In an environment of its own: it holds back libraries that the product uses.
GENERATOR = "openapi-python-client==0.29.1"


class GenerationFailed(Exception):
    """A generator ended with an error, or left something out; the message is what it said."""


def generate_python() -> Path:
    """The folder of the package `sangam_client`, made again.

    Raises:
        GenerationFailed: also for a mere warning, with which the generator leaves a route or a type out.
    """
    said = _run(
        *(shutil.which("uv") or str(HERE.parent / ".run" / "tools" / "bin" / "uv"), "tool", "run", "--from", GENERATOR),
        *("openapi-python-client", "generate", "--overwrite", "--fail-on-warning", "--meta", "uv"),
        *("--path", str(DOCUMENT), "--config", str(HERE / "python" / "config.yaml"), "--output-path", str(PYTHON)),
        directory=HERE,
    )
    if "Unable to" in said:
        raise GenerationFailed(said)
    return PYTHON


def generate_typescript() -> Path:
    """The folder of the built package `sangam-client`.

    Raises:
        GenerationFailed: npm or the compiler did not succeed.
    """
    _run("npm", "ci", "--no-audit", "--no-fund", directory=TYPESCRIPT)
    _run("npm", "run", "build", directory=TYPESCRIPT)
    return TYPESCRIPT


def environment() -> dict[str, str]:
    """With the tools of our own virtual environment first: Node is there too."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def _run(*command: str, directory: Path) -> str:
    done = subprocess.run(
        command, cwd=directory, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        raise GenerationFailed(f"{' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def main() -> int:
    try:
        for folder in (generate_python(), generate_typescript()):
            print(f"generated: {folder.relative_to(HERE.parent)}")
    except GenerationFailed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
