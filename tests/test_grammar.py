"""What a format's grammar admits is what the request allows, and is read back as the calls that it holds.

Source: OpenAI's API reference for `tool_choice`, `parallel_tool_calls` and `response_format`; `admitting` says what a
structural tag means.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from admitting import Tag, admits
from parsing import numbered, read
from proxy.formats.base import Format, Options, ToolUse
from proxy.formats.grammar import enforces
from proxy.formats.nous import Nous
from proxy.formats.qwen import Qwen
from proxy.wire import Choice, Message, Tool

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "unit": {"enum": ["C", "F"]}},
    "required": ["city"],
    "additionalProperties": False,
}
COUNT = {
    "type": "object",
    "properties": {"places": {"type": "array", "items": {"$ref": "#/$defs/Place"}}},
    "required": ["places"],
    "additionalProperties": False,
    "$defs": {"Place": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}},
}
TOOLS = [Tool(name="get", parameters=CITY), Tool(name="get_all", parameters=COUNT), Tool(name="天气", parameters=CITY)]
SCHEMAS = {tool.name: tool.json_schema for tool in TOOLS} | {"nobody": CITY}
ANSWER = {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]}

VALIDATORS = {name: Draft202012Validator(schema) for name, schema in SCHEMAS.items()}

Made = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class Spelling:
    """A format, and how a model writes a call in it."""

    format: Format
    call: str
    between: str

    def __repr__(self) -> str:
        return type(self.format).__name__.lower()

    def written(self, calls: Made) -> str:
        """The calls as a model writes them that was asked in this format."""
        return self.between.join(self.call % (name, json.dumps(given, ensure_ascii=False)) for name, given in calls)


QWEN = Spelling(Qwen(), "✿FUNCTION✿: %s\n✿ARGS✿: %s\n", "")
NOUS = Spelling(Nous(), '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>', "\n")

each_format = pytest.mark.parametrize("spelling", [QWEN, NOUS], ids=repr)

PLACES = st.lists(st.fixed_dictionaries({"x": st.integers(-(10**6), 10**6)}), max_size=2)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "city": st.fixed_dictionaries({"city": st.text(max_size=4)}, optional={"unit": st.sampled_from("CF")}),
    "places": st.fixed_dictionaries({"places": PLACES}),
    "wrong": st.sampled_from([{}, {"city": 1}, {"city": "x", "unit": "K"}, {"places": [{}]}, {"city": "x", "more": 1}]),
}
CALLS = st.lists(st.tuples(st.sampled_from(sorted(SCHEMAS)), st.one_of(*ARGUMENTS.values())), max_size=3)
CHOICES = st.sampled_from([Choice("auto"), Choice("required"), Choice("named", "get"), Choice("named", "天气")])
USES = st.builds(ToolUse, st.just(TOOLS), CHOICES, st.booleans())


def grammar_of(format: Format, use: ToolUse, *, after_results: bool = False) -> Tag:
    """The grammar of the answer to a short question."""
    prompt = replace(format.render([Message(role="user", content="x")], use), after_results=after_results)
    return dict(format.grammar(prompt, use))


def begun(format: Format, use: ToolUse) -> str:
    """What the prompt begins for the model."""
    return format.render([Message(role="user", content="x")], use).prefill


def obeys(calls: Made, use: ToolUse) -> bool:
    """What the caller asked for, in his words."""
    names = [name for name, _ in calls]
    if use.choice.mode == "named" and names != [use.choice.name]:
        return False
    if use.choice.mode == "required" and not names:
        return False
    if not use.parallel and len(names) > 1:
        return False
    known = {tool.name for tool in use.tools}
    return all(name in known and VALIDATORS[name].is_valid(given) for name, given in calls)


@each_format
@given(use=USES, calls=CALLS)
def test_calls_are_admitted_if_the_caller_asked_for_them(spelling: Spelling, use: ToolUse, calls: Made) -> None:
    text = spelling.written(calls)
    prefill = begun(spelling.format, use)
    if not text.startswith(prefill):
        assert not obeys(calls, use)
        return
    assert admits(grammar_of(spelling.format, use), text.removeprefix(prefill)) == obeys(calls, use)


@each_format
@given(use=USES, calls=CALLS)
def test_what_is_admitted_is_read_as_the_calls_that_it_holds(spelling: Spelling, use: ToolUse, calls: Made) -> None:
    """A grammar that made a model write what is then not understood would be worse than none."""
    prompt = spelling.format.render([Message(role="user", content="x")], use)
    text = spelling.written(calls)
    if text.startswith(prompt.prefill) and obeys(calls, use):
        answer = read(text.removeprefix(prompt.prefill), spelling.format.parser(prompt, use, numbered()))
        assert [(name, json.loads(given)) for name, given in answer.calls] == list(calls)


@each_format
@pytest.mark.parametrize("parallel", [False, True])
def test_text_may_stand_before_a_call_that_nobody_demands(spelling: Spelling, parallel: bool) -> None:
    call = spelling.written([("get", {"city": "Rome"})])
    use = ToolUse(TOOLS, parallel=parallel)
    tag = grammar_of(spelling.format, use)
    assert admits(tag, "Let me see.\n" + call)
    assert admits(tag, "No call at all.")
    assert not admits(tag, "Let me see.\n" + spelling.written([("get", {"city": 1})]))
    assert admits(tag, call + "\nand another\n" + call) == parallel
    demanded = grammar_of(spelling.format, replace(use, choice=Choice("required")))
    assert not admits(demanded, "Let me see.\n" + call)


@each_format
def test_beside_tools_an_answer_is_a_call_or_json_of_the_schema(spelling: Spelling) -> None:
    use = ToolUse(TOOLS, answer=ANSWER)
    tag = grammar_of(spelling.format, use)
    call = spelling.written([("get", {"city": "Rome"})])
    for text in ('{"degrees": 21}', call, spelling.written([("get", {"city": "Rome"})] * 2)):
        assert admits(tag, text), text
    for text in ("21 degrees", '{"degrees": "21"}', '{"degrees": 21} ' + call, call + '{"degrees": 21}', ""):
        assert not admits(tag, text), text


@each_format
def test_a_demanded_call_leaves_no_room_for_an_answer(spelling: Spelling) -> None:
    use = ToolUse(TOOLS, Choice("required"), answer=ANSWER)
    assert not admits(grammar_of(spelling.format, use), '{"degrees": 21}')


def test_behind_results_an_answer_may_begin_with_the_colon_that_follows_return() -> None:
    """The prompt ends in ✿RETURN✿, and `: ` is what follows it in everything the model was trained on."""
    use = ToolUse(TOOLS, answer=ANSWER)
    behind, else_ = (grammar_of(Qwen(), use, after_results=results) for results in (True, False))
    assert [admits(behind, text) for text in ('{"degrees": 21}', ': {"degrees": 21}')] == [True, True]
    assert [admits(else_, text) for text in ('{"degrees": 21}', ': {"degrees": 21}')] == [True, False]


@pytest.mark.parametrize("ended", ["", "✿RESULT✿:"])
def test_the_end_of_several_calls_may_be_written(ended: str) -> None:
    """A model that means to write it, and may not, makes a call that it does not mean."""
    use = ToolUse(TOOLS, Choice("required"))
    call = QWEN.written([("get", {"city": "Rome"})]).removeprefix("✿FUNCTION✿:")
    assert admits(grammar_of(Qwen(), use), call + ended)


THOUGHTS = "Hm, <tool_call>, ✿FUNCTION✿: get?\n</think>\n\n"


@each_format
def test_a_model_in_the_middle_of_its_thoughts_may_end_them_first(spelling: Spelling) -> None:
    """In its thoughts it may write what it likes."""
    format = type(spelling.format)(Options(thinking_begun=True))  # type: ignore[call-arg]
    tag = grammar_of(format, ToolUse(TOOLS))
    assert admits(tag, THOUGHTS + spelling.written([("get", {"city": "Rome"})]))
    assert admits(tag, THOUGHTS + "Hello.")
    assert not admits(tag, THOUGHTS + spelling.written([("get", {"city": 1})]))


@pytest.mark.parametrize("choice", [Choice("required"), Choice("named", "get")])
def test_thoughts_come_before_a_demanded_call(choice: Choice) -> None:
    format = Qwen(Options(thinking_begun=True))
    use = ToolUse(TOOLS, choice)
    tag = grammar_of(format, use)
    call = QWEN.written([("get", {"city": "Rome"})]).removeprefix(begun(format, use))
    assert admits(tag, THOUGHTS + call)
    assert not admits(tag, THOUGHTS + "Hello.")


@pytest.mark.parametrize("choice", [Choice("auto"), Choice("required"), Choice("named", "code_interpreter")])
def test_code_is_asked_for_as_the_block_that_the_prompt_asks_for(choice: Choice) -> None:
    use = ToolUse([Tool(name="code_interpreter")], choice, parallel=False)
    text = "✿FUNCTION✿: code_interpreter\n✿ARGS✿:\n```py\nprint('{')\n```\n".removeprefix(begun(Qwen(), use))
    assert admits(grammar_of(Qwen(), use), text)
    assert not admits(grammar_of(Qwen(), use), text.replace("```py\n", "").replace("\n```", ""))
    prompt = Qwen().render([Message(role="user", content="x")], use)
    assert read(text, Qwen().parser(prompt, use, numbered())).calls == [
        ("code_interpreter", '{"code": "print(\'{\')"}')
    ]


@pytest.mark.parametrize("schema", [{}, {"description": "anything"}, {"properties": {"city": {"type": "string"}}}])
@pytest.mark.parametrize("choice", [Choice("required"), Choice("named", "f")])
def test_arguments_are_an_object_also_where_the_schema_does_not_say_so(schema: Any, choice: Choice) -> None:
    """A list or a number is never handed on as a call: a model that may write one makes none."""
    use = ToolUse([Tool(name="f", parameters=schema)], choice)
    tag = grammar_of(Qwen(), use)
    for arguments, admitted in (('{"city": "Rome"}', True), ("[1]", False), ("1", False), ("null", False)):
        assert admits(tag, (QWEN.call % ("f", arguments)).removeprefix(begun(Qwen(), use))) == admitted


INT = {"type": "integer"}
A_AND_B = {"type": "object", "properties": {"a": INT, "b": INT}, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "contains": {"type": "string"}},
        {**A_AND_B, "dependentRequired": {"a": ["b"]}},
        {**A_AND_B, "dependentSchemas": {"a": {"required": ["b"]}}},
        {**A_AND_B, "if": {"required": ["a"]}, "then": {"required": ["b"]}},
        {"type": "integer", "not": {"const": 1}},
        {"oneOf": [INT, {"type": "integer", "minimum": 0}]},
        {"type": "array", "uniqueItems": True, "items": INT},
        {"allOf": [{"required": ["a"]}, {"required": ["b"]}]},
        {**A_AND_B, "anyOf": [{"required": ["b"]}]},
        {"$ref": "#/$defs/A", "maxLength": 1, "$defs": {"A": {"type": "string"}}},
        {"type": "string", "pattern": "^a+$", "maxLength": 2},
        {"type": "object", "required": ["z"], "additionalProperties": INT},
        {"type": "object", "properties": {"a": INT}, "required": ["a", "z"], "additionalProperties": True},
    ],
    ids=repr,
)
def test_what_a_grammar_does_not_hold_a_model_to_has_to_be_looked_at(schema: Any) -> None:
    """Each was let in by xgrammar 0.2.8 with an instance that breaks it."""
    assert not enforces(schema)
    assert not enforces({"type": "object", "properties": {"x": {"anyOf": [INT, schema]}}})


@pytest.mark.parametrize(
    "schema",
    [
        *SCHEMAS.values(),
        A_AND_B,
        {"$ref": "#/$defs/A", "description": "an A", "$defs": {"A": {"type": "string", "maxLength": 1}}},
        {"title": "X", "anyOf": [INT, {"type": "null"}], "default": None},
        {"allOf": [A_AND_B], "description": "one"},
        {"type": "string", "pattern": "^a+$", "description": "one"},
        {"type": "integer", "multipleOf": 3, "minimum": 3},
        {"type": "object", "properties": {"a": INT}, "required": ["a"], "additionalProperties": INT},
        {"type": "object", "required": ["z"]},
        {"type": "array", "prefixItems": [INT], "items": {"type": "string"}, "minItems": 1},
        {},
        True,
        None,
    ],
    ids=repr,
)
def test_what_a_grammar_holds_a_model_to_needs_no_second_look(schema: Any) -> None:
    """Each refused, in xgrammar 0.2.8, every instance tried that breaks it."""
    assert enforces(schema)


def test_a_tool_is_called_by_the_name_that_the_model_knows() -> None:
    use = ToolUse([Tool(name="get", name_for_model="天气", parameters=CITY)], Choice("required"))
    text = QWEN.written([("天气", {"city": "Rome"})])
    assert admits(grammar_of(Qwen(), use), text.removeprefix(begun(Qwen(), use)))


def test_qwen_agents_list_of_parameters_is_a_schema_like_any_other() -> None:
    use = ToolUse([Tool(name="get", parameters=[{"name": "city", "type": "string", "required": True}])], parallel=False)
    tag = grammar_of(Qwen(), use)
    assert admits(tag, QWEN.written([("get", {"city": "Rome"})]))
    assert not admits(tag, QWEN.written([("get", {})]))
