"""`sangam events verify`: prove the log, resumably, and say where it stops being true."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple
from uuid import UUID

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from events import pg
from events.anchors import Anchor, UnreadableAnchors, read
from events.cli import output, verification
from events.cli.connection import (
    FOUND,
    EnvOption,
    JsonOption,
    Servers,
    StoreOption,
    find_servers,
    opened,
    run,
    run_directory,
)
from events.cli.verification import Finding, Proven


class _Result(NamedTuple):
    start: Proven
    proven: Proven
    findings: list[Finding]
    seconds: float
    whole: bool
    """Whether what no walk sees was looked at too: not where --to has set an end."""


def verify(
    first: Annotated[int | None, typer.Option("--from", metavar="P", min=1, help="First position. Default: 1.")] = None,
    last: Annotated[int | None, typer.Option("--to", metavar="P", min=1, help="Last position. Default: head.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the last run ended or was ended.")] = False,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state", metavar="PATH", help="Where to keep how far it got. Default: in .run/.", show_default=False
        ),
    ] = None,
    anchors: Annotated[
        list[Path] | None,
        typer.Option(
            "--anchors",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Chain heads that a relay has written outside the database (ANCHOR_FILE). May be given several times.",
            show_default=False,
        ),
    ] = None,
    chunk: Annotated[int, typer.Option("--chunk", min=1, max=100_000, help="Events read at once.")] = 2_000,
    store: StoreOption = None,
    env: EnvOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify the log: hash chain over the exact bytes, dense positions, order within every stream, nothing left out.

    Somebody who may write to the database can rewrite all of it so that it chains; --anchors finds that too.

    Ends with exit code 1 at the first bad position and says what is wrong there.

    With --resume, goes on where a run was ended. After a complete one it proves what is new, and that the old stands.

    Example: sangam events verify --resume
    """
    servers = find_servers(store, env)
    if resume and first is not None:
        raise typer.BadParameter("--resume begins where the last run ended; --from says otherwise")
    if first is not None and last is not None and last < first:
        raise typer.BadParameter(f"--to {last} is before --from {first}")

    async def work() -> int:
        async with opened(servers.store) as reader, opened(servers.store) as helper:
            epoch, head = await _head(helper)
            if last is not None and last > head:
                raise typer.BadParameter(f"--to {last}: the log ends at {head}")
            if first is not None and first > head + 1:
                raise typer.BadParameter(f"--from {first}: the log ends at {head}")
            anchored = _read_anchors(anchors or [])
            path = state or _default_path(epoch)
            if resume:
                start = _load(path, epoch)
                bad = await verification.check_resumable(helper, start, head)
            else:
                begun = await verification.start_of(helper, epoch, first or 1)
                start, bad = (_nothing(epoch, first or 1), begun) if isinstance(begun, Finding) else (begun, None)
            result = await _prove(reader, helper, start, bad, last, head, chunk, path, quiet=as_json)
            if not result.findings and (bad := await verification.check_anchors(helper, anchored, epoch, head)):
                result = result._replace(findings=[bad])
        _report(result, servers, as_json)
        return FOUND if result.findings else 0

    run(servers, work)


