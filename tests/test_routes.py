"""The HTTP surface, asked with plain HTTP and with openai's client: what passes and what is refused."""

import bisect
import gzip
import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Florette
from cutting import cut_writes
from proxy import wire
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import DONE, Answers, Chunks, Echo, Fails, GoesSilent, Holds, Says, Step

HI = [{"role": "user", "content": "hi"}]
PLAIN: dict[str, Any] = {"model": "m", "messages": HI}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
FUNCTIONS = [{"name": "get_weather"}]
CHAT = "/v1/chat/completions"

#: Florette's path and the one that is asked of an upstream at `http://host/v1`.
PASSED = {
    "/v1/completions": "/v1/completions",
    "/v1/embeddings": "/v1/embeddings",
    "/v1/rerank": "/v1/rerank",
    "/tokenize": "/tokenize",
    "/detokenize": "/detokenize",
}

#: Valid JSON that no encoder would write: to pass byte for byte it cannot have been parsed and written again.
ODD_REQUEST = (
    b'{ "unknown":{"b":1,"a":[]},\r\n'
    b'"messages":[{"content":"caf\\u00e9 \xe7\x8b\x97\xe2\x80\xa8","role":"user"}],'
    b'"seed":123456789012345678901234567890, "temperature":1.0e-05,"same":1,"same":2,"stream":%s }\n'
)
ODD_ANSWER = b'{"choices": [ ],\n  "x":1.0e-05,"y":"caf\\u00e9 \xe7\x8b\x97\xe2\x80\xa8"}\n\n'
ODD_STREAM = (
    b": a comment\n\n",
    b'data:{"x":1.0e-05}\r\n\r\n',
    b'data: {"choices":[{"delta":{"content":"\xe2\x80\xa8caf\\u00e9"}}]}\n\n',
    DONE,
)


@pytest.fixture(scope="module")
def http(florette: Florette) -> Iterator[httpx.Client]:
    """A plain HTTP client in front of Florette."""
    with httpx.Client(base_url=florette(), timeout=PATIENCE_S) as client:
        yield client


