"""A real vLLM behind Florette: real tokens, real stop strings, real refusals. Run by `make test-vllm`.

Needs a vLLM with no tool parser at FLORETTE_TEST_VLLM (its /v1 URL). Its model may babble: `structured_outputs` makes
it say what a test needs, through real sampling and real token borders.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from serving import PATIENCE_S, LoopThread

URL = os.environ.get("FLORETTE_TEST_VLLM", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not URL, reason="no real vLLM: set FLORETTE_TEST_VLLM to its /v1 URL"),
]

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ONE_CALL = r'✿FUNCTION✿: get_weather\n✿ARGS✿: \{"city": "[a-z]{3,8}"\}\n✿RESULT✿: [a-z]{5}'
TWO_CALLS = r'(✿FUNCTION✿: get_weather\n✿ARGS✿: \{"city": "[a-z]{3,8}"\}\n){2}✿RESULT✿'
USER: Any = [{"role": "user", "content": "weather?"}]


@pytest.fixture(scope="module")
def sdk(florette: Callable[..., str]) -> Iterator[openai.OpenAI]:
    """The openai SDK in front of Florette in front of the real vLLM."""
    with openai.OpenAI(base_url=florette(upstream=URL) + "/v1", api_key="x", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def model(sdk: openai.OpenAI) -> str:
    """The name of the model that the vLLM serves."""
    return next(iter(sdk.models.list())).id


def forced(regex: str, **fields: Any) -> dict[str, Any]:
    """What makes a babbling model say this, the same each time."""
    return {"structured_outputs": {"regex": regex}, "seed": 1, **fields}


def test_forced_marker_text_comes_out_as_a_call(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=USER, tools=[WEATHER], extra_body=forced(ONE_CALL), max_tokens=200
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    assert re.fullmatch(r'\{"city": "[a-z]{3,8}"\}', call.function.arguments)
    assert answer.usage is not None


@pytest.mark.parametrize("interval", [1, 3, 20])
def test_streamed_and_not_streamed_are_the_same_message(sdk: openai.OpenAI, model: str, interval: int) -> None:
    body: Any = {"model": model, "messages": USER, "tools": [WEATHER], "max_tokens": 200}
    whole = sdk.chat.completions.create(**body, extra_body=forced(TWO_CALLS)).choices[0].message
    with sdk.chat.completions.stream(**body, extra_body=forced(TWO_CALLS, stream_interval=interval)) as stream:
        final = stream.get_final_completion().choices[0]
    assert whole.tool_calls
    assert len(whole.tool_calls) == 2
    said = [call.to_dict()["function"] for call in whole.tool_calls]
    streamed = [call.function.model_dump(include={"name", "arguments"}) for call in final.message.tool_calls or []]
    assert streamed == said
    assert final.finish_reason == "tool_calls"


def test_the_prompt_is_rendered_by_a_plain_chat_template(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=USER, tools=[WEATHER], extra_body=forced(ONE_CALL, return_prompt_text=True)
    )
    prompt = (answer.model_extra or {})["prompt_text"]
    assert prompt.startswith("<|im_start|>system\nYou are a helpful assistant.\n\n# Tools\n\n")
    assert prompt.endswith("<|im_end|>\n<|im_start|>user\nweather?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("stream", [False, True])
def test_more_stop_strings_than_vllm_takes_all_work(sdk: openai.OpenAI, model: str, stream: bool) -> None:
    """The fourth of the caller's own is Florette's to apply: with ours there would be six."""
    body: Any = {"model": model, "messages": USER, "tools": [WEATHER], "stop": ["#1", "#2", "#3", "END"]}
    extra = forced("[a-z]{3,9} END [a-z]{20}", max_tokens=100)
    if stream:
        chunks = sdk.chat.completions.create(**body, stream=True, extra_body=extra)
        choices = [choice for chunk in chunks for choice in chunk.choices]
        text = "".join(choice.delta.content or "" for choice in choices)
        assert choices[-1].finish_reason == "stop"
    else:
        text = sdk.chat.completions.create(**body, extra_body=extra).choices[0].message.content or ""
    assert re.fullmatch("[a-z]{3,9} ", text)


def test_a_call_that_max_tokens_cuts_off_ends_in_length(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=USER, tools=[WEATHER], extra_body=forced(ONE_CALL), max_tokens=25
    )
    assert answer.choices[0].finish_reason == "length"


def test_two_choices_are_read_apart(sdk: openai.OpenAI, model: str) -> None:
    chunks = list(
        sdk.chat.completions.create(
            model=model, messages=USER, tools=[WEATHER], n=2, stream=True, extra_body=forced(ONE_CALL)
        )
    )
    for index in (0, 1):
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices if choice.index == index]
        calls = [call.function for delta in deltas for call in delta.tool_calls or [] if call.function]
        assert json.loads("".join(call.arguments or "" for call in calls)).keys() == {"city"}


def test_log_probabilities_travel_with_the_text(sdk: openai.OpenAI, model: str) -> None:
    answer = sdk.chat.completions.create(
        model=model, messages=USER, tools=[WEATHER], logprobs=True, extra_body=forced("[a-z]{9}")
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content
    assert "".join(entry.token for entry in logprobs.content).startswith(answer.choices[0].message.content or "-")


def test_a_prompt_that_is_too_long_is_a_context_overflow(sdk: openai.OpenAI, model: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "weather? " * 200_000}], tools=[WEATHER]
        )
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        sdk.chat.completions.create(model="nope", messages=USER, tools=[WEATHER])
    assert caught.value.code == "model_not_found"


def running() -> float:
    metrics = httpx.get(URL.removesuffix("/v1") + "/metrics").text
    return sum(float(value) for value in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)$", metrics, re.MULTILINE))


def becomes(loop_thread: LoopThread, wanted: float) -> bool:
    """True once the vLLM runs so many requests; asked as fast as it answers, for at most `PATIENCE_S`."""
    deadline_s = loop_thread.loop.time() + PATIENCE_S
    while loop_thread.loop.time() < deadline_s:
        if running() == wanted:
            return True
    return False


@pytest.mark.parametrize("tools", [[WEATHER], None])
@pytest.mark.parametrize("stream", [False, True])
def test_when_the_caller_leaves_the_gpu_is_free(
    sdk: openai.OpenAI, model: str, loop_thread: LoopThread, stream: bool, tools: Any
) -> None:
    """Seen in vLLM's own count of running requests."""
    body = {"model": model, "messages": USER, "stream": stream, **forced("[a-z ]{3800}", max_tokens=3000)}
    body |= {"tools": tools} if tools else {}
    base_url = str(sdk.base_url)

    async def ask_and_leave() -> None:
        async with (
            httpx.AsyncClient(timeout=httpx.Timeout(60)) as client,
            client.stream("POST", f"{base_url}chat/completions", json=body) as answer,
        ):
            await anext(answer.aiter_bytes())

    assert becomes(loop_thread, 0)
    if stream:
        loop_thread.run(ask_and_leave())
    else:
        with httpx.Client(timeout=httpx.Timeout(60, read=0.5)) as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{base_url}chat/completions", json=body)
    assert becomes(loop_thread, 0)
