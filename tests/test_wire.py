"""What OpenAI's callers may send beside plain functions: `allowed_tools`, custom tools, refusals, audio."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carriers import HI, PLAIN, TOOLS
from openai_schema import Json
from probing import Prober

NAMES = ["f", "g"]


def named(*names: str) -> list[Json]:
    return [{"type": "function", "function": {"name": name}} for name in names]


def allowing(mode: str, *names: str) -> Json:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named(*names)}}


def refusal(prober: Prober, **fields: Any) -> tuple[str, str]:
    """The message and the field of the 400 that is the answer."""
    seen = prober.ask({**PLAIN, **fields})
    assert (seen.status, seen.sent) == (400, None)
    return seen.error["message"], seen.error["param"]


# -- allowed tools -----------------------------------------------------------------------------------------


@given(
    allowed=st.lists(st.sampled_from(NAMES), max_size=3),
    mode=st.sampled_from(["auto", "required"]),
    stream=st.booleans(),
)
def test_to_allow_some_tools_is_to_declare_no_others(
    prober: Prober, allowed: list[str], mode: str, stream: bool
) -> None:
    prober.parrot.calls()
    left = [tool for tool in TOOLS if tool["function"]["name"] in allowed]
    restricted = prober.ask({**PLAIN, "stream": stream, "tools": TOOLS, "tool_choice": allowing(mode, *allowed)})
    plain = prober.ask({**PLAIN, "stream": stream, "tools": left, "tool_choice": mode})
    # That others are not allowed is a reason for a grammar.
    sent, expected = (
        {name: value for name, value in (told.sent or {}).items() if name != "response_format"}
        for told in (restricted, plain)
    )
    assert (restricted.status, sent) == (plain.status, expected)
    assert restricted.told == plain.told or plain.status == 400


def test_to_demand_one_of_no_allowed_tools_is_refused(prober: Prober) -> None:
    told = refusal(prober, tools=TOOLS, tool_choice=allowing("required"))
    assert told == ("'tool_choice' demands a call, but allows no tools.", "tool_choice")


def test_an_allowed_tool_must_be_declared(prober: Prober) -> None:
    for tools, known in ((TOOLS, "f, g"), ([], "there are none")):
        told, param = refusal(prober, tools=tools, tool_choice=allowing("auto", "f", "h"))
        missing = "h" if tools else "f"
        assert told == f"'tool_choice' allows '{missing}', which is not among the declared tools: {known}."
        assert param == "tool_choice"


def test_names_must_differ_among_the_tools_that_are_not_allowed_too(prober: Prober) -> None:
    told, param = refusal(prober, tools=[*TOOLS, TOOLS[1]], tool_choice=allowing("auto", "f"))
    assert (told, param) == ("The tool name 'g' is declared twice; names must differ.", "tools")


WRONG: list[tuple[Any, str]] = [
    ({"type": "allowed_tools"}, "tool_choice.allowed_tools"),
    ({"type": "allowed_tools", "allowed_tools": {"tools": []}}, "tool_choice.allowed_tools.mode"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": []}}, "tool_choice.allowed_tools.mode"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto"}}, "tool_choice.allowed_tools.tools"),
    (
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "f"}]}},
        "tool_choice.allowed_tools.tools[0].function",
    ),
    ({"type": "unheard-of", "function": {"name": "f"}}, "tool_choice.type"),
]


@pytest.mark.parametrize(("choice", "param"), WRONG, ids=lambda value: json.dumps(value)[:60])
def test_a_wrong_choice_is_told_by_the_form_that_was_meant(prober: Prober, choice: Any, param: str) -> None:
    message, told = refusal(prober, tools=TOOLS, tool_choice=choice)
    assert told == param
    assert message.startswith(f"Invalid value for '{param}': ")


# -- custom tools ------------------------------------------------------------------------------------------

CUSTOM = {"type": "custom", "custom": {"name": "f"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [*TOOLS, CUSTOM]}, "tools[2].type"),
        ({"tools": TOOLS, "tool_choice": CUSTOM}, "tool_choice.type"),
        (
            {"tools": TOOLS, "tool_choice": {**allowing("auto"), "allowed_tools": {"mode": "auto", "tools": [CUSTOM]}}},
            "tool_choice.allowed_tools.tools[0].type",
        ),
    ],
    ids=["declared", "demanded", "allowed"],
)
def test_a_custom_tool_is_refused_with_a_way_out(prober: Prober, fields: Json, param: str) -> None:
    instead = "Custom tools are not supported; declare a function with one string parameter instead."
    assert refusal(prober, **fields) == (f"Invalid value for '{param}': {instead}", param)


def history(call: Json) -> Json:
    """A request whose history has the call and its result."""
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", **call}]}
    return {**PLAIN, "messages": [HI, called, {"role": "tool", "tool_call_id": "a", "content": "18"}], "tools": TOOLS}


@pytest.mark.parametrize("given_function", [{}, {"function": None}])
def test_a_call_of_a_custom_tool_in_the_history_reads_as_one_of_a_function(
    prober: Prober, given_function: Json
) -> None:
    prober.parrot.calls()
    custom = {"type": "custom", "custom": {"name": "f", "input": "SELECT 'a';\n"}, **given_function}
    function = {"type": "function", "function": {"name": "f", "arguments": "SELECT 'a';\n"}}
    sent = prober.ask(history(custom), lacking=bool(given_function)).sent
    assert sent is not None
    assert sent == prober.ask(history(function)).sent
    assert "SELECT 'a';\n" in sent["messages"][-1]["content"]


@pytest.mark.parametrize("custom", [None, 5, "f", [], {}, {"name": 5}, {"input": "x"}])
def test_a_call_that_is_none_is_refused(prober: Prober, custom: Any) -> None:
    message, param = refusal(prober, **history({"type": "custom", "custom": custom}))
    assert param.startswith("messages[1].tool_calls[0].function")
    assert f"'{param}'" in message


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}], ids=str)
def test_a_refusal_is_what_the_assistant_said(prober: Prober, content: Json) -> None:
    def sent(said: Json) -> Any:
        messages = [HI, {"role": "assistant", **said}, HI]
        return prober.ask({**PLAIN, "messages": messages, "tools": TOOLS}).sent

    prober.parrot.calls()
    assert sent({**content, "refusal": "I will not."}) == sent({"content": "I will not."})
    assert sent({"content": "Yes.", "refusal": "I will not."}) == sent({"content": "Yes."})


# -- audio -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modalities", [["audio"], ["text", "audio"]])
@pytest.mark.parametrize(
    "with_tools", [{"tools": TOOLS}, {"messages": [HI, {"role": "function", "name": "f", "content": "18"}]}], ids=str
)
def test_an_answer_with_tools_is_never_spoken(prober: Prober, modalities: list[str], with_tools: Json) -> None:
    message, param = refusal(prober, modalities=modalities, **with_tools)
    assert message == "A request with tools is answered in text: 'modalities' must not ask for audio."
    assert param == "modalities"


@pytest.mark.parametrize("modalities", [None, [], ["text"], "text", 5])
def test_other_modalities_are_the_upstreams_affair(prober: Prober, modalities: Any) -> None:
    prober.parrot.calls()
    seen = prober.ask({**PLAIN, "tools": TOOLS, "modalities": modalities}, lacking=True)
    assert seen.sent is not None
    assert seen.sent["modalities"] == modalities


def test_a_request_without_tools_may_ask_for_audio(prober: Prober) -> None:
    body = {**copy.deepcopy(PLAIN), "modalities": ["text", "audio"], "audio": {"voice": "ash", "format": "wav"}}
    assert prober.ask(body).sent == body
