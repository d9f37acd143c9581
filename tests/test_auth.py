"""Keys and limits, met as callers meet them: with plain HTTP and openai's client on loopback.

The shapes and headers are OpenAI's (its guides "Error codes" and "Rate limits"; what its SDK reads). The laws of the
limits are in `test_limits`.
"""

import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpx
import openai
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from clock import Clock
from conftest import Florette
from proxy.answers import SERVER_SEND
from proxy.app import create_app
from proxy.auth import Caller, Key, Keys
from proxy.config import ApiKey, Config, ConfigError
from proxy.errors import RateLimited
from proxy.guard import Guard
from proxy.limits import Limits
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread, serve_app
from steps import DONE, Answers, Begins, Chunks, Fails, GoesSilent, Holds, Resets, Says, Step
from vllm_shapes import chunk

ROOT = Path(__file__).parent.parent
CHAT = "/v1/chat/completions"
PATHS = [CHAT, "/v1/completions", "/v1/embeddings", "/v1/rerank", "/tokenize", "/detokenize", "/v1/models"]
PLAIN: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TURN = PLAIN | {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]}
STREAMED = {"stream": True}

ADAS, BOBS, NOBODYS = "sk-adas-own", "sk-bobs-own", "sk-nobodys"

#: A model list: the cheapest thing to ask for, which costs no tokens.
MODELS = Answers({"object": "list", "data": []})


def entry(name: str, key: str, **limits: int) -> dict[str, Any]:
    """A key of the configuration."""
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **limits}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def error_of(answer: httpx.Response) -> dict[str, Any]:
    assert list(answer.json()) == ["error"]
    error: dict[str, Any] = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    return error


def told_of_limits(headers: Mapping[str, str]) -> dict[str, str]:
    start = "x-ratelimit-"
    return {name.removeprefix(start): value for name, value in headers.items() if name.startswith(start)}


@pytest.fixture(scope="module")
def keyed(florette: Florette) -> str:
    """Florette with the keys of two callers, and no limits."""
    return florette(api_keys=[entry("ada", ADAS), entry("bob", BOBS)])


@pytest.fixture
def clock() -> Clock:
    return Clock()


Limited = Callable[..., httpx.Client]


def configured(upstream: ScriptedUpstream, keys: list[dict[str, Any]]) -> Config:
    return Config.load({"upstream": upstream.url, "api_keys": keys, "retries": 0}, None, {})


@pytest.fixture
def limited(loop_thread: LoopThread, upstream: ScriptedUpstream, clock: Clock) -> Iterator[Limited]:
    """Starts a Florette where ada has these limits, and bob has none -> a client with her key."""
    with ExitStack() as running:

        def start(**limits: int) -> httpx.Client:
            keys = [entry("ada", ADAS, **limits), entry("bob", BOBS)]
            app = create_app(configured(upstream, keys), clock=clock)
            url = running.enter_context(serve_app(app, loop_thread))
            return running.enter_context(httpx.Client(base_url=url, headers=bearer(ADAS), timeout=PATIENCE_S))

        yield start


@contextmanager
def sdk(http: httpx.Client | str, key: str = ADAS) -> Iterator[openai.OpenAI]:
    """Openai's client with a key, in front of the same Florette."""
    url = http if isinstance(http, str) else str(http.base_url)
    with openai.OpenAI(base_url=url.rstrip("/") + "/v1", api_key=key, max_retries=0) as client:
        yield client


# -- who may ask -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [ADAS, BOBS])
def test_each_key_lets_its_caller_in(keyed: str, upstream: ScriptedUpstream, key: str) -> None:
    upstream.script(Says("hello"), Says("hello"), Says("hello"), MODELS)
    with sdk(keyed, key) as client:
        assert client.chat.completions.create(**PLAIN).choices[0].message.content == "hello"
        assert client.chat.completions.create(**TURN).choices[0].message.content == "hello"
        assert list(client.chat.completions.create(**TURN, stream=True))
        assert client.models.list().data == []


@pytest.mark.parametrize("key", [NOBODYS, ADAS[:-1], ADAS + "x", ADAS.upper(), entry("ada", ADAS)["sha256"]])
@pytest.mark.parametrize("fields", [PLAIN, TURN, TURN | STREAMED], ids=["passed", "turn", "streamed"])
def test_the_sdk_is_told_that_a_key_is_wrong(keyed: str, key: str, fields: dict[str, Any]) -> None:
    with sdk(keyed, key) as client, pytest.raises(openai.AuthenticationError) as told:
        client.chat.completions.create(**fields)
    assert (told.value.status_code, told.value.type, told.value.code) == (
        401,
        "invalid_request_error",
        "invalid_api_key",
    )
    assert told.value.response.headers["www-authenticate"] == "Bearer"
    assert key not in told.value.response.text


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", ADAS, f"Basic {ADAS}", f"Bearer{ADAS}", f"Token {ADAS}", f"Bearer\t{ADAS}"],
)
def test_no_key_is_told_where_to_put_one(keyed: str, header: str | None) -> None:
    answer = httpx.post(keyed + CHAT, json=PLAIN, headers={} if header is None else {"authorization": header})
    assert answer.status_code == 401
    error = error_of(answer)
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "invalid_api_key", None)
    assert "Authorization: Bearer" in error["message"]
    assert ADAS not in answer.text