async def _prove(
    reader: pg.Session,
    helper: pg.Session,
    start: Proven,
    bad: Finding | None,
    last: int | None,
    head: int,
    chunk: int,
    path: Path | None,
    *,
    quiet: bool,
) -> _Result:
    if bad is not None:
        return _Result(start, start, [bad], 0.0, False)
    began_s = time.monotonic()
    up_to = max(head if last is None else last, start.position)
    err = output.stderr()
    with Progress(
        TextColumn("verifying"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=quiet or not err.is_terminal,
    ) as progress:
        bar = progress.add_task("", total=up_to - start.position, rate="")

        def on_chunk(proven: Proven) -> None:
            done = proven.position - start.position
            progress.update(bar, completed=done, rate=f"{done / (time.monotonic() - began_s):,.0f}/s")
            if path is not None:
                _save(path, proven)

        walk = verification.Walk(reader, helper, chunk=chunk)
        proven, findings = await walk.run(start, up_to, on_chunk)
    whole = last is None and not findings
    if whole:
        findings = await verification.check_whole(helper)
    return _Result(start, proven, findings, time.monotonic() - began_s, whole)


def _report(result: _Result, servers: Servers, as_json: bool) -> None:
    start, proven, findings = result.start, result.proven, result.findings
    count = proven.position - start.position
    if as_json:
        output.print_json(
            {
                "ok": not findings,
                "epoch": proven.epoch,
                "from": start.position + 1,
                "verified": count,
                "proven_from": start.first,
                "proven_up_to": proven.position,
                "chain_hash": proven.chain_hash,
                "whole": result.whole,
                "seconds": round(result.seconds, 3),
                "findings": [finding._asdict() for finding in findings],
            }
        )
        return
    out = output.stdout()
    for finding in findings:
        where = f"position {finding.position}" if finding.position is not None else "the store"
        out.print(f"{where}: {finding.problem}", style="bold red", soft_wrap=True)
        out.print(f"  {output.printable(finding.detail)}", soft_wrap=True)
    if findings:
        out.print(f"good before it: {_range(start.first, proven.position)}", soft_wrap=True)
    else:
        rate = f", {count / result.seconds:,.0f}/s" if result.seconds > 0 and count else ""
        out.print(
            f"verified {count:,} events of {servers.address} in {result.seconds:.1f} s{rate}: the log is what was"
            f" written, {_range(start.first, proven.position)}",
            style="green",
            soft_wrap=True,
        )
    out.print(f"chain hash {proven.chain_hash} at position {proven.position}, epoch {proven.epoch}", soft_wrap=True)
    if start.first > 1:
        out.print(f"what is before position {start.first} was taken as it stands", style="dim", soft_wrap=True)


def _range(first: int, last: int) -> str:
    return f"positions {first:,} to {last:,}" if last >= first else "nothing"


async def _head(store: pg.Session) -> tuple[str, int]:
    row = await store.fetchrow(
        "SELECT epoch, (SELECT coalesce(max(position), 0) FROM store.log) AS head FROM store.store"
    )
    assert row is not None
    return str(row["epoch"]), row["head"]


# --- the state file ---------------------------------------------------------------------------------


def _read_anchors(paths: list[Path]) -> list[Anchor]:
    try:
        return [anchor for path in paths for anchor in read(path)]
    except (OSError, UnreadableAnchors) as error:
        raise typer.BadParameter(f"--anchors: {error}") from error


def _default_path(epoch: str) -> Path | None:
    run = run_directory()
    return run / f"verify-{UUID(epoch)}.json" if run is not None else None


def _nothing(epoch: str, first: int) -> Proven:
    return Proven(epoch=epoch, first=first, position=first - 1, chain_hash="")


def _load(path: Path | None, epoch: str) -> Proven:
    """How far the last run got.

    Raises:
        typer.BadParameter: there was none, or not on this store.
    """
    if path is None:
        raise typer.BadParameter("--resume: there is no .run/ here; give the state file with --state")
    try:
        proven = msgspec.json.decode(path.read_bytes(), type=Proven)
        bytes.fromhex(proven.chain_hash)
    except FileNotFoundError:
        raise typer.BadParameter(f"--resume: no earlier run has left {path}; run once without it") from None
    except (OSError, msgspec.DecodeError, ValueError) as error:
        raise typer.BadParameter(f"--resume: {path} is not readable ({error})") from error
    if proven.epoch != epoch:
        raise typer.BadParameter(f"--resume: {path} is of the store with epoch {proven.epoch}, and this one is {epoch}")
    return proven


def _save(path: Path, proven: Proven) -> None:
    """Whole or not at all, whenever the process ends."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_bytes(msgspec.json.encode(msgspec.structs.replace(proven, at=datetime.now(UTC))))
    beside.replace(path)
