"""Tool calls as a user of LangChain's ChatOpenAI sees them.

Source: langchain-openai 1.7, which reads other fields of a chunk than the openai SDK does, sums chunks up by
their `index`, and turns arguments that are not JSON into `invalid_tool_calls`; langchain 1.4 for the agents.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import reduce
from operator import add
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from conftest import Florette
from scripted import ScriptedUpstream
from steps import Says

QUESTION = "How is it in Rome?"
ROME = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'
CET = '✿FUNCTION✿: get_time\n✿ARGS✿: {"zone": "CET"}\n'
CALLS = [("get_weather", {"city": "Rome"}), ("get_time", {"zone": "CET"})]


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"21 degrees in {city}"


@tool
def get_time(zone: str) -> str:
    """Tell the time in a zone."""
    return f"9:00 {zone}"


TOOLS = [get_weather, get_time]


class City(BaseModel):
    """A city."""

    name: str
    people: int = Field(description="how many live there")


def chat_model(url: str, **fields: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=f"{url}/v1", api_key=SecretStr("test"), max_retries=0, **fields)


@pytest.fixture(scope="module")
def model(florette: Florette) -> Iterator[ChatOpenAI]:
    """With an HTTP client of its own: those that LangChain makes are never closed."""
    with openai.DefaultHttpxClient() as http:
        yield chat_model(florette(), http_client=http)


@pytest.fixture
async def async_model(florette: Florette) -> AsyncIterator[ChatOpenAI]:
    """The same for the test's own loop."""
    async with openai.DefaultAsyncHttpxClient() as http:
        yield chat_model(florette(), http_async_client=http)


def calls(message: AIMessage) -> list[tuple[str, Any]]:
    return [(call["name"], call["args"]) for call in message.tool_calls]


def summed(chunks: Iterable[Any]) -> AIMessageChunk:
    total = reduce(add, chunks)
    assert isinstance(total, AIMessageChunk)
    return total


def test_bound_tools_are_called(model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Look.\n" + ROME + CET))
    message = model.bind_tools(TOOLS).invoke(QUESTION)
    assert (message.content, calls(message)) == ("Look.", CALLS)
    assert message.invalid_tool_calls == []
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert message.usage_metadata is not None and message.usage_metadata["total_tokens"] == 15


@pytest.mark.parametrize("cut", [None, 1, 7])
def test_chunks_of_a_stream_sum_up_to_the_calls(model: ChatOpenAI, upstream: ScriptedUpstream, cut: int | None) -> None:
    upstream.script(Says("Look.\n" + ROME + CET, cut=cut))
    total = summed(model.bind_tools(TOOLS).stream(QUESTION, stream_usage=True))
    assert (total.content, calls(total), total.invalid_tool_calls) == ("Look.", CALLS, [])
    assert [(chunk["index"], chunk["args"]) for chunk in total.tool_call_chunks] == [
        (0, '{"city": "Rome"}'),
        (1, '{"zone": "CET"}'),
    ]
    assert total.response_metadata["finish_reason"] == "tool_calls"
    assert total.usage_metadata is not None and total.usage_metadata["total_tokens"] == 15


def test_each_call_has_its_name_and_id_in_its_first_chunk(model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME + CET, cut=4))
    chunks: list[Any] = list(model.bind_tools(TOOLS).stream(QUESTION))
    told = [part for chunk in chunks for part in chunk.tool_call_chunks]
    named = [(part["index"], part["name"]) for part in told if part["name"] is not None]
    assert named == [(0, "get_weather"), (1, "get_time")]
    assert [part["index"] for part in told if part["id"] is not None] == [0, 1]
    assert len(told) > 6, "the arguments were meant to come in pieces"


async def test_an_async_stream_sums_up_to_the_calls(async_model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("Look.\n" + ROME + CET, cut=3), Says(ROME))
    bound = async_model.bind_tools(TOOLS)
    total = summed([chunk async for chunk in bound.astream(QUESTION)])
    assert (total.content, calls(total)) == ("Look.", CALLS)
    assert calls(await bound.ainvoke(QUESTION)) == CALLS[:1]


def test_arguments_cut_by_max_tokens_are_an_invalid_call(model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME + CET[:-5], finish="length"))
    message = model.bind_tools(TOOLS).invoke(QUESTION)
    assert calls(message) == CALLS[:1]
    assert [call["args"] for call in message.invalid_tool_calls] == ['{"zone": "C']
    assert message.response_metadata["finish_reason"] == "length"


@pytest.mark.parametrize(("choice", "begun"), [("any", "✿FUNCTION✿:"), ("get_weather", "✿FUNCTION✿: get_weather")])
def test_a_call_can_be_demanded(model: ChatOpenAI, upstream: ScriptedUpstream, choice: str, begun: str) -> None:
    upstream.script(Says(ROME.removeprefix(begun)))
    assert calls(model.bind_tools(TOOLS, tool_choice=choice).invoke(QUESTION)) == CALLS[:1]
    assert upstream.received[0].json["messages"][-1]["content"] == f"{QUESTION}\n\n{begun}"


