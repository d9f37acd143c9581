"""What the upstream does wrong and what the caller is told: a status before the first byte, an event after.

Statuses, bodies and broken streams are those of vLLM 0.32.0 and of the servers that stand in front of one.
"""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Florette
from cutting import Writes, cut_writes
from proxy.errors import FloretteError, UpstreamUnreachable
from proxy.sse import MAX_EVENT_BYTES
from proxy.upstream import Patience, Upstream
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import DONE, Answers, Begins, Chunks, Closes, Fails, GoesSilent, Resets, Says, Step, event
from vllm_shapes import chunk, error

HI = [{"role": "user", "content": "hi"}]
PLAIN: dict[str, Any] = {"model": "m", "messages": HI}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
TURN = PLAIN | {"tools": TOOLS}
CHAT = "/v1/chat/completions"

#: The ways in which a chat is answered; an error is told alike in all of them.
WAYS = {
    "turn": TURN,
    "streamed turn": TURN | {"stream": True},
    "passed": PLAIN,
    "streamed and passed": PLAIN | {"stream": True},
}

#: Short, as it is waited for in full, and long enough that a busy machine is not taken for a silent upstream.
SILENCE_S = 0.3

OURS, THEIRS = "sk-of-the-operator", "sk-of-the-caller"

ROLE = chunk({"role": "assistant", "content": ""})

#: A choice with a field of its own so deep that Florette's JSON writer, which stops at 254 levels, refuses it.
TOO_DEEP = (
    b'{"choices":[{"index":0,"%s":{"content":""},"odd":' + b"[" * 300 + b"]" * 300 + b',"finish_reason":"stop"}]}'
)


@dataclass(frozen=True)
class Caller:
    """A plain HTTP client and openai's, in front of one Florette."""

    http: httpx.Client
    sdk: openai.OpenAI


@contextmanager
def calling(url: str) -> Iterator[Caller]:
    with (
        httpx.Client(base_url=url) as http,
        openai.OpenAI(base_url=url + "/v1", api_key=THEIRS, max_retries=0) as sdk,
    ):
        yield Caller(http, sdk)


@pytest.fixture(scope="module")
def once(florette: Florette) -> Iterator[Caller]:
    """A Florette that tries once, so that one step is one answer."""
    with calling(florette(retries=0)) as caller:
        yield caller


@pytest.fixture(scope="module")
def impatient(florette: Florette) -> Iterator[Caller]:
    """A Florette that waits for a moment only."""
    with calling(florette(retries=0, idle_timeout_s=SILENCE_S, answer_timeout_s=SILENCE_S)) as caller:
        yield caller


@pytest.fixture(scope="module")
def caller_for(once: Caller, impatient: Caller) -> Callable[[Step], Caller]:
    """Impatient only where there is a silence to wait for."""
    return lambda step: impatient if isinstance(step, GoesSilent) else once


@pytest.fixture(scope="module")
def persistent(florette: Florette) -> Iterator[Caller]:
    """A Florette that tries three times, at once."""
    with calling(florette(retries=2, retry_backoff_s=0)) as caller:
        yield caller


@pytest.fixture(scope="module")
def keyed(florette: Florette) -> Iterator[Caller]:
    """A Florette that has a key of its own."""
    with calling(florette(upstream_key=OURS, retries=0)) as caller:
        yield caller


@pytest.fixture(scope="module")
def lost(florette: Florette, nowhere: str) -> Iterator[Caller]:
    """A Florette whose upstream is not there."""
    with calling(florette(upstream=nowhere + "/v1", upstream_key=OURS, retries=0)) as caller:
        yield caller


def post(caller: Caller, body: dict[str, Any], path: str = CHAT) -> httpx.Response:
    return caller.http.post(path, json=body, headers={"authorization": f"Bearer {THEIRS}"})


def error_of(answer: httpx.Response) -> dict[str, Any]:
    body = answer.json()
    assert list(body) == ["error"]
    assert sorted(body["error"]) == ["code", "message", "param", "type"]
    told: dict[str, Any] = body["error"]
    return told