def error_of(answer: httpx.Response) -> dict[str, Any]:
    """The error object, which must have OpenAI's shape and hold one sentence."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    assert "\n" not in error["message"]
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str | None)
    assert isinstance(error["param"], str | None)
    return error


# -- what passes -------------------------------------------------------------------------------------------


def test_a_chat_without_tools_passes_byte_for_byte(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Answers(ODD_ANSWER, content_type="application/json"))
    sent = ODD_REQUEST % b"false"
    answer = http.post(CHAT, content=sent)
    assert (upstream.received[0].path, upstream.received[0].body) == (CHAT, sent)
    assert (answer.status_code, answer.content) == (200, ODD_ANSWER)
    assert answer.headers["content-type"] == "application/json"


def test_a_streamed_chat_without_tools_passes_byte_for_byte(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Chunks(ODD_STREAM))
    sent = ODD_REQUEST % b"true"
    answer = http.post(CHAT, content=sent)
    assert upstream.received[0].body == sent
    assert (answer.status_code, answer.content) == (200, b"".join(ODD_STREAM))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"


@given(places=st.lists(st.integers(1, len(b"".join(ODD_STREAM)) - 1), max_size=12, unique=True).map(sorted))
@settings(max_examples=25, deadline=None)
def test_a_stream_passes_however_the_network_cuts_it(
    http: httpx.Client, upstream_server: ScriptedUpstream, places: list[int]
) -> None:
    with upstream_server.fresh() as upstream:
        upstream.script(Chunks(cut_writes(ODD_STREAM, places)))
        assert http.post(CHAT, json=PLAIN | {"stream": True}).content == b"".join(ODD_STREAM)


@pytest.mark.parametrize("path", PASSED)
def test_other_requests_pass_byte_for_byte(http: httpx.Client, upstream: ScriptedUpstream, path: str) -> None:
    upstream.script(Answers(ODD_ANSWER, headers={"x-from": "upstream"}, content_type="application/json"))
    sent = ODD_REQUEST % b"false"
    answer = http.post(path, content=sent)
    [received] = upstream.received
    assert (received.method, received.path, received.body) == ("POST", PASSED[path], sent)
    assert (answer.status_code, answer.content, answer.headers["x-from"]) == (200, ODD_ANSWER, "upstream")


def test_streamed_completions_pass_byte_for_byte(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Chunks(ODD_STREAM))
    assert http.post("/v1/completions", content=ODD_REQUEST % b"true").content == b"".join(ODD_STREAM)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_passed_event_leaves_before_the_next_has_come(
    http: httpx.Client, upstream: ScriptedUpstream, path: str
) -> None:
    held = Holds(Chunks(ODD_STREAM), after=2)
    upstream.script(held)
    with http.stream("POST", path, json=PLAIN | {"stream": True}) as answer:
        parts, came = answer.iter_raw(), b""
        while came != b"".join(ODD_STREAM[:2]):
            came += next(parts)
        held.release()
        assert came + b"".join(parts) == b"".join(ODD_STREAM)


def test_an_event_of_a_turn_leaves_before_the_next_has_come(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    held = Holds(Says.pieces("It", " rains."), after=2)
    upstream.script(held)
    with http.stream("POST", CHAT, json=PLAIN | {"stream": True, "tools": TOOLS}) as answer:
        parts, came = answer.iter_raw(), b""
        while b'"content":"It"' not in came:
            came += next(parts)
        assert b"rains" not in came
        held.release()
        assert b"rains" in b"".join(parts)


def test_the_models_are_the_upstreams(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    model = {"id": "tiny", "object": "model", "created": 1, "owned_by": "vllm", "max_model_len": 4096}
    upstream.script(Answers({"object": "list", "data": [model]}))
    assert [found.to_dict() for found in client.models.list()] == [model]
    [received] = upstream.received
    assert (received.method, received.path, received.body) == ("GET", "/v1/models", b"")


def test_the_sdk_embeds_and_completes_through_us(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    embedding = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    upstream.script(Answers({"object": "list", "data": [embedding], "model": "m", "usage": usage}))
    made = client.embeddings.create(model="m", input="dog", encoding_format="float")
    assert made.data[0].embedding == [0.5, 0.25]
    texts = [{"id": "1", "object": "text_completion", "choices": [{"index": 0, "text": t}]} for t in "ab"]
    upstream.script(Chunks([*texts, DONE]))
    streamed = client.completions.create(model="m", prompt="x", stream=True)
    assert [part.choices[0].text for part in streamed] == ["a", "b"]


@pytest.mark.parametrize(
    "tool_fields",
    [
        {"tools": []},
        {"tools": None, "functions": None},
        {"functions": []},
        {"functions": [], "function_call": "auto"},
        {"tool_choice": "auto"},
        {"tool_choice": "none", "parallel_tool_calls": False},
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("streamed", [True, False])
def test_what_a_plain_server_refuses_is_taken_out(
    http: httpx.Client, upstream: ScriptedUpstream, tool_fields: dict[str, Any], streamed: bool
) -> None:
    """A vLLM without a tool parser answers `tools: []` and `tool_choice` with 400 (seen with 0.32.0)."""
    plain = PLAIN | {"temperature": 0.5, "seed": 2**70, "unknown": ["狗"], "stream": streamed}
    upstream.script(Says("hello"))
    answer = http.post(CHAT, json=plain | tool_fields)
    assert upstream.received[0].json == plain
    assert answer.status_code == 200
    assert b"hello" in answer.content


# -- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [PLAIN, PLAIN | {"tools": TOOLS}], ids=["passed", "turn"])
def test_the_callers_headers_go_no_further_than_they_should(
    http: httpx.Client, upstream: ScriptedUpstream, body: dict[str, Any]
) -> None:
    upstream.script(Says("hello"))
    passed = {
        "authorization": "Bearer sk-callers-own",
        "x-request-id": "abc-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
    }
    kept_back = {"cookie": "session=1", "te": "trailers", "x-api-key": "secret", "keep-alive": "timeout=5"}
    http.post(CHAT, json=body, headers=passed | kept_back)
    received = upstream.received[0].headers
    assert {name: received.get(name) for name in passed} == passed
    assert not set(kept_back) & set(received)
    assert received["host"] == urlsplit(upstream.url).netloc
    assert received["content-type"] == "application/json"
    assert received["accept-encoding"] == "identity"


@pytest.mark.parametrize("name", ["authorization", "x-request-id", "traceparent"])
@pytest.mark.parametrize(("path", "body"), [(CHAT, PLAIN | {"tools": TOOLS}), (CHAT, PLAIN), ("/tokenize", PLAIN)])
def test_a_header_that_cannot_be_passed_on_is_named(
    http: httpx.Client, upstream: ScriptedUpstream, path: str, body: dict[str, Any], name: str
) -> None:
    """A key is often pasted with the quotation marks of a text."""
    answer = http.post(path, content=json.dumps(body), headers=[(name.encode(), "Bearer “sk-1”".encode())])
    assert answer.status_code == 400
    assert f"'{name}'" in error_of(answer)["message"]
    assert "sk-1" not in answer.text
    assert upstream.received == []


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "application/json; charset=utf-16"])
@pytest.mark.parametrize("tool_fields", [{"tools": TOOLS}, {"tools": []}], ids=["turn", "passed"])
def test_a_body_of_our_own_writing_is_json_whatever_the_callers_was_called(
    http: httpx.Client, upstream: ScriptedUpstream, tool_fields: dict[str, Any], content_type: str
) -> None:
    """curl calls a body a form unless it is told otherwise, and a vLLM takes nothing but JSON."""
    upstream.script(Says("hello"))
    http.post(CHAT, content=json.dumps(PLAIN | tool_fields), headers={"content-type": content_type})
    assert upstream.received[0].headers["content-type"] == "application/json"


def test_a_body_that_passes_as_it_is_keeps_its_content_type(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello"))
    http.post(CHAT, content=json.dumps(PLAIN), headers={"content-type": "application/json; charset=utf-8"})
    assert upstream.received[0].headers["content-type"] == "application/json; charset=utf-8"


def test_no_key_of_the_caller_is_no_key(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello"))
    http.post(CHAT, json=PLAIN)
    assert "authorization" not in upstream.received[0].headers


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings", "/tokenize"])
def test_our_own_key_replaces_the_callers(florette: Florette, upstream: ScriptedUpstream, path: str) -> None:
    upstream.script(Answers({"choices": []}), Answers({"choices": []}))
    url = florette(upstream_key="sk-ours") + path
    httpx.post(url, json=PLAIN, headers={"authorization": "Bearer sk-callers-own"})
    httpx.post(url, json=PLAIN)
    assert [got.headers["authorization"] for got in upstream.received] == ["Bearer sk-ours"] * 2


def test_the_answers_headers_pass_but_for_those_of_the_upstreams_hop(
    http: httpx.Client, upstream: ScriptedUpstream
) -> None:
    passed = {"x-request-id": "abc-1", "openai-processing-ms": "5", "x-custom": "caf\u00e9"}
    then = "Thu, 01 Jan 1970 00:00:00 GMT"
    of_the_hop = {"keep-alive": "timeout=5", "upgrade": "h2c", "trailer": "x", "server": "vllm", "date": then}
    upstream.script(Answers({"data": []}, headers=passed | of_the_hop, writes="event"))
    answer = http.post("/v1/embeddings", json=PLAIN)
    assert {name: answer.headers[name].encode("latin-1") for name in passed} == {
        name: value.encode("latin-1") for name, value in passed.items()
    }
    assert not {"keep-alive", "upgrade", "trailer"} & set(answer.headers)
    assert "vllm" not in answer.headers.get("server", "")
    assert then not in answer.headers["date"]


def test_a_compressed_answer_passes_as_it_is(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    squeezed = gzip.compress(ODD_ANSWER)
    upstream.script(Answers(squeezed, headers={"content-encoding": "gzip"}, content_type="application/json"))
    with http.stream("POST", "/v1/embeddings", json=PLAIN) as answer:
        assert answer.headers["content-length"] == str(len(squeezed))
        assert b"".join(answer.iter_raw()) == squeezed


def test_nothing_between_may_gather_or_keep_a_stream(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello"))
    answer = http.post(CHAT, json=PLAIN | {"stream": True, "tools": TOOLS})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-accel-buffering"] == "no"


# -- health ------------------------------------------------------------------------------------------------


def test_we_live_although_the_upstream_does_not(florette: Florette, nowhere: str) -> None:
    url = florette(upstream=nowhere + "/v1", retries=0)
    assert httpx.get(url + "/healthz").status_code == 200
    answer = httpx.get(url + "/readyz")
    assert answer.status_code == 502
    assert error_of(answer)["code"] == "upstream_unreachable"


@pytest.mark.parametrize("step", [Answers({"object": "list", "data": []}), Fails(401), Fails(404)], ids=str)
def test_we_are_ready_when_the_upstream_answers(http: httpx.Client, upstream: ScriptedUpstream, step: Step) -> None:
    """Whoever asks has no key, so being refused is an answer, too."""
    upstream.script(step)
    assert http.get("/readyz", headers={"authorization": "Bearer sk-callers-own"}).status_code == 200
    assert http.get("/healthz").status_code == 200
    [received] = upstream.received
    assert (received.method, received.path) == ("GET", "/v1/models")
    assert "authorization" not in received.headers


def test_we_are_not_ready_while_the_upstream_fails(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(503, {"error": "loading the model"}))
    answer = httpx.get(florette(retries=0) + "/readyz")
    assert answer.status_code == 503
    assert error_of(answer)["message"] == "loading the model"


def test_a_silent_upstream_is_not_waited_for_to_say_that_we_are_not_ready(
    florette: Florette, upstream: ScriptedUpstream
) -> None:
    """Whoever probes has little time: it is the time to connect that counts, not that of an answer."""
    upstream.script(GoesSilent())
    answer = httpx.get(florette(retries=0, connect_timeout_s=0.5) + "/readyz", timeout=PATIENCE_S)
    assert answer.status_code == 504
    assert error_of(answer)["code"] == "upstream_timeout"
    assert "0.5 s" in error_of(answer)["message"]


# -- what there is not -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nope"),
        ("POST", "/v1"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/models/m"),
        ("POST", "/chat/completions"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/%E7%8B%97%0A"),
    ],
)
def test_an_unknown_path_is_a_404(http: httpx.Client, method: str, path: str) -> None:
    answer = http.request(method, path, json=PLAIN)
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")
    assert error["message"].startswith(f"Unknown request URL: {method} /")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", CHAT, "POST"),
        ("PUT", "/v1/embeddings", "POST"),
        ("GET", "/tokenize", "POST"),
        ("POST", "/v1/models", "GET"),
        ("POST", "/healthz", "GET"),
        ("PATCH", "/readyz", "GET"),
    ],
)
def test_a_wrong_method_is_a_405(http: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    assert error_of(answer)["message"] == f"Not allowed: {method} {path}."


def test_the_sdk_is_told_that_there_are_no_responses(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.responses.create(model="m", input="hi")
    assert told.value.code == "unknown_url"


# -- what is refused ---------------------------------------------------------------------------------------

#: Bodies that are no JSON object, and a word of what is said about each.
NO_OBJECT = {
    b"": "not valid JSON",
    b'{"model":': "not valid JSON",
    b"{'model': 'm'}": "not valid JSON",
    b'{"model": "m"} {}': "not valid JSON",
    b'{"temperature": NaN}': "not valid JSON: it has no NaN",
    b'{"temperature": -Infinity}': "not valid JSON: it has no -Infinity",
    b'{"model": "\xff\xfe"}': "not valid JSON: it is not UTF-8",
    b'{"model": "\xed\xa0\x80"': "not valid JSON",
    b"\x00\x01\x02": "not valid JSON",
    b'{"seed": ' + b"9" * 5000 + b"}": "not valid JSON",
    b"[" * 100_000: "not valid JSON: it is nested too deeply",
    b"[" * 100_000 + b"]" * 100_000: "not valid JSON: it is nested too deeply",
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000: "not valid JSON: it is nested too deeply",
    b"[]": "JSON object",
    b'"text"': "JSON object",
    b"5": "JSON object",
    b"null": "JSON object",
    b"true": "JSON object",
}


@pytest.mark.parametrize("body", NO_OBJECT, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize("path", [CHAT, *PASSED])
def test_a_body_that_is_no_json_object_is_a_400(http: httpx.Client, path: str, body: bytes) -> None:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = error_of(answer)
    assert NO_OBJECT[body] in error["message"]
    assert error["type"] == "invalid_request_error"


#: What no caller can know of: the names of the classes that read his request.
OUR_CLASSES = {
    name for name, value in vars(wire).items() if isinstance(value, type) and issubclass(value, pydantic.BaseModel)
}


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [fields]}


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": fields}]}


def named(name: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


#: What is added to a good request, and the field that is then at fault.
WRONG = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": {"role": "user"}}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [*HI, None]}, "messages[1]"),
    (message(content="x"), "messages[0].role"),
    (message(role=5), "messages[0].role"),
    (message(role=None), "messages[0].role"),
    (message(role="user", content=5), "messages[0].content"),
    (message(role="user", content={"type": "text"}), "messages[0].content"),
    (message(role="user", content=["x"]), "messages[0].content[0]"),
    (message(role="user", content="x", name=5), "messages[0].name"),
    (message(role="tool", content="x", tool_call_id=5), "messages[0].tool_call_id"),
    (message(role="assistant", tool_calls={}), "messages[0].tool_calls"),
    (message(role="assistant", tool_calls=["x"]), "messages[0].tool_calls[0]"),
    (message(role="assistant", tool_calls=[{"id": "a"}]), "messages[0].tool_calls[0].function"),
    (message(role="assistant", tool_calls=[{"function": {}}]), "messages[0].tool_calls[0].function.name"),
    (
        message(role="assistant", tool_calls=[{"id": 5, "function": {"name": "f"}}]),
        "messages[0].tool_calls[0].id",
    ),
    (
        message(role="assistant", tool_calls=[{"id": "a", "function": {"name": "f", "arguments": 5}}]),
        "messages[0].tool_calls[0].function.arguments",
    ),
    (message(role="assistant", function_call="f"), "messages[0].function_call"),
    (message(role="assistant", function_call={}), "messages[0].function_call.name"),
    ({"model": 5}, "model"),
    ({"stream": "perhaps"}, "stream"),
    ({"stream": {}}, "stream"),
    ({"stream_options": True}, "stream_options"),
    ({"stream_options": {"include_usage": []}}, "stream_options.include_usage"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "many"}, "n"),
    ({"stop": 5}, "stop"),
    ({"stop": [5]}, "stop[0]"),
    ({"stop": ["a", None]}, "stop[1]"),
    ({"include_stop_str_in_output": "x"}, "include_stop_str_in_output"),
    ({"parallel_tool_calls": "x"}, "parallel_tool_calls"),
    ({"tools": {}}, "tools"),
    ({"tools": "get_weather"}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [*TOOLS, {"type": "function"}]}, "tools[1].function"),
    ({"tools": FUNCTIONS}, "tools[0].function"),
    (tool(), "tools[0].function.name"),
    (tool(name=5), "tools[0].function.name"),
    (tool(name="f", description=5), "tools[0].function.description"),
    (tool(name="f", parameters="{}"), "tools[0].function.parameters"),
    (tool(name="f", strict="very"), "tools[0].function.strict"),
    ({"functions": {}}, "functions"),
    ({"functions": [{"description": "x"}]}, "functions[0].name"),
    ({"functions": TOOLS}, "functions[0].name"),
    ({"tools": TOOLS, "tool_choice": "perhaps"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": 5}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {}}}, "tool_choice.function.name"),
    ({"functions": FUNCTIONS, "function_call": "required"}, "function_call"),
    ({"functions": FUNCTIONS, "function_call": {}}, "function_call.name"),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_field_is_named(http: httpx.Client, wrong: dict[str, Any], param: str) -> None:
    answer = http.post(CHAT, json=PLAIN | wrong)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert f"'{param}'" in error["message"]
    assert not OUR_CLASSES & set(re.findall(r"\w+", error["message"]))


def test_messages_are_demanded(http: httpx.Client) -> None:
    assert error_of(http.post(CHAT, json={"model": "m"}))["param"] == "messages"


def test_a_field_whose_name_is_no_text_is_told_as_well_as_can_be(http: httpx.Client) -> None:
    """Half a surrogate pair is valid JSON, but nothing that can be said."""
    error = error_of(http.post(CHAT, content=b'{"\\ud800":1,"messages":[{"role":"user","content":"hi"}]}'))
    assert error["param"] is None
    assert error["message"].startswith("Invalid request body: ")


@pytest.mark.parametrize("number", [b"1e999", b"-1e999"])
@pytest.mark.parametrize("tool_fields", [{"tools": TOOLS}, {"tools": []}], ids=["turn", "passed"])
def test_a_number_that_is_too_large_to_be_written_again_is_a_400(
    http: httpx.Client, upstream: ScriptedUpstream, tool_fields: dict[str, Any], number: bytes
) -> None:
    """Python reads it as infinite, which JSON has no way to write."""
    body = json.dumps(PLAIN | tool_fields).encode().removesuffix(b"}") + b',"temperature":' + number + b"}"
    answer = http.post(CHAT, content=body)
    assert answer.status_code == 400
    assert "too large" in error_of(answer)["message"]
    assert upstream.received == []


#: Requests whose fields do not fit together, the field that is named, and words that must be said.
UNFIT = [
    ({"tools": TOOLS, "functions": FUNCTIONS}, "functions", ["tools", "functions", "not both"]),
    ({"tools": TOOLS * 2}, "tools", ["get_weather", "twice"]),
    ({"functions": FUNCTIONS * 2}, "functions", ["get_weather", "twice"]),
    (tool(name=""), "tools", ["1 to 64"]),
    (tool(name="get weather"), "tools", ["'get weather'", "1 to 64"]),
    (tool(name="get.weather"), "tools", ["'get.weather'"]),
    (tool(name="f\n"), "tools", [r"'f\n'"]),
    (tool(name="✿FUNCTION✿"), "tools", ["✿FUNCTION✿"]),
    (tool(name="x" * 65), "tools", ["1 to 64"]),
    (tool(name="x y" * 10_000), "tools", ["1 to 64"]),
    ({"functions": [{"name": "a b"}]}, "functions", ["'a b'"]),
    ({"tools": TOOLS, "tool_choice": named("nope")}, "tool_choice", ["'nope'", "get_weather"]),
    ({"functions": FUNCTIONS, "function_call": {"name": "nope"}}, "function_call", ["'nope'", "get_weather"]),
    ({"tool_choice": "required"}, "tool_choice", ["no tools"]),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", ["no tools"]),
    ({"tool_choice": named("get_weather")}, "tool_choice", ["no tools"]),
    ({"function_call": {"name": "f"}}, "function_call", ["names a function", "'functions' is missing"]),
    ({"functions": [], "function_call": {"name": "f"}}, "function_call", ["'functions' is missing"]),
    ({"tools": TOOLS, "function_call": {"name": "get_weather"}}, "function_call", ["'functions' is missing"]),
]


@pytest.mark.parametrize(("unfit", "param", "words"), UNFIT, ids=lambda value: str(value)[:60])
def test_what_does_not_fit_together_is_told_in_a_sentence(
    http: httpx.Client, unfit: dict[str, Any], param: str, words: list[str]
) -> None:
    answer = http.post(CHAT, json=PLAIN | unfit)
    assert answer.status_code == 400
    error = error_of(answer)
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert all(word in error["message"] for word in words)
    assert len(error["message"]) < 300


@pytest.mark.parametrize("name", ["画图", "天气_查询-1", "été", "x" * 64, "_", "-", "1"])
@pytest.mark.parametrize("form", ["tools", "functions"])
def test_names_of_any_script_are_fine(http: httpx.Client, upstream: ScriptedUpstream, name: str, form: str) -> None:
    upstream.script(Says("hello"))
    declared = {"tools": [named(name)], "functions": [{"name": name}]}[form]
    assert http.post(CHAT, json=PLAIN | {form: declared}).status_code == 200
    assert name in upstream.received[0].json["messages"][0]["content"]


@pytest.mark.parametrize(
    ("wrong", "param"), [({"messages": []}, "messages"), ({"tools": TOOLS * 2}, "tools"), ({"n": 0}, "n")]
)
@pytest.mark.parametrize("streamed", [True, False])
def test_the_sdk_raises_a_bad_request_that_names_the_field(
    client: openai.OpenAI, wrong: dict[str, Any], param: str, streamed: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.chat.completions.create(**(PLAIN | wrong), stream=streamed)
    assert (told.value.param, told.value.type, told.value.code) == (param, "invalid_request_error", None)


# -- what is too long --------------------------------------------------------------------------------------

LIMIT_BYTES = 1024


def padded(size: int) -> bytes:
    """A chat request of exactly so many bytes."""
    body = json.dumps(PLAIN).encode()
    return body[:-1] + b" " * (size - len(body)) + b"}"


@pytest.fixture(scope="module")
def narrow(florette: Florette) -> str:
    """Florette with a low limit."""
    return florette(max_body_bytes=LIMIT_BYTES)


@pytest.mark.parametrize("path", [CHAT, "/v1/embeddings"])
@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_up_to_the_limit_is_taken_and_none_beyond(
    narrow: str, upstream: ScriptedUpstream, path: str, chunked: bool
) -> None:
    upstream.script(Echo())

    def post(size: int) -> httpx.Response:
        body = padded(size)
        pieces = (body[at : at + 100] for at in range(0, size, 100))
        return httpx.post(narrow + path, content=pieces if chunked else body)

    assert post(LIMIT_BYTES).content == padded(LIMIT_BYTES)
    for size in (LIMIT_BYTES + 1, 5 * LIMIT_BYTES):
        answer = post(size)
        assert answer.status_code == 413
        error = error_of(answer)
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
        assert "1,024 bytes" in error["message"]


def test_ten_megabytes_are_taken_unless_told_otherwise(http: httpx.Client, upstream: ScriptedUpstream) -> None:
    upstream.script(Answers({"choices": []}))
    assert http.post(CHAT, content=padded(10_000_000)).status_code == 200
    assert len(upstream.received[0].body) == 10_000_000
    assert http.post(CHAT, content=padded(10_000_001)).status_code == 413


@pytest.mark.parametrize("framing", ["content-length: 1000000000000", "transfer-encoding: chunked"])
def test_a_body_without_end_is_refused_before_it_ends(narrow: str, framing: str) -> None:
    at = urlsplit(narrow)
    with socket.create_connection((at.hostname, at.port), timeout=PATIENCE_S) as peer:
        part = b" " * 4096
        data = b"%x\r\n%b\r\n" % (len(part), part) if "chunked" in framing else part
        peer.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode() + 4 * data)
        assert peer.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_the_sdk_is_told_that_a_request_is_too_large(narrow: str) -> None:
    with (
        openai.OpenAI(base_url=narrow + "/v1", api_key="k", max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as told,
    ):
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 2000}])
    assert (told.value.status_code, told.value.code) == (413, "request_too_large")


# -- anything at all ---------------------------------------------------------------------------------------

FIELDS = [
    *("model", "messages", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "n"),
    *("stream", "stream_options", "include_usage", "stop", "response_format", "role", "content", "name"),
    *("tool_calls", "tool_call_id", "function", "arguments", "parameters", "type", "text", "image_url"),
    *("description", "properties", "required", "name_for_human", "name_for_model", "args_format"),
]
WORDS = ["user", "assistant", "tool", "function", "system", "developer", "auto", "required", "none", "text"]

json_keys = st.sampled_from(FIELDS) | st.text(max_size=4)
json_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([*WORDS, "get_weather", "✿FUNCTION✿: x\n✿ARGS✿: {", "\ud800"])
    | st.text(max_size=8)
)
json_values = st.recursive(
    json_leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(json_keys, inner, max_size=4),
    max_leaves=12,
)


def or_anything(good: Any) -> st.SearchStrategy[Any]:
    return good | json_values if isinstance(good, st.SearchStrategy) else st.just(good) | json_values


#: Requests that are nearly right, so that many get past the first check.
messages = st.fixed_dictionaries(
    {"role": or_anything(st.sampled_from(WORDS)), "content": or_anything("hi")},
    optional={
        "name": or_anything("x"),
        "tool_calls": or_anything([{"id": "a", "function": {"name": "f", "arguments": "{"}}]),
        "tool_call_id": or_anything("a"),
        "function_call": or_anything({"name": "f", "arguments": "{}"}),
    },
)
parameters = st.fixed_dictionaries(
    {}, optional={"type": or_anything("object"), "properties": json_values, "required": json_values}
)
functions = st.fixed_dictionaries(
    {"name": or_anything("get_weather")},
    optional={
        "description": or_anything("x"),
        "parameters": or_anything(parameters),
        "name_for_model": json_values,
    },
)
nearly_right = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=4) | json_values},
    optional={
        "tools": or_anything(
            st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": functions}), max_size=2)
        ),
        "tool_choice": or_anything(st.sampled_from(["auto", "none", "required", named("get_weather")])),
        "functions": or_anything(st.lists(functions, max_size=2)),
        "function_call": or_anything({"name": "get_weather"}),
        "stop": or_anything(["a", "b", "c", "d", "e"]),
        "stream": or_anything(True),
        "n": or_anything(2),
        "response_format": or_anything({"type": "json_object"}),
    },
)


@pytest.fixture(scope="module")
def behind_nothing(florette: Florette, nowhere: str) -> Iterator[httpx.Client]:
    """Florette before an upstream that cannot be reached: a request that is taken ends in just that."""
    url = florette(upstream=nowhere + "/v1", retries=0)
    with httpx.Client(base_url=url, timeout=PATIENCE_S) as client:
        yield client


def is_taken_or_refused(answer: httpx.Response) -> bool:
    error = error_of(answer)
    if answer.status_code == 502:
        return bool(error["code"] == "upstream_unreachable")
    return answer.status_code == 400 and error["type"] == "invalid_request_error"


#: So many levels of nesting no JSON reader follows, and so far around the last that one does others may differ.
MANY_LEVELS, AROUND = 100_000, 25

#: Places where something deep is read, rendered or written again.
DEEP = {
    "passed as it is": b'"x":%s',
    "passed without tool fields": b'"tools":[],"x":%s',
    "written again": b'"tools":[{"type":"function","function":{"name":"f"}}],"x":%s',
    "rendered": b'"tools":[{"type":"function","function":{"name":"f","parameters":{"x":%s}}}]',
}


@pytest.mark.parametrize("place", DEEP)
def test_no_depth_of_nesting_breaks_us(behind_nothing: httpx.Client, place: str) -> None:
    """What reads JSON, and what writes it, give up at depths that differ a little: all around them it is one error."""

    def post(levels: int) -> httpx.Response:
        deep = DEEP[place] % (b"[" * levels + b"]" * levels)
        return behind_nothing.post(CHAT, content=json.dumps(PLAIN).encode().removesuffix(b"}") + b"," + deep + b"}")

    refused = bisect.bisect(range(MANY_LEVELS), False, key=lambda levels: post(levels).status_code == 400)
    assert 100 < refused < MANY_LEVELS
    answers = [post(levels) for levels in range(refused - AROUND, refused + AROUND)]
    assert all(map(is_taken_or_refused, answers))
    assert {answer.status_code for answer in answers} == {400, 502}


FUZZ = settings(max_examples=50, deadline=None)


@given(body=nearly_right)
@FUZZ
def test_no_request_for_a_chat_breaks_us(behind_nothing: httpx.Client, body: Any) -> None:
    assert is_taken_or_refused(behind_nothing.post(CHAT, content=json.dumps(body)))


@given(path=st.sampled_from([CHAT, *PASSED]), body=json_values)
@FUZZ
def test_no_json_breaks_us(behind_nothing: httpx.Client, path: str, body: Any) -> None:
    assert is_taken_or_refused(behind_nothing.post(path, content=json.dumps(body)))


@given(path=st.sampled_from([CHAT, *PASSED]), body=st.binary(max_size=64))
@FUZZ
def test_no_bytes_break_us(behind_nothing: httpx.Client, path: str, body: bytes) -> None:
    assert is_taken_or_refused(behind_nothing.post(path, content=body))