@pytest.mark.parametrize("header", [f"bearer {ADAS}", f"BEARER {ADAS}", f"Bearer   {ADAS}"])
def test_a_scheme_has_no_case_and_blanks_are_no_part_of_a_key(
    keyed: str, upstream: ScriptedUpstream, header: str
) -> None:
    """RFC 9110, 11.1."""
    upstream.script(MODELS)
    assert httpx.get(keyed + "/v1/models", headers={"authorization": header}).status_code == 200


@pytest.mark.parametrize("path", [*PATHS, "/v1/nope", "/nope", "/"])
@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"x" * 11_000_000], ids=len)
def test_nothing_is_read_of_one_who_may_not_ask(keyed: str, path: str, content: bytes) -> None:
    method = "GET" if path == "/v1/models" else "POST"
    answer = httpx.request(method, keyed + path, content=content, headers=bearer(NOBODYS))
    assert answer.status_code == 401
    assert error_of(answer)["code"] == "invalid_api_key"


def test_the_refusal_comes_before_the_body_does(keyed: str) -> None:
    at = urlsplit(keyed)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        peer.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode())
        assert peer.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_one_who_asks_whether_we_live_needs_no_key(keyed: str, upstream: ScriptedUpstream) -> None:
    upstream.script(MODELS)
    assert httpx.get(keyed + "/healthz").status_code == 200
    assert httpx.get(keyed + "/readyz").status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("upstream_key", "sent"), [("sk-ours", "Bearer sk-ours"), (None, None)])
def test_the_callers_key_goes_no_further(
    florette: Florette, upstream: ScriptedUpstream, path: str, upstream_key: str | None, sent: str | None
) -> None:
    upstream.script(Answers({"choices": []}))
    url = florette(api_keys=[entry("ada", ADAS)], upstream_key=upstream_key)
    method = "GET" if path == "/v1/models" else "POST"
    assert httpx.request(method, url + path, json=PLAIN, headers=bearer(ADAS)).status_code == 200
    [received] = upstream.received
    assert received.headers.get("authorization") == sent
    assert ADAS not in str(received.headers)


@pytest.mark.parametrize("fields", [PLAIN, TURN, TURN | STREAMED], ids=["passed", "turn", "streamed"])
def test_an_upstream_that_wants_a_key_is_the_operators_affair(
    keyed: str, upstream: ScriptedUpstream, fields: dict[str, Any]
) -> None:
    """The caller has shown the right key: a 401 would send it looking for another."""
    upstream.script(Fails(401, {"error": "Unauthorized"}))
    answer = httpx.post(keyed + CHAT, json=fields, headers=bearer(ADAS))
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_key_refused"


def test_without_limits_nothing_is_told_of_any(keyed: str, upstream: ScriptedUpstream) -> None:
    """But what an upstream tells of its own passes."""
    upstream.script(Says("hello"), Answers({"choices": []}, headers={"x-ratelimit-limit-requests": "5"}))
    with httpx.Client(base_url=keyed, headers=bearer(ADAS)) as http:
        assert told_of_limits(http.post(CHAT, json=TURN).headers) == {}
        assert told_of_limits(http.post(CHAT, json=PLAIN).headers) == {"limit-requests": "5"}


# -- requests in a minute ----------------------------------------------------------------------------------


def test_a_minute_holds_so_many_requests(limited: Limited, upstream: ScriptedUpstream, clock: Clock) -> None:
    http = limited(requests_per_minute=2)
    upstream.script(*[Says("hello")] * 3)
    with sdk(http) as client:
        client.chat.completions.create(**TURN)
        clock.pass_s(20.25)
        client.chat.completions.create(**PLAIN)
        clock.pass_s(10)
        with pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(**TURN, stream=True)
        assert (told.value.status_code, told.value.type, told.value.code) == (429, "requests", "rate_limit_exceeded")
        assert told.value.response.headers["retry-after"] == "30"  # 29.75, rounded up
        assert told_of_limits(told.value.response.headers) == {
            "limit-requests": "2",
            "remaining-requests": "0",
            "reset-requests": "50s",
        }
        assert "'ada' on requests per min (RPM): Limit 2, Used 2. Please try again in 30s." in told.value.message
        clock.pass_s(30)
        client.chat.completions.create(**PLAIN)


