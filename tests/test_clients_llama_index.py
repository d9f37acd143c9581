"""Tool calls as a user of LlamaIndex sees them, with its `OpenAILike`. Run by `make test-clients`.

Source: llama-index-llms-openai-like 0.8, which sums up a call's chunks by rules of its own.
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest

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
    heavy,
    last_prompt,
    rounds,
)
from conftest import Florette
from scripted import ScriptedUpstream
from steps import Fails, Says

openai_like = heavy("llama_index.llms.openai_like")
core_tools = heavy("llama_index.core.tools")
workflow = heavy("llama_index.core.agent.workflow")
prompts = heavy("llama_index.core.prompts")

pytestmark = [
    pytest.mark.clients,
    # Its workflows look at every attribute of an agent, the deprecated ones of pydantic included.
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
]

TOOLS = [core_tools.FunctionTool.from_defaults(function) for function in (get_weather, get_time)]
CALLS = [("get_weather", {"city": "Rome"}), ("get_time", {"zone": "CET"})]


@pytest.fixture
async def llm(anyio_backend: str, florette: Florette) -> AsyncIterator[Any]:
    """With HTTP clients of its own: those that LlamaIndex makes are never closed."""
    with httpx.Client() as http:
        async with httpx.AsyncClient() as async_http:
            yield openai_like.OpenAILike(
                model="m",
                api_base=f"{florette()}/v1",
                api_key="none",
                is_chat_model=True,
                is_function_calling_model=True,
                max_retries=0,
                http_client=http,
                async_http_client=async_http,
            )


def ask(llm: Any, *, streamed: bool) -> Any:
    fields = {"user_msg": QUESTION, "allow_parallel_tool_calls": True}
    if streamed:
        return list(llm.stream_chat_with_tools(TOOLS, **fields))[-1]
    return llm.chat_with_tools(TOOLS, **fields)


def calls(llm: Any, response: Any) -> list[tuple[str, Any]]:
    return [(call.tool_name, call.tool_kwargs) for call in llm.get_tool_calls_from_response(response)]


@pytest.mark.parametrize("streamed", [True, False])
def test_parallel_calls_come_out(llm: Any, upstream: ScriptedUpstream, streamed: bool) -> None:
    upstream.script(rounds(3)[0])
    response = ask(llm, streamed=streamed)
    assert (response.message.content, calls(llm, response)) == ("Look.", CALLS)


@pytest.mark.parametrize("streamed", [True, False])
async def test_an_agent_answers_from_the_results_of_parallel_calls(
    llm: Any, upstream: ScriptedUpstream, streamed: bool
) -> None:
    upstream.script(*rounds(3))
    agent = workflow.FunctionAgent(tools=TOOLS, llm=llm, streaming=streamed)
    result = await agent.run(QUESTION)
    assert result.response.content == ANSWER
    assert [(call.tool_name, call.tool_kwargs) for call in result.tool_calls] == CALLS
    assert last_prompt(upstream) == ANSWERED_FROM


def test_structured_output_comes_by_a_call(llm: Any, upstream: ScriptedUpstream) -> None:
    upstream.script(*[Says(f"✿FUNCTION✿: City\n✿ARGS✿: {CITY_TEXT}\n", cut=5)] * 2)
    prompt = prompts.PromptTemplate(QUESTION)
    assert llm.structured_predict(City, prompt) == CITY
    assert list(llm.stream_structured_predict(City, prompt))[-1].model_dump() == CITY.model_dump()


@pytest.mark.parametrize("streamed", [True, False])
def test_a_call_cut_by_max_tokens_says_so(llm: Any, upstream: ScriptedUpstream, streamed: bool) -> None:
    """LlamaIndex completes the arguments as well as it can; the finish reason tells."""
    upstream.script(CUT_OFF)
    assert ask(llm, streamed=streamed).raw.choices[0].finish_reason == "length"


def test_errors_are_those_of_the_openai_client(llm: Any, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(400), breaks())
    with pytest.raises(openai.BadRequestError, match="the script says so"):
        ask(llm, streamed=False)
    with pytest.raises(openai.APIError, match="failed while it answered: boom"):
        ask(llm, streamed=True)
