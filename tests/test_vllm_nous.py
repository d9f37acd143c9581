"""The nous format over a real vLLM: its chat template, its guided decoding, real token borders.

Run by `make test-vllm`; see `test_vllm.py` for what it needs.
"""

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import openai
import pytest

from asking import ask, both_ways, client_of, named, tool

URL = os.environ.get("FLORETTE_TEST_VLLM", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not URL, reason="no real vLLM: set FLORETTE_TEST_VLLM to its /v1 URL"),
]

#: Short values: a babbling model would go on and on.
CITY: Any = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS = [tool("get_weather", CITY), tool("get_rain", CITY)]
#: A marker in the caller's words, so that what stands in the prompt is taken out of the answer.
USER: Any = [{"role": "user", "content": "weather <tool_call>?"}]
CALL = r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "[a-z]{3,8}", "days": 3\}\}\n</tool_call>'


@pytest.fixture(scope="module")
def sdk(florette: Callable[..., str]) -> Iterator[openai.OpenAI]:
    """The openai SDK in front of Florette in front of the real vLLM."""
    with client_of(florette(upstream=URL, format="nous")) as client:
        yield client


@pytest.fixture(scope="module")
def model(sdk: openai.OpenAI) -> str:
    """The name of the model that the vLLM serves."""
    return next(iter(sdk.models.list())).id


@both_ways
@pytest.mark.parametrize("interval", [1, 3, 20])
def test_forced_text_comes_out_as_calls(sdk: openai.OpenAI, model: str, stream: bool, interval: int) -> None:
    forced = {"structured_outputs": {"regex": rf"Well\.\n{CALL}\n{CALL}"}, "seed": 1, "stream_interval": interval}
    told = ask(sdk, stream=stream, model=model, messages=USER, tools=TOOLS, max_tokens=300, extra_body=forced).only
    assert (told.content, told.finish) == ("Well.", "tool_calls")
    assert [name for name, _ in told.made] == ["get_weather", "get_weather"]
    assert all(json.loads(arguments)["days"] == 3 for _, arguments in told.made)


@both_ways
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("choice", ["required", named("get_rain")], ids=["required", "named"])
def test_a_babbling_model_makes_the_calls_that_are_demanded(
    sdk: openai.OpenAI, model: str, stream: bool, choice: Any, parallel: bool, seed: int
) -> None:
    fields = {"tool_choice": choice, "parallel_tool_calls": parallel, "seed": seed, "max_tokens": 2000}
    told = ask(sdk, stream=stream, model=model, messages=USER, tools=TOOLS, **fields).only
    assert (told.content, told.finish) == ("", "tool_calls")
    names = [name for name, _ in told.made]
    if choice != "required":
        assert names == ["get_rain"]
    else:
        assert set(names) <= {"get_weather", "get_rain"}
        assert parallel or len(names) == 1
    for _, arguments in told.made:
        jsonschema.validate(json.loads(arguments), CITY)


def test_a_forced_call_is_gone_on_with_in_the_assistants_message(sdk: openai.OpenAI, model: str) -> None:
    """What a plain chat template makes of a message that is to be continued."""
    answer = sdk.chat.completions.create(
        model=model,
        messages=USER,
        tools=TOOLS,
        tool_choice="required",
        max_tokens=500,
        extra_body={"return_prompt_text": True, "seed": 1},
    )
    prompt = (answer.model_extra or {})["prompt_text"]
    assert prompt.endswith('<|im_end|>\n<|im_start|>assistant\n<tool_call>\n{"name":')


@both_ways
def test_beside_tools_an_answer_fits_the_schema_of_the_response_format(
    sdk: openai.OpenAI, model: str, stream: bool
) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY}}
    told = ask(
        sdk, stream=stream, model=model, messages=USER, tools=TOOLS, response_format=wanted, seed=1, max_tokens=2000
    ).only
    said = [arguments for _, arguments in told.made] or [told.content]
    for text in said:
        jsonschema.validate(json.loads(text), CITY)
