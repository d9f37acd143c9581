"""What the demo upstream says: which tools it calls for which words, with which arguments, and its answers.

The seed dialog, which it plays as the real model did, is in `test_seed_dialog`.
"""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from demo_server import CITY, CLOCK, RUN_CODE, STOPS, WEATHER, Demo, Json, serve_demo, system, tagged_system, user
from serving import LoopThread

ROME = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'
TIME_IN_ROME = '✿FUNCTION✿: get_time\n✿ARGS✿: {"city": "Rome"}\n'
CONTINUED = {"continue_final_message": True, "add_generation_prompt": False}


@pytest.fixture(scope="module")
def demo(loop_thread: LoopThread) -> Iterator[Demo]:
    with serve_demo(loop_thread) as served:
        yield served


def assistant(content: str) -> Json:
    return {"role": "assistant", "content": content}


def calls(text: str) -> list[tuple[str, Any]]:
    """The calls in a text, read strictly."""
    lines = text.removesuffix("✿RESULT✿").removesuffix("\n").split("\n")
    return [
        (name.removeprefix("✿FUNCTION✿: "), json.loads(value.removeprefix("✿ARGS✿: ")))
        for name, value in zip(lines[0::2], lines[1::2], strict=True)
    ]


def test_a_plain_question_is_answered_with_a_word_on_what_this_is(demo: Demo) -> None:
    english = demo.say("What is the capital of France?")
    assert "no model behind it" in english and english.endswith("What is the capital of France?")
    assert demo.say("法国的首都是哪里？").startswith("这是 Florette 的演示上游，背后没有模型。")


def test_content_parts_are_read_as_vllm_joins_them(demo: Demo) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url"}, {"type": "text", "text": "two"}]
    assert demo.say(user(parts)).endswith("You said: one\ntwo")


def test_a_question_that_has_nothing_to_do_with_the_tools_is_answered_in_text(demo: Demo) -> None:
    assert "no model behind it" in demo.say(system(WEATHER, CLOCK), "Write me a poem about love.")


@pytest.mark.parametrize(
    ("lang", "question", "city"),
    [
        ("en", "What is the weather like in San Francisco, CA?", "San Francisco, CA"),
        ("en", 'How is the weather at "home"?', "home"),
        ("en", "How is the weather?", "How is the weather?"),
        ("zh", "请问北京今天的天气怎么样？", "北京"),
    ],
)
def test_a_question_about_a_tool_calls_it(demo: Demo, lang: str, question: str, city: str) -> None:
    assert calls(demo.say(system(CLOCK, WEATHER, lang=lang), question)) == [("get_weather", {"city": city})]


def test_parameters_may_be_a_list(demo: Demo) -> None:
    """The older form of Qwen-Agent's own tools."""
    listed = [
        {"name": "prompt", "type": "string", "description": "期望的图像内容的详细描述", "required": True},
        {"name": "seed", "type": "number", "description": "随机种子"},
    ]
    text = demo.say(system(("my_image_gen", "AI画图工具", listed), lang="zh"), "画一只猫")
    assert calls(text) == [("my_image_gen", {"prompt": "画一只猫"})]


def test_after_its_calls_it_begins_to_invent_results_as_models_do(demo: Demo) -> None:
    assert demo.say(system(WEATHER), "weather in Rome") == f"{ROME}✿RESULT✿"
    assert demo.say(system(WEATHER), "weather in Rome", stop=STOPS) == ROME


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What's the weather in Paris and London?", [("get_weather", "Paris"), ("get_weather", "London")]),
        (
            "Compare the weather in Paris, Rome and Oslo",
            [("get_weather", "Paris"), ("get_weather", "Rome"), ("get_weather", "Oslo")],
        ),
        ("The weather in Paris and the time in London", [("get_weather", "Paris"), ("get_time", "London")]),
        ("Weather and time in Paris", [("get_weather", "Paris"), ("get_time", "Paris")]),
        ("北京和上海的天气怎么样？", [("get_weather", "北京"), ("get_weather", "上海")]),
    ],
)
def test_the_parallel_prompt_gets_as_many_calls_as_the_question_asks_for(
    demo: Demo, question: str, expected: list[tuple[str, str]]
) -> None:
    text = demo.say(system(WEATHER, CLOCK, parallel=True), question)
    assert calls(text) == [(name, {"city": city}) for name, city in expected]


