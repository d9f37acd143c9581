"""The parser's laws, as properties over texts made of what models write, whole and broken, in every format.

Source: the design's nine laws. Law 4 (time linear in the text) is measured in `benchmarks/`; law 9 (streamed and
not streamed give the same message) is also proved over HTTP, in `test_openai_sdk.py`.
"""

import json
import string
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialects import DIALECTS, Dialect
from parsing import TOOLS, Answer, numbered, parser_for, read
from proxy.events import CallStart, Text
from proxy.formats.base import ToolUse
from proxy.formats.markers import DECORATION
from proxy.wire import Choice, FunctionCall, Message, ToolCall

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
#: Without `a`, which `f` wants as a number: as a string it would not stay what it is.
json_objects = st.dictionaries(st.text(max_size=6).filter(lambda name: name != "a"), json_values, max_size=4)


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """An object as JSON, written in one of the ways that are all valid."""
    written = json.dumps(
        draw(json_objects),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1, "\t"])),
        separators=draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,", " : ")])),
    )
    return written


names = st.sampled_from([tool.name for tool in TOOLS])

COMMON_PIECES = (
    *(":", ": ", "\n", "\r\n", " ", "**", "`", '"', "\n\n", "    ", "\t"),
    *("<think>", "</think>", "<thi", "</", "<", "```", "```py\n", "```json\n", "\n```\n", "````\n"),
    *("{", "}", "[", "]", ",", "'", "\\", "/", "//", "/*", "*/", "#", "null", "None", "True", "-1.5e3"),
    *('{"a": 1}', "{'a': True,}", '{"a": "x', "print(1)", "hello", "unheard_of", "<!-- {y} -->", "NaN", "0x"),
)


@cache
def fragments(dialect: Dialect) -> st.SearchStrategy[str]:
    pieces = st.sampled_from([*dialect.pieces, *COMMON_PIECES])
    calls = st.builds(dialect.call, names, json_texts() | pieces)
    return st.one_of(pieces, names, json_texts(), calls, st.text(max_size=5))


@cache
def texts(dialect: Dialect) -> st.SearchStrategy[str]:
    return st.lists(fragments(dialect), max_size=14).map("".join)


choices = st.sampled_from([Choice(), Choice("none"), Choice("required"), Choice("named", "get"), Choice("named", "f")])
settings = st.fixed_dictionaries({"choice": choices, "parallel": st.booleans(), "after_results": st.booleans()})
ends = st.sampled_from([{}, {"truncated": True}, {"stopped": True}])


each_dialect = pytest.mark.parametrize("dialect", DIALECTS, ids=str)


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@each_dialect
@given(st.data(), settings, ends)
def test_law_1_the_events_are_the_same_however_the_text_is_cut(
    dialect: Dialect, data: st.DataObject, setting: dict[str, Any], end: dict[str, bool]
) -> None:
    text = data.draw(texts(dialect))
    whole = read(text, parser_for(format=dialect.format, **setting), **end)
    assert read(data.draw(cut(text)), parser_for(format=dialect.format, **setting), **end) == whole
    assert read(list(text), parser_for(format=dialect.format, **setting), **end) == whole


@each_dialect
@given(st.lists(st.text(max_size=6), max_size=8))
def test_law_2_what_cannot_be_part_of_a_marker_leaves_at_once(dialect: Dialect, pieces: list[str]) -> None:
    parser = parser_for(format=dialect.format)
    for piece in pieces:
        said = piece.replace(dialect.lead, "").replace("<", "") + "."
        assert "".join(event.text for event in parser.feed(said) if isinstance(event, Text)) == said


@each_dialect
@given(st.data())
def test_law_2_what_is_held_back_may_still_become_a_marker(dialect: Dialect, data: st.DataObject) -> None:
    """Until there is a call, what has not left begins with decoration, a marker's first character or `<`."""
    parser = parser_for(format=dialect.format)
    fed = left = ""
    for piece in data.draw(st.lists(fragments(dialect), max_size=14)):
        events = parser.feed(piece)
        if not all(isinstance(event, Text) for event in events):
            return
        fed += piece
        left += "".join(event.text for event in events if isinstance(event, Text))
        assert fed.startswith(left)
        held = fed[len(left) :].lstrip(DECORATION)
        assert not held or held[0] in dialect.lead + "<"


