"""Tool calls as a user of the openai SDK sees them, over a plain vLLM that knows nothing of tools.

Sources: openai 3.52 (`create`, `stream`, `parse`, sync and async) and the rules of its stream accumulator,
OpenAI's API reference for the fields, vLLM 0.32.0 for the upstream.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from conftest import Florette
from scripted import ScriptedUpstream
from steps import Begins, GoesSilent, Says
from vllm_shapes import MAX_STOPS

Json = dict[str, Any]


def function(name: str, **properties: str) -> Json:
    """A tool of these parameters, name -> JSON type, all of them required."""
    schema = {key: {"type": kind} for key, kind in properties.items()}
    return {
        "name": name,
        "parameters": {"type": "object", "properties": schema, "required": list(properties)},
    }


def tool(name: str, **properties: str) -> Json:
    return {"type": "function", "function": function(name, **properties)}


WEATHER = tool("get_weather", city="string")
CLOCK = tool("get_time", zone="string")
天气 = tool("天气查询", 城市="string")
TOOLS = [WEATHER, CLOCK, 天气]
FUNCTIONS = [WEATHER["function"], CLOCK["function"]]

OUR_STOPS = ["✿RESULT✿", "✿RETURN✿"]
QUESTION = {"role": "user", "content": "How is it in Rome?"}

ROME = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'
CET = '✿FUNCTION✿: get_time\n✿ARGS✿: {"zone": "CET"}\n'
INVENTED = "✿RESULT✿: 30 degrees"


# -- asking and reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What a caller is told in one choice: its calls as (name, arguments)."""

    content: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    finish: str = "tool_calls"
    reasoning: str | None = None


CALLS_ROME = Reply(calls=(("get_weather", '{"city": "Rome"}'),))


def request(**fields: Any) -> Json:
    return {"model": "m", "messages": [QUESTION], "tools": TOOLS, **fields}


def ask(client: openai.OpenAI, **fields: Any) -> ChatCompletion:
    completion: ChatCompletion = client.chat.completions.create(**request(**fields))
    return completion


def ask_streamed(client: openai.OpenAI, **fields: Any) -> list[Json]:
    """The chunks as they were on the wire."""
    chunks: Iterable[ChatCompletionChunk] = client.chat.completions.create(**request(**fields), stream=True)
    return [chunk.to_dict() for chunk in chunks]


def replies(completion: ChatCompletion) -> list[Reply]:
    return [_reply(choice.message.to_dict(), choice.finish_reason) for choice in completion.choices]


def _reply(message: Json, finish: str) -> Reply:
    made = [call["function"] for call in message.get("tool_calls", ())]
    calls = tuple((call["name"], call["arguments"]) for call in made)
    return Reply(message["content"], calls, finish, message.get("reasoning_content"))


def fold(chunks: Sequence[Json]) -> list[Reply]:
    """What the chunks say together; AssertionError where they break a rule that the SDKs rely on."""
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], chunks[0]["model"])
    }
    said: list[list[Json]] = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == len(said):
                said.append([])
            said[choice["index"]].append(choice)
    return [_folded(choices) for choices in said]


def _folded(choices: Sequence[Json]) -> Reply:
    finishes = [choice["finish_reason"] for choice in choices]
    assert finishes[-1] is not None and set(finishes[:-1]) <= {None}, finishes
    deltas = [choice["delta"] for choice in choices]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    return Reply(_joined(deltas, "content"), _folded_calls(deltas), finishes[-1], _joined(deltas, "reasoning_content"))


def _joined(deltas: Sequence[Json], field: str) -> str | None:
    pieces = [delta[field] for delta in deltas if delta.get(field) is not None]
    return "".join(pieces) if pieces else None


def _folded_calls(deltas: Sequence[Json]) -> tuple[tuple[str, str], ...]:
    calls: list[tuple[str, str]] = []
    for delta in deltas:
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert set(call) == {"index", "id", "type", "function"} and call["id"]
                assert call["type"] == "function" and call["function"]["arguments"] == ""
                calls.append((call["function"]["name"], ""))
            else:
                assert set(call) == {"index", "function"} and set(call["function"]) == {"arguments"}
                assert call["index"] == len(calls) - 1, "calls must not interleave"
                name, arguments = calls[-1]
                calls[-1] = (name, arguments + call["function"]["arguments"])
    return tuple(calls)