def payloads(answer: httpx.Response) -> list[str]:
    """The payloads of a stream."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = answer.text.replace("\r\n", "\n").split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data:")]


# -- before the first byte: refusals -----------------------------------------------------------------------

STATUSES: dict[int, tuple[type[openai.APIStatusError], str]] = {
    400: (openai.BadRequestError, "invalid_request_error"),
    401: (openai.AuthenticationError, "authentication_error"),
    403: (openai.PermissionDeniedError, "permission_error"),
    404: (openai.NotFoundError, "invalid_request_error"),
    409: (openai.ConflictError, "conflict_error"),
    413: (openai.APIStatusError, "invalid_request_error"),
    422: (openai.UnprocessableEntityError, "invalid_request_error"),
    429: (openai.RateLimitError, "rate_limit_error"),
    500: (openai.InternalServerError, "server_error"),
    501: (openai.InternalServerError, "server_error"),
    502: (openai.InternalServerError, "server_error"),
    503: (openai.InternalServerError, "server_error"),
    504: (openai.InternalServerError, "server_error"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", STATUSES)
def test_the_sdk_raises_what_the_upstreams_status_means(
    once: Caller, upstream: ScriptedUpstream, status: int, way: str
) -> None:
    raised, kind = STATUSES[status]
    upstream.script(Fails(status))
    with pytest.raises(raised) as told:
        once.sdk.chat.completions.create(**WAYS[way])
    assert (told.value.status_code, told.value.type) == (status, kind)
    assert "the script says so" in told.value.message


LONG = "x" * 100_000

BODIES: list[tuple[dict[str, Any] | str | bytes, str]] = [
    (error("No such thing.", 400, "BadRequestError"), "No such thing."),
    ({"error": {"message": "No such thing.", "type": "Bad Request", "code": 400}}, "No such thing."),
    ({"error": "Unauthorized"}, "Unauthorized"),
    ({"detail": "Not Found"}, "Not Found"),
    ({"error": None}, "The upstream answered 400."),
    ({"object": "error", "message": "No such thing.", "type": "x", "code": 400}, "No such thing."),
    ("upstream connect error", "upstream connect error"),
    ("  \n狗狗\n", "狗狗"),
    (b"", "The upstream answered 400."),
    (b"{", "{"),
    ("<html><body>Bad Gateway</body></html>", "<html><body>Bad Gateway</body></html>"),
    (b"\xff\xfe", "\ufffd\ufffd"),
]


@pytest.mark.parametrize(("body", "message"), BODIES, ids=lambda value: repr(value)[:40])
@pytest.mark.parametrize("way", ["turn", "passed"])
def test_the_upstreams_sentence_is_passed_on(
    once: Caller, upstream: ScriptedUpstream, body: dict[str, Any] | str | bytes, message: str, way: str
) -> None:
    upstream.script(Fails(400, body))
    answer = post(once, WAYS[way])
    assert answer.status_code == 400
    assert error_of(answer)["message"] == message


@pytest.mark.parametrize("body", [LONG, {"error": {"message": LONG}}, LONG.encode() * 20], ids=["a", "b", "c"])
def test_a_huge_error_is_cut_short(once: Caller, upstream: ScriptedUpstream, body: Any) -> None:
    upstream.script(Fails(500, body))
    answer = post(once, TURN)
    assert answer.status_code == 500
    assert 0 < len(error_of(answer)["message"]) <= 500


@given(
    body=st.binary(max_size=40)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from(["error", "detail", "message", "param", "code", "x"]), inner, max_size=3)
        ),
        max_leaves=6,
    ).map(lambda value: json.dumps(value).encode())
)
@settings(max_examples=60, deadline=None)
def test_whatever_an_error_says_its_status_is_kept(
    once: Caller, upstream_server: ScriptedUpstream, body: bytes
) -> None:
    with upstream_server.fresh() as upstream:
        upstream.script(Fails(418, body))
        answer = post(once, TURN)
        assert answer.status_code == 418
        assert error_of(answer)["message"]


def test_an_error_without_end_is_not_read_to_its_end(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(GoesSilent(Answers(LONG, 500, writes="whole")))
    assert post(once, TURN).status_code == 500
    assert upstream.received[0].left.wait(PATIENCE_S)


def test_an_error_that_breaks_off_keeps_its_status(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Resets(Answers("out of mem", 500, writes="whole")))
    answer = post(once, TURN)
    assert (answer.status_code, error_of(answer)["message"]) == (500, "out of mem")


def test_a_status_that_there_is_not_is_a_502(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(600))
    answer = post(once, TURN)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_broken")
    assert "600" in error_of(answer)["message"]


def test_the_field_at_fault_is_passed_on(once: Caller, upstream: ScriptedUpstream) -> None:
    told = {"message": "too hot", "type": "BadRequestError", "param": "temperature", "code": 400}
    upstream.script(Fails(400, {"error": told}))
    passed_on = {"message": "too hot", "type": "invalid_request_error", "param": "temperature", "code": None}
    assert error_of(post(once, TURN)) == passed_on


@pytest.mark.parametrize(("code", "passed_on"), [("content_policy_violation", "content_policy_violation"), (400, None)])
@pytest.mark.parametrize("way", ["turn", "passed"])
def test_a_code_that_programs_can_test_is_passed_on(
    once: Caller, upstream: ScriptedUpstream, way: str, code: str | int, passed_on: str | None
) -> None:
    """OpenAI's codes are words; vLLM's is the status once more."""
    upstream.script(Fails(400, {"error": {"message": "no", "type": "x", "param": None, "code": code}}))
    assert error_of(post(once, WAYS[way]))["code"] == passed_on


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_passed_on(once: Caller, upstream: ScriptedUpstream, status: int) -> None:
    upstream.script(Fails(status, headers={"Retry-After": "17", "x-other": "1", "connection": "keep-alive"}))
    answer = post(once, TURN)
    assert (answer.status_code, answer.headers["retry-after"]) == (status, "17")
    assert "x-other" not in answer.headers


OVERFLOWS = [
    "This model's maximum context length is 64 tokens. However, your prompt contains at least 65 input "
    "tokens, which exceeds this limit even without any output tokens.",
    "This model's maximum context length is 64 tokens. However, you requested 100 tokens (80 in the "
    "messages, 20 in the completion). Please reduce the length of the messages or completion.",
    "Input length (65) exceeds model's maximum context length (64).",
    "The decoder prompt (length 65) is longer than the maximum model length of 64. Make sure that it is not.",
    "You passed 65 input tokens and requested 0 output tokens. However, the model's context length is only 64 "
    "tokens, resulting in a maximum input length of 64 tokens. Please reduce the length of the input prompt.",
]


@pytest.mark.parametrize("message", OVERFLOWS, ids=range(len(OVERFLOWS)))
@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_that_is_too_long_is_told_by_its_code(
    once: Caller, upstream: ScriptedUpstream, message: str, way: str
) -> None:
    """The sentences of vLLM 0.8 to 0.32; agents compact their history when they see this code."""
    upstream.script(Fails(400, error(message, 400, "BadRequestError")))
    with pytest.raises(openai.BadRequestError) as told:
        once.sdk.chat.completions.create(**WAYS[way])
    assert told.value.code == "context_length_exceeded"
    assert message in told.value.message


def test_a_model_that_there_is_not_is_told_by_its_code(once: Caller, upstream: ScriptedUpstream) -> None:
    message = "The model `nope` does not exist."
    upstream.script(Fails(404, error(message, 404, "NotFoundError")))
    assert error_of(post(once, TURN)) == {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


@pytest.mark.parametrize("status", [401, 403])
def test_our_own_key_refused_is_not_the_callers_fault(keyed: Caller, upstream: ScriptedUpstream, status: int) -> None:
    upstream.script(Fails(status, {"error": f"Incorrect API key provided: {OURS}."}))
    answer = post(keyed, TURN)
    assert answer.status_code == 502
    told = error_of(answer)
    assert (told["type"], told["code"]) == ("server_error", "upstream_key_refused")
    assert "upstream_key" in told["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize", "/v1/models"])
def test_other_paths_tell_of_errors_alike(once: Caller, upstream: ScriptedUpstream, path: str) -> None:
    upstream.script(Fails(429, {"detail": "slowly"}, headers={"retry-after": "3"}))
    answer = once.http.get(path) if path == "/v1/models" else post(once, PLAIN, path)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert error_of(answer)["message"] == "slowly"


# -- before the first byte: no answer ----------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_an_upstream_that_is_not_there_is_a_502(lost: Caller, way: str) -> None:
    with pytest.raises(openai.InternalServerError) as told:
        lost.sdk.chat.completions.create(**WAYS[way])
    assert (told.value.status_code, told.value.code) == (502, "upstream_unreachable")
    assert told.value.type == "server_error"


@pytest.mark.parametrize("way", WAYS)
def test_an_upstream_that_says_nothing_is_a_504(impatient: Caller, upstream: ScriptedUpstream, way: str) -> None:
    upstream.script(GoesSilent())
    answer = post(impatient, WAYS[way])
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "upstream_timeout"
    assert upstream.received[0].left.wait(1)


#: Half of a passed answer that is not streamed can tell nothing.
SILENCES = [(way, begun) for way in WAYS for begun in (None, Begins("It")) if way != "passed" or begun is None]


@pytest.mark.parametrize(("way", "begun"), SILENCES, ids=str)
def test_the_timeout_that_is_told_is_the_one_that_was_over(
    florette: Florette, upstream: ScriptedUpstream, way: str, begun: Begins | None
) -> None:
    upstream.script(GoesSilent(begun))
    with calling(florette(retries=0, idle_timeout_s=0.15, answer_timeout_s=0.1)) as caller:
        said = post(caller, WAYS[way]).text
    assert ("for 0.15 s." if "streamed" in way else "for 0.1 s.") in said


#: What is no answer to a request that does not stream, and the status of what is then said.
NO_ANSWERS: dict[str, tuple[Step, int]] = {
    "reset": (Resets(Begins("It")), 502),
    "closed": (Closes(Begins("It")), 502),
    "half": (Begins("It rains"), 502),
    "silence": (GoesSilent(Begins("It")), 504),
    "text": (Answers("hello"), 502),
    "no text": (Answers(b"", content_type="application/json"), 502),
    "list": (Answers([1]), 502),
    "no chat": (Answers({"object": "list", "data": []}), 502),
    "no choices": (Answers({"choices": []}), 502),
    "an error as answer": (Answers(error("died")), 502),
    "too few choices": (Answers({"choices": [{"index": 1, "message": {"content": "a"}}]}), 502),
    "choices that are none": (Answers({"choices": 5}), 502),
    "a choice that is none": (Answers({"choices": [None]}), 502),
    "a message that is none": (Answers({"choices": [{"message": "x"}]}), 502),
    "content that is none": (Answers({"choices": [{"message": {"content": 5}}]}), 502),
    "usage that is none": (Answers({"choices": [{"message": {"content": "a"}}], "usage": 5}), 502),
    "too deep": (Answers(TOO_DEEP % b"message", content_type="application/json"), 502),
    "too long": (Answers(b" " * (MAX_EVENT_BYTES + 1)), 502),
}


@pytest.mark.parametrize("what", NO_ANSWERS)
def test_what_is_no_answer_is_told_by_a_status(
    caller_for: Callable[[Step], Caller], upstream: ScriptedUpstream, what: str
) -> None:
    step, status = NO_ANSWERS[what]
    upstream.script(step)
    answer = post(caller_for(step), TURN)
    assert answer.status_code == status
    told = error_of(answer)
    assert (told["type"], told["param"]) == ("server_error", None)
    assert told["code"] == ("upstream_timeout" if status == 504 else "upstream_broken")


#: What is no stream, and where a status can still say so, since nothing of an answer has come.
NO_STREAMS = {
    "json": Answers({"choices": []}),
    "text": Answers("hello"),
    "nothing": Chunks([]),
    "only done": Chunks([DONE]),
    "an error first": Chunks([error("EngineCore died"), DONE]),
    "bad JSON first": Chunks([b"data: {bad\n\n", DONE]),
}


@pytest.mark.parametrize("what", NO_STREAMS)
def test_what_is_no_stream_is_a_502(once: Caller, upstream: ScriptedUpstream, what: str) -> None:
    upstream.script(NO_STREAMS[what])
    answer = post(once, TURN | {"stream": True})
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_broken")


@pytest.mark.parametrize("step", [Resets(Begins("It")), Closes(Begins("It")), GoesSilent(Begins("It"))])
def test_half_of_a_passed_answer_never_looks_whole(
    caller_for: Callable[[Step], Caller], upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, step: Step
) -> None:
    """There is no way left to say what is wrong, but to break off as the upstream did. The log says it in a line."""
    upstream.script(step)
    with pytest.raises(httpx.RemoteProtocolError):
        post(caller_for(step), PLAIN)
    assert "upstream_timeout" in caplog.text or "upstream_broken" in caplog.text
    assert "Traceback" not in caplog.text


# -- retries -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [Resets(), Closes(), Fails(429), Fails(502), Fails(503), Fails(504)], ids=str)
def test_what_fails_before_the_first_byte_is_tried_again(
    persistent: Caller, upstream: ScriptedUpstream, step: Step, way: str
) -> None:
    upstream.script(step, step, Says("hello"))
    answer = post(persistent, WAYS[way])
    assert answer.status_code == 200
    assert "hello" in answer.text
    assert len({(got.path, got.body) for got in upstream.received}) == 1
    assert len(upstream.received) == 3


def test_the_last_failure_is_passed_on(persistent: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(503), Resets(), Fails(429, {"error": "slowly"}, headers={"retry-after": "0"}))
    answer = post(persistent, TURN)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "0")
    upstream.script(Fails(503), Fails(429), Closes())
    answer = post(persistent, TURN)
    assert (answer.status_code, error_of(answer)["code"]) == (502, "upstream_unreachable")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 413, 422, 500, 501])
def test_other_statuses_are_not_tried_again(persistent: Caller, upstream: ScriptedUpstream, status: int) -> None:
    upstream.script(Fails(status))
    assert post(persistent, TURN).status_code == status


def test_a_long_retry_after_is_the_callers_to_wait_for(persistent: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(429, headers={"retry-after": "60"}))
    answer = post(persistent, TURN)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")


@pytest.mark.parametrize("break_off", [Resets, Closes])
@pytest.mark.parametrize("way", ["turn", "streamed turn", "streamed and passed"])
def test_nothing_is_tried_again_after_the_first_byte(
    persistent: Caller, upstream: ScriptedUpstream, break_off: type[Resets | Closes], way: str
) -> None:
    upstream.script(break_off(Begins("It")))
    assert "upstream_broken" in post(persistent, WAYS[way]).text


def test_silence_is_not_tried_again(florette: Florette, upstream: ScriptedUpstream) -> None:
    """The upstream may well be at work: another request would only add to it."""
    upstream.script(GoesSilent())
    with calling(florette(retries=2, retry_backoff_s=0, idle_timeout_s=SILENCE_S)) as caller:
        assert post(caller, TURN | {"stream": True}).status_code == 504


def waits_of(statuses: list[int], retry_after: str | None = None, **patience: Any) -> list[float]:
    """How long is waited between the tries against an upstream that answers these statuses."""
    waits: list[float] = []
    answers = iter(statuses)

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    def answer(_: httpx.Request) -> httpx.Response:
        headers = {"retry-after": retry_after} if retry_after else {}
        return httpx.Response(next(answers), headers=headers, stream=httpx.ByteStream(b"{}"))

    async def ask() -> None:
        upstream = Upstream("http://x/v1", None, Patience(**patience), httpx.MockTransport(answer), sleep)
        try:
            await upstream.complete({}, {})
        except FloretteError as failed:
            assert failed.status == statuses[len(waits)]
        finally:
            await upstream.aclose()

    anyio.run(ask)
    return waits


def test_the_waits_between_tries_double() -> None:
    assert waits_of([503] * 5, retries=4, retry_backoff_s=0.25) == [0.25, 0.5, 1, 2]
    assert waits_of([503, 503, 200], retries=4, retry_backoff_s=0.25) == [0.25, 0.5]
    assert waits_of([503], retries=0) == []


def test_a_short_retry_after_is_honoured() -> None:
    assert waits_of([429, 503, 200], "1.5", retries=2, retry_backoff_s=0.25) == [1.5, 1.5]
    assert waits_of([429], "2.5", retries=2) == []
    assert waits_of([429, 200], "Wed, 21 Oct 2026 07:28:00 GMT", retry_backoff_s=0.25) == [0.25]


@pytest.mark.parametrize("odd", ["-1", "nan", "inf", "-inf", "1e999", "soon", " "])
def test_a_retry_after_that_is_no_time_is_not_heeded(odd: str) -> None:
    assert waits_of([429, 200], odd, retry_backoff_s=0.25) == [0.25]


def test_an_unreachable_upstream_is_tried_again() -> None:
    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async def ask() -> None:
        patience = Patience(retries=2, retry_backoff_s=0.5)
        upstream = Upstream("http://x/v1", None, patience, httpx.MockTransport(refuse), sleep)
        with pytest.raises(UpstreamUnreachable, match="cannot be reached"):
            await upstream.complete({}, {})
        await upstream.aclose()

    anyio.run(ask)
    assert waits == [0.5, 1.0]


# -- connections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_connection_is_used_again_after_a_whole_answer(once: Caller, upstream: ScriptedUpstream, way: str) -> None:
    upstream.script(*[Says("hello", cut=2)] * 3)
    for _ in range(3):
        assert post(once, WAYS[way]).status_code == 200
    assert len({got.connection for got in upstream.received}) == 1


def test_a_connection_is_used_again_after_a_refusal(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(400), Says("hello"))
    assert [post(once, TURN).status_code for _ in range(2)] == [400, 200]
    assert len({got.connection for got in upstream.received}) == 1


@pytest.mark.parametrize("gone", [Resets(), Closes()], ids=["reset", "closed"])
def test_a_connection_that_died_between_requests_is_replaced(
    persistent: Caller, upstream: ScriptedUpstream, gone: Step
) -> None:
    """A vLLM closes idle connections after five seconds, maybe in the moment of the next request."""
    upstream.script(Says("one"), gone, Says("two"))
    assert "one" in post(persistent, TURN).text
    assert "two" in post(persistent, TURN).text
    first, second, third = (got.connection for got in upstream.received)
    assert first == second != third


def test_a_broken_answers_connection_is_not_used_again(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Chunks([ROLE, b"data: {bad\n\n", DONE]), Says("hello"))
    post(once, TURN | {"stream": True})
    assert "hello" in post(once, TURN).text


# -- after the first byte ----------------------------------------------------------------------------------

SAID = chunk({"content": "It rai"})

#: JSON objects that are no chunks of a chat completion.
NO_CHUNKS = {
    "choices": {**ROLE, "choices": 5},
    "choices as text": {**ROLE, "choices": "ab"},
    "choice": {**ROLE, "choices": [None]},
    "index": {**ROLE, "choices": [{"index": "0", "delta": {"content": "a"}}]},
    "delta": {**ROLE, "choices": [{"index": 0, "delta": "x"}]},
    "content": chunk({"content": 5}),
    "content as parts": chunk({"content": [{"type": "text", "text": "a"}]}),
    "reasoning": chunk({"reasoning": ["a"]}),
    "usage": {**ROLE, "choices": [], "usage": 5},
}

#: How a stream ends that is not complete, and the code of the error that says so.
BROKEN: dict[str, tuple[Step, str]] = {
    "reset": (Resets(Begins("It rai")), "upstream_broken"),
    "closed": (Closes(Begins("It rai")), "upstream_broken"),
    "ended too soon": (Begins("It rai"), "upstream_broken"),
    "silence": (GoesSilent(Begins("It rai")), "upstream_timeout"),
    "done without finish": (Chunks([ROLE, SAID, DONE]), "upstream_broken"),
    "cut in an event": (Resets(Chunks([ROLE, SAID, b'data: {"choices": [{"ind'])), "upstream_broken"),
    "ended in an event": (Chunks([ROLE, SAID, b'data: {"choices": [{"ind']), "upstream_broken"),
    "bad JSON": (Chunks([ROLE, SAID, b"data: {bad\n\n", chunk({}, "stop"), DONE]), "upstream_broken"),
    "bad UTF-8": (Chunks([ROLE, SAID, b'data: {"x":"\xff"}\n\n', DONE]), "upstream_broken"),
    "a list": (Chunks([ROLE, SAID, b"data: [1]\n\n", chunk({}, "stop"), DONE]), "upstream_broken"),
    "a text": (Chunks([ROLE, SAID, b'data: "x"\n\n', DONE]), "upstream_broken"),
    "an error": (Chunks([ROLE, SAID, error("EngineCore died"), DONE]), "upstream_broken"),
    "an error as text": (Chunks([ROLE, SAID, {"error": "EngineCore died"}, DONE]), "upstream_broken"),
    "an error at the end": (Chunks([ROLE, SAID, error("EngineCore died")]), "upstream_broken"),
    "too deep": (
        Chunks([ROLE, SAID, b"data: " + TOO_DEEP % b"delta" + b"\n\n", chunk({}, "stop"), DONE]),
        "upstream_broken",
    ),
    **{
        f"no {what}": (Chunks([ROLE, SAID, junk, chunk({}, "stop"), DONE]), "upstream_broken")
        for what, junk in NO_CHUNKS.items()
    },
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_turn_that_breaks_ends_in_one_error_event(
    caller_for: Callable[[Step], Caller], upstream: ScriptedUpstream, how: str
) -> None:
    step, code = BROKEN[how]
    upstream.script(step)
    answer = post(caller_for(step), TURN | {"stream": True})
    assert answer.status_code == 200
    *chunks, last = [json.loads(payload) for payload in payloads(answer)]
    deltas = [choice["delta"] for made in chunks for choice in made["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == "It rai"
    assert not any(choice["finish_reason"] for made in chunks for choice in made["choices"])
    assert list(last) == ["error"]
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", code)
    assert ("EngineCore died" in last["error"]["message"]) == how.startswith("an error")


@pytest.mark.parametrize("how", BROKEN)
def test_the_sdk_raises_when_a_turn_breaks(
    caller_for: Callable[[Step], Caller], upstream: ScriptedUpstream, how: str
) -> None:
    step, code = BROKEN[how]
    upstream.script(step, step)
    chats = caller_for(step).sdk.chat.completions
    with pytest.raises(openai.APIError) as told:
        list(chats.create(**TURN, stream=True))
    assert told.value.code == code
    with pytest.raises(openai.APIError), chats.stream(**TURN) as events:
        events.until_done()


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_call_that_breaks_off_anywhere_never_looks_finished(
    once: Caller, upstream_server: ScriptedUpstream, data: st.DataObject
) -> None:
    text = 'Let me see.\n✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}'
    whole = b"".join(event(chunk({"content": character})) for character in text)
    cut = data.draw(st.integers(0, len(whole)))
    with upstream_server.fresh() as upstream:
        upstream.script(Resets(Chunks(cut_writes([event(ROLE), whole[:cut]], "event"))))
        told = payloads(post(once, TURN | {"stream": True}))
    assert [list(json.loads(payload)) == ["error"] for payload in told] == [False] * (len(told) - 1) + [True]
    assert '"finish_reason":"' not in "".join(told)


def test_one_choice_that_breaks_off_breaks_the_answer(once: Caller, upstream: ScriptedUpstream) -> None:
    ended = [chunk({"content": "a"}), chunk({"content": "b"}, index=1), chunk({}, "stop")]
    upstream.script(Chunks([*ended, DONE]))
    *chunks, last = [json.loads(made) for made in payloads(post(once, TURN | {"stream": True, "n": 2}))]
    finished = [(c["index"], c["finish_reason"]) for made in chunks for c in made["choices"] if c["finish_reason"]]
    assert finished == [(0, "stop")]
    assert last["error"]["code"] == "upstream_broken"


def test_what_is_finished_is_complete_without_done(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Chunks([ROLE, chunk({"content": "It rains."}), chunk({}, "stop")]))
    *chunks, last = payloads(post(once, TURN | {"stream": True}))
    assert last == "[DONE]"
    assert json.loads(chunks[-1])["choices"][0]["finish_reason"] == "stop"


def test_what_comes_behind_done_is_not_read(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Resets(Chunks([ROLE, chunk({"content": "a"}, "stop"), DONE, b"data: {bad\n\n"])))
    assert payloads(post(once, TURN | {"stream": True}))[-1] == "[DONE]"


def test_what_comes_behind_its_finish_is_not_told(once: Caller, upstream: ScriptedUpstream) -> None:
    said = [chunk({"content": "a"}, "stop"), chunk({"content": "b"}), chunk({}, "length")]
    upstream.script(Chunks([ROLE, *said, DONE]))
    *chunks, last = payloads(post(once, TURN | {"stream": True}))
    choices = [json.loads(made)["choices"][0] for made in chunks]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == "a"
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert last == "[DONE]"


def test_a_last_event_without_its_blank_line_counts(once: Caller, upstream: ScriptedUpstream) -> None:
    upstream.script(Chunks([ROLE, event(chunk({"content": "a"}, "stop")).rstrip()]))
    assert payloads(post(once, TURN | {"stream": True}))[-1] == "[DONE]"


#: A passed stream is not read, so what breaks it is only what ends it before its [DONE].
PASSED_BROKEN = {
    "reset": "upstream_broken",
    "closed": "upstream_broken",
    "ended too soon": "upstream_broken",
    "silence": "upstream_timeout",
    "cut in an event": "upstream_broken",
    "ended in an event": "upstream_broken",
}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("how", PASSED_BROKEN)
def test_a_passed_stream_that_breaks_ends_in_one_error_event(
    caller_for: Callable[[Step], Caller], upstream: ScriptedUpstream, how: str, path: str
) -> None:
    step, _ = BROKEN[how]
    upstream.script(step)
    answer = post(caller_for(step), PLAIN | {"stream": True}, path)
    said, told = answer.text.rsplit("\n\ndata: ", 1)
    assert "It rai" in said
    assert '"error"' not in said
    assert json.loads(told)["error"]["code"] == PASSED_BROKEN[how]


@pytest.mark.parametrize("writes", ["event", "byte"])
@pytest.mark.parametrize("text", ["[DONE]", "\n[DONE]", "data: [DONE]\n\n"])
def test_the_end_of_a_passed_stream_is_an_event_and_no_text(
    once: Caller, upstream: ScriptedUpstream, text: str, writes: Writes
) -> None:
    said = [event(ROLE), event({"choices": [{"delta": {"content": text}}]})]
    ended = [*said, b"data:[DONE]\r\n\r\n"]
    upstream.script(Chunks(said, writes=writes), Chunks(ended, writes=writes))
    broken, whole = (post(once, PLAIN | {"stream": True}) for _ in range(2))
    assert json.loads(payloads(broken)[-1])["error"]["code"] == "upstream_broken"
    assert whole.content == b"".join(ended)


def test_a_stream_that_tells_its_length_can_tell_of_an_error_too(once: Caller, upstream: ScriptedUpstream) -> None:
    said = event(SAID)
    upstream.script(Answers(said, content_type="text/event-stream"))
    answer = post(once, PLAIN | {"stream": True})
    assert answer.content.startswith(said)
    assert json.loads(payloads(answer)[-1])["error"]["code"] == "upstream_broken"


@pytest.mark.parametrize("how", ["reset", "closed", "ended too soon", "silence"])
def test_the_sdk_raises_when_a_passed_stream_breaks(
    caller_for: Callable[[Step], Caller], upstream: ScriptedUpstream, how: str
) -> None:
    step, _ = BROKEN[how]
    upstream.script(step)
    with pytest.raises(openai.APIError) as told:
        list(caller_for(step).sdk.chat.completions.create(**PLAIN, stream=True))
    assert told.value.code == PASSED_BROKEN[how]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_an_upstreams_own_error_event_passes_as_it_is(once: Caller, upstream: ScriptedUpstream, path: str) -> None:
    events = [event(SAID), b"data: {bad\n\n", event(error("EngineCore died")), DONE]
    upstream.script(Chunks(events))
    assert post(once, PLAIN | {"stream": True}, path).content == b"".join(events)


# -- secrets -----------------------------------------------------------------------------------------------

#: A bit of everything that is told or logged.
FAILURES: list[Step] = [
    Fails(401, {"error": f"Incorrect API key provided: {OURS}"}),
    Fails(500, "oops"),
    Resets(),
    Resets(Begins("It")),
    Answers("no JSON"),
]


@pytest.mark.parametrize("way", WAYS)
def test_no_key_is_ever_told_or_logged(
    once: Caller,
    keyed: Caller,
    lost: Caller,
    upstream: ScriptedUpstream,
    caplog: pytest.LogCaptureFixture,
    way: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    upstream.script(*FAILURES, *FAILURES[1:])
    told = [all_that_is_told(keyed, WAYS[way]) for _ in FAILURES]
    told += [all_that_is_told(once, WAYS[way]) for _ in FAILURES[1:]]
    told += [all_that_is_told(lost, WAYS[way]), all_that_is_told(once, {"messages": 5})]
    keys = [got.headers["authorization"] for got in upstream.received]
    assert keys == [f"Bearer {OURS}"] * len(FAILURES) + [f"Bearer {THEIRS}"] * (len(FAILURES) - 1)
    assert "upstream_key_refused" in caplog.text
    assert not [text for text in (*told, caplog.text) if OURS in text or THEIRS in text]


def all_that_is_told(caller: Caller, body: dict[str, Any]) -> str:
    try:
        answer = post(caller, body)
    except httpx.RemoteProtocolError as broken:
        return str(broken)
    return f"{answer.headers} {answer.text}"
