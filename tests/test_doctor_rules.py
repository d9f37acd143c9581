"""The doctor's rules over recorded answers: the good ones pass, and each fault is told by the rule that is about it."""

import copy
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.doctor.battery import RULES
from proxy.doctor.exchange import Answer, read_answer
from proxy.doctor.findings import Verdict
from proxy.doctor.report import Scorecard, as_json, as_text
from recorded import (
    JSON_TYPE,
    STREAM_TYPE,
    Json,
    Made,
    asked,
    chunk,
    chunks,
    completion,
    sent,
    streamed,
    usage_chunk,
    whole,
)

PARIS: Made = ("get_weather", ['{"city"', ': "Paris"}'])
ROME: Made = ("get_weather", ['{"city": "Rome"}'])
LEGACY = {"functions": [{"name": "get_weather", "parameters": {"type": "object"}}], "tools": None}


def complaints(answer: Answer) -> dict[str, tuple[Verdict, str, str]]:
    """What the rules say of an answer: rule -> verdict, what came, what should have."""
    results = [rule.result([answer]) for rule in RULES]
    return {
        result.name: (finding.verdict, finding.said, f"{finding.came} | {finding.due}")
        for result in results
        for finding in result.findings
        if finding.verdict > Verdict.PASS
    }


def forms() -> list[Answer]:
    """Good answers of every kind."""
    function = {"name": "get_weather", "arguments": ""}
    older = [
        chunk({"role": "assistant", "content": None, "function_call": function}),
        chunk({"function_call": {"arguments": "{}"}}),
        chunk({}, "function_call"),
    ]
    whole_older = completion(None, finish="function_call")
    whole_older["choices"][0]["message"]["function_call"] = {**function, "arguments": "{}"}
    two = [chunk(delta, index=index) for delta in ({"role": "assistant"}, {"content": "a"}) for index in (0, 1)]
    return [
        whole(completion("Hello.")),
        whole(completion(None, PARIS, ROME)),
        whole(completion("Look: ", PARIS, finish="stop"), asked(tool_choice={"type": "function"})),
        whole(completion("", ("get_weather", '{"ci'), finish="length")),
        whole(whole_older, asked(**LEGACY)),
        streamed(chunks("Hel|lo.")),
        streamed(chunks("", PARIS, ROME)),
        streamed([": a comment\n\n", *chunks("", PARIS)]),
        streamed([*chunks("Hi"), usage_chunk()], asked(stream=True, stream_options={"include_usage": True})),
        streamed(chunks("", PARIS, ("get_weather", ['{"ci']), finish="length")),
        streamed([*two, chunk({}, "stop"), chunk({}, "stop", index=1)]),
        streamed(older, asked(stream=True, **LEGACY)),
    ]


@pytest.mark.parametrize("answer", forms(), ids=lambda answer: answer.told()[:40])
def test_a_good_answer_breaks_no_rule(answer: Answer) -> None:
    assert complaints(answer) == {}


def test_a_good_answer_is_counted_by_the_rules_that_are_about_it() -> None:
    seen = {rule.name: rule.result(forms()) for rule in RULES}
    assert {result.verdict for result in seen.values()} == {Verdict.PASS}
    assert seen["[DONE] ends a stream, and the answer with it"].findings[0].said == "7 streams"
    assert seen["arguments are a JSON object"].findings[0].said == "9 calls"


def test_a_rule_that_nothing_is_about_is_skipped() -> None:
    assert {rule.result([]).verdict for rule in RULES} == {Verdict.SKIPPED}


def altered(place: int, *path: Any, to: Any) -> list[Json]:
    """A stream of two calls with one field of one chunk set, or taken out."""
    made = copy.deepcopy(chunks("", PARIS, ROME))
    inner: Any = made[place]
    for step in path[:-1]:
        inner = inner[step]
    if to is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return made


DELTA = ("choices", 0, "delta")
CALL = (*DELTA, "tool_calls", 0)
NOTHING = chunk({"content": None})

