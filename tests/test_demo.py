"""The demo upstream, asked over a real loopback connection as the proxy asks it.

The prompts are those that Qwen-Agent 0.0.34 writes; the shapes and error texts are those of a vLLM 0.32.0.
"""

import itertools
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.demo import FINGERPRINT, create_demo

Json = dict[str, Any]
STOPS = ["✿RESULT✿", "✿RETURN✿"]
DOG = "帮我画张小狗在草地上的图片"
DOG_CALL = (
    "✿FUNCTION✿: my_image_gen\n"
    '✿ARGS✿: {"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}\n'
)
IMAGE_GEN = (
    "my_image_gen",
    "AI画图工具,返回图片URL给用户",
    [
        {
            "name": "prompt",
            "type": "string",
            "description": "期望的图像内容的详细描述,注意描述必须用英文",
            "required": True,
        }
    ],
)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = ("get_weather", "Get the current weather in a given location", CITY)
CLOCK = ("get_time", "Tell the time of day in a city", CITY)
RUN_CODE = ("code_interpreter", "Python code sandbox, which can be used to execute Python code.", CITY)


TEMPLATES = {
    "en": {
        "head": "# Tools\n\n## You have access to the following tools:",
        "label": "Parameters: ",
        "json": "Format the arguments as a JSON object.",
        "code": "Enclose the code within triple backticks (`) at the beginning and end of the code.",
        "one": "## When you need to call a tool, please insert the following command in your reply",
        "several": "## Insert the following command in your reply when you need to call N tools in parallel:",
    },
    "zh": {
        "head": "# 工具\n\n## 你拥有如下工具：",
        "label": "输入参数：",
        "json": "此工具的输入应为JSON对象。",
        "code": "此工具的输入应为Markdown代码块。",
        "one": "## 你可以在回复中插入零次、一次或多次以下命令以调用工具：",
        "several": "## 你可以在回复中插入以下命令以并行调用N个工具：",
    },
}