def test_the_other_prompt_gets_one_call(demo: Demo) -> None:
    text = demo.say(system(WEATHER, CLOCK), "The weather in Paris and the time in London")
    assert len(calls(text)) == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize(
    ("question", "code"),
    [
        ("compute 17*(3+4) with code", "print(17*(3+4))"),
        ("On 2024-01-01, what is 6 ÷ 2 in code?", "print(6 / 2)"),
        ("run Python code", 'print("run Python code")'),
    ],
)
def test_the_code_interpreter_gets_a_markdown_block(demo: Demo, lang: str, question: str, code: str) -> None:
    text = demo.say(system(RUN_CODE, lang=lang), question, stop=STOPS)
    assert text == f"✿FUNCTION✿: code_interpreter\n✿ARGS✿: \n```py\n{code}\n```\n"


DOG = '✿RESULT✿: {"image_url": "a/dog.png"}'


@pytest.mark.parametrize(
    ("asked", "results", "answer"),
    [
        ("weather in Rome", "✿RESULT✿: 18", ": The result is 18."),
        ("weather in Rome", "✿RESULT✿: 18\n✿RESULT✿: two\nlines\n", ": The results are 18 and two\nlines."),
        ("罗马的天气", "✿RESULT✿: 18\n✿RESULT✿: 21", ": 结果是18、21。"),
        ("draw a dog", DOG, ": I have drawn dog.png. ![dog.png](a/dog.png)"),
    ],
)
def test_results_are_answered_from(demo: Demo, asked: str, results: str, answer: str) -> None:
    assert demo.say(system(WEATHER), f"{asked}\n\n{ROME}{results}\n✿RETURN✿") == answer


@pytest.mark.parametrize(("prefix", "answer"), [("✿RETURN✿", ": The"), ("✿RETURN✿:", " The"), ("✿RETURN✿: ", "The")])
def test_results_in_a_continued_message_are_answered_from_where_it_stops(demo: Demo, prefix: str, answer: str) -> None:
    last = assistant(f"{ROME}✿RESULT✿: 18\n{prefix}")
    assert demo.say(system(WEATHER), "weather in Rome", last, **CONTINUED) == f"{answer} result is 18."


@given(
    size=st.integers(len("✿FUNCTION✿: get_time"), len(TIME_IN_ROME) - 1),
    question=st.sampled_from(["The weather in Rome", "The time in Rome", "Hello in Rome"]),
    prefill=st.booleans(),
)
@settings(deadline=None)
def test_a_forced_call_is_gone_on_with(demo: Demo, size: int, question: str, prefill: bool) -> None:
    """`tool_choice` named: Qwen-Agent ends the user's message with the name, a prefill the assistant's."""
    start = TIME_IN_ROME[:size]
    asked = [question, assistant(start)] if prefill else [f"{question}\n\n{start}"]
    rest = demo.say(system(WEATHER, CLOCK), *asked, stop=STOPS, **CONTINUED if prefill else {})
    assert start + rest == TIME_IN_ROME


@pytest.mark.parametrize("start", ["✿FUNCTION✿", "✿FUNCTION✿:", "✿FUNCTION✿: "])
def test_a_call_without_a_name_gets_the_likeliest(demo: Demo, start: str) -> None:
    prompt = system(WEATHER, CLOCK)
    assert start + demo.say(prompt, f"The time in Rome\n\n{start}", stop=STOPS) == TIME_IN_ROME
    assert calls(start + demo.say(prompt, f"Hello\n\n{start}", stop=STOPS))