STREAM_FAULTS: list[tuple[str, Sequence[Json | str], str]] = [
    ("a stream is JSON events and nothing else", ["event: delta\n", *chunks("Hi")], "event: delta"),
    ("a stream is JSON events and nothing else", ["data: {half\n\n", *chunks("Hi")], "{half"),
    ("a stream is JSON events and nothing else", ['data: {"a": NaN}\n\n', *chunks("Hi")], "NaN"),
    ("a stream is JSON events and nothing else", ["data: [1]\n\n", *chunks("Hi")], "[1]"),
    ("[DONE] ends a stream, and the answer with it", [*chunks("Hi"), "data: [DONE]\n\n"], "2 times"),
    ("every chunk has the fields of a chunk", altered(1, "object", to="chunk"), '"object": "chat.completion.chunk"'),
    ("every chunk has the fields of a chunk", altered(1, "created", to="now"), '"created": a number'),
    ("every chunk has the fields of a chunk", altered(3, "choices", 0, "finish_reason", to=1), '"finish_reason": text'),
    ("every chunk has the fields of a chunk", [*chunks("Hi"), {"error": {"message": "engine died"}}], "engine died"),
    ("one id, created and model on all chunks", altered(1, "id", to="other"), '"chatcmpl-1", then "other"'),
    ("one id, created and model on all chunks", altered(2, "model", to="other"), '"m", then "other"'),
    ("the role comes once, and first", altered(1, *DELTA, "role", to="assistant"), "'assistant' in delta 1"),
    ("the role comes once, and first", altered(0, *DELTA, "role", to=None), "no role"),
    ("the role comes once, and first", altered(0, *DELTA, "role", to="user"), "'user' in delta 0"),
    ("a call's id, type and name come once, with its first piece", altered(1, *CALL, "id", to=None), '"id": text'),
    ("a call's id, type and name come once, with its first piece", altered(1, *CALL, "id", to=""), '"id": text'),
    ("a call's id, type and name come once, with its first piece", altered(2, *CALL, "id", to="call_0"), "no id"),
    (
        "a call's id, type and name come once, with its first piece",
        altered(2, *CALL, "function", "name", to="get_weather"),
        "no name",
    ),
    (
        'a call\'s arguments begin as "" and go on as text',
        altered(1, *CALL, "function", "arguments", to=None),
        '"arguments": ""',
    ),
    (
        'a call\'s arguments begin as "" and go on as text',
        altered(1, *CALL, "function", "arguments", to=" "),
        '"arguments": " "',
    ),
    (
        'a call\'s arguments begin as "" and go on as text',
        altered(3, *CALL, "function", "arguments", to=None),
        '"arguments": "..."',
    ),
    ("calls are numbered 0, 1, ... and do not interleave", altered(5, *CALL, "index", to=0), "[0, 1, 0]"),
    ("calls are numbered 0, 1, ... and do not interleave", altered(1, *CALL, "index", to=None), "[null, 0, 1]"),
    ("choices come up in order", [chunk({"role": "assistant"}, "stop", index=1)], "index 1"),
    ("each choice finishes once, and says nothing behind it", chunks("Hi")[:-1], "[] of 2"),
    ("each choice finishes once, and says nothing behind it", [*chunks("Hi"), chunk({}, "stop")], "[3, 4] of 4"),
    ("each choice finishes once, and says nothing behind it", [*chunks("Hi"), chunk({"content": "!"})], "[3] of 4"),
    ("a stream ends when its last call does", [*chunks("", PARIS)[:-1], *[NOTHING] * 3, chunk({}, "tool_calls")], "3"),
    (
        "a stream's usage comes if it is asked for, in a last chunk of its own",
        [*chunks("Hi"), usage_chunk()],
        "no chunk",
    ),
]


