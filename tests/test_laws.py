"""The parser's laws, as properties over texts made of what models write, whole and broken.

Source: the design's nine laws. Law 4 (time linear in the text) is measured in `benchmarks/`; law 9 (streamed and
not streamed give the same message) is also proved over HTTP, in `test_openai_sdk.py`.
"""

import json
import string
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from parsing import TOOLS, Answer, parser_for, read
from proxy.events import CallStart, Text
from proxy.formats.markers import DECORATION
from proxy.formats.qwen import Qwen
from proxy.wire import Choice, FunctionCall, Message, ToolCall

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=4), children, max_size=3),
    max_leaves=8,
)
json_objects = st.dictionaries(st.text(max_size=6), json_values, max_size=4)


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

fragments = st.one_of(
    st.sampled_from(
        [
            *("✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿", "✿function✿", "✿FUNC", "✿", "✿✿", "TION✿"),
            *(":", "：", ": ", "\n", "\r\n", " ", "**", "`", '"', "\n\n", "（", "工具1: ", "    ", "\t"),
            *("<think>", "</think>", "<thi", "</", "<", "```", "```py\n", "```json\n", "\n```\n", "````\n"),
            *(
                "{",
                "}",
                "[",
                "]",
                ",",
                "'",
                "\\",
                "/",
                "//",
                "/*",
                "*/",
                "#",
                "null",
                "None",
                "True",
                "-1.5e3",
            ),
            *(
                '{"a": 1}',
                "{'a': True,}",
                '{"a": "x',
                "print(1)",
                "hello",
                "unheard_of",
                "<!-- {y} -->",
                "NaN",
                "0x",
            ),
        ]
    ),
    names,
    json_texts(),
    st.text(max_size=5),
)
texts = st.lists(fragments, max_size=14).map("".join)

choices = st.sampled_from([Choice(), Choice("none"), Choice("required"), Choice("named", "get"), Choice("named", "f")])
settings = st.fixed_dictionaries({"choice": choices, "parallel": st.booleans(), "after_results": st.booleans()})
ends = st.sampled_from([{}, {"truncated": True}, {"stopped": True}])


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


@given(st.data(), texts, settings, ends)
def test_law_1_the_events_are_the_same_however_the_text_is_cut(
    data: st.DataObject, text: str, setting: dict[str, Any], end: dict[str, bool]
) -> None:
    whole = read(text, parser_for(**setting), **end)
    assert read(data.draw(cut(text)), parser_for(**setting), **end) == whole
    assert read(list(text), parser_for(**setting), **end) == whole


@given(st.lists(st.text(max_size=6).map(lambda text: text.replace("✿", "").replace("<", "") + "."), max_size=8))
def test_law_2_what_cannot_be_part_of_a_marker_leaves_at_once(pieces: list[str]) -> None:
    parser = parser_for()
    for piece in pieces:
        assert "".join(event.text for event in parser.feed(piece) if isinstance(event, Text)) == piece


@given(st.lists(fragments, max_size=14))
def test_law_2_what_is_held_back_may_still_become_a_marker(pieces: list[str]) -> None:
    """Until there is a call, what has not left begins with decoration, `✿` or `<`."""
    parser = parser_for()
    fed = left = ""
    for piece in pieces:
        events = parser.feed(piece)
        if not all(isinstance(event, Text) for event in events):
            return
        fed += piece
        left += "".join(event.text for event in events if isinstance(event, Text))
        assert fed.startswith(left)
        held = fed[len(left) :].lstrip(DECORATION)
        assert not held or held[0] in "✿<"


@given(st.text(), settings, ends)
def test_law_3_no_text_makes_it_raise(text: str, setting: dict[str, Any], end: dict[str, bool]) -> None:
    read(text, parser_for(**setting), **end)


@given(names, json_texts())
def test_law_5_valid_json_comes_out_verbatim(name: str, arguments: str) -> None:
    answer = read(f"✿FUNCTION✿: {name}\n✿ARGS✿: {arguments}")
    assert answer == Answer(calls=[(name, arguments)], ids=["call_0"])


@given(texts, settings)
def test_law_5_whatever_the_model_writes_arguments_are_a_json_object(text: str, setting: dict[str, Any]) -> None:
    for _, arguments in read(text, parser_for(**setting)).calls:
        assert isinstance(json.loads(arguments), dict)


@given(texts, settings)
def test_law_5_a_call_that_was_cut_off_is_the_last_and_nothing_is_added_to_it(
    text: str, setting: dict[str, Any]
) -> None:
    cut_off = read(text, parser_for(**setting), truncated=True)
    complete = cut_off.calls[:-1] if cut_off.truncated else cut_off.calls
    for _, arguments in complete:
        assert isinstance(json.loads(arguments), dict)


code_texts = st.lists(
    st.sampled_from(["```", "```py", "````", "  ```", "x = 1", "'''", "", "✿", " ✿ARGS✿", '"', "\\n", "\t#"])
    | st.text(string.printable.replace("\r", ""), max_size=5),
    max_size=8,
).map("\n".join)


@given(st.lists(st.tuples(names, json_objects, code_texts), min_size=1, max_size=4))
def test_law_6_what_is_rendered_is_read_back(made: list[tuple[str, dict[str, Any], str]]) -> None:
    calls = [
        (name, json.dumps({"code": code} if name == "code_interpreter" else arguments))
        for name, arguments, code in made
        if name != "code_interpreter" or not any(line.lstrip().startswith("✿") for line in code.split("\n"))
    ]
    tool_calls = [ToolCall(function=FunctionCall(name=name, arguments=arguments)) for name, arguments in calls]
    history = [Message(role="assistant", tool_calls=tool_calls), Message(role="user", content="on")]
    prompt = Qwen().render(history, TOOLS, Choice(), True)
    written = next(message.get("content", "") for message in prompt.messages if message["role"] == "assistant")
    answer = read(written)
    assert [(name, json.loads(arguments)) for name, arguments in answer.calls] == [
        (name, json.loads(arguments)) for name, arguments in calls
    ]
    assert answer.text == ""


plain_fragments = st.sampled_from(
    [
        "✿",
        "✿ARGS✿",
        "✿FUNCTION✿: followed by",
        "✿FUNC",
        "<b>",
        "</think>",
        "\n\n",
        "```",
        " ",
        "**",
        ": ",
        "你好",
        "{",
    ]
)


@given(st.lists(plain_fragments | st.text(max_size=5), max_size=14).map("".join), settings)
def test_law_7_an_answer_without_calls_passes_byte_exact(text: str, setting: dict[str, Any]) -> None:
    setting["after_results"] = False
    answer = read(text, parser_for(**setting))
    if not answer.calls and not answer.halted and not answer.reasoning:
        assert answer.text == text
        assert answer.dropped == 0


@given(st.data(), texts)
def test_law_8_a_name_is_announced_once_and_whole(data: st.DataObject, text: str) -> None:
    """`fold` fails for a call announced twice; here: the names are those of the text read whole."""
    parser = parser_for()
    announced = [
        event.name for piece in data.draw(cut(text)) for event in parser.feed(piece) if isinstance(event, CallStart)
    ]
    announced += [event.name for event in parser.close() if isinstance(event, CallStart)]
    assert announced == [name for name, _ in read(text).calls]