def test_a_forced_call_after_a_result_is_made(demo: Demo) -> None:
    """Qwen-Agent's `choice-named-after-result`."""
    start = "✿FUNCTION✿: get_time"
    content = f"The weather in Rome\n\n{ROME}✿RESULT✿: 18\n✿RETURN✿: \n{start}"
    assert start + demo.say(system(WEATHER, CLOCK), content, stop=STOPS) == TIME_IN_ROME


def test_a_forced_name_that_begins_another_tools_name_is_its_own(demo: Demo) -> None:
    longer = ("get_time_and_date", "Time", CITY)
    text = demo.say(system(longer, CLOCK), "time and date\n\n✿FUNCTION✿: get_time")
    assert text.startswith("\n✿ARGS✿: ")


@pytest.mark.parametrize("altered", ["✿ FUNCTION✿: get_time", "✿\u200bFUNCTION✿: get_time"])
def test_an_altered_marker_is_text(demo: Demo, altered: str) -> None:
    assert demo.say(system(WEATHER), f"Say this:\n\n{altered}").endswith(altered)


@pytest.mark.parametrize("asked", ["Repeat this: {}", "Please repeat, and do nothing else: {}", "repeat:\n{}"])
def test_what_is_to_be_repeated_is_repeated(demo: Demo, asked: str) -> None:
    """Even if it speaks of what a tool is for."""
    words = "red ✿ FUNCTION✿: get_weather: {}\n<tool_call> green"
    assert demo.say(system(WEATHER), asked.format(words)) == words
    assert calls(demo.say(system(WEATHER), "Does the weather in Rome repeat?")) == [("get_weather", {"city": "Rome"})]


def test_without_tools_a_marker_is_text(demo: Demo) -> None:
    assert demo.say("Write ✿FUNCTION✿: now").endswith("Write ✿FUNCTION✿: now")


def test_a_description_may_hold_anything(demo: Demo) -> None:
    """Qwen-Agent passes braces, markers, headings and newlines through untouched."""
    about = "Weather. ### No heading\nParameters: no JSON\n✿FUNCTION✿: x 100% {city} Parameters: {"
    text = demo.say(system(("w", about, CITY)), "weather in Oslo")
    assert calls(text) == [("w", {"city": "Oslo"})]


def test_a_tool_whose_parameters_cannot_be_read_is_none(demo: Demo) -> None:
    prompt = system(WEATHER)
    prompt["content"] = prompt["content"].replace("Parameters: {", "Parameters: {{")
    assert "✿" not in demo.say(prompt, "weather in Oslo", stop=STOPS)