def test_every_request_that_was_let_in_counts_and_no_other(
    limited: Limited, upstream: ScriptedUpstream, clock: Clock
) -> None:
    http = limited(requests_per_minute=4)
    upstream.script(Fails(400), Fails(500))
    remaining = [
        told_of_limits(answer.headers)["remaining-requests"]
        for answer in (
            http.post(CHAT, content=b"{"),
            http.post("/v1/nope"),
            http.post(CHAT, json=TURN),
            http.post("/tokenize", json={}),
            http.post("/tokenize", json={}),
            http.get("/v1/models"),
        )
    ]
    assert remaining == ["3", "2", "1", "0", "0", "0"]
    assert http.get("/v1/models", headers=bearer(NOBODYS)).status_code == 401
    assert http.get("/healthz").status_code == 200
    clock.pass_s(60)
    upstream.script(MODELS)
    assert told_of_limits(http.get("/v1/models").headers)["remaining-requests"] == "3"


def test_the_limits_of_one_are_not_those_of_another(limited: Limited, upstream: ScriptedUpstream) -> None:
    http = limited(requests_per_minute=1)
    upstream.script(*[MODELS] * 4)
    assert [http.get("/v1/models").status_code for _ in range(2)] == [200, 429]
    assert [http.get("/v1/models", headers=bearer(BOBS)).status_code for _ in range(3)] == [200] * 3


WAYS = {
    "turn": (CHAT, TURN),
    "streamed turn": (CHAT, TURN | STREAMED),
    "passed": (CHAT, PLAIN),
    "passed stream": (CHAT, PLAIN | STREAMED),
}


@pytest.mark.parametrize("way", WAYS)
def test_good_answers_tell_of_the_limits_too(
    limited: Limited, upstream: ScriptedUpstream, clock: Clock, way: str
) -> None:
    http = limited(requests_per_minute=1000, tokens_per_minute=50, concurrent_requests=9)
    upstream.script(*[Says("hello")] * 2)
    path, body = WAYS[way]
    http.post(path, json=body | {"stream_options": {"include_usage": True}} if "stream" in body else body)
    clock.pass_s(0.75)
    answer = http.post(path, json=body)
    assert answer.status_code == 200
    assert told_of_limits(answer.headers) == {
        "limit-requests": "1000",
        "remaining-requests": "998",
        "reset-requests": "1m0s",
        "limit-tokens": "50",
        "remaining-tokens": "35",
        "reset-tokens": "59.25s",
    }


def test_our_limits_are_told_and_not_the_upstreams(limited: Limited, upstream: ScriptedUpstream) -> None:
    http = limited(requests_per_minute=3)
    theirs = {"X-RateLimit-Limit-Requests": "9999", "x-ratelimit-reset-requests": "9s"}
    upstream.script(Answers({"data": []}, headers=theirs))
    answer = http.post("/v1/embeddings", json={"input": "x"})
    assert answer.headers.get_list("x-ratelimit-limit-requests") == ["3"]
    assert answer.headers.get_list("x-ratelimit-reset-requests") == ["1m0s"]


# -- tokens in a minute ------------------------------------------------------------------------------------

LONG = "x" * 380
#: 400 characters of text each, so 100 tokens if nobody tells better: the model's name, roles and types count, too.
ASKED_TURN = TURN | {"messages": [{"role": "user", "content": LONG}]}
ASKED = PLAIN | {"messages": [{"role": "user", "content": LONG + "x" * 15}]}
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}
PROMPT = {"prompt": LONG + "x" * 20}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4000}}
TOLD = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def deltas(*texts: str) -> list[dict[str, Any] | bytes]:
    return [chunk({"role": "assistant", "content": ""}), *(chunk({"content": text}) for text in texts)]