def last_message(upstream: ScriptedUpstream) -> Json:
    """The end of the prompt of the latest request."""
    message: Json = upstream.received[-1].json["messages"][-1]
    return message


# -- the same message however it comes ---------------------------------------------------------------------

#: What a model says -> what the caller gets.
SAYINGS = {
    "no call": (
        "I like ✿ and ✿FUNny \n things: * \n ✿",
        Reply("I like ✿ and ✿FUNny \n things: * \n ✿", (), "stop"),
    ),
    "text and a call": ("Let me see.\n\n" + ROME + INVENTED, Reply("Let me see.", CALLS_ROME.calls)),
    "two calls": (
        '✿FUNCTION✿：天气查询\n✿ARGS✿：{"城市": "北京"}\n' + CET,
        Reply(None, (("天气查询", '{"城市": "北京"}'), ("get_time", '{"zone": "CET"}'))),
    ),
    "mended arguments": (
        "✿FUNCTION✿: get_weather\n✿ARGS✿: {city: 'l\\'Aquila\n✿', }\n" + INVENTED,
        Reply(None, (("get_weather", '{"city": "l\'Aquila\\n✿" }'),)),
    ),
    "thinking": (f"<think>{CET}</think>" + ROME, Reply(None, CALLS_ROME.calls, reasoning=CET)),
}
sayings = pytest.mark.parametrize(("text", "reply"), SAYINGS.values(), ids=list(SAYINGS))


@sayings
def test_a_text_cut_in_two_anywhere_is_the_same_answer(
    client: openai.OpenAI, upstream: ScriptedUpstream, text: str, reply: Reply
) -> None:
    upstream.script(*(Says(text, cut=[place]) for place in range(len(text))))
    for place in range(len(text)):
        assert fold(ask_streamed(client)) == [reply], f"cut at {place}"


@sayings
@pytest.mark.parametrize(
    "says",
    [
        {},
        {"cut": "char"},
        {"cut": "char", "hold_back": True},
        {"cut": 3, "finish_carries": True},
        {"cut": "char", "writes": "whole"},
        {"cut": 16, "writes": "byte"},
    ],
    ids=str,
)
def test_a_text_is_the_same_answer_however_it_is_written(
    client: openai.OpenAI, upstream: ScriptedUpstream, text: str, reply: Reply, says: Any
) -> None:
    upstream.script(Says(text, **says))
    assert fold(ask_streamed(client)) == [reply]


@sayings
def test_what_is_not_streamed_is_the_same_message(
    client: openai.OpenAI, upstream: ScriptedUpstream, text: str, reply: Reply
) -> None:
    upstream.script(Says(text))
    assert replies(ask(client)) == [reply]


FRAGMENTS = [
    ROME,
    CET,
    "✿FUNCTION✿: ",
    "✿ARGS✿",
    "get_weather",
    '{"city": "',
    "'}",
    "\n",
    "```",
    "<think>",
    "Hi ✿ ",
]


@settings(deadline=None, max_examples=40)
@given(
    text=st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join),
    cut=st.lists(st.integers(1, 200), max_size=8).map(sorted),
    parallel=st.booleans(),
)
def test_streamed_or_not_any_text_is_the_same_message(
    client: openai.OpenAI, upstream_server: ScriptedUpstream, text: str, cut: list[int], parallel: bool
) -> None:
    with upstream_server.fresh() as upstream:
        upstream.script(Says(text), Says(text, cut=cut))
        whole = replies(ask(client, parallel_tool_calls=parallel))
        assert fold(ask_streamed(client, parallel_tool_calls=parallel)) == whole


# -- one call in every form of the SDK ---------------------------------------------------------------------


def test_a_call_is_what_openai_would_send(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME + INVENTED))
    (choice,) = ask(client).choices
    told: Json = choice.to_dict()
    (call,) = told["message"].pop("tool_calls")
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    message = {"role": "assistant", "content": None, "refusal": None}
    assert told == {"index": 0, "finish_reason": "tool_calls", "logprobs": None, "message": message}