def with_null(name: str) -> list[Json]:
    """A stream whose second piece of a call dumps what is not set."""
    made = altered(2, *CALL, "index", to=0)
    made[2]["choices"][0]["delta"]["tool_calls"][0][name] = None
    return made


STREAM_FAULTS += [
    ("a call's id, type and name come once, with its first piece", [*with_null(name)], f"no {name}")
    for name in ("id", "type")
]


@pytest.mark.parametrize(("rule", "payloads", "evidence"), STREAM_FAULTS)
def test_a_fault_of_a_stream_is_told_with_its_evidence(
    rule: str, payloads: Sequence[Json | str], evidence: str
) -> None:
    found = complaints(streamed(payloads))
    assert rule in found, found
    assert evidence in found[rule][2]


@pytest.mark.parametrize(
    ("done", "rule", "evidence"),
    [
        ("", "[DONE] ends a stream, and the answer with it", "0 times; the last event: {"),
        ("data: [DONE]", "a stream is JSON events and nothing else", "data: [DONE]"),
    ],
)
def test_the_end_of_a_stream_is_looked_at(done: str, rule: str, evidence: str) -> None:
    found = complaints(streamed(chunks("Hi"), done=done))
    assert evidence in found[rule][2]


def test_a_stream_without_any_event_is_told() -> None:
    found = complaints(streamed([], done=""))
    assert "no event at all" in found["[DONE] ends a stream, and the answer with it"][2]


def test_half_a_call_in_a_stream_is_a_warning() -> None:
    """All arguments in the first piece: clients can read it, and OpenAI never sends it."""
    rule = 'a call\'s arguments begin as "" and go on as text'
    assert complaints(streamed(altered(1, *CALL, "function", "arguments", to=" ")))[rule][0] is Verdict.WARNING


@pytest.mark.parametrize("kind", ["JSON for a stream", "text for a completion"])
def test_the_content_type_is_looked_at(kind: str) -> None:
    if kind == "JSON for a stream":
        answer = read_answer(asked(stream=True), 200, JSON_TYPE, sent(chunks("Hi")))
        rule = "a stream is JSON events and nothing else"
    else:
        answer = read_answer(asked(), 200, {"content-type": "text/html"}, json.dumps(completion("Hi")).encode())
        rule = "a completion has the fields of a completion"
    assert complaints(answer)[rule][1].startswith("The content-type is another.")


@pytest.mark.parametrize("request_", [asked(), asked(stream=True)])
def test_an_answer_that_broke_off_is_told(request_: Any) -> None:
    streams = request_.is_streamed
    body = sent(chunks("Hi")) if streams else json.dumps(completion("Hi")).encode()
    answer = read_answer(request_, 200, STREAM_TYPE if streams else JSON_TYPE, body, "it did not end within 60 s")
    rule = "[DONE] ends a stream, and the answer with it" if streams else "a completion has the fields of a completion"
    _, said, evidence = complaints(answer)[rule]
    assert said.startswith("The answer did not end well.")
    assert "within 60 s" in evidence


def test_bytes_that_are_no_text_are_told() -> None:
    answer = read_answer(asked(stream=True), 200, STREAM_TYPE, b"data: \xff\n\n" + sent(chunks("Hi")))
    assert "not UTF-8" in complaints(answer)["[DONE] ends a stream, and the answer with it"][2]


def message(**fields: Any) -> Json:
    """A completion with a call whose message has these fields set, or taken out."""
    made = completion(None, PARIS)
    inner = made["choices"][0]["message"] | fields
    made["choices"][0]["message"] = {name: value for name, value in inner.items() if value != "missing"}
    return made


def first_call(**fields: Any) -> Json:
    """The same with these fields of the call."""
    call = completion(None, PARIS)["choices"][0]["message"]["tool_calls"][0]
    return message(tool_calls=[call | fields])


FIELDS = "a completion has the fields of a completion"
CALLS = "a call in a completion has id, type, name and arguments as text"