#: What is asked, how the upstream answers, and what it costs.
COSTS: dict[str, tuple[str, dict[str, Any], Step, int]] = {
    "a turn": (CHAT, TURN, Says("hello"), 15),
    "a streamed turn": (CHAT, TURN | STREAMED, Says("hello"), 15),
    "a streamed turn that tells": (CHAT, TURN | COUNTED, Says("hello"), 15),
    "a passed answer": (CHAT, PLAIN, Says("hello"), 15),
    "a passed stream that tells": (CHAT, PLAIN | COUNTED, Says("hello"), 15),
    "completions": ("/v1/completions", PROMPT, Answers({"choices": [{"text": "x"}], "usage": TOLD}), 15),
    "a long answer": (CHAT, PLAIN, Says("x" * 300_000), 15),
    "embeddings": (
        "/v1/embeddings",
        {"input": "x"},
        Answers({"data": [0.25] * 50_000, "usage": TOLD}, writes=[9, 70_000]),
        15,
    ),
    "a rerank": ("/v1/rerank", {"query": "x"}, Answers({"results": [], "usage": {"total_tokens": 7}}), 7),
    "usage with blanks": (CHAT, PLAIN, Answers(b'{"choices":[],"usage" : {"prompt_tokens": 3 } ,"x":1}'), 3),
    "usage that is a text": (CHAT, PLAIN, Answers({"usage": TOLD, "choices": [{"text": '"usage": {}'}]}), 15),
    # Nobody tells: a quarter of the characters.
    "an untold turn": (CHAT, ASKED_TURN, Says("x" * 40, usage=False), 110),
    "an untold streamed turn": (CHAT, ASKED_TURN | STREAMED, Says("x" * 40, cut=7, usage=False), 110),
    "an untold call": (CHAT, ASKED_TURN, Says('✿FUNCTION✿: f\n✿ARGS✿: {"a": "xxx"}', usage=False), 104),
    "untold thinking": (CHAT, ASKED_TURN, Says("x", reasoning="x" * 39, usage=False), 110),
    "an untold stream": (CHAT, ASKED | STREAMED, Chunks([*deltas("a", "b" * 99, "", "c"), DONE]), 103),
    "an untold stream of calls": (CHAT, ASKED | STREAMED, Chunks([chunk({"tool_calls": [{"index": 0}]}), DONE]), 101),
    "an untold stream of text": (
        "/v1/completions",
        PROMPT | STREAMED,
        Chunks([{"choices": [{"text": "x"}]}, DONE]),
        101,
    ),
    "untold completions": ("/v1/completions", PROMPT, Answers(b"x" * 40), 110),
    "untold embeddings": ("/v1/embeddings", {"input": [LONG, "x" * 20]}, Answers({"data": [0.25] * 50}), 100),
    "a prompt of tokens": ("/v1/embeddings", {"input": [[1, 2, 3], [4]]}, Answers({"data": []}), 4),
    "an image": ("/v1/embeddings", {"messages": [IMAGE], "input": "x" * 31}, Answers({"data": []}), 10),
    "what is no usage": ("/v1/embeddings", {"input": "x" * 4}, Answers(b'{"usage": {"prompt_tokens": "many"}}'), 1),
    "half a usage": ("/v1/embeddings", {"input": "x" * 4}, Answers(b'{"usage": {"prompt_tokens": 7'), 1),
    "deep usage": ("/v1/embeddings", {"input": "x" * 4}, Answers(b'{"usage": ' + b'{"x":' * 10_000), 1),
    "a stream of anything": (
        CHAT,
        ASKED | STREAMED,
        Chunks([{"choices": 5}, b"data: [5]\n\n", b"data: {\n\n", DONE]),
        100,
    ),
    "odd choices": (CHAT, ASKED | STREAMED, Chunks([{"choices": [5, {"delta": 5}], "usage": 5}, DONE]), 100),
    # No model has worked for these.
    "a refusal": (CHAT, ASKED_TURN, Fails(400), 0),
    "a passed refusal": (CHAT, ASKED, Fails(429), 0),
    "no answer": (CHAT, ASKED, Resets(), 0),
    "tokenizing": ("/tokenize", PROMPT, Answers({"count": 5, "tokens": [1, 2, 3, 4, 5]}), 0),
    "detokenizing": ("/detokenize", {"tokens": [1]}, Answers({"prompt": LONG}), 0),
    # It broke, after something had come.
    "a broken turn": (CHAT, ASKED_TURN | STREAMED, Begins("x" * 40), 110),
    "a broken stream": (CHAT, ASKED | STREAMED, Begins("x", "x"), 102),
    "a broken stream that told": (CHAT, ASKED | STREAMED, Chunks([chunk({"content": "x"}, usage=TOLD)]), 15),
}


def remaining(http: httpx.Client, upstream: ScriptedUpstream) -> int:
    """The tokens that ada has left, once her lease has ended: the only one that she may have."""
    upstream.script(MODELS)
    patience_ends = time.monotonic() + PATIENCE_S
    while (answer := http.get("/v1/models")).status_code == 429:
        assert time.monotonic() < patience_ends, "the lease never ended"
    return int(told_of_limits(answer.headers)["remaining-tokens"])


@pytest.mark.parametrize("what", COSTS)
def test_an_answer_costs_what_was_told_or_else_an_estimate(
    limited: Limited, upstream: ScriptedUpstream, what: str
) -> None:
    http = limited(tokens_per_minute=10_000, concurrent_requests=1)
    path, body, step, cost = COSTS[what]
    upstream.script(step)
    http.post(path, json=body)
    assert 10_000 - remaining(http, upstream) == cost