@each_dialect
@given(st.text(), settings, ends)
def test_law_3_no_text_makes_it_raise(
    dialect: Dialect, text: str, setting: dict[str, Any], end: dict[str, bool]
) -> None:
    read(text, parser_for(format=dialect.format, **setting), **end)


@each_dialect
@given(names, json_texts())
def test_law_5_valid_json_comes_out_verbatim(dialect: Dialect, name: str, arguments: str) -> None:
    answer = read(dialect.call(name, arguments), parser_for(format=dialect.format))
    assert answer == Answer(calls=[(name, arguments)], ids=["call_0"])


@each_dialect
@given(st.data(), settings)
def test_law_5_whatever_the_model_writes_arguments_are_a_json_object(
    dialect: Dialect, data: st.DataObject, setting: dict[str, Any]
) -> None:
    for _, arguments in read(data.draw(texts(dialect)), parser_for(format=dialect.format, **setting)).calls:
        assert isinstance(json.loads(arguments), dict)


@each_dialect
@given(st.data(), settings)
def test_law_5_a_call_that_was_cut_off_is_the_last_and_nothing_is_added_to_it(
    dialect: Dialect, data: st.DataObject, setting: dict[str, Any]
) -> None:
    cut_off = read(data.draw(texts(dialect)), parser_for(format=dialect.format, **setting), truncated=True)
    complete = cut_off.calls[:-1] if cut_off.truncated else cut_off.calls
    for _, arguments in complete:
        assert isinstance(json.loads(arguments), dict)


code_texts = st.lists(
    st.sampled_from(["```", "```py", "````", "  ```", "x = 1", "'''", "", "✿", " ✿ARGS✿", "</tool_call>", "@call"])
    | st.sampled_from(['"', "\\n", "\t#", "<tool_call>{"])
    | st.text(string.printable.replace("\r", ""), max_size=5),
    max_size=8,
).map("\n".join)


@each_dialect
@given(st.lists(st.tuples(names, json_objects, code_texts), min_size=1, max_size=4))
def test_law_6_what_is_rendered_is_read_back(dialect: Dialect, made: list[tuple[str, dict[str, Any], str]]) -> None:
    calls = [
        (name, json.dumps({"code": code} if name == "code_interpreter" else arguments))
        for name, arguments, code in made
        if name != "code_interpreter" or not any(line.lstrip().startswith("✿") for line in code.split("\n"))
    ]
    tool_calls = [ToolCall(function=FunctionCall(name=name, arguments=arguments)) for name, arguments in calls]
    history = [Message(role="assistant", tool_calls=tool_calls), Message(role="user", content="on")]
    use = ToolUse(TOOLS)
    prompt = dialect.format.render(history, use)
    written = next(message.get("content", "") for message in prompt.messages if message["role"] == "assistant")
    answer = read(written, dialect.format.parser(prompt, use, numbered()))
    assert [(name, json.loads(arguments)) for name, arguments in answer.calls] == [
        (name, json.loads(arguments)) for name, arguments in calls
    ]
    assert answer.text == ""


MENTIONS = ("<b>", "</think>", "\n\n", "```", " ", "**", ": ", "你好", "{")


@each_dialect
@given(st.data(), settings)
def test_law_7_an_answer_without_calls_passes_byte_exact(
    dialect: Dialect, data: st.DataObject, setting: dict[str, Any]
) -> None:
    pieces = st.sampled_from([*dialect.mentions, *MENTIONS]) | st.text(max_size=5)
    text = data.draw(st.lists(pieces, max_size=14).map("".join))
    setting["after_results"] = False
    answer = read(text, parser_for(format=dialect.format, **setting))
    if not answer.calls and not answer.halted and not answer.reasoning:
        assert answer.text == text
        assert answer.dropped == 0


@each_dialect
@given(st.data())
def test_law_8_a_name_is_announced_once_and_whole(dialect: Dialect, data: st.DataObject) -> None:
    """`fold` fails for a call announced twice; here: the names are those of the text read whole."""
    text = data.draw(texts(dialect))
    parser = parser_for(format=dialect.format)
    announced = [
        event.name for piece in data.draw(cut(text)) for event in parser.feed(piece) if isinstance(event, CallStart)
    ]
    announced += [event.name for event in parser.close() if isinstance(event, CallStart)]
    assert announced == [name for name, _ in read(text, parser_for(format=dialect.format)).calls]