def test_arguments_come_as_they_are_written(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    pieces = ("✿FUNCTION✿: get_weather\n✿ARGS✿: ", '{"ci', 'ty": ', '"Ro', 'me"}', "\n")
    upstream.script(Says.pieces(*pieces))
    first, name, *arguments, finish = [chunk["choices"][0] for chunk in ask_streamed(client)]
    assert first["delta"] == {"role": "assistant", "content": None}
    assert name["delta"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": ""}
    sent = [{"tool_calls": [{"index": 0, "function": {"arguments": piece}}]} for piece in pieces[1:-1]]
    assert [choice["delta"] for choice in arguments] == sent
    assert (finish["delta"], finish["finish_reason"]) == ({}, "tool_calls")


def test_the_stream_helper_tells_of_text_then_of_each_call(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Look:\n" + ROME + CET, cut=7))
    with client.chat.completions.stream(**request()) as stream:
        events = [event for event in stream if event.type != "chunk"]
        final = stream.get_final_completion()
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "content.delta",
        "tool_calls.function.arguments.delta",
        "content.done",
        "tool_calls.function.arguments.done",
    ]
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.index, event.name, event.arguments) for event in done] == [
        (0, "get_weather", '{"city": "Rome"}'),
        (1, "get_time", '{"zone": "CET"}'),
    ]
    for event in done:
        deltas = [e for e in events if e.type == "tool_calls.function.arguments.delta" and e.index == event.index]
        assert "".join(delta.arguments_delta for delta in deltas) == event.arguments
    assert [event.content for event in events if event.type == "content.done"] == ["Look:"]
    assert replies(final) == [Reply("Look:", tuple((event.name, event.arguments) for event in done))]


class GetWeather(BaseModel):
    """The tool as a model of pydantic."""

    city: str


def test_pydantic_tools_are_parsed(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    text = '✿FUNCTION✿: GetWeather\n✿ARGS✿: {"city": "Rome"}\n'
    upstream.script(Says(text), Says(text, cut=4))
    fields = request(tools=[openai.pydantic_function_tool(GetWeather)])
    whole = client.chat.completions.parse(**fields).choices[0].message
    with client.chat.completions.stream(**fields) as stream:
        streamed = stream.get_final_completion().choices[0].message
    for message in (whole, streamed):
        assert message.tool_calls is not None
        assert [call.function.parsed_arguments for call in message.tool_calls] == [GetWeather(city="Rome")]


class Answer(BaseModel):
    """An answer in a form of its own."""

    degrees: int


@pytest.mark.parametrize("tools", [[], [openai.pydantic_function_tool(GetWeather)]], ids=["no tools", "tools"])
def test_pydantic_answers_are_parsed(client: openai.OpenAI, upstream: ScriptedUpstream, tools: list[Any]) -> None:
    upstream.script(*[Says('{"degrees": 21}', cut=4)] * 2)
    fields = request(response_format=Answer, tools=tools or openai.omit)
    whole = client.chat.completions.parse(**fields).choices[0].message
    with client.chat.completions.stream(**fields) as stream:
        done = [event.parsed for event in stream if event.type == "content.done"]
    assert [whole.parsed, *done] == [Answer(degrees=21)] * 2


async def test_the_async_client_parses_tools_and_answers(
    async_client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    says = Says('✿FUNCTION✿: GetWeather\n✿ARGS✿: {"city": "Rome"}\n', cut=4)
    upstream.script(says, Says('{"degrees": 21}', cut=4), says)
    fields = request(tools=[openai.pydantic_function_tool(GetWeather)], response_format=Answer)
    call = (await async_client.chat.completions.parse(**fields)).choices[0].message
    answer = (await async_client.chat.completions.parse(**fields)).choices[0].message
    async with async_client.chat.completions.stream(**fields) as stream:
        done = [event async for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert call.tool_calls is not None and (call.parsed, answer.parsed) == (None, Answer(degrees=21))
    assert [call.tool_calls[0].function.parsed_arguments, done[0].parsed_arguments] == [GetWeather(city="Rome")] * 2


async def test_the_async_client_gets_the_same(async_client: openai.AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME), Says(ROME, cut=5), Says(ROME, cut=5))
    whole = await async_client.chat.completions.create(**request())
    assert replies(whole) == [CALLS_ROME]
    chunks = await async_client.chat.completions.create(**request(), stream=True)
    assert fold([chunk.to_dict() async for chunk in chunks]) == [CALLS_ROME]
    async with async_client.chat.completions.stream(**request()) as stream:
        assert replies(await stream.get_final_completion()) == [CALLS_ROME]
    assert len({received.connection for received in upstream.received}) == 1, "each stream was read to its end"


# -- several calls, and cut ones ---------------------------------------------------------------------------


def test_parallel_calls_have_ids_of_their_own(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME + CET + ROME))
    calls = ask(client).choices[0].message.tool_calls
    assert calls is not None
    assert len({call.id for call in calls}) == 3


@pytest.mark.parametrize("streamed", [True, False])
def test_without_parallel_calls_there_is_one(client: openai.OpenAI, upstream: ScriptedUpstream, streamed: bool) -> None:
    upstream.script(Says("Hm. " + ROME + CET, cut=5))
    told = {"parallel_tool_calls": False}
    answer = fold(ask_streamed(client, **told)) if streamed else replies(ask(client, **told))
    assert answer == [Reply("Hm.", CALLS_ROME.calls)]
    system = upstream.received[0].json["messages"][0]["content"]
    assert "can be called zero or multiple times" in system and "in parallel" not in system


CUT_OFF = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Ro'


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("says", "calls"),
    [
        (Says(ROME + CUT_OFF, cut=6, finish="length"), (("get_weather", '{"city": "Ro'),)),
        (Says(ROME + CUT_OFF[:17], cut=6, finish="length"), ()),
        # The model quotes one of our markers, at which the upstream stops: there is no more of the string.
        (Says(ROME + CUT_OFF + "✿RESULT✿", cut=6), (("get_weather", '{"city": "Ro'),)),
    ],
    ids=["in a string", "in the name", "by a marker in a string"],
)
def test_a_call_that_is_cut_off_ends_in_length_as_it_is(
    client: openai.OpenAI, upstream: ScriptedUpstream, says: Says, calls: tuple[Any, ...], streamed: bool
) -> None:
    upstream.script(says)
    answer = fold(ask_streamed(client)) if streamed else replies(ask(client))
    assert answer == [Reply(None, (*CALLS_ROME.calls, *calls), "length")]


