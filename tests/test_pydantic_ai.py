"""Tool calls as a user of Pydantic AI sees them.

Source: pydantic-ai-slim 2.68 with its `OpenAIChatModel`, which joins chunks by rules of its own and writes the
arguments of a call anew for the next round.
"""

from typing import Any

import openai
import pytest
from pydantic_ai import Agent, AgentRunResultEvent, NativeOutput, PartEndEvent, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import IncompleteToolCall, ModelHTTPError
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from clients import (
    ANSWER,
    ANSWERED_FROM,
    CITY,
    CITY_TEXT,
    CUT_OFF,
    QUESTION,
    City,
    breaks,
    get_time,
    get_weather,
    last_prompt,
    rounds,
)
from scripted import ScriptedUpstream
from steps import Fails, Says

CALLS = [("get_weather", '{"city": "Rome"}'), ("get_time", '{"zone": "CET"}')]


@pytest.fixture
def model(async_client: openai.AsyncOpenAI) -> OpenAIChatModel:
    return OpenAIChatModel("m", provider=OpenAIProvider(openai_client=async_client))


@pytest.fixture
def agent(model: OpenAIChatModel) -> Agent[None, str]:
    return Agent(model, tools=[get_weather, get_time], retries=0)


async def test_an_agent_answers_from_the_results_of_parallel_calls(
    agent: Agent[None, str], upstream: ScriptedUpstream
) -> None:
    upstream.script(*rounds())
    result = await agent.run(QUESTION)
    assert result.output == ANSWER
    assert last_prompt(upstream) == ANSWERED_FROM
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    results = [part for part in parts if isinstance(part, ToolReturnPart)]
    assert [(call.tool_name, call.args) for call in calls] == CALLS
    assert [call.tool_call_id for call in calls] == [each.tool_call_id for each in results]
    assert result.usage.total_tokens == 30


@pytest.mark.parametrize("cut", [None, 1, 7])
async def test_a_streamed_run_has_the_same_calls_and_answer(
    agent: Agent[None, str], upstream: ScriptedUpstream, cut: int | None
) -> None:
    upstream.script(*rounds(cut))
    async with agent.run_stream_events(QUESTION) as stream:
        events: list[Any] = [event async for event in stream]
    ended = [event.part for event in events if isinstance(event, PartEndEvent)]
    assert [(part.tool_name, part.args) for part in ended if isinstance(part, ToolCallPart)] == CALLS
    assert isinstance(events[-1], AgentRunResultEvent) and events[-1].result.output == ANSWER
    assert last_prompt(upstream) == ANSWERED_FROM


OUTPUTS = {
    "tool": (ToolOutput(City), f"✿FUNCTION✿: final_result\n✿ARGS✿: {CITY_TEXT}\n"),
    "schema": (NativeOutput(City), CITY_TEXT),
    "prompt": (PromptedOutput(City), CITY_TEXT),
}


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize(("output", "says"), OUTPUTS.values(), ids=list(OUTPUTS))
async def test_structured_output_comes_in_each_of_its_modes(
    model: OpenAIChatModel, upstream: ScriptedUpstream, output: Any, says: str, streamed: bool
) -> None:
    upstream.script(Says(says, cut=5))
    agent: Agent[None, City] = Agent(model, output_type=output, retries=0)
    if streamed:
        async with agent.run_stream(QUESTION) as stream:
            assert await stream.get_output() == CITY
    else:
        assert (await agent.run(QUESTION)).output == CITY


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_call_cut_by_max_tokens_is_incomplete(
    agent: Agent[None, str], upstream: ScriptedUpstream, streamed: bool
) -> None:
    upstream.script(CUT_OFF)
    with pytest.raises(IncompleteToolCall):
        await (_streamed(agent) if streamed else agent.run(QUESTION))


async def test_errors_tell_their_status_before_the_first_byte_and_after(
    agent: Agent[None, str], upstream: ScriptedUpstream
) -> None:
    upstream.script(Fails(400), breaks())
    with pytest.raises(ModelHTTPError, match="the script says so") as refused:
        await agent.run(QUESTION)
    with pytest.raises(ModelHTTPError, match="failed while it answered: boom") as broken:
        await _streamed(agent)
    assert (refused.value.status_code, broken.value.status_code) == (400, 500)


async def _streamed(agent: Agent[None, str]) -> None:
    async with agent.run_stream_events(QUESTION) as stream:
        async for _ in stream:
            pass