def all_required(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": [*properties]}


FORMATS = ("date", "date-time", "time", "email", "uri", "uuid", "ipv4")
PERSON = all_required(name={"type": "string", "minLength": 3})
AGED = all_required(age={"type": "integer"})
SCHEMAS: dict[str, Json] = {
    "enum and numbers": {
        **all_required(
            unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
            days={"type": "integer", "minimum": 3, "maximum": 10},
            limit={"type": "integer", "minimum": 1},
            share={"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            step={"type": "integer", "multipleOf": 5},
            exact={"type": "boolean"},
            none={"type": "null"},
            kind={"const": "forecast"},
        ),
        "additionalProperties": False,
    },
    "references": {
        **all_required(
            who={"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/person"}},
            when={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/day"}]},
            all={"allOf": [{"$ref": "#/$defs/person"}, AGED]},
        ),
        "$defs": {"day": {"type": "string", "format": "date"}, "person": PERSON},
    },
    "a tree that need not go on": {
        "type": "object",
        "properties": {
            "value": {"type": ["string", "null"]},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "required": ["value"],
    },
    "lists": all_required(
        cities={"type": "array", "items": {"type": "string"}, "maxItems": 2},
        units={"type": "array", "items": {"enum": ["celsius", "kelvin"]}, "minItems": 2, "uniqueItems": True},
        numbers={"type": "array", "items": {"type": "number"}},
        short={"type": "string", "maxLength": 4},
    ),
    "formats": all_required(**{name: {"type": "string", "format": name} for name in FORMATS}),
    "undeclared": {"type": "object", "properties": {}, "required": ["city"]},
    "nothing": {"type": "object"},
}


@pytest.mark.parametrize(
    "question", ["weather in Paris and Rome for 4 days in kelvin", "weather", "巴黎的天气", "-7 weather 99.5"]
)
@pytest.mark.parametrize("name", SCHEMAS)
def test_arguments_are_valid_under_the_schema(demo: Demo, name: str, question: str) -> None:
    schema = SCHEMAS[name]
    [(_, value)] = calls(demo.say(system(("weather", "天气", schema)), question))
    jsonschema.validate(value, schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def test_arguments_come_from_the_users_words(demo: Demo) -> None:
    properties = {
        "city": {"type": "string"},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer"},
        "hourly": {"type": "boolean"},
    }
    prompt = system(("weather", "Weather", {"type": "object", "properties": properties, "required": ["city"]}))
    assert calls(demo.say(prompt, "weather in Rome")) == [("weather", {"city": "Rome"})]
    text = demo.say(prompt, "the hourly weather in New York for 3 days, in fahrenheit")
    full = {"city": "New York", "unit": "fahrenheit", "days": 3, "hourly": True}
    assert calls(text) == [("weather", full)]


def test_two_names_fill_two_fields(demo: Demo) -> None:
    schema = all_required(origin={"type": "string"}, destination={"type": "string"})
    flight = ("find_flight", "Flights", schema)
    text = demo.say(system(flight, parallel=True), "a flight from Oslo to Rome")
    assert calls(text) == [("find_flight", {"origin": "Oslo", "destination": "Rome"})]


def test_a_sum_goes_to_the_field_that_wants_it(demo: Demo) -> None:
    schema = all_required(code={"type": "string"}, expression={"type": "string"})
    text = demo.say(system(("calculate", "Calculator", schema)), "calculate 6 × (2 + 1)")
    assert calls(text) == [("calculate", {"code": "print(6 * (2 + 1))", "expression": "6 * (2 + 1)"})]


KEYWORDS = (
    "type properties required items enum anyOf allOf $ref minimum multipleOf minItems maxItems"
    " minLength maxLength format const default name a"
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    scalars | st.sampled_from(["object", "array", "integer", "string", "#"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS.split()), inner, max_size=5),
    max_leaves=20,
)


@given(parameters=json_values, asked=st.text(max_size=30), lang=st.sampled_from(["en", "zh"]))
@example(parameters={"properties": {"a": {"const": "\ud800"}}, "required": ["a"]}, asked="", lang="en")
@settings(max_examples=100, deadline=None)
def test_no_parameters_and_no_words_break_it(demo: Demo, parameters: object, asked: str, lang: str) -> None:
    prompt = system(("f", "weather", parameters), lang=lang, ascii_only=True)
    [(name, value)] = calls(demo.say(prompt, f"{asked} weather", stop=STOPS))
    assert name == "f" and isinstance(value, dict)


def test_a_schema_that_demands_itself_for_ever_comes_to_an_end(demo: Demo) -> None:
    twice = all_required(a={"$ref": "#"}, b={"$ref": "#"})
    assert calls(demo.say(system(("weather", "", twice)), "weather"))
    huge = {"type": "array", "minItems": 10**12, "items": {"type": "string", "minLength": 10**12}}
    assert len(demo.say(system(("weather", "", all_required(a=huge))), "weather")) < 2_000_000


SAID_FORMS = {
    "en": "# Answer\n\nWhen you call no tool, answer with JSON alone, fitting this JSON schema:\n{}",
    "zh": "# 回答\n\n不调用工具时，只用符合以下JSON Schema的JSON作答：\n{}",
}


@pytest.mark.parametrize("lang", SAID_FORMS)
def test_a_form_that_the_prompt_asks_for_is_kept_to_where_no_tool_is_called(demo: Demo, lang: str) -> None:
    schema = all_required(name={"type": "string"}, age={"type": "integer"})
    prompt = system(WEATHER, lang=lang)
    prompt["content"] += "\n\n" + SAID_FORMS[lang].format(json.dumps(schema))
    assert json.loads(demo.say(prompt, "A letter for Ann, who is 30")) == {"name": "Ann", "age": 30}
    assert calls(demo.say(prompt, "weather in Rome", stop=STOPS)) == [("get_weather", {"city": "Rome"})]
    answer = demo.say(prompt, f"weather in Rome\n\n{ROME}✿RESULT✿: 18\n✿RETURN✿")
    assert json.loads(answer.removeprefix(": "))["name"] == "Rome"


@pytest.mark.parametrize("form", ["{", "[]", "[1]", "none", "{}"])
def test_a_form_that_is_none_is_passed_over(demo: Demo, form: str) -> None:
    prompt = system(WEATHER)
    prompt["content"] += "\n\n" + SAID_FORMS["en"].format(form)
    assert "no model behind it" in demo.say(prompt, "hello")


def test_a_response_format_is_kept_to(demo: Demo) -> None:
    schema = all_required(name={"type": "string"}, age={"type": "integer"})
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    text = demo.say("A letter for Ann, who is 30", response_format=wanted)
    assert json.loads(text) == {"name": "Ann", "age": 30}
    assert "answer" in json.loads(demo.say("hi", response_format={"type": "json_object"}))


# -- the prompt with <tool_call> ---------------------------------------------------------------------------

TAGGED_ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TAGGED_TIME = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_the_other_prompt_gets_calls_between_tags(demo: Demo) -> None:
    """A model ends behind its last call: there are no stop strings in this prompt."""
    prompt = tagged_system(WEATHER, CLOCK)
    assert demo.say(prompt, "weather in Rome") == TAGGED_ROME
    assert demo.say(prompt, "weather and time in Rome") == f"{TAGGED_ROME}\n{TAGGED_TIME}"
    assert "no model behind it" in demo.say(prompt, "Write me a poem about love.")


def test_code_is_json_like_any_other_argument_between_tags(demo: Demo) -> None:
    text = demo.say(tagged_system(("code_interpreter", "Python", all_required(code={"type": "string"}))), "compute 2+2")
    assert json.loads(text.split("\n")[1])["arguments"] == {"code": "print(2+2)"}


@pytest.mark.parametrize(
    ("results", "answer"), [(["18"], "is 18."), (["18", "two\nlines"], "s are 18 and two\nlines.")]
)
def test_results_between_tags_are_answered_from(demo: Demo, results: list[str], answer: str) -> None:
    told = "\n".join(f"<tool_response>\n{result}\n</tool_response>" for result in results)
    said = demo.say(tagged_system(WEATHER), "weather in Rome", assistant(TAGGED_ROME), told)
    assert said == f"The result{' ' * (len(results) == 1)}{answer}"


def test_a_question_behind_results_between_tags_is_a_new_one(demo: Demo) -> None:
    results = user("<tool_response>\n18\n</tool_response>")
    before = [user("weather in Rome"), assistant(TAGGED_ROME), results, assistant("18.")]
    assert demo.say(tagged_system(WEATHER, CLOCK), *before, "time in Rome") == TAGGED_TIME


@pytest.mark.parametrize("question", ["The weather in Rome", "The time in Rome", "Hello in Rome"])
@pytest.mark.parametrize(
    "start", [TAGGED_TIME[:11], '<tool_call>\n{"name": "get_t', TAGGED_TIME[:43], TAGGED_TIME[:-3]]
)
def test_a_forced_call_between_tags_is_gone_on_with(demo: Demo, question: str, start: str) -> None:
    """Where nothing of the name is begun, it is the likeliest."""
    rest = demo.say(tagged_system(WEATHER, CLOCK), question, assistant(start), **CONTINUED)
    whole = start + rest
    assert whole == TAGGED_TIME or (len(start) == 11 and whole == TAGGED_ROME)


def test_tools_between_tags_that_cannot_be_read_are_none(demo: Demo) -> None:
    prompt = tagged_system(WEATHER)
    prompt["content"] = prompt["content"].replace('{"type"', "{{")
    assert "<tool_call>" not in demo.say(prompt, "weather in Oslo")