def test_the_strict_client_refuses_arguments_cut_by_max_tokens(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(*[Says(CUT_OFF.replace("get_weather", "GetWeather"), cut=6, finish="length")] * 2)
    fields = request(tools=[openai.pydantic_function_tool(GetWeather)])
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**fields)
    with client.chat.completions.stream(**fields) as stream, pytest.raises(openai.LengthFinishReasonError):
        stream.until_done()


def test_of_two_choices_one_may_call_and_one_may_talk(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    texts = ["Rome, then. " + ROME + INVENTED, "I would rather talk about the weather in general."]
    expected = [Reply("Rome, then.", CALLS_ROME.calls), Reply(texts[1], (), "stop")]
    upstream.script(Says(texts, cut=6), Says(texts))
    chunks = ask_streamed(client, n=2)
    spoken = [choice["index"] for chunk in chunks for choice in chunk["choices"]]
    assert sum(one != other for one, other in pairwise(spoken)) > 4, "they were meant to be interleaved"
    assert fold(chunks) == expected
    assert replies(ask(client, n=2)) == expected


# -- tool_choice -------------------------------------------------------------------------------------------

NAMED: Json = {"type": "function", "function": {"name": "get_weather"}}


def test_tool_choice_auto_is_as_if_nothing_was_said(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME), Says(ROME))
    assert replies(ask(client)) == replies(ask(client, tool_choice="auto"))
    assert upstream.received[0].body == upstream.received[1].body


