"""How an answer ends when it is not the upstream that ends it: the caller leaves, the server stops, a bug."""

import itertools
import json
import logging
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from conftest import Florette
from exchange import Received
from proxy.app import create_app
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread, serve_app
from steps import Answer, Begins, GoesSilent, Holds, Says

HI = [{"role": "user", "content": "hi"}]
PLAIN: dict[str, Any] = {"model": "m", "messages": HI}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
TURN = PLAIN | {"tools": TOOLS}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
CALL = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}'

#: What is promised: a generation whose caller has left ends within a second.
LEAVING_S = 1.0

#: The ways in which a request is answered.
WAYS = {
    "turn": (CHAT, TURN),
    "streamed turn": (CHAT, TURN | {"stream": True}),
    "passed": (CHAT, PLAIN),
    "streamed and passed": (CHAT, PLAIN | {"stream": True}),
    "completion": (COMPLETIONS, PLAIN),
    "streamed completion": (COMPLETIONS, PLAIN | {"stream": True}),
}


def error_in(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which is its body or the last event of its stream."""
    body = json.loads(answer.text.rstrip().rsplit("data: ", 1)[-1])
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    told: dict[str, Any] = body["error"]
    return told


# -- the caller leaves -------------------------------------------------------------------------------------


@contextmanager
def asking(url: str, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A bare connection on which a request has been sent."""
    content = json.dumps(body).encode()
    with sending(url, f"POST {path}", f"content-length: {len(content)}") as peer:
        peer.sendall(content)
        yield peer


@contextmanager
def sending(url: str, what: str, *headers: str) -> Iterator[socket.socket]:
    """A bare connection on which the head of a request has been sent."""
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        peer.sendall("\r\n".join([f"{what} HTTP/1.1", f"host: {at.netloc}", *headers, "", ""]).encode())
        yield peer


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("begun", [None, Begins("It rains")], ids=["before", "after"])
def test_the_generation_ends_when_the_caller_leaves(
    florette: Florette, upstream: ScriptedUpstream, way: str, begun: Answer | None
) -> None:
    path, body = WAYS[way]
    upstream.script(GoesSilent(begun))
    with asking(florette(), path, body) as peer:
        [received] = upstream.wait_for(1)
        if begun and way != "turn":
            assert peer.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert not received.left.is_set()
    assert received.left.wait(LEAVING_S)


def test_a_probe_ends_when_whoever_probes_leaves(florette: Florette, upstream: ScriptedUpstream) -> None:
    """Or the probes of a silent upstream would pile up."""
    upstream.script(GoesSilent())
    with sending(florette(connect_timeout_s=60), "GET /readyz"):
        [received] = upstream.wait_for(1)
        assert not received.left.is_set()
    assert received.left.wait(LEAVING_S)


def test_one_who_leaves_while_sending_is_no_line_in_the_log(
    loop_thread: LoopThread, nowhere: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The interim answer tells that the body is waited for; the server's end, that nobody waits any more."""
    with serve_app(create_app(Config(upstream=nowhere)), loop_thread) as url:
        with sending(url, f"POST {CHAT}", "content-length: 1000", "expect: 100-continue") as peer:
            assert peer.recv(65536).startswith(b"HTTP/1.1 100 ")
            peer.sendall(b"{")
        assert httpx.get(url + "/healthz").status_code == 200
    assert caplog.text == ""


def test_the_generation_ends_when_the_sdks_stream_is_closed(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(GoesSilent(Begins("It", " rains")))
    with client.chat.completions.create(**TURN, stream=True) as stream:
        next(stream)
    assert upstream.received[0].left.wait(LEAVING_S)


async def test_the_generation_ends_when_the_sdks_task_is_cancelled(
    async_client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(GoesSilent())
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: async_client.chat.completions.create(**TURN))
        [received] = await anyio.to_thread.run_sync(upstream.wait_for, 1)
        group.cancel_scope.cancel()
    assert await anyio.to_thread.run_sync(received.left.wait, LEAVING_S)


def test_one_who_leaves_disturbs_no_one_else(
    florette: Florette, client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    held = Holds(Says("It rains", cut=2), after=2)
    upstream.script(held, GoesSilent(Begins("It")))
    stream = client.chat.completions.create(**TURN, stream=True)
    next(stream)
    with asking(florette(), *WAYS["streamed turn"]):
        leaver = upstream.wait_for(2)[1]
    assert leaver.left.wait(LEAVING_S)
    held.release()
    assert [part.choices[0].finish_reason for part in stream][-1] == "stop"


# -- many callers ------------------------------------------------------------------------------------------

CALLERS = 100


def answer_of(number: int) -> str:
    """An answer that no other caller gets: a text, or a call, of some length."""
    if number % 3 == 0:
        return f"It is number {number}." + " And so on." * (number % 7)
    return f'Well.\n✿FUNCTION✿: get_weather\n✿ARGS✿: {{"city": "c{number}", "days": {[number] * (number % 5)}}}'


async def test_a_hundred_callers_at_once_each_get_their_own(
    async_client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    """All answers begin before the first one goes on, so every two of them are under way together."""
    held = [Holds(Says(answer_of(n), cut=1 + n % 4), after=None if n % 2 else 1) for n in range(CALLERS)]

    def own_step(request: Received) -> Holds:
        return held[int(request.json["model"])]

    async def ask(number: int) -> str:
        asked: dict[str, Any] = {"model": str(number), "messages": HI, "tools": TOOLS}
        if number % 4 < 2:
            whole = await async_client.chat.completions.create(**asked)
            message = whole.choices[0].message
        else:
            async with async_client.chat.completions.stream(**asked) as stream:
                message = (await stream.get_final_completion()).choices[0].message
        calls = [f"{call.function.name} {call.function.arguments}" for call in message.tool_calls or ()]
        return f"{message.content}{calls}"

    got: dict[int, str] = {}

    async def note(number: int) -> None:
        got[number] = await ask(number)

    upstream.script(*[own_step] * CALLERS)
    async with anyio.create_task_group() as group:
        for number in range(CALLERS):
            group.start_soon(note, number)
        await anyio.to_thread.run_sync(upstream.wait_for, CALLERS)
        for step in reversed(held):
            step.release()
    assert got == {number: expected(number) for number in range(CALLERS)}


def expected(number: int) -> str:
    text, _, arguments = answer_of(number).partition("\n✿FUNCTION✿: get_weather\n✿ARGS✿: ")
    return f"{text}{[f'get_weather {arguments}'] if arguments else []}"


# -- the server stops --------------------------------------------------------------------------------------


def test_no_answer_looks_finished_when_the_server_stops_under_it(
    loop_thread: LoopThread, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """All kinds of answers run when the grace period is over, which is at once. That is no bug to be traced."""
    upstream.script(*[lambda request: GoesSilent(Begins("It") if request.json.get("stream") else None)] * 6)
    with ThreadPoolExecutor(len(WAYS)) as callers:
        with serve_app(create_app(Config(upstream=upstream.url)), loop_thread, grace_s=0) as url:
            answers = {
                way: callers.submit(httpx.post, url + path, json=body, timeout=PATIENCE_S)
                for way, (path, body) in WAYS.items()
            }
            upstream.wait_for(len(WAYS))
        ended = {way: answer.result(PATIENCE_S) for way, answer in answers.items()}
    assert {way: error_in(answer)["code"] for way, answer in ended.items()} == dict.fromkeys(WAYS, "shutting_down")
    for way, answer in ended.items():
        assert answer.status_code == (200 if "streamed" in way else 503)
        assert "[DONE]" not in answer.text
        assert '"finish_reason":"' not in answer.text
    assert all(received.left.wait(LEAVING_S) for received in upstream.received)
    assert "graceful shutdown exceeded" in caplog.text
    assert "Traceback" not in caplog.text


def test_half_a_passed_answer_is_broken_off_when_the_server_stops_under_it(
    loop_thread: LoopThread, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    """It has begun and is no stream of events, so there is no way left to tell of anything."""
    upstream.script(GoesSilent(Begins("It rains")))
    with ThreadPoolExecutor(1) as caller:
        with serve_app(create_app(Config(upstream=upstream.url)), loop_thread, grace_s=0) as url:
            begun = threading.Event()
            broken = caller.submit(read_to_the_end, url, begun)
            assert begun.wait(PATIENCE_S)
        with pytest.raises(httpx.RemoteProtocolError):
            broken.result(PATIENCE_S)
    assert "Traceback" not in caplog.text


def read_to_the_end(url: str, begun: threading.Event) -> None:
    with httpx.stream("POST", url + CHAT, json=PLAIN, timeout=PATIENCE_S) as answer:
        for _ in answer.iter_raw():
            begun.set()


# -- a bug -------------------------------------------------------------------------------------------------


def breaks() -> Any:
    raise ZeroDivisionError("a secret of ours")


@contextmanager
def buggy(loop_thread: LoopThread, upstream: ScriptedUpstream, **seams: Any) -> Iterator[str]:
    with serve_app(create_app(Config(upstream=upstream.url), **seams), loop_thread) as url:
        yield url


@pytest.mark.parametrize("streamed", [True, False])
def test_a_bug_is_a_500_that_tells_nothing_of_our_insides(
    loop_thread: LoopThread, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, streamed: bool
) -> None:
    upstream.script(Says("It rains"))
    with buggy(loop_thread, upstream, now=breaks) as url:
        answer = httpx.post(url + CHAT, json=TURN | {"stream": streamed})
        assert httpx.post(url + CHAT, json=PLAIN).status_code == 200
    assert answer.status_code == 500
    assert error_in(answer)["type"] == "server_error"
    assert not {word for word in ("Traceback", "ZeroDivision", "secret", ".py") if word in answer.text}
    [logged] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert logged.exc_info
    assert logged.exc_info[0] is ZeroDivisionError


def test_a_bug_in_the_middle_is_one_error_event(loop_thread: LoopThread, upstream: ScriptedUpstream) -> None:
    """The first id is the answer's own, the second that of its first call."""
    ids = itertools.chain(["1"], iter(breaks, None))
    upstream.script(Says("Let me see.\n" + CALL, cut=3))
    with (
        buggy(loop_thread, upstream, new_id=lambda: next(ids)) as url,
        openai.OpenAI(base_url=url + "/v1", api_key="k", max_retries=0) as sdk,
    ):
        said: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError) as told:
            said.extend(sdk.chat.completions.create(**TURN, stream=True))
    choices = [part.choices[0] for part in said]
    assert "".join(choice.delta.content or "" for choice in choices) == "Let me see."
    assert not any(choice.finish_reason for choice in choices)
    assert "secret" not in told.value.message
