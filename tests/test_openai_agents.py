"""Tool calls as a user of OpenAI's Agents SDK sees them, with its chat completions model.

Source: openai-agents 0.24, which turns chunks into events of the Responses API by rules of its own. Its traces would go
to OpenAI, so they are off.
"""

from typing import Any

import openai
import pytest
from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, function_tool
from openai.types.responses import ResponseFunctionCallArgumentsDeltaEvent, ResponseTextDeltaEvent

from clients import (
    ANSWER,
    ANSWERED_FROM,
    CITY,
    CITY_TEXT,
    CUT_OFF,
    QUESTION,
    ROME,
    City,
    breaks,
    get_time,
    get_weather,
    last_prompt,
    rounds,
)
from scripted import ScriptedUpstream
from steps import Fails, Says

RUN = RunConfig(tracing_disabled=True)
TOOLS: list[Any] = [function_tool(get_weather), function_tool(get_time)]
CALLS = [("get_weather", '{"city": "Rome"}'), ("get_time", '{"zone": "CET"}')]


@pytest.fixture
def model(async_client: openai.AsyncOpenAI) -> OpenAIChatCompletionsModel:
    return OpenAIChatCompletionsModel("m", openai_client=async_client)


@pytest.fixture
def agent(model: OpenAIChatCompletionsModel) -> Agent[Any]:
    return Agent(name="guide", model=model, tools=TOOLS)


async def run(agent: Agent[Any]) -> Any:
    return await Runner.run(agent, QUESTION, run_config=RUN)


async def run_streamed(agent: Agent[Any]) -> tuple[Any, list[Any]]:
    """The result, and the events of the model that came on the way."""
    result = Runner.run_streamed(agent, QUESTION, run_config=RUN)
    events = [event.data async for event in result.stream_events() if event.type == "raw_response_event"]
    return result, events


def calls(result: Any) -> list[tuple[str, str]]:
    made = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
    return [(call.name, call.arguments) for call in made]


async def test_an_agent_answers_from_the_results_of_parallel_calls(
    agent: Agent[Any], upstream: ScriptedUpstream
) -> None:
    upstream.script(*rounds())
    result = await run(agent)
    assert (calls(result), result.final_output) == (CALLS, ANSWER)
    assert last_prompt(upstream) == ANSWERED_FROM
    assert result.raw_responses[0].usage.total_tokens == 15


@pytest.mark.parametrize("cut", [None, 1, 7])
async def test_a_streamed_run_has_the_same_calls_and_answer(
    agent: Agent[Any], upstream: ScriptedUpstream, cut: int | None
) -> None:
    upstream.script(*rounds(cut))
    result, events = await run_streamed(agent)
    assert (calls(result), result.final_output) == (CALLS, ANSWER)
    assert last_prompt(upstream) == ANSWERED_FROM
    text = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
    arguments = [event.delta for event in events if isinstance(event, ResponseFunctionCallArgumentsDeltaEvent)]
    assert (text, "".join(arguments)) == ("Look." + ANSWER, "".join(made for _, made in CALLS))


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_structured_answer_may_come_after_a_call(
    agent: Agent[Any], upstream: ScriptedUpstream, streamed: bool
) -> None:
    upstream.script(Says(ROME), Says(CITY_TEXT, cut=5))
    structured = agent.clone(output_type=City)
    result = (await run_streamed(structured))[0] if streamed else await run(structured)
    assert (calls(result), result.final_output) == (CALLS[:1], CITY)


async def test_an_agent_hands_over_to_another(model: OpenAIChatCompletionsModel, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("✿FUNCTION✿: transfer_to_guide\n✿ARGS✿: {}\n"), *rounds())
    guide = Agent(name="guide", model=model, tools=TOOLS)
    result = await run(Agent(name="desk", model=model, handoffs=[guide]))
    assert (result.last_agent, result.final_output) == (guide, ANSWER)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_call_cut_by_max_tokens_is_not_run(
    agent: Agent[Any], upstream: ScriptedUpstream, streamed: bool
) -> None:
    """The SDK knows no finish reason: arguments that are not JSON are an error of the tool, told to the model."""
    upstream.script(CUT_OFF, Says(ANSWER))
    result = (await run_streamed(agent))[0] if streamed else await run(agent)
    [told] = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert told.startswith("An error occurred")
    assert told in last_prompt(upstream)


async def test_errors_are_those_of_the_openai_client(agent: Agent[Any], upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(400), breaks())
    with pytest.raises(openai.BadRequestError, match="the script says so"):
        await run(agent)
    with pytest.raises(openai.APIError, match="failed while it answered: boom"):
        await run_streamed(agent)