def test_with_tool_choice_none_there_are_no_tools_and_markers_are_text(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    text = "Look: " + ROME + INVENTED
    upstream.script(Says(text, cut=4))
    assert fold(ask_streamed(client, tool_choice="none")) == [Reply(text, (), "stop")]
    assert upstream.received[0].json == {
        "model": "m",
        "stream": True,
        "messages": [{"role": "system", "content": "You are a helpful assistant."}, QUESTION],
    }


@pytest.mark.parametrize(
    "says", ['\n✿ARGS✿: {"city": "Rome"}\n' + INVENTED, "\n" + ROME], ids=["goes on", "begins anew"]
)
def test_a_named_tool_is_begun_for_the_model(client: openai.OpenAI, upstream: ScriptedUpstream, says: str) -> None:
    upstream.script(Says(says, cut=3), Says(says))
    assert fold(ask_streamed(client, tool_choice=NAMED)) == [CALLS_ROME]
    assert replies(ask(client, tool_choice=NAMED)) == [CALLS_ROME]
    assert last_message(upstream)["content"] == "How is it in Rome?\n\n✿FUNCTION✿: get_weather"


def test_with_tool_choice_required_the_model_chooses_which(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    says = ' get_weather\n✿ARGS✿: {"city": "Rome"}\n' + INVENTED
    upstream.script(Says(says, cut=3), Says(says))
    assert fold(ask_streamed(client, tool_choice="required")) == [CALLS_ROME]
    assert replies(ask(client, tool_choice="required")) == [CALLS_ROME]
    assert last_message(upstream)["content"] == "How is it in Rome?\n\n✿FUNCTION✿:"


@pytest.mark.parametrize(
    ("choice", "says"),
    [("required", " I would rather not."), (NAMED, " I would rather not."), (NAMED, "\n" + CET)],
)
def test_a_demand_that_the_model_does_not_meet_is_an_error(
    client: openai.OpenAI, upstream: ScriptedUpstream, choice: Any, says: str
) -> None:
    upstream.script(Says(says, cut=3), Says(says, cut=3), Says(says), Says(says))
    with pytest.raises(openai.APIError, match="tool_choice demands it") as streamed:
        ask_streamed(client, tool_choice=choice)
    with pytest.raises(openai.InternalServerError, match="tool_choice demands it") as whole:
        ask(client, tool_choice=choice)
    assert streamed.value.code == whole.value.code == "tool_choice_not_met"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"functions": FUNCTIONS}, "not both"),
        ({"tools": [WEATHER, WEATHER]}, "'get_weather' is declared twice"),
        ({"tools": [tool("get weather")]}, "Invalid tool name 'get weather'"),
        ({"tools": [tool("x" * 65)]}, "use 1 to 64 letters"),
        ({"tool_choice": {"type": "function", "function": {"name": "sing"}}}, "'sing', which is not among"),
        ({"tools": [], "tool_choice": "required"}, "declares no tools"),
    ],
)
def test_tools_that_make_no_sense_are_refused_with_a_sentence(
    client: openai.OpenAI, upstream: ScriptedUpstream, fields: Json, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence) as refused:
        ask(client, **fields)
    assert refused.value.type == "invalid_request_error" and refused.value.param is not None
    assert not upstream.received


# -- the older functions -----------------------------------------------------------------------------------


def legacy(**fields: Any) -> Json:
    return {"model": "m", "messages": [QUESTION], "functions": FUNCTIONS, **fields}


def test_functions_are_answered_in_function_call(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Look. " + ROME + CET))
    (choice,) = client.chat.completions.create(**legacy()).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.to_dict() == {
        "role": "assistant",
        "content": "Look.",
        "refusal": None,
        "function_call": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
    }


def test_a_streamed_function_call_has_its_name_first_and_once(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says.pieces('✿FUNCTION✿: get_weather\n✿ARGS✿: {"ci', 'ty": "Rome"}\n', CET, ROME))
    chunks: list[Json] = [c.to_dict() for c in client.chat.completions.create(**legacy(), stream=True)]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": None},
        {"function_call": {"name": "get_weather", "arguments": ""}},
        {"function_call": {"arguments": '{"ci'}},
        {"function_call": {"arguments": 'ty": "Rome"}'}},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "function_call"]


async def test_the_async_client_gets_the_same_function_call(
    async_client: openai.AsyncOpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says("Look. " + ROME + CET), Says("Look. " + ROME + CET, cut=5))
    whole = (await async_client.chat.completions.create(**legacy())).choices[0]
    async with async_client.chat.completions.stream(**legacy()) as stream:
        streamed = (await stream.get_final_completion()).choices[0]
    for choice in (whole, streamed):
        made = choice.message.function_call
        assert made is not None and (made.name, made.arguments) == ("get_weather", '{"city": "Rome"}')
        assert (choice.message.content, choice.finish_reason) == ("Look.", "function_call")


