"""WebSocket conformance: the Autobahn test suite's cases, run by `kosoku`, against the server that `/ws/sync` runs on.

The server echoes, as the suite wants it; its HTTP and WebSocket layers are set by `chassis.server.SERVER_OPTIONS`,
like those of every service. Left out are 9.* (messages larger than our limit of 64 KiB) and 12.*, 13.* (compression,
which we do not offer: its buffers cost more memory per connection than our frames).
"""

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from chassis.server import SERVER_OPTIONS
from report import Figure, Line

EXPLAINED = {
    "7.1.5": "a close frame amid a fragmented message is answered with its end, 1002, where the suite wants the close"
    " code sent back: the message can never be completed, and the connection ends either way",
}
"""Cases that fail, and why that is as it should be."""


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] != "websocket.disconnect":
        await send({"type": "websocket.send", "text": message.get("text"), "bytes": message.get("bytes")})


async def measure() -> list[Line]:
    """The line of the report; prints every failure with its explanation.

    Raises:
        AssertionError: a failure has none.
    """
    options = {**SERVER_OPTIONS, "lifespan": "off"}
    server = uvicorn.Server(uvicorn.Config(_echo, host="127.0.0.1", port=0, **options))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        arguments = ["-x", "9.*", "-x", "12.*", "-x", "13.*", "-p", "4", "-o", directory, f"127.0.0.1:{port}"]
        command = "import sys; from kosoku._cli import main; sys.exit(main())"
        run = await asyncio.create_subprocess_exec(
            sys.executable, "-c", command, *arguments, stdout=asyncio.subprocess.DEVNULL
        )
        await run.wait()
        report = await asyncio.to_thread(Path(directory, "index.json").read_bytes)
        (agent,) = json.loads(report).values()
    server.should_exit = True
    await serving
    failed = {case for case, result in agent.items() if result["behavior"] not in ("OK", "NON-STRICT", "INFORMATIONAL")}
    closed = {
        case
        for case, result in agent.items()
        if result["behaviorClose"] not in ("OK", "INFORMATIONAL") and case not in failed
    }
    for case in sorted(failed | closed):
        print(f"case {case} fails: {EXPLAINED.get(case, 'NOT EXPLAINED')}")
    assert not (failed | closed) - set(EXPLAINED), "a failure is not explained"
    passed = len(agent) - len(failed | closed)
    what, bar = "WebSocket conformance, cases that pass", "each failure explained"
    return [Line(what, Figure([passed]), "cases", "all cases", Figure([len(agent)]), bar)]
