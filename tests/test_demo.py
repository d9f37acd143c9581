"""The demo upstream's wire, over a real loopback connection: shapes, streams, stop strings, refusals.

Shapes and error texts are those of a vLLM 0.32.0; what it says is in `test_demo_model`.
"""

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo_server import CLOCK, STOPS, WEATHER, Demo, Json, serve_demo, system, user
from proxy.demo.server import FINGERPRINT
from serving import LoopThread

HI = [user("hi")]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
NO_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


@pytest.fixture(scope="module")
def demo(loop_thread: LoopThread) -> Iterator[Demo]:
    with serve_demo(loop_thread) as served:
        yield served


def without_ids(answer: Json) -> Json:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


@pytest.mark.parametrize(
    "messages",
    [
        HI,
        [user([{"type": "text", "text": "你好"}, {"type": "text", "text": "👩‍👩‍👧"}])],
        [system(WEATHER, CLOCK, parallel=True), user("weather in Paris and Rome")],
        [system(WEATHER, lang="zh"), user("北京的天气")],
    ],
)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"stop": STOPS},
        {"stop": STOPS, "include_stop_str_in_output": True},
        {"stop": "o"},
        {"max_tokens": 5, "logprobs": True, "top_logprobs": 2},
        {"n": 3, "stop": ["a", "好", "✿"]},
        {"max_completion_tokens": 1},
    ],
)
def test_streamed_and_whole_answers_are_the_same(demo: Demo, messages: list[Json], more: Json) -> None:
    whole = demo.ask(*messages, **more)
    chunks = demo.stream(messages=messages, stream_options={"include_usage": True}, model="demo", **more)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"]["content"] for part in mine) == choice["message"]["content"]
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert all(mine[-1][key] == choice[key] for key in ("finish_reason", "stop_reason"))
        entries = [entry for part in mine if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert entries == ((choice["logprobs"] or {}).get("content") or [])


def test_the_same_request_gets_the_same_answer(demo: Demo) -> None:
    body: Json = {"n": 2, "logprobs": True, "stop": ["y"]}
    first, second = demo.ask("hi", **body), demo.ask("hi", **body)
    assert first["id"] != second["id"] and without_ids(first) == without_ids(second)
    one, two = demo.stream(messages=HI, **body), demo.stream(messages=HI, **body)
    assert list(map(without_ids, one)) == list(map(without_ids, two))
    assert len({chunk["id"] for chunk in one}) == 1


def test_every_answer_and_chunk_says_that_no_model_is_behind_it(demo: Demo) -> None:
    body: Json = {"messages": HI, "prompt": "hi"}
    assert FINGERPRINT == "florette-demo-no-model"
    for path in ("/v1/chat/completions", "/v1/completions"):
        answers = [demo.http.post(path, json=body).json(), *demo.stream(path, **body)]
        assert {answer["system_fingerprint"] for answer in answers} == {FINGERPRINT}


def test_any_model_name_is_accepted_and_echoed(demo: Demo) -> None:
    assert demo.ask("hi", model="Qwen/Qwen3-8B", functions=[], banana=1)["model"] == "Qwen/Qwen3-8B"
    assert {c["model"] for c in demo.stream(model="x", messages=HI)} == {"x"}


def test_a_marker_arrives_in_pieces(demo: Demo) -> None:
    messages = [system(WEATHER), user("weather in Rome")]
    pieces = [c["choices"][0]["delta"]["content"] for c in demo.stream(messages=messages)]
    assert "✿FUNCTION✿" in "".join(pieces) and not any("✿FUNCTION✿" in piece for piece in pieces)
    assert {len(piece) for piece in pieces[1:-2]} == {2, 3, 4}


def test_stop_strings_hold_text_back_unless_they_are_to_be_kept(demo: Demo) -> None:
    """vLLM withholds the longest stop string's length less one, whether or not it comes."""
    sent = {
        keep: [
            c["choices"][0]["delta"]["content"]
            for c in demo.stream(messages=HI, stop="never said", include_stop_str_in_output=keep)
        ]
        for keep in (False, True)
    }
    assert "".join(sent[False]) == "".join(sent[True])
    assert sent[True][1] == "Th" and sent[False][1:4] == ["", "", ""] and len(sent[False][-1]) == 9


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("demo", "This is Florette's "),
        (["upstream", "demo up"], "This is Florette's "),
        (["T"], ""),
        (["xyz"], None),
    ],
)
def test_the_stop_string_that_is_complete_first_ends_the_text(
    demo: Demo, stop: str | list[str], text: str | None
) -> None:
    choice = demo.ask("hi", stop=stop)["choices"][0]
    found = None if text is None else stop if isinstance(stop, str) else stop[-1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", found)
    if text is not None:
        assert choice["message"]["content"] == text
        assert demo.say("hi", stop=stop, include_stop_str_in_output=True) == f"{text}{found}"


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_text_and_says_so(demo: Demo, key: str) -> None:
    cut = demo.ask("hi", **{key: 3})
    assert cut["choices"][0]["message"]["content"] == "This is F"
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 3)
    need = demo.ask("hi")["usage"]["completion_tokens"]
    assert demo.ask("hi", **{key: need})["choices"][0]["finish_reason"] == "stop"
    assert demo.ask("hi", **{key: need - 1})["choices"][0]["finish_reason"] == "length"