def test_a_named_function_is_begun_for_the_model(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says('\n✿ARGS✿: {"zone": "CET"}'))
    answer = client.chat.completions.create(**legacy(function_call={"name": "get_time"}))
    made = answer.choices[0].message.function_call
    assert made is not None and (made.name, made.arguments) == ("get_time", '{"zone": "CET"}')
    assert last_message(upstream)["content"] == "How is it in Rome?\n\n✿FUNCTION✿: get_time"


def test_with_function_call_none_markers_are_text(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME))
    (choice,) = client.chat.completions.create(**legacy(function_call="none")).choices
    assert (choice.message.content, choice.message.function_call, choice.finish_reason) == (
        ROME,
        None,
        "stop",
    )
    assert upstream.received[0].json["messages"][1:] == [QUESTION]


def test_function_results_find_their_calls_by_name(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME), Says(": It is 21."))
    call = client.chat.completions.create(**legacy()).choices[0].message
    result = {"role": "function", "name": "get_weather", "content": "21"}
    answer = client.chat.completions.create(**legacy(messages=[QUESTION, call, result]))
    assert answer.choices[0].message.content == "It is 21."
    turn = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n✿RESULT✿: 21\n✿RETURN✿'
    assert last_message(upstream)["content"] == f"How is it in Rome?\n\n{turn}"


# -- stop strings ------------------------------------------------------------------------------------------

CALLERS_STOPS = ["<END>", "STOP", "###", "Human:", "\n\n\n", "-- "]


@pytest.mark.parametrize("count", range(len(CALLERS_STOPS) + 1))
def test_the_callers_stops_work_beside_ours_however_many(
    client: openai.OpenAI, upstream: ScriptedUpstream, count: int
) -> None:
    stops = CALLERS_STOPS[:count]
    for stop in stops:
        upstream.script(Says(f"One.{stop}Two."), Says(f"One.{stop}Two.", cut=2))
        assert replies(ask(client, stop=stops)) == [Reply("One.", (), "stop")]
        chunks = ask_streamed(client, stop=stops)
        assert fold(chunks) == [Reply("One.", (), "stop")]
        assert chunks[-1]["choices"][0]["stop_reason"] == stop
    upstream.script(Says(ROME + INVENTED))
    assert replies(ask(client, stop=stops)) == [CALLS_ROME]
    for received in upstream.received:
        sent = received.json["stop"]
        assert len(sent) <= MAX_STOPS and set(sent) <= {*stops, *OUR_STOPS} and set(OUR_STOPS) <= set(sent)