@pytest.mark.parametrize(
    ("body", "step", "cost"),
    [
        (ASKED_TURN, GoesSilent(), 100),
        (ASKED, GoesSilent(), 100),
        (ASKED_TURN | STREAMED, GoesSilent(Begins("x" * 37, "END")), 110),
        (ASKED | STREAMED, GoesSilent(Begins("x", "END")), 102),
    ],
    ids=["turn", "passed", "streamed turn", "passed stream"],
)
def test_one_who_leaves_pays_for_what_came(
    limited: Limited, upstream: ScriptedUpstream, body: dict[str, Any], step: Step, cost: int
) -> None:
    http = limited(tokens_per_minute=10_000, concurrent_requests=1)
    upstream.script(step)
    leave(http, upstream, body, after=b"END" if "stream" in body else b"")
    assert 10_000 - remaining(http, upstream) == cost


def leave(http: httpx.Client, upstream: ScriptedUpstream, body: dict[str, Any], after: bytes = b"") -> None:
    """Asks, and leaves when the upstream has been asked and `after` has come."""
    number = len(upstream.received)
    with sending(http, json.dumps(body).encode()) as peer:
        received = upstream.wait_for(number + 1)[number]
        came = b""
        while after not in came:
            came += peer.recv(65536)
    assert received.left.wait(PATIENCE_S)


@contextmanager
def sending(http: httpx.Client, content: bytes, missing: int = 0) -> Iterator[socket.socket]:
    """A connection on which ada's request was sent, all but so many bytes that are missing."""
    at = urlsplit(str(http.base_url))
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADAS}\r\ncontent-length: "
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        peer.sendall(f"{head}{len(content) + missing}\r\n\r\n".encode() + content)
        yield peer


def test_requests_are_let_in_while_tokens_are_left(limited: Limited, upstream: ScriptedUpstream, clock: Clock) -> None:
    """An answer may overdraw: what it costs is known at its end."""
    http = limited(tokens_per_minute=20)
    upstream.script(*[Says("hello")] * 3)
    with sdk(http) as client:
        client.chat.completions.create(**TURN)
        clock.pass_s(15)
        client.chat.completions.create(**TURN)
        clock.pass_s(5)
        with pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(**PLAIN)
        assert (told.value.type, told.value.code) == ("tokens", "rate_limit_exceeded")
        assert "on tokens per min (TPM): Limit 20, Used 30. Please try again in 40s." in told.value.message
        assert told.value.response.headers["retry-after"] == "40"
        assert told_of_limits(told.value.response.headers) == {
            "limit-tokens": "20",
            "remaining-tokens": "0",
            "reset-tokens": "55s",
        }
        clock.pass_s(40)
        client.chat.completions.create(**PLAIN)


def test_one_whose_tokens_are_counted_is_told_usage_only_if_it_asks(
    limited: Limited, upstream: ScriptedUpstream
) -> None:
    http = limited(tokens_per_minute=1000)
    upstream.script(*[Says("hello")] * 2)
    assert "usage" not in http.post(CHAT, json=TURN | STREAMED).text
    assert http.post(CHAT, json=TURN | COUNTED).text.count('"usage"') == 1


def test_what_passes_a_counted_caller_passes_byte_for_byte_and_at_once(
    limited: Limited, upstream: ScriptedUpstream
) -> None:
    http = limited(tokens_per_minute=1000)
    odd = (b": a comment\n\n", b'data:{"x":1.0e-05}\r\n\r\n', DONE)
    held = Holds(Chunks(odd), after=2)
    upstream.script(held)
    with http.stream("POST", CHAT, json=PLAIN | STREAMED) as answer:
        parts, came = answer.iter_raw(), b""
        while came != b"".join(odd[:2]):
            came += next(parts)
        held.release()
        assert came + b"".join(parts) == b"".join(odd)
    body = b'{"choices": [ ],\n  "usage":{"prompt_tokens":1.0e-05}}\n\n'
    upstream.script(Answers(body, writes="byte"))
    assert http.post(CHAT, json=PLAIN).content == body


# -- at the same time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_so_many_answers_run_at_once(limited: Limited, upstream: ScriptedUpstream, way: str) -> None:
    http = limited(concurrent_requests=1)
    path, body = WAYS[way]
    upstream.script(GoesSilent(Begins("x" * 9)), MODELS)
    with http.stream("POST", path, json=body | STREAMED):
        with sdk(http) as client, pytest.raises(openai.RateLimitError) as told:
            client.chat.completions.create(**PLAIN)
        assert (told.value.type, told.value.code) == ("requests", "rate_limit_exceeded")
        assert told.value.response.headers["retry-after"] == "1"
        assert "concurrent requests: Limit 1, Used 1." in told.value.message
        assert http.get("/v1/models", headers=bearer(BOBS)).status_code == 200
    assert upstream.received[0].left.wait(PATIENCE_S)