def system_message(
    *tools: tuple[str, str, object], lang: str = "en", parallel: bool = False, ascii_only: bool = False
) -> Json:
    """Qwen-Agent's templates, of the closing part only so much as tells a model what is a marker."""
    words = TEMPLATES[lang]
    blocks = [
        f"### {name}\n\n{name}: {about} {words['label']}{json.dumps(schema, ensure_ascii=ascii_only)} "
        f"{words['code' if name == 'code_interpreter' else 'json']}"
        for name, about, schema in tools
    ]
    how = words["several" if parallel else "one"]
    tail = "✿FUNCTION✿: The tool to use\n✿ARGS✿: The input\n✿RESULT✿: Tool results\n✿RETURN✿: Reply"
    parts = ["You are a helpful assistant.", words["head"], *blocks, how, tail]
    return {"role": "system", "content": "\n\n".join(parts)}


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))  # whoever connects early waits in its queue
    server = uvicorn.Server(uvicorn.Config(create_demo(), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def http(base_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=base_url) as client:
        yield client


def ask(http: httpx.Client, *messages: Json | str, **more: Any) -> Json:
    asked = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages]
    answer = http.post("/v1/chat/completions", json={"model": "demo", "messages": asked, **more})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def say(http: httpx.Client, *messages: Json | str, **more: Any) -> str:
    return str(ask(http, *messages, **more)["choices"][0]["message"]["content"])


def stream(http: httpx.Client, path: str = "/v1/chat/completions", **body: Any) -> list[Json]:
    """All chunks; that `[DONE]` and a blank line end the stream is checked on the way."""
    answer = http.post(path, json={"stream": True, **body})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, nothing = answer.content.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def arguments(text: str) -> list[tuple[str, Any]]:
    """The calls in a text, read strictly."""
    lines = text.removesuffix("✿RESULT✿").removesuffix("\n").split("\n")
    names, values = lines[0::2], lines[1::2]
    return [
        (name.removeprefix("✿FUNCTION✿: "), json.loads(value.removeprefix("✿ARGS✿: ")))
        for name, value in zip(names, values, strict=True)
    ]


def without_ids(answer: Json) -> Json:
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


# What it says.


@pytest.mark.parametrize("parameters", ["a list", "a schema"])
def test_it_plays_the_dialog_that_the_project_started_from(http: httpx.Client, parameters: str) -> None:
    """The vLLM log that the project started from: two prompts, a call and an answer."""
    schema = {"type": "object", "properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}
    tool = IMAGE_GEN if parameters == "a list" else (*IMAGE_GEN[:2], schema)
    system = system_message(tool, lang="zh")
    assert say(http, system, DOG, stop=STOPS) == DOG_CALL
    result = f'{DOG}\n\n{DOG_CALL}✿RESULT✿: {{"image_url": "image/小狗站在草地上的图片"}}\n✿RETURN✿'
    drawn = ": 已为您画出小狗站在草地上的图片。![小狗站在草地上的图片](image/小狗站在草地上的图片)"
    assert say(http, system, result, stop=STOPS) == drawn


def test_a_plain_question_is_answered_with_a_word_on_what_this_is(http: httpx.Client) -> None:
    english = say(http, "What is the capital of France?")
    assert "no model behind it" in english and english.endswith("What is the capital of France?")
    assert say(http, "法国的首都是哪里？").startswith("这是 Florette 的演示上游，背后没有模型。")


def test_a_question_that_has_nothing_to_do_with_the_tools_is_answered_in_text(http: httpx.Client) -> None:
    assert "no model behind it" in say(http, system_message(WEATHER, CLOCK), "Write me a poem about love.")


@pytest.mark.parametrize(
    ("lang", "question", "city"),
    [
        ("en", "What is the weather like in San Francisco, CA?", "San Francisco, CA"),
        ("en", 'How is the weather at "home"?', "home"),
        ("en", "How is the weather?", "How is the weather?"),
        ("zh", "请问北京今天的天气怎么样？", "北京"),
    ],
)
def test_a_question_about_a_tool_calls_it(http: httpx.Client, lang: str, question: str, city: str) -> None:
    text = say(http, system_message(CLOCK, WEATHER, lang=lang), question)
    assert arguments(text) == [("get_weather", {"city": city})]


def test_after_its_calls_it_begins_to_invent_results_as_models_do(http: httpx.Client) -> None:
    system = system_message(WEATHER)
    assert say(http, system, "weather in Rome").endswith('{"city": "Rome"}\n✿RESULT✿')
    assert say(http, system, "weather in Rome", stop=STOPS).endswith('{"city": "Rome"}\n')


@pytest.mark.parametrize(
    ("question", "calls"),
    [
        (
            "What's the weather in Paris and London?",
            [("get_weather", "Paris"), ("get_weather", "London")],
        ),
        (
            "Compare the weather in Paris, Rome and Oslo",
            [("get_weather", c) for c in ("Paris", "Rome", "Oslo")],
        ),
        (
            "The weather in Paris and the time in London",
            [("get_weather", "Paris"), ("get_time", "London")],
        ),
        ("Weather and time in Paris", [("get_weather", "Paris"), ("get_time", "Paris")]),
        ("北京和上海的天气怎么样？", [("get_weather", "北京"), ("get_weather", "上海")]),
    ],
)
def test_the_parallel_prompt_gets_as_many_calls_as_the_question_asks_for(
    http: httpx.Client, question: str, calls: list[tuple[str, str]]
) -> None:
    text = say(http, system_message(WEATHER, CLOCK, parallel=True), question)
    assert arguments(text) == [(name, {"city": city}) for name, city in calls]


def test_the_other_prompt_gets_one_call(http: httpx.Client) -> None:
    text = say(http, system_message(WEATHER, CLOCK), "The weather in Paris and the time in London")
    assert len(arguments(text)) == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize(
    ("question", "code"),
    [
        ("compute 17*(3+4) with code", "print(17*(3+4))"),
        ("On 2024-01-01, what is 6 ÷ 2 in code?", "print(6 / 2)"),
        ("run Python code", 'print("run Python code")'),
    ],
)
def test_the_code_interpreter_gets_a_markdown_block(
    http: httpx.Client, lang: str, question: str, code: str
) -> None:
    text = say(http, system_message(RUN_CODE, lang=lang), question, stop=STOPS)
    assert text == f"✿FUNCTION✿: code_interpreter\n✿ARGS✿: \n```py\n{code}\n```\n"


CALL = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'


@pytest.mark.parametrize(
    ("asked", "results", "answer"),
    [
        ("weather in Rome", "✿RESULT✿: 18", ": The result is 18."),
        ("weather in Rome", "✿RESULT✿: 18\n✿RESULT✿: two\nlines\n", ": The results are 18 and two\nlines."),
        ("罗马的天气", "✿RESULT✿: 18\n✿RESULT✿: 21", ": 结果是18、21。"),
        (
            "draw a dog",
            '✿RESULT✿: {"image_url": "a/dog.png"}',
            ": I have drawn dog.png. ![dog.png](a/dog.png)",
        ),
    ],
)
def test_results_are_answered_from(http: httpx.Client, asked: str, results: str, answer: str) -> None:
    content = f"{asked}\n\n{CALL}{results}\n✿RETURN✿"
    assert say(http, system_message(WEATHER), content) == answer


@pytest.mark.parametrize(
    ("prefix", "answer"), [("✿RETURN✿", ": The"), ("✿RETURN✿:", " The"), ("✿RETURN✿: ", "The")]
)
def test_results_in_a_continued_message_are_answered_from_where_it_stops(
    http: httpx.Client, prefix: str, answer: str
) -> None:
    last = {"role": "assistant", "content": f"{CALL}✿RESULT✿: 18\n{prefix}"}
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    assert say(http, system_message(WEATHER), "weather in Rome", last, **flags) == f"{answer} result is 18."


FULL = '✿FUNCTION✿: get_time\n✿ARGS✿: {"city": "Rome"}\n'


@pytest.mark.parametrize("as_message", ["user", "assistant"])
@pytest.mark.parametrize("question", ["The weather in Rome", "The time in Rome", "Hello in Rome"])
@pytest.mark.parametrize(
    "start",
    [
        FULL[:-1],
        *(f"✿FUNCTION✿: get_time{cut}" for cut in ("", "\n", "\n✿ARGS✿", "\n✿ARGS✿:", "\n✿ARGS✿: ")),
    ],
)
def test_a_forced_call_is_gone_on_with(
    http: httpx.Client, start: str, question: str, as_message: str
) -> None:
    """`tool_choice` named: Qwen-Agent ends the user's message with the name, a prefill the assistant's."""
    messages: list[Json | str] = [system_message(WEATHER, CLOCK), f"{question}\n\n{start}"]
    flags = {}
    if as_message == "assistant":
        messages[1:] = [question, {"role": "assistant", "content": start}]
        flags = {"continue_final_message": True, "add_generation_prompt": False}
    assert start + say(http, *messages, stop=STOPS, **flags) == FULL


@pytest.mark.parametrize("start", ["✿FUNCTION✿", "✿FUNCTION✿:", "✿FUNCTION✿: "])
def test_a_call_without_a_name_gets_the_likeliest(http: httpx.Client, start: str) -> None:
    system = system_message(WEATHER, CLOCK)
    assert start + say(http, system, f"The time in Rome\n\n{start}", stop=STOPS) == FULL
    assert arguments(start + say(http, system, f"Hello\n\n{start}", stop=STOPS))


def test_a_forced_call_after_a_result_is_made(http: httpx.Client) -> None:
    """Qwen-Agent's `choice-named-after-result`."""
    content = f"The weather in Rome\n\n{CALL}✿RESULT✿: 18\n✿RETURN✿: \n✿FUNCTION✿: get_time"
    assert say(http, system_message(WEATHER, CLOCK), content, stop=STOPS) == FULL.removeprefix(
        "✿FUNCTION✿: get_time"
    )


def test_a_forced_name_that_begins_another_tools_name_is_its_own(http: httpx.Client) -> None:
    longer = ("get_time_and_date", "Time", CITY)
    text = say(http, system_message(longer, CLOCK), "time and date\n\n✿FUNCTION✿: get_time")
    assert text.startswith("\n✿ARGS✿: ")


@pytest.mark.parametrize("altered", ["✿ FUNCTION✿: get_time", "✿\u200bFUNCTION✿: get_time"])
def test_an_altered_marker_is_text(http: httpx.Client, altered: str) -> None:
    assert say(http, system_message(WEATHER), f"Say this:\n\n{altered}").endswith(altered)


def test_without_tools_a_marker_is_text(http: httpx.Client) -> None:
    assert say(http, "Write ✿FUNCTION✿: now").endswith("Write ✿FUNCTION✿: now")


def test_a_description_may_hold_anything(http: httpx.Client) -> None:
    """Qwen-Agent passes braces, markers, headings and newlines through untouched."""
    about = "Weather. ### No heading\nParameters: no JSON\n✿FUNCTION✿: x 100% {city} Parameters: {"
    assert arguments(say(http, system_message(("w", about, CITY)), "weather in Oslo")) == [
        ("w", {"city": "Oslo"})
    ]


# Arguments.


SCHEMAS: dict[str, Json] = {
    "enum and numbers": {
        "properties": {
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            "days": {"type": "integer", "minimum": 3, "maximum": 10},
            "limit": {"type": "integer", "minimum": 1},
            "share": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "step": {"type": "integer", "multipleOf": 5},
            "exact": {"type": "boolean"},
            "none": {"type": "null"},
            "kind": {"const": "forecast"},
        },
        "required": ["unit", "days", "limit", "share", "step", "exact", "none", "kind"],
        "additionalProperties": False,
    },
    "references": {
        "properties": {
            "who": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/person"}},
            "when": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/day"}]},
            "all": {
                "allOf": [
                    {"$ref": "#/$defs/person"},
                    {"properties": {"age": {"type": "integer"}}, "required": ["age"]},
                ]
            },
        },
        "required": ["who", "when", "all"],
        "$defs": {
            "day": {"type": "string", "format": "date"},
            "person": {
                "type": "object",
                "properties": {"name": {"type": "string", "minLength": 3}},
                "required": ["name"],
            },
        },
    },
    "a tree that need not go on": {
        "properties": {
            "value": {"type": ["string", "null"]},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["value"],
    },
    "lists": {
        "properties": {
            "cities": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
            "units": {
                "type": "array",
                "items": {"enum": ["celsius", "kelvin"]},
                "minItems": 2,
                "uniqueItems": True,
            },
            "numbers": {"type": "array", "items": {"type": "number"}},
            "short": {"type": "string", "maxLength": 4},
        },
        "required": ["cities", "units", "numbers", "short"],
    },
    "formats": {
        "properties": {
            f: {"type": "string", "format": f}
            for f in ("date", "date-time", "time", "email", "uri", "uuid", "ipv4")
        },
        "required": ["date", "date-time", "time", "email", "uri", "uuid", "ipv4"],
    },
    "undeclared": {"properties": {}, "required": ["city"]},
    "nothing": {},
}


@pytest.mark.parametrize(
    "question", ["weather in Paris and Rome for 4 days in kelvin", "weather", "巴黎的天气", "-7 weather 99.5"]
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_arguments_are_valid_under_the_schema(http: httpx.Client, name: str, question: str) -> None:
    schema = {"type": "object", **SCHEMAS[name]}
    [(_, value)] = arguments(say(http, system_message(("weather", "天气", schema)), question))
    jsonschema.validate(value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def test_arguments_come_from_the_users_words(http: httpx.Client) -> None:
    properties = {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer"},
        "hourly": {"type": "boolean"},
    }
    schema = {"type": "object", "properties": properties, "required": ["city"]}
    system = system_message(("weather", "Weather", schema))
    assert arguments(say(http, system, "weather in Rome")) == [("weather", {"city": "Rome"})]
    full = {"city": "New York", "unit": "fahrenheit", "days": 3, "hourly": True}
    question = "the hourly weather in New York for 3 days, in fahrenheit"
    assert arguments(say(http, system, question)) == [("weather", full)]


def test_two_names_fill_two_fields(http: httpx.Client) -> None:
    fields = {"origin": {"type": "string"}, "destination": {"type": "string"}}
    schema = {"type": "object", "properties": fields, "required": [*fields]}
    text = say(
        http, system_message(("find_flight", "Flights", schema), parallel=True), "a flight from Oslo to Rome"
    )
    assert arguments(text) == [("find_flight", {"origin": "Oslo", "destination": "Rome"})]


KEYWORDS = (
    "type properties required items enum anyOf allOf $ref minimum multipleOf minItems maxItems"
    " minLength maxLength format const default name a"
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    scalars | st.sampled_from(["object", "array", "integer", "string", "#"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS.split()), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(parameters=json_values, words=st.text(max_size=30), lang=st.sampled_from(["en", "zh"]))
@example(parameters={"properties": {"a": {"const": "\ud800"}}, "required": ["a"]}, words="", lang="en")
@settings(max_examples=300, deadline=None)
def test_no_parameters_and_no_words_break_it(
    http: httpx.Client, parameters: object, words: str, lang: str
) -> None:
    tool = ("f", "weather", parameters)
    text = say(http, system_message(tool, lang=lang, ascii_only=True), f"{words} weather", stop=STOPS)
    [(name, value)] = arguments(text)
    assert name == "f" and isinstance(value, dict)


def test_a_schema_that_demands_itself_for_ever_comes_to_an_end(http: httpx.Client) -> None:
    twice = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}, "required": ["a", "b"]}
    assert arguments(say(http, system_message(("weather", "", twice)), "weather"))
    huge = {"type": "array", "minItems": 10**12, "items": {"type": "string", "minLength": 10**12}}
    schema = {"type": "object", "properties": {"a": huge}, "required": ["a"]}
    assert len(say(http, system_message(("weather", "", schema)), "weather")) < 2_000_000


def test_a_response_format_is_kept_to(http: httpx.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    assert json.loads(say(http, "A letter for Ann, who is 30", response_format=wanted)) == {
        "name": "Ann",
        "age": 30,
    }
    assert "answer" in json.loads(say(http, "hi", response_format={"type": "json_object"}))


# The wire.


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [{"type": "text", "text": "你好"}, {"type": "text", "text": "👩‍👩‍👧"}]}],
        [
            system_message(WEATHER, CLOCK, parallel=True),
            {"role": "user", "content": "weather in Paris and Rome"},
        ],
        [system_message(IMAGE_GEN, lang="zh"), {"role": "user", "content": DOG}],
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
def test_streamed_and_whole_answers_are_the_same(
    http: httpx.Client, messages: list[Json], more: Json
) -> None:
    whole = ask(http, *messages, **more)
    chunks = stream(http, messages=messages, stream_options={"include_usage": True}, model="demo", **more)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        mine = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == choice["index"]]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(part["delta"]["content"] for part in mine) == choice["message"]["content"]
        assert [part["finish_reason"] for part in mine[:-1]] == [None] * (len(mine) - 1)
        assert (mine[-1]["finish_reason"], mine[-1]["stop_reason"]) == (
            choice["finish_reason"],
            choice["stop_reason"],
        )
        entries = [entry for part in mine if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert entries == ((choice["logprobs"] or {}).get("content") or [])


def test_the_same_request_gets_the_same_answer(http: httpx.Client) -> None:
    body: Json = {"n": 2, "logprobs": True, "stop": ["y"]}
    first, second = ask(http, "What do you say?", **body), ask(http, "What do you say?", **body)
    assert first["id"] != second["id"]
    assert without_ids(first) == without_ids(second)
    body |= {"messages": [{"role": "user", "content": "What do you say?"}]}
    one, two = stream(http, **body), stream(http, **body)
    assert list(map(without_ids, one)) == list(map(without_ids, two))
    assert len({chunk["id"] for chunk in one}) == 1


def test_every_answer_and_chunk_says_that_no_model_is_behind_it(http: httpx.Client) -> None:
    body: Json = {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"}
    assert FINGERPRINT == "florette-demo-no-model"
    for path in ("/v1/chat/completions", "/v1/completions"):
        answers = [http.post(path, json=body).json(), *stream(http, path, **body)]
        assert {answer["system_fingerprint"] for answer in answers} == {FINGERPRINT}


def test_any_model_name_is_accepted_and_echoed(http: httpx.Client) -> None:
    assert ask(http, "hi", model="Qwen/Qwen3-8B", functions=[], banana=1)["model"] == "Qwen/Qwen3-8B"
    assert {c["model"] for c in stream(http, model="x", messages=[{"role": "user", "content": "hi"}])} == {
        "x"
    }


def test_a_marker_arrives_in_pieces(http: httpx.Client) -> None:
    messages = [system_message(WEATHER), {"role": "user", "content": "weather in Rome"}]
    pieces = [c["choices"][0]["delta"]["content"] for c in stream(http, messages=messages)]
    assert "✿FUNCTION✿" in "".join(pieces) and not any("✿FUNCTION✿" in piece for piece in pieces)
    assert {len(piece) for piece in pieces[1:-2]} == {2, 3, 4}


def test_stop_strings_hold_text_back_unless_they_are_to_be_kept(http: httpx.Client) -> None:
    """vLLM withholds the longest stop string's length less one, whether or not it comes."""
    messages = [{"role": "user", "content": "hi"}]
    sent = {
        keep: [
            c["choices"][0]["delta"]["content"]
            for c in stream(http, messages=messages, stop="never said", include_stop_str_in_output=keep)
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
    http: httpx.Client, stop: str | list[str], text: str | None
) -> None:
    choice = ask(http, "hi", stop=stop)["choices"][0]
    found = None if text is None else stop if isinstance(stop, str) else stop[-1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", found)
    if text is not None:
        assert choice["message"]["content"] == text
        assert say(http, "hi", stop=stop, include_stop_str_in_output=True) == f"{text}{found}"


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_cuts_the_text_and_says_so(http: httpx.Client, key: str) -> None:
    cut = ask(http, "hi", **{key: 3})
    assert cut["choices"][0]["message"]["content"] == "This is F"
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 3)
    need = ask(http, "hi")["usage"]["completion_tokens"]
    assert ask(http, "hi", **{key: need})["choices"][0]["finish_reason"] == "stop"
    assert ask(http, "hi", **{key: need - 1})["choices"][0]["finish_reason"] == "length"


def test_of_several_choices_the_roles_come_first_and_then_they_take_turns(http: httpx.Client) -> None:
    chunks = stream(http, messages=[{"role": "user", "content": "hi"}], n=3)
    indexes = [chunk["choices"][0]["index"] for chunk in chunks]
    assert indexes == list(itertools.islice(itertools.cycle(range(3)), len(chunks)))
    assert ["role" in chunk["choices"][0]["delta"] for chunk in chunks] == [True] * 3 + [False] * (
        len(chunks) - 3
    )


def test_logprobs_are_told_token_by_token(http: httpx.Client) -> None:
    answer = ask(http, "hi", logprobs=True, top_logprobs=2, max_tokens=2)
    first, second = answer["choices"][0]["logprobs"]["content"]
    assert (first["token"], bytes(first["bytes"]), second["token"]) == ("Th", b"Th", "is i")
    assert first["logprob"] < 0 and [e["token"] for e in first["top_logprobs"]] == ["Th", "Th1"]
    assert first["top_logprobs"][1]["logprob"] < first["top_logprobs"][0]["logprob"] == first["logprob"]


def test_the_keys_are_vllms(http: httpx.Client) -> None:
    """vLLM 0.32.0 without a tool parser: no `tool_calls`, and `usage` in its own chunk only."""
    whole = ask(http, "hi")["choices"][0]
    null = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    assert whole["message"] == {"role": "assistant", "content": whole["message"]["content"], **null}
    first, *middle, last = stream(http, messages=[{"role": "user", "content": "hi"}])
    assert set(first) == {"id", "object", "created", "model", "choices", "system_fingerprint"}
    assert set(first["choices"][0]) == {"index", "delta", "logprobs", "finish_reason"}
    assert {frozenset(c["choices"][0]) for c in middle} == {frozenset([*first["choices"][0], "token_ids"])}
    assert set(last["choices"][0]) == {*first["choices"][0], "token_ids", "stop_reason"}


HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"messages": HI, "tools": TOOLS},
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        ),
        (
            {"messages": HI, "tools": TOOLS, "tool_choice": "auto", "stream": True},
            '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
        ),
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
        ({"messages": HI, "stream_options": {"include_usage": True}}, "Stream options"),
        (
            {"messages": HI, "continue_final_message": True},
            "continue_final_message and add_generation_prompt",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 140_000}]},
            "maximum context length is 131072 tokens",
        ),
        ({"messages": []}, "empty conversation"),
        ({"messages": [{"role": "user", "content": None}]}, "valid string"),
        ({"messages": ["hi"]}, "body.messages"),
        ({}, "body.messages"),
        ([], "body"),
        ('{"messages": [', "JSON decode error"),
        ("", "JSON decode error"),
        (r'{"messages": [{"role": "user", "content": "\ud83d"}]}', "JSON decode error"),
    ],
)
def test_what_vllm_refuses_is_refused_in_its_words(http: httpx.Client, body: object, message: str) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    answer = http.post("/v1/chat/completions", content=content.encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, 400)
    assert message in error["message"] and {"type", "param"} <= set(error)