def test_a_stop_string_is_found_however_it_is_cut(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    text = "An <EN, a ST, ##Human:\n\n\n<END>STOP"
    upstream.script(*(Says(text, cut=[place]) for place in range(len(text))), Says(text, cut="char"))
    for _ in range(len(text) + 1):
        chunks = ask_streamed(client, stop=["none", "of", *CALLERS_STOPS])
        assert fold(chunks) == [Reply("An <EN, a ST, ##", (), "stop")]
        assert chunks[-1]["choices"][0]["stop_reason"] == "Human:"


def test_what_only_begins_like_a_stop_string_is_passed_on(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    text = "ST STO ## -\n\n<END Human"
    upstream.script(Says(text, cut="char"), Says(text))
    assert fold(ask_streamed(client, stop=CALLERS_STOPS)) == [Reply(text, (), "stop")]
    assert replies(ask(client, stop=CALLERS_STOPS)) == [Reply(text, (), "stop")]


def test_a_stop_found_here_ends_the_upstreams_answer(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(GoesSilent(Begins("One.", "Hum", "an: Two.")))
    assert fold(ask_streamed(client, stop=CALLERS_STOPS)) == [Reply("One.", (), "stop")]


@pytest.mark.parametrize("stop", ["STOP", ["STOP"], ["none", "of", "these", "STOP"]])
def test_a_stop_string_may_be_included(client: openai.OpenAI, upstream: ScriptedUpstream, stop: Any) -> None:
    upstream.script(Says("One. STOP Two.", cut=2))
    chunks = ask_streamed(client, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert fold(chunks) == [Reply("One. STOP", (), "stop")]


# -- what passes through -----------------------------------------------------------------------------------

ANSWER_FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize("streamed", [True, False])
def test_every_field_but_those_of_tools_reaches_the_upstream(
    client: openai.OpenAI, upstream: ScriptedUpstream, streamed: bool
) -> None:
    known = {"seed": 2**70, "temperature": 0.0, "max_tokens": 9, "user": "me", "logit_bias": {"5": -1}}
    vendor = {"top_k": 5, "chat_template_kwargs": {"a": None}, "brand_new": [{"ü": 1.5}], "nothing": None}
    tools = {"tool_choice": "auto", "parallel_tool_calls": True}
    upstream.script(Says("Fine."))
    ask(client, **known, **tools, extra_body={**vendor, "stream": streamed})
    sent = upstream.received[0].json
    assert sent.pop("messages")[1:] == [QUESTION]
    assert sent == {"model": "m", "stream": streamed, "stop": OUR_STOPS, **known, **vendor}


@pytest.mark.parametrize("answer_format", [ANSWER_FORMAT, {"type": "json_object"}])
def test_an_answer_format_would_forbid_the_markers_and_stays_here(
    client: openai.OpenAI, upstream: ScriptedUpstream, answer_format: Json
) -> None:
    upstream.script(Says(ROME), Says("{}"))
    assert replies(ask(client, response_format=answer_format)) == [CALLS_ROME]
    assert "response_format" not in upstream.received[0].json
    ask(client, response_format=answer_format, tool_choice="none")
    assert upstream.received[1].json["response_format"] == answer_format


def test_usage_is_the_last_chunk_if_it_is_wanted(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(*[Says(ROME, cut=9, tokens=(7, 3))] * 3)
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    *chunks, last = ask_streamed(client, stream_options={"include_usage": True})
    assert last["choices"] == [] and last["usage"] == usage
    assert fold([*chunks, last]) == [CALLS_ROME]
    assert not any(chunk.get("usage") for chunk in [*chunks, *ask_streamed(client)])
    whole = ask(client).usage
    assert whole is not None and whole.to_dict().items() >= usage.items()


def test_logprobs_come_with_the_text(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    words = ["It", " is", " warm", "."]
    upstream.script(Says("".join(words), cut=words), Says("".join(words), cut=words))
    whole = ask(client, logprobs=True).choices[0].logprobs
    assert whole is not None and [seen.token for seen in whole.content or ()] == words
    with client.chat.completions.stream(**request(logprobs=True)) as stream:
        streamed = stream.get_final_completion().choices[0].logprobs
    assert streamed == whole


# -- reasoning ---------------------------------------------------------------------------------------------

THOUGHT = "Warm?\n" + ROME


@pytest.mark.parametrize(
    "says",
    [
        Says(CET, cut=4, reasoning=THOUGHT),
        Says(CET, cut=4, reasoning=THOUGHT, reasoning_field="reasoning_content"),
        Says(f"<think>{THOUGHT}</think>{CET}", cut=4),
    ],
    ids=["reasoning", "reasoning_content", "think"],
)
def test_thinking_comes_apart_and_nothing_in_it_is_a_call(
    client: openai.OpenAI, upstream: ScriptedUpstream, florette: Florette, says: Says
) -> None:
    upstream.script(says, says, says)
    expected = [Reply(None, (("get_time", '{"zone": "CET"}'),), reasoning=THOUGHT)]
    assert fold(ask_streamed(client)) == expected
    assert replies(ask(client)) == expected
    renamed = client.with_options(base_url=florette(reasoning_field="thoughts") + "/v1")
    message = ask(renamed).choices[0].message.to_dict()
    assert message["thoughts"] == THOUGHT and "reasoning_content" not in message


# -- conversations -----------------------------------------------------------------------------------------

#: The SDK's message of the first round in every form in which callers append it.
FORMS = {
    "object": lambda message: message,
    "to_dict": lambda message: message.to_dict(),
    "model_dump": lambda message: message.model_dump(),
    "model_dump without null": lambda message: message.model_dump(exclude_none=True),
}


def message_streamed(client: openai.OpenAI) -> Any:
    with client.chat.completions.stream(**request()) as stream:
        return stream.get_final_completion().choices[0].message


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("order", [1, -1])
def test_a_conversation_goes_on_with_the_sdks_own_messages(
    client: openai.OpenAI, upstream: ScriptedUpstream, form: str, streamed: bool, order: int
) -> None:
    upstream.script(Says("Look.\n" + ROME + CET, reasoning="Two calls."), Says(": 21 at 9."), Says("Bye."))
    message: Any = message_streamed(client) if streamed else ask(client).choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": content}
        for call, content in zip(message.tool_calls, ["21", "9"], strict=True)
    ]
    history = [QUESTION, FORMS[form](message), *results[::order]]
    answer = ask(client, messages=history).choices[0].message
    assert answer.content == "21 at 9."
    turn = f"Look.{ROME}{CET}✿RESULT✿: 21\n✿RESULT✿: 9\n✿RETURN✿"
    assert last_message(upstream) == {"role": "user", "content": f"How is it in Rome?\n\n{turn}"}
    ask(client, messages=[*history, FORMS[form](answer), {"role": "user", "content": "Thanks."}])
    assert upstream.received[-1].json["messages"][1:] == [
        QUESTION,
        {"role": "assistant", "content": turn + ": 21 at 9."},
        {"role": "user", "content": "Thanks."},
    ]


def called(*arguments: str) -> Json:
    """An assistant's message that calls get_weather with each of the arguments; the ids are a, b, c."""
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": given}}
        for call_id, given in zip("abc", arguments, strict=False)
    ]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def result(call_id: str, content: Any) -> Json:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def turn(*lines: str) -> str:
    """What the prompt holds of a turn: a line that begins with a brace is a call's, any other a result."""
    call = "✿FUNCTION✿: get_weather\n✿ARGS✿: "
    return "\n".join((call if line.startswith("{") else "✿RESULT✿: ") + line for line in lines)


TEXTS = [{"type": "text", "text": "2"}, {"type": "text", "text": "1"}]


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([called("{}", "{1}"), result("b", "2")], turn("{}", "{1}", "No result.", "2") + "\n✿RETURN✿"),
        ([called("{}"), result("a", "old"), result("a", "new")], turn("{}", "new") + "\n✿RETURN✿"),
        ([called("{}")], turn("{}")),
        ([called("{}"), result("a", "")], turn("{}", "") + "\n✿RETURN✿"),
        ([called("{}"), result("a", TEXTS)], turn("{}", "21") + "\n✿RETURN✿"),
        ([called('{"city": Ro'), result("a", "1")], turn('{"city": Ro', "1") + "\n✿RETURN✿"),
        (
            [called("{}"), result("a", "1"), called("{2}"), result("a", "2")],
            turn("{}", "1") + "\n✿RETURN✿: \n" + turn("{2}", "2") + "\n✿RETURN✿",
        ),
    ],
    ids=["missing", "corrected", "no result yet", "empty", "parts", "not JSON", "ids used again"],
)
def test_a_result_finds_its_call(
    client: openai.OpenAI, upstream: ScriptedUpstream, messages: list[Json], prompt: str
) -> None:
    upstream.script(Says("Fine."))
    assert replies(ask(client, messages=[QUESTION, *messages])) == [Reply("Fine.", (), "stop")]
    assert last_message(upstream) == {"role": "user", "content": f"How is it in Rome?\n\n{prompt}"}


def test_a_result_without_a_call_is_told_as_text(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Fine."))
    ask(client, messages=[QUESTION, result("lost", "21")])
    content = last_message(upstream)["content"]
    assert content.startswith(QUESTION["content"]) and content.endswith("21") and "✿" not in content


def test_system_messages_of_both_roles_become_one_in_front_of_the_tools(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says("Fine."))
    told = [{"role": "developer", "content": "Be kind."}, {"role": "system", "content": "Be brief."}]
    ask(client, messages=[*told, QUESTION])
    system, user = upstream.received[0].json["messages"]
    assert system["role"] == "system" and system["content"].startswith("Be kind.\n\nBe brief.\n\n# Tools\n")
    assert user == QUESTION


@pytest.mark.parametrize("vision", [True, False])
def test_images_are_kept_for_a_model_that_sees(
    client: openai.OpenAI, upstream: ScriptedUpstream, florette: Florette, vision: bool
) -> None:
    upstream.script(Says("Fine."))
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a/b.png"}}
    message = {"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}
    ask(client.with_options(base_url=florette(vision=vision) + "/v1"), messages=[message])
    content = last_message(upstream)["content"]
    if vision:
        assert content[-1] == image
    else:
        assert content == "(Uploaded ![image](b.png)) What is it?"