@pytest.mark.parametrize("way", WAYS)
def test_the_place_is_free_before_the_last_bytes_leave(limited: Limited, upstream: ScriptedUpstream, way: str) -> None:
    """Requests that wait on one connection begin just when the one before ends, as on the fastest of lines."""
    path, body = WAYS[way]
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADAS}\r\ncontent-length: {len(content)}\r\n"
    at = urlsplit(str(limited(concurrent_requests=1).base_url))
    upstream.script(*[Says("hello")] * 5)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        peer.sendall((head.encode() + b"\r\n" + content) * 4)
        peer.sendall(head.encode() + b"connection: close\r\n\r\n" + content)
        came = b"".join(iter(lambda: peer.recv(65536), b""))
    assert re.findall(rb"HTTP/1.1 (\d+)", came) == [b"200"] * 5


@pytest.mark.parametrize("body", [PLAIN, TURN], ids=["passed", "turn"])
def test_who_has_read_that_a_stream_is_done_may_ask_at_once(
    limited: Limited, upstream: ScriptedUpstream, body: dict[str, Any]
) -> None:
    """SDKs read no further, although the upstream has not hung up yet."""
    http = limited(concurrent_requests=1)
    held = Holds(Chunks([*deltas("It rains"), chunk({}, "stop"), DONE]), after=4)
    upstream.script(held, MODELS)
    with http.stream("POST", CHAT, json=body | STREAMED) as answer:
        parts, came = answer.iter_raw(), b""
        while b"[DONE]" not in came:
            came += next(parts)
        assert http.get("/v1/models").status_code == 200
        held.release()


async def test_the_place_is_free_when_all_that_was_announced_leaves() -> None:
    """With a content-length the reader knows where the answer ends before anybody says so."""
    keys = Keys([Key(Caller("ada", Limits(concurrent_requests=1)), hashlib.sha256(ADAS.encode()).digest())], Clock())
    authorization = f"Bearer {ADAS}".encode()
    left: list[bytes] = []

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"3")]})
        await send({"type": "http.response.body", "body": b"ab", "more_body": True})
        with pytest.raises(RateLimited):
            keys.admit(authorization)
        await send({"type": "http.response.body", "body": b"c", "more_body": True})

    async def send(message: Message) -> None:
        left.append(message.get("body", b""))
        if left[-1] == b"c":
            keys.admit(authorization)

    async def receive() -> Message:
        raise AssertionError("nobody asks for the body")

    scope = {"type": "http", "path": CHAT, "headers": [(b"authorization", authorization)], SERVER_SEND: send}
    await Guard(application, keys, frozenset())(scope, receive, send)
    assert left == [b"", b"ab", b"c"]


def ends(http: httpx.Client, upstream: ScriptedUpstream, fields: dict[str, Any], step: Step) -> None:
    upstream.script(step)
    http.post(CHAT, json=fields)


def is_left_while_it_is_sent(http: httpx.Client) -> None:
    with sending(http, b"{", missing=9):
        pass


def is_left(http: httpx.Client, upstream: ScriptedUpstream, fields: dict[str, Any], step: Step) -> None:
    upstream.script(step)
    leave(http, upstream, fields, after=b"END" if "stream" in fields else b"")


Ending = Callable[[httpx.Client, ScriptedUpstream], object]

ENDINGS: dict[str, Ending] = {
    "a turn ends": lambda http, upstream: ends(http, upstream, TURN, Says("hello")),
    "a stream ends": lambda http, upstream: ends(http, upstream, TURN | STREAMED, Says("hello")),
    "a passed stream ends": lambda http, upstream: ends(http, upstream, PLAIN | STREAMED, Says("hello")),
    "the upstream refuses": lambda http, upstream: ends(http, upstream, TURN, Fails(400)),
    "the upstream breaks": lambda http, upstream: ends(http, upstream, TURN | STREAMED, Begins("x")),
    "the upstream breaks off": lambda http, upstream: ends(http, upstream, PLAIN | STREAMED, Resets(Begins("x"))),
    "the body is no JSON": lambda http, upstream: http.post(CHAT, content=b"{"),
    "there is no such path": lambda http, upstream: http.post("/v1/nope"),
    "it is left while it is sent": lambda http, upstream: is_left_while_it_is_sent(http),
    "it is left before it begins": lambda http, upstream: is_left(http, upstream, TURN, GoesSilent()),
    "a passed one is left": lambda http, upstream: is_left(http, upstream, PLAIN, GoesSilent()),
    "a turn is left": lambda http, upstream: is_left(http, upstream, TURN | STREAMED, GoesSilent(Begins("END"))),
    "a stream is left": lambda http, upstream: is_left(http, upstream, PLAIN | STREAMED, GoesSilent(Begins("END"))),
}


