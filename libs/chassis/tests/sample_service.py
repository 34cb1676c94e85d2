"""A small real service for the tests of `chassis.service`: started as a process, configured by its environment."""

import asyncio
import os

import structlog
from chassis.app import create_app
from chassis.service import Runtime, run
from chassis.settings import ServiceSettings
from litestar import Litestar, get, post

log = structlog.get_logger("sample")


async def wire(runtime: Runtime) -> Litestar:
    @get("/slow")
    async def slow() -> str:
        log.info("slow_began")
        await asyncio.sleep(1.0)
        return "finished"

    @post("/crash")
    async def crash() -> None:
        async def fail() -> None:
            raise RuntimeError("the task broke")

        runtime.spawn(fail(), "doomed")

    async def goodbye() -> None:
        log.info("goodbye")

    runtime.on_stop(goodbye)
    return create_app(runtime, [slow, crash], "Sample")


if __name__ == "__main__":
    # Named like a real service: role, broker user and queue names are given to those only.
    run(os.environ["SAMPLE_SERVICE"], ServiceSettings, wire)