COMPLETION_FAULTS: list[tuple[str, Json, str]] = [
    (FIELDS, {**completion("Hi"), "id": None}, '"id": text'),
    (FIELDS, {**completion("Hi"), "object": "text_completion"}, '"object": "chat.completion"'),
    (FIELDS, message(role="user"), '"role": "assistant"'),
    (FIELDS, message(content="missing"), '"content": text or null'),
    (FIELDS, message(content=["a"]), '"content": text or null'),
    (CALLS, first_call(id=""), '"id": text'),
    (CALLS, first_call(type="tool"), '"type": "function"'),
    (CALLS, first_call(function={"name": "f", "arguments": {"a": 1}}), '"arguments": "{...}"'),
    (CALLS, message(tool_calls=[]), "no such key"),
    ("a completion's usage adds up", {**completion("Hi"), "usage": None}, "usage: null"),
    ("a completion's usage adds up", {**completion("Hi"), "usage": {"prompt_tokens": 5}}, "prompt_tokens"),
    (
        "a completion's usage adds up",
        {**completion("Hi"), "usage": {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 5}},
        '"total_tokens": 5',
    ),
    (
        "the ids in an answer differ",
        message(tool_calls=[*first_call()["choices"][0]["message"]["tool_calls"]] * 2),
        "call_0",
    ),
]


@pytest.mark.parametrize(("rule", "body", "evidence"), COMPLETION_FAULTS)
def test_a_fault_of_a_completion_is_told_with_its_evidence(rule: str, body: Json, evidence: str) -> None:
    found = complaints(whole(body))
    assert rule in found, found
    assert evidence in found[rule][2]


def test_an_empty_list_of_calls_is_a_warning() -> None:
    """VLLM sends one with every text."""
    made = completion("Hi")
    made["choices"][0]["message"]["tool_calls"] = []
    assert complaints(whole(made)) == {
        CALLS: (
            Verdict.WARNING,
            "An answer without calls has an empty list of them. (1 of 1 completions)",
            '"tool_calls": [] | no such key',
        )
    }


ARGUMENTS = "arguments are a JSON object"
SCHEMA = "arguments fit the tool's schema"

CALL_FAULTS = [
    (ARGUMENTS, "", "JSON: Expecting value"),
    (ARGUMENTS, '{"city": "a', "JSON: Unterminated string"),
    (ARGUMENTS, '{"city": "Rome"}}', "JSON: Extra data"),
    (ARGUMENTS, '{"city": "a\x0bb"}', "JSON: Invalid control character"),
    (ARGUMENTS, '{"city": NaN}', "JSON has no NaN"),
    (ARGUMENTS, "[" * 100_000, "nested too deeply"),
    (ARGUMENTS, '[["Rome"]]', "{...}"),
    (ARGUMENTS, '"Rome"', "{...}"),
    (ARGUMENTS, '"{\\"city\\": \\"Rome\\"}"', 'get_weather({"city": "Rome"})'),
    (SCHEMA, "{}", "$: 'city' is a required property"),
    (SCHEMA, '{"city": 5}', "$.city: 5 is not of type 'string'"),
]


@pytest.mark.parametrize(("rule", "arguments", "evidence"), CALL_FAULTS, ids=lambda value: value[:30])
def test_bad_arguments_are_told_and_what_they_should_be(rule: str, arguments: str, evidence: str) -> None:
    for answer in (
        whole(completion(None, ("get_weather", arguments))),
        streamed(chunks("", ("get_weather", [arguments]))),
    ):
        found = complaints(answer)
        assert [name for name in found if name in (ARGUMENTS, SCHEMA)] == [rule]
        assert evidence in found[rule][2]


def test_a_call_that_the_token_limit_cut_may_hold_half_its_arguments() -> None:
    cut = ("get_weather", '{"ci')
    assert complaints(whole(completion(None, cut, finish="length"))) == {}
    assert list(complaints(whole(completion(None, cut, cut, finish="length")))) == [ARGUMENTS]


