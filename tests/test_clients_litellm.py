"""Tool calls as a user of LiteLLM sees them. Run by `make test-clients`.

Source: litellm 1.106, which reads an answer into models of its own and sums chunks up by `stream_chunk_builder`.
"""

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from clients import (
    ANSWER,
    ANSWERED_FROM,
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

# Or it fetches the newest prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = heavy("litellm")
litellm.suppress_debug_info = True
exceptions = heavy("litellm.exceptions")
async_clients = heavy("litellm.llms.custom_httpx.async_client_cleanup")

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore:Item '.*' on TypedDict class:UserWarning"),  # in a type of its own
]

Json = dict[str, Any]

RUN = {"get_weather": get_weather, "get_time": get_time}
CALLS = [("get_weather", '{"city": "Rome"}'), ("get_time", '{"zone": "CET"}')]


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """LiteLLM counts what is called without a loop on the thread's own, which it makes and never closes."""
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    yield
    asyncio.set_event_loop(None)
    own.close()


def tool(name: str, parameter: str) -> Json:
    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": RUN[name].__doc__, "parameters": schema}}


TOOLS = [tool("get_weather", "city"), tool("get_time", "zone")]
ASKED = {"role": "user", "content": QUESTION}


def request(url: str, provider: str = "openai", **fields: Any) -> Json:
    model = {"model": f"{provider}/m", "api_base": f"{url}/v1", "api_key": "none", "max_retries": 0}
    return {**model, "messages": [ASKED], "tools": TOOLS, **fields}


def ask(url: str, *, streamed: bool, **fields: Any) -> Any:
    """The answer's only choice."""
    answer = litellm.completion(**request(url, stream=streamed, **fields))
    return (litellm.stream_chunk_builder(list(answer)) if streamed else answer).choices[0]


def calls(message: Any) -> list[tuple[str, str]]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def results(message: Any) -> list[Json]:
    """What the tools say to the calls of the message."""
    return [
        {"role": "tool", "tool_call_id": call.id, "content": RUN[call.function.name](*_values(call))}
        for call in message.tool_calls
    ]


def _values(call: Any) -> list[str]:
    return list(json.loads(call.function.arguments).values())


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_parallel_calls_and_their_results_make_an_answer(
    florette: Florette, upstream: ScriptedUpstream, provider: str, streamed: bool
) -> None:
    upstream.script(*rounds(3))
    called = ask(florette(), streamed=streamed, provider=provider)
    assert (called.message.content, calls(called.message)) == ("Look.", CALLS)
    assert called.finish_reason == "tool_calls"
    messages = [ASKED, called.message, *results(called.message)]
    answered = ask(florette(), streamed=streamed, provider=provider, messages=messages)
    assert (answered.message.content, answered.finish_reason) == (ANSWER, "stop")
    assert last_prompt(upstream) == ANSWERED_FROM


async def test_an_async_stream_has_the_same_calls(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(rounds(3)[0])
    stream = await litellm.acompletion(**request(florette(), stream=True))
    answer = litellm.stream_chunk_builder([chunk async for chunk in stream])
    await async_clients.close_litellm_async_clients()
    assert calls(answer.choices[0].message) == CALLS


@pytest.mark.parametrize("streamed", [True, False])
def test_structured_output_comes_by_a_schema(florette: Florette, upstream: ScriptedUpstream, streamed: bool) -> None:
    upstream.script(Says(CITY_TEXT, cut=4))
    answer = ask(florette(), streamed=streamed, tools=None, response_format=City)
    assert answer.message.content == CITY_TEXT
    assert upstream.received[0].json["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_call_cut_by_max_tokens_says_so(florette: Florette, upstream: ScriptedUpstream, streamed: bool) -> None:
    upstream.script(CUT_OFF)
    answer = ask(florette(), streamed=streamed)
    assert (calls(answer.message), answer.finish_reason) == ([("get_weather", '{"city": "Ro')], "length")


def test_errors_are_litellms_own(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(400), Fails(503), breaks())
    url = florette(retries=0)
    with pytest.raises(litellm.BadRequestError, match="the script says so"):
        ask(url, streamed=False)
    with pytest.raises(litellm.ServiceUnavailableError, match="the script says so"):
        ask(url, streamed=True)
    with pytest.raises(exceptions.MidStreamFallbackError, match="failed while it answered: boom"):
        ask(url, streamed=True)