def test_of_several_choices_the_roles_come_first_and_then_they_take_turns(demo: Demo) -> None:
    chunks = demo.stream(messages=HI, n=3)
    indexes = [chunk["choices"][0]["index"] for chunk in chunks]
    assert indexes == list(itertools.islice(itertools.cycle(range(3)), len(chunks)))
    roles = ["role" in chunk["choices"][0]["delta"] for chunk in chunks]
    assert roles == [True] * 3 + [False] * (len(chunks) - 3)


def test_logprobs_are_told_token_by_token(demo: Demo) -> None:
    answer = demo.ask("hi", logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = answer["choices"][0]["logprobs"]["content"]
    assert (first["token"], bytes(first["bytes"]), second["token"]) == ("Th", b"Th", "is i")
    assert first["logprob"] < 0 and [e["token"] for e in first["top_logprobs"]] == ["Th", "Th1"]
    assert first["top_logprobs"][1]["logprob"] < first["top_logprobs"][0]["logprob"] == first["logprob"]


def test_the_keys_are_vllms(demo: Demo) -> None:
    """vLLM 0.32.0 without a tool parser: no `tool_calls`, and `usage` in its own chunk only."""
    whole = demo.ask("hi")["choices"][0]
    null = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    assert whole["message"] == {"role": "assistant", "content": whole["message"]["content"], **null}
    first, *middle, last = demo.stream(messages=HI)
    assert set(first) == {"id", "object", "created", "model", "choices", "system_fingerprint"}
    assert set(first["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}
    assert {frozenset(c["choices"][0]) for c in middle} == {frozenset([*first["choices"][0], "token_ids"])}
    assert set(last["choices"][0]) == {*first["choices"][0], "token_ids", "stop_reason"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"messages": HI, "tools": TOOLS}, NO_PARSER),
        ({"messages": HI, "tools": TOOLS, "tool_choice": "auto", "stream": True}, NO_PARSER),
        (
            {"messages": HI, "tools": TOOLS, "tool_choice": "required"},
            'tool_choice="required" requires --tool-call-parser to be set',
        ),
        (
            {"messages": HI, "tools": TOOLS, "tool_choice": TOOLS[0]},
            'tool_choice=function "f" requires --tool-call-parser to be set',
        ),
        ({"messages": HI, "tools": []}, "must not be an empty array"),
        ({"messages": HI, "tool_choice": "auto"}, "`tools` must be set"),
        ({"messages": HI, "stop": ["a", "b", "c", "d", "e"]}, "at most 4 items"),
        ({"messages": HI, "stop": [""]}, "cannot contain an empty string"),
        ({"messages": HI, "stop": 5}, "valid string"),
        ({"messages": HI, "max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"messages": HI, "max_tokens": -1}, "max_tokens must be at least 1, got -1"),
        ({"messages": HI, "max_tokens": "many"}, "valid integer"),
        ({"messages": HI, "n": 0}, "n must be at least 1"),
        ({"messages": HI, "temperature": "hot"}, "valid number"),
        ({"messages": HI, "temperature": [1]}, "valid number"),
        ({"messages": HI, "stream_options": {"include_usage": True}}, "Stream options"),
        ({"messages": HI, "continue_final_message": True}, "continue_final_message and add_generation_prompt"),
        ({"messages": [user("x" * 140_000)]}, "maximum context length is 131072 tokens"),
        ({"messages": []}, "empty conversation"),
        ({"messages": [user(None)]}, "valid string"),
        ({"messages": ["hi"]}, "body.messages"),
        ({}, "body.messages"),
        ([], "body"),
        ('{"messages": [', "JSON decode error"),
        ("", "JSON decode error"),
        (r'{"messages": [{"role": "user", "content": "\ud83d"}]}', "JSON decode error"),
    ],
)
def test_what_vllm_refuses_is_refused_in_its_words(demo: Demo, body: object, message: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = demo.http.post("/v1/chat/completions", content=content.encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, 400)
    assert message in error["message"] and {"type", "param"} <= set(error)


@pytest.mark.parametrize(
    "more", [{"functions": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": None}, {"stop": None}]
)
def test_what_vllm_does_not_mind_changes_nothing(demo: Demo, more: Json) -> None:
    assert without_ids(demo.ask("hi", **more)) == without_ids(demo.ask("hi"))


def test_completions_echo_streamed_and_whole(demo: Demo) -> None:
    body = {"prompt": ["hi", [104, 111] * 10], "max_tokens": 200, "n": 2}
    whole = demo.http.post("/v1/completions", json=body).json()
    assert [choice["text"].split()[-1] for choice in whole["choices"]] == ["hi", "hi", "ho" * 10, "ho" * 10]
    texts = dict.fromkeys(range(4), "")
    for chunk in demo.stream("/v1/completions", **body):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole["choices"]]
    cut = demo.http.post("/v1/completions", json={"prompt": "hi"}).json()
    assert cut["usage"] == {"prompt_tokens": 2, "total_tokens": 18, "completion_tokens": 16}
    assert demo.http.post("/v1/completions", json={}).status_code == 400
    assert demo.http.post("/v1/completions", json={"prompt": [None]}).status_code == 400


@given(text=st.text(max_size=50))
@settings(deadline=None)
def test_tokens_turn_back_into_their_text(demo: Demo, text: str) -> None:
    tokens = demo.http.post("/tokenize", json={"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"]) and tokens["max_model_len"] == 131_072
    assert demo.http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": text}


def test_a_chat_has_as_many_tokens_as_its_usage_says(demo: Demo) -> None:
    count = demo.http.post("/tokenize", json={"messages": HI}).json()["count"]
    assert count == demo.ask(*HI)["usage"]["prompt_tokens"]
    assert demo.http.post("/tokenize", json={}).status_code == 400
    assert demo.http.post("/detokenize", json={"tokens": [-1, "x"]}).status_code == 400
    assert demo.http.post("/detokenize", json={"tokens": [0xD800]}).status_code == 400


def test_the_small_doors_answer_as_vllms(demo: Demo) -> None:
    [model] = demo.http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("demo", 131_072)
    assert (demo.http.get("/health").status_code, demo.http.get("/health").content) == (200, b"")
    assert "version" in demo.http.get("/version").json()
    for path in ("/", "/v1/embeddings", "/v1/responses"):
        answer = demo.http.post(path)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert demo.http.get("/v1/chat/completions").json() == {"detail": "Method Not Allowed"}
