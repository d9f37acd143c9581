"""Apps are served on a background loop, and nothing that goes wrong there stays unseen."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from scripted import ScriptedUpstream
from serving import LoopThread, nobody_listens, serve_app


def test_what_the_loop_reports_fails_the_test(loop_thread: LoopThread, upstream_server: ScriptedUpstream) -> None:
    async def lose_an_exception() -> None:
        asyncio.get_running_loop().call_soon(json.loads, "not JSON")

    with pytest.raises(AssertionError, match="JSONDecodeError"), upstream_server.fresh():
        loop_thread.run(lose_an_exception())


async def _says_hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello from " + request.url.path)


def test_an_app_is_served_while_the_block_runs(loop_thread: LoopThread) -> None:
    with serve_app(Starlette(routes=[Route("/there", _says_hello)]), loop_thread) as url:
        assert httpx.get(url + "/there").text == "hello from /there"
    with pytest.raises(httpx.ConnectError):
        httpx.get(url + "/there")


def test_an_app_that_does_not_start_says_so(loop_thread: LoopThread) -> None:
    @asynccontextmanager
    async def fails(_app: Starlette) -> AsyncIterator[None]:
        raise OSError("no database")
        yield

    with (
        pytest.raises(RuntimeError, match="did not start"),
        serve_app(Starlette(lifespan=fails), loop_thread),
    ):
        pass


def test_a_task_left_running_is_told_when_the_loop_closes() -> None:
    async def start() -> asyncio.Task[bool]:
        return asyncio.create_task(asyncio.Event().wait(), name="forgotten")

    thread = LoopThread()
    task = thread.run(start())
    with pytest.raises(AssertionError, match=r"still running: .*forgotten"):
        thread.close()
    assert task.cancelled()


def test_nobody_listens_where_nobody_listens() -> None:
    with nobody_listens() as url, pytest.raises(httpx.ConnectError):
        httpx.get(url)