def test_strict_tools_are_called(model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(*[Says("Look.\n" + ROME + CET, cut=5)] * 2)
    bound = model.bind_tools(TOOLS, strict=True)
    assert calls(bound.invoke(QUESTION)) == CALLS
    assert calls(summed(bound.stream(QUESTION))) == CALLS


def test_structured_output_comes_by_a_call(model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(*[Says('\n✿ARGS✿: {"name": "Rome", "people": 3}\n', cut=5)] * 2)
    structured = model.with_structured_output(City, method="function_calling")
    rome = City(name="Rome", people=3)
    assert structured.invoke(QUESTION) == rome
    assert list(structured.stream(QUESTION))[-1] == rome
    system, user = (message["content"] for message in upstream.received[0].json["messages"])
    assert "City: A city. Parameters: " in system and "how many live there" in system
    assert user == f"{QUESTION}\n\n✿FUNCTION✿: City"


def test_structured_output_by_a_schema_is_the_upstreams_own(model: ChatOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says('{"name": "Rome", "people": 3}'))
    structured = model.with_structured_output(City, method="json_schema")
    assert structured.invoke(QUESTION) == City(name="Rome", people=3)
    asked = upstream.received[0].json
    assert asked["messages"] == [{"role": "user", "content": QUESTION}]
    assert asked["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("streamed", [True, False])
def test_structured_output_cut_by_max_tokens_is_never_half_an_object(
    model: ChatOpenAI, upstream: ScriptedUpstream, streamed: bool
) -> None:
    cut_off = '{"name": "Ro'
    upstream.script(
        Says(cut_off, cut=3, finish="length"), Says(f"✿FUNCTION✿: City\n✿ARGS✿: {cut_off}", cut=3, finish="length")
    )

    def ask(method: Any) -> list[Any]:
        structured = model.with_structured_output(City, method=method)
        return list(structured.stream(QUESTION)) if streamed else [structured.invoke(QUESTION)]

    with pytest.raises(openai.LengthFinishReasonError):
        ask("json_schema")
    assert ask("function_calling") == ([] if streamed else [None])


def run(message: AIMessage) -> list[ToolMessage]:
    """The results of all calls of the message."""
    by_name = {each.name: each for each in TOOLS}
    return [by_name[call["name"]].invoke(call) for call in message.tool_calls]


@pytest.mark.parametrize("streamed", [True, False])
def test_an_agent_answers_from_the_results_of_two_rounds(
    model: ChatOpenAI, upstream: ScriptedUpstream, streamed: bool
) -> None:
    upstream.script(Says("Look.\n" + ROME, cut=5), Says(": Now the time.\n" + CET, cut=5), Says(": 21, at 9."))
    bound = model.bind_tools(TOOLS)
    messages: list[AnyMessage] = [HumanMessage(QUESTION)]
    while not isinstance(messages[-1], AIMessage):
        message = summed(bound.stream(messages)) if streamed else bound.invoke(messages)
        messages += [message, *run(message)]
    assert messages[-1].content == "21, at 9."
    weather = f"{QUESTION}\n\nLook.{ROME}✿RESULT✿: 21 degrees in Rome\n✿RETURN✿"
    assert [received.json["messages"][-1]["content"] for received in upstream.received] == [
        QUESTION,
        weather,
        f"{weather}: Now the time.\n{CET}✿RESULT✿: 9:00 CET\n✿RETURN✿",
    ]


# -- langchain's own agent ---------------------------------------------------------------------------------


def run_agent(agent: Any, streamed: bool) -> tuple[dict[str, Any], str]:
    """Its last state, and the text that was streamed on the way."""
    asked = {"messages": [HumanMessage(QUESTION)]}
    if not streamed:
        return agent.invoke(asked), ""
    seen = list(agent.stream(asked, stream_mode=["messages", "values"]))
    chunks = [value[0] for mode, value in seen if mode == "messages"]
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, AIMessageChunk))
    return next(value for mode, value in reversed(seen) if mode == "values"), text


@pytest.mark.parametrize("streamed", [True, False])
def test_create_agent_goes_through_parallel_calls_and_several_rounds(
    model: ChatOpenAI, upstream: ScriptedUpstream, streamed: bool
) -> None:
    upstream.script(
        Says("Look.\n" + ROME + CET, cut=5), Says(": And again.\n" + ROME, cut=5), Says(": 21, at 9.", cut=2)
    )
    state, text = run_agent(create_agent(model, TOOLS), streamed)
    said = [message for message in state["messages"] if isinstance(message, AIMessage)]
    assert [calls(message) for message in said] == [CALLS, CALLS[:1], []]
    assert [message.content for message in said] == ["Look.", "And again.", "21, at 9."]
    assert text == ("Look.And again.21, at 9." if streamed else "")
    first = f"Look.{ROME}{CET}✿RESULT✿: 21 degrees in Rome\n✿RESULT✿: 9:00 CET\n✿RETURN✿"
    second = f": And again.\n{ROME}✿RESULT✿: 21 degrees in Rome\n✿RETURN✿"
    assert upstream.received[-1].json["messages"][-1]["content"] == f"{QUESTION}\n\n{first}{second}"


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        (ToolStrategy(City), '✿FUNCTION✿: City\n✿ARGS✿: {"name": "Rome", "people": 3}\n'),
        (ProviderStrategy(City), '{"name": "Rome", "people": 3}'),
    ],
    ids=["by a call", "by a schema"],
)
def test_create_agent_gives_structured_output_after_a_call(
    model: ChatOpenAI, upstream: ScriptedUpstream, strategy: Any, says: str, streamed: bool
) -> None:
    upstream.script(Says(ROME), Says(says, cut=5))
    state, _ = run_agent(create_agent(model, TOOLS, response_format=strategy), streamed)
    assert state["structured_response"] == City(name="Rome", people=3)