@pytest.fixture(scope="module")
def one_place(loop_thread: LoopThread, upstream_server: ScriptedUpstream) -> Iterator[httpx.Client]:
    """In the name of ada, who may ask one thing at a time."""
    keys = [entry("ada", ADAS, concurrent_requests=1, tokens_per_minute=10**9)]
    with (
        serve_app(create_app(configured(upstream_server, keys)), loop_thread) as url,
        httpx.Client(base_url=url, headers=bearer(ADAS), timeout=PATIENCE_S) as http,
    ):
        yield http


@given(endings=st.lists(st.sampled_from(sorted(ENDINGS)), min_size=1, max_size=6))
@settings(max_examples=25)
def test_however_answers_end_the_place_is_free_again(
    one_place: httpx.Client, upstream_server: ScriptedUpstream, endings: list[str]
) -> None:
    with upstream_server.fresh() as upstream:
        for ending in endings:
            ENDINGS[ending](one_place, upstream)
            remaining(one_place, upstream)


MESSAGES: dict[str, Message] = {
    "start": {"type": "http.response.start", "status": 200, "headers": []},
    "part": {"type": "http.response.body", "body": b"x", "more_body": True},
    "end": {"type": "http.response.body", "body": b"x"},
}


@given(
    sent=st.lists(st.sampled_from(sorted(MESSAGES)), max_size=4),
    ending=st.sampled_from(["returns", "raises", "is cancelled", "is cancelled while it sends"]),
)
async def test_no_end_of_an_application_keeps_a_place_or_frees_two(sent: list[str], ending: str) -> None:
    """Whatever it sends, in whatever order, and wherever it is stopped."""
    keys = Keys([Key(Caller("ada", Limits(concurrent_requests=1)), hashlib.sha256(ADAS.encode()).digest())], Clock())
    stopping = anyio.CancelScope()

    async def application(_scope: Scope, _receive: Receive, send: Send) -> None:
        for name in sent:
            await send(dict(MESSAGES[name]))
        if ending == "raises":
            raise ZeroDivisionError
        if ending == "is cancelled":
            stopping.cancel()
            await anyio.sleep_forever()

    async def send(_message: Message) -> None:
        if ending == "is cancelled while it sends":
            stopping.cancel()
            await anyio.sleep_forever()

    async def receive() -> Message:
        raise AssertionError("nobody asks for the body")

    authorization = f"Bearer {ADAS}".encode()
    scope = {"type": "http", "path": CHAT, "headers": [(b"authorization", authorization)], SERVER_SEND: send}
    with stopping:
        try:
            await Guard(application, keys, frozenset())(scope, receive, send)
        except ZeroDivisionError:
            assert ending == "raises"
    keys.admit(authorization)
    with pytest.raises(RateLimited):
        keys.admit(authorization)


# -- the configuration -------------------------------------------------------------------------------------

DIGEST = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"


def loaded(text: str, **environment: str) -> tuple[ApiKey, ...]:
    """The keys that FLORETTE_API_KEYS gives."""
    return Config.load({}, None, {"FLORETTE_API_KEYS": text, **environment}).api_keys


@pytest.mark.parametrize(
    "text", [f"[{{name: a, sha256: {DIGEST}}}]", f'[{{"name": "a", "sha256": "{DIGEST.upper()}"}}]']
)
def test_a_variable_holds_keys_as_yaml_or_json(text: str) -> None:
    [key] = loaded(text)
    assert key.digest == hashlib.sha256(b"foo").digest()


@pytest.mark.parametrize("value", ["foo", "foo\n", "  foo "])
def test_a_key_comes_out_of_a_variable(value: str) -> None:
    [key] = loaded("[{name: a, env: A_KEY}]", A_KEY=value)
    assert key.digest == hashlib.sha256(b"foo").digest()
    assert "foo" not in repr(key)
    assert "foo" not in repr(Config(api_keys=(key,)))
    assert DIGEST not in repr(Config(api_keys=(key,)))


def test_an_empty_list_in_a_variable_beats_the_file(tmp_path: Path) -> None:
    file = tmp_path / "florette.yaml"
    file.write_text(f"api_keys: [{{name: a, sha256: {DIGEST}}}]\n", encoding="utf-8")
    assert len(Config.load({}, file, {"FLORETTE_API_KEYS": ""}).api_keys) == 1
    assert Config.load({}, file, {"FLORETTE_API_KEYS": "[]"}).api_keys == ()