def test_a_call_of_a_tool_that_nobody_declared_is_told() -> None:
    found = complaints(whole(completion(None, ("bob", "{}"))))
    assert found["a call is of a tool that was declared"][2] == "bob({}) | one of get_weather"


@pytest.mark.parametrize(
    ("content", "arguments", "verdict"),
    [
        ("✿FUNCTION✿: get", "{}", Verdict.FAIL),
        ('<tool_call>\n{"name": "f"}', "{}", Verdict.FAIL),
        ("Hi<|im_end|>", "{}", Verdict.FAIL),
        ("Hi", '{"city": "Rome</tool_call>"}', Verdict.FAIL),
        ("<think>Hm</think>Hi", "{}", Verdict.WARNING),
    ],
)
def test_a_marker_in_text_or_arguments_is_a_leak(content: str, arguments: str, verdict: Verdict) -> None:
    found = complaints(whole(completion(content, ("get_weather", arguments))))
    assert found["no marker stands in text or arguments"][0] is verdict


def test_a_marker_that_was_asked_about_or_where_there_are_no_tools_is_no_leak() -> None:
    question = [{"role": "user", "content": "What does <tool_call> mean?"}]
    assert complaints(whole(completion("<tool_call> begins a call."), asked(messages=question))) == {}
    assert complaints(whole(completion("<tool_call> begins a call."), asked(tools=None))) == {}


FINISH_FAULTS = [
    (completion(None, PARIS, finish="stop"), "There are calls, and it says that there are none."),
    (completion(None, PARIS, finish="function_call"), "There are calls, and it says that there are none."),
    (completion("Hi", finish="tool_calls"), "It promises calls, and there are none."),
    (completion("Hi", finish="eos"), "It is none of OpenAI's."),
]


@pytest.mark.parametrize(("body", "said"), FINISH_FAULTS)
def test_a_finish_reason_that_is_not_true_is_told(body: Json, said: str) -> None:
    assert complaints(whole(body))["finish_reason says what was made"][1].startswith(said)


def test_a_complaint_is_made_once_with_how_often_it_was_true() -> None:
    answers = [whole(completion(None, ("get_weather", "{"))), *forms(), whole(completion(None, ("get_weather", "[]")))]
    [rule] = [rule for rule in RULES if rule.name == ARGUMENTS]
    result = rule.result([*answers, answers[0]])
    assert [finding.said for finding in result.findings] == [
        "They are no JSON. (2 of 12 calls)",
        "They are JSON, but no object. (1 of 12 calls)",
    ]


WORDS = (
    *("choices", "index", "delta", "message", "role", "content", "reasoning", "finish_reason", "usage"),
    *("tool_calls", "function_call", "function", "id", "type", "name", "arguments"),
    *("object", "created", "model", "error", "prompt_tokens", "completion_tokens", "total_tokens"),
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=30,
)


@given(body=anything, stream=st.booleans())
def test_no_answer_breaks_the_doctor(body: object, stream: bool) -> None:
    """Anything that is JSON, as a completion and as the chunks of a stream."""
    payloads = body if isinstance(body, list) else [body]
    data = sent([f"data: {json.dumps(each)}\n\n" for each in payloads]) if stream else json.dumps(body).encode()
    answer = read_answer(asked(stream=stream), 200, STREAM_TYPE if stream else JSON_TYPE, data)
    card = Scorecard("http://x/v1", "m", tuple(rule.result([answer]) for rule in RULES))
    assert as_text(card).replace("\n", "").isprintable()
    assert json.loads(as_json(card))["verdict"] in ("pass", "fail", "warn", "skip")


@given(data=st.binary(max_size=200), status=st.sampled_from([0, 200, 400, 500]), stream=st.booleans())
def test_no_bytes_break_the_doctor(data: bytes, status: int, stream: bool) -> None:
    answer = read_answer(asked(stream=stream), status, {}, data)
    assert all(rule.result([answer]) for rule in RULES)
    assert answer.told()