@pytest.mark.parametrize(
    "more", [{"functions": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": None}, {"stop": None}]
)
def test_what_vllm_does_not_mind_changes_nothing(http: httpx.Client, more: Json) -> None:
    assert without_ids(ask(http, "hi", **more)) == without_ids(ask(http, "hi"))


def test_completions_echo_streamed_and_whole(http: httpx.Client) -> None:
    body = {"prompt": ["hi", [104, 111]], "max_tokens": 100, "n": 2}
    whole = http.post("/v1/completions", json=body).json()
    assert [choice["text"][-3:] for choice in whole["choices"]] == [" hi", " hi", " ho", " ho"]
    texts = dict.fromkeys(range(4), "")
    for chunk in stream(http, "/v1/completions", **body):
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert list(texts.values()) == [choice["text"] for choice in whole["choices"]]
    cut = http.post("/v1/completions", json={"prompt": "hi"}).json()
    assert cut["usage"] == {"prompt_tokens": 2, "total_tokens": 18, "completion_tokens": 16}
    assert http.post("/v1/completions", json={}).status_code == 400
    assert http.post("/v1/completions", json={"prompt": [None]}).status_code == 400


@given(text=st.text(max_size=50))
@settings(deadline=None)
def test_tokens_turn_back_into_their_text(http: httpx.Client, text: str) -> None:
    tokens = http.post("/tokenize", json={"prompt": text}).json()
    assert tokens["count"] == len(tokens["tokens"]) and tokens["max_model_len"] == 131_072
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": text}


def test_a_chat_has_as_many_tokens_as_its_usage_says(http: httpx.Client) -> None:
    count = http.post("/tokenize", json={"messages": HI}).json()["count"]
    assert count == ask(http, *HI)["usage"]["prompt_tokens"]
    assert http.post("/tokenize", json={}).status_code == 400
    assert http.post("/detokenize", json={"tokens": [-1, "x"]}).status_code == 400
    assert http.post("/detokenize", json={"tokens": [0xD800]}).status_code == 400


def test_the_small_doors_answer_as_vllms(http: httpx.Client) -> None:
    [model] = http.get("/v1/models").json()["data"]
    assert (model["id"], model["max_model_len"]) == ("demo", 131_072)
    assert (http.get("/health").status_code, http.get("/health").content) == (200, b"")
    assert "version" in http.get("/version").json()
    for path in ("/", "/v1/embeddings", "/v1/responses"):
        assert (http.post(path).status_code, http.post(path).json()) == (404, {"detail": "Not Found"})
    assert http.get("/v1/chat/completions").json() == {"detail": "Method Not Allowed"}