GOOD = f"sha256: {DIGEST}"

BAD_KEYS = [
    ("[{name: a, env: A_KEY}]", "'A_KEY'"),
    ("[{name: a, env: EMPTY}]", "'EMPTY'"),
    ("[{name: a, env: BLANK}]", "'BLANK'"),
    ("[{name: a, env: QUOTED}]", "printable ASCII"),
    ("[{name: a, env: ''}]", "'api_keys.0.env'"),
    ("[{name: a}]", "either 'sha256' or 'env'"),
    (f"[{{name: a, {GOOD}, env: FULL}}]", "either 'sha256' or 'env'"),
    ("[{name: a, sha256: sk-secret}]", "64 digits"),
    (f"[{{name: a, sha256: {DIGEST[2:]}}}]", "64 digits"),
    (f"[{{name: a, sha256: {DIGEST[2:]}zz}}]", "64 digits"),
    ("[{name: a, key: sk-secret}]", "'api_keys.0.key': there is no such key"),
    (f"[{{{GOOD}}}]", "'api_keys.0.name'"),
    (f"[{{name: '', {GOOD}}}]", "'api_keys.0.name'"),
    (f"[{{name: two words, {GOOD}}}]", "'api_keys.0.name'"),
    (f"[{{name: {'a' * 65}, {GOOD}}}]", "'api_keys.0.name'"),
    (f"[{{name: a, {GOOD}, requests_per_minute: 0}}]", "'api_keys.0.requests_per_minute'"),
    (f"[{{name: a, {GOOD}, requests_per_minute: 1000001}}]", "'api_keys.0.requests_per_minute'"),
    (f"[{{name: a, {GOOD}, tokens_per_minute: 1.5}}]", "'api_keys.0.tokens_per_minute'"),
    (f"[{{name: a, {GOOD}, concurrent_requests: many}}]", "'api_keys.0.concurrent_requests'"),
    (f"[{{name: a, {GOOD}}}, {{name: a, env: FULL}}]", "same name"),
    (f"[{{name: a, {GOOD}}}, {{name: b, env: FOO}}]", "same key"),
    ("sk-secret", "'api_keys'"),
    ("{name: a}", "'api_keys'"),
    ("[sk-secret]", "'api_keys.0'"),
    ("[{name: sk-secret: x", "FLORETTE_API_KEYS is not valid YAML: line 1"),
    ("[{name: !!int x}]", "FLORETTE_API_KEYS is not valid YAML"),
]


@pytest.mark.parametrize(("text", "named"), BAD_KEYS, ids=lambda value: value[:40])
def test_bad_keys_are_told_in_a_sentence(text: str, named: str) -> None:
    variables = {"EMPTY": "", "BLANK": " \n", "QUOTED": "“sk-secret”", "FULL": "sk-secret", "FOO": "foo"}
    with pytest.raises(ConfigError) as refused:
        loaded(text, **variables)
    said = str(refused.value)
    assert named in said
    assert said.endswith(".")
    assert "\n" not in said
    assert "secret" not in said


EXAMPLE = (ROOT / "config.example.yaml").read_text("utf-8")


def test_the_example_tells_of_each_field_and_shows_keys_that_work() -> None:
    told = EXAMPLE[EXAMPLE.index("# The keys of callers") : EXAMPLE.index("\napi_keys:")]
    assert [name for name in ApiKey.model_fields if name not in told] == []
    shown = "\n".join(re.findall(r"^#   (- .*)$", told, re.MULTILINE))
    ci, by_digest = loaded(shown, FLORETTE_KEY_CI="sk-ci")
    assert (ci.requests_per_minute, ci.tokens_per_minute, ci.concurrent_requests) == (60, 100000, 4)
    assert by_digest.digest == hashlib.sha256(b"foo").digest()


def test_the_readme_shows_keys_that_work() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    [shown] = [
        text for text in re.findall(r"^```yaml\n(.*?)^```", readme, re.MULTILINE | re.DOTALL) if "api_keys" in text
    ]
    [key] = loaded(json.dumps(yaml.safe_load(shown)["api_keys"]), FLORETTE_KEY_CI="sk-ci")
    assert key.digest == hashlib.sha256(b"sk-ci").digest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum on this machine")
def test_the_command_that_is_shown_hashes_a_key() -> None:
    [command] = re.findall(r"`(printf [^`]*)`", EXAMPLE)
    printed = subprocess.run(
        ["/bin/sh", "-c", command], env={"KEY": "foo", "PATH": "/usr/bin:/bin"}, capture_output=True, check=True
    ).stdout
    assert printed.split()[0].decode() == DIGEST
