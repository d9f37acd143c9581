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
import jsonschema
import openai
import pytest

from asking import Told, ask, both_ways, client_of, named
from conftest import Florette
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


# -- made to comply ----------------------------------------------------------------------------------------


def closed(**properties: Any) -> Any:
    """A schema of these properties, all of them required, and of no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WORD = {"type": "string", "maxLength": 12}
COUNT = {"type": "integer", "minimum": 0, "maximum": 99}
SCHEMAS: dict[str, Any] = {
    "nested": closed(a=closed(b=closed(word=WORD, count=COUNT))),
    "enum": closed(unit={"enum": ["celsius", "华氏", 3, None]}, mode={"const": "now"}),
    "array": closed(days={"type": "array", "items": closed(day=COUNT), "minItems": 1, "maxItems": 3}),
    "optional": {**closed(word=WORD, count=COUNT), "required": []},
    "ref": {**closed(here={"$ref": "#/$defs/Place"}), "$defs": {"Place": closed(x={"type": "number"})}},
    "union": closed(value={"anyOf": [COUNT, closed(word=WORD), {"type": "null"}]}),
    "Chinese": closed(城市=WORD, 天数=COUNT),
    "object": {"properties": {"word": WORD}},
}

#: Choices of each request: as many seeds.
CHOICES = 4

each_schema = pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)


def tools_of(schema: Any, **fields: Any) -> Any:
    """A tool with this schema, and another one beside it."""
    function = {"name": "天气_weather", "parameters": schema, **fields}
    return [{"type": "function", "function": function}, WEATHER]


def calls_in(told: Told, tools: Any) -> int:
    """How many calls were made; AssertionError if one does not fit, unless `max_tokens` cut it off."""
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    whole = told.calls[:-1] if told.finish == "length" else told.calls
    for _, name, arguments in whole:
        jsonschema.validate(json.loads(arguments), schemas[name])
    return len(whole)


@pytest.fixture(params=["qwen", "nous"])
def either(request: pytest.FixtureRequest, florette: Florette) -> Iterator[openai.OpenAI]:
    """In front of a Florette that speaks one of the formats."""
    with client_of(florette(upstream=URL, format=request.param)) as client:
        yield client


@both_ways
@each_schema
@pytest.mark.parametrize("choice", ["required", "named"])
def test_a_demanded_call_always_fits_its_schema(
    either: openai.OpenAI, model: str, stream: bool, schema: Any, choice: str
) -> None:
    """Of a model that knows nothing but noise."""
    tools = tools_of(schema, strict=True)
    demanded: Any = choice if choice == "required" else named("天气_weather")
    reply = ask(
        either,
        stream=stream,
        model=model,
        tools=tools,
        tool_choice=demanded,
        parallel_tool_calls=choice == "required",
        n=CHOICES,
        seed=11,
        max_tokens=120,
    )
    made = sum(calls_in(told, tools) for told in reply.choices)
    assert made >= CHOICES // 2
    assert all(told.calls or told.finish == "length" for told in reply.choices)
    if choice == "named":
        assert {name for told in reply.choices for name, _ in told.made} == {"天气_weather"}


@both_ways
@each_schema
def test_beside_tools_an_answer_is_json_of_its_schema_or_calls(
    sdk: openai.OpenAI, model: str, stream: bool, schema: Any
) -> None:
    tools = tools_of(closed(word=WORD))
    answer_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = ask(
        sdk,
        stream=stream,
        model=model,
        tools=tools,
        response_format=answer_format,
        n=CHOICES,
        seed=3,
        max_tokens=120,
    )
    for told in reply.choices:
        calls_in(told, tools)
        if told.finish == "stop":
            jsonschema.validate(json.loads(told.content), schema)
    assert sum(told.finish != "length" for told in reply.choices) >= CHOICES // 2


@both_ways
def test_an_answer_fits_also_where_the_grammar_does_not_hold_it(sdk: openai.OpenAI, model: str, stream: bool) -> None:
    """The compiler takes `not`, and lets everything in; what babbles on is an error then, never a wrong answer."""
    schema = closed(word={"enum": ["a", "b"], "not": {"const": "a"}})
    answer_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    outcomes = set()
    for seed in range(3):
        try:
            told = ask(sdk, stream=stream, model=model, tools=[WEATHER], response_format=answer_format, seed=seed).only
        except openai.APIError as error:
            outcomes.add(error.code)
        else:
            outcomes.add(told.content or told.finish)
    assert {"".join(outcome.split()) for outcome in outcomes if outcome} <= {
        '{"word":"b"}',
        "response_format_not_met",
        "tool_calls",
    }


RESULT: Any = [
    *USER,
    {
        "role": "assistant",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "a", "content": "21"},
]


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        ({}, {"messages": RESULT, "response_format": {"type": "json_object"}}),
        ({"history": "continue"}, {"messages": RESULT, "tool_choice": "required"}),
        ({"thinking_begun": True}, {"tool_choice": "required"}),
        ({"guided": "always"}, {}),
        ({"guided": "always", "format": "nous"}, {"parallel_tool_calls": False}),
        ({}, {"tools": [{"type": "function", "function": {"name": "code_interpreter"}}], "tool_choice": "required"}),
        ({}, {"tools": tools_of(SCHEMAS["nested"], strict=True)}),
    ],
    ids=["answer to results", "continued", "thinking", "free text", "free text of the other", "code", "strict"],
)
def test_every_form_of_grammar_is_taken(florette: Florette, model: str, config: Any, fields: Any) -> None:
    """By the compiler of a real server, which is told of in the log if it refuses one."""
    with client_of(florette(upstream=URL, **config)) as client:
        told = ask(client, stream=True, model=model, **{"tools": [WEATHER], "seed": 1, "max_tokens": 60, **fields}).only
    assert told.finish in ("stop", "tool_calls", "length")


@both_ways
def test_a_schema_that_the_compiler_cannot_take_is_checked_instead(
    sdk: openai.OpenAI, model: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Items that differ from one another, for one; the caller does not learn of the refusal."""
    tools = tools_of(closed(words={"type": "array", "uniqueItems": True, "minItems": 2, "description": f"{stream}"}))
    with caplog.at_level("INFO", "proxy.guidance"):
        for _ in range(2):
            told = ask(sdk, stream=stream, model=model, tools=tools, tool_choice="required", max_tokens=8, seed=1).only
            assert told.finish == "length"
    assert [record.message for record in caplog.records if "refused a grammar" in record.message] == [
        "the upstream refused a grammar: answers to such requests are checked instead"
    ]


@both_ways
def test_a_model_that_is_held_to_nothing_and_does_not_obey_is_an_error(
    florette: Florette, model: str, stream: bool
) -> None:
    """What the grammar is for: the same model without."""
    with client_of(florette(upstream=URL, guided="off")) as client, pytest.raises(openai.APIError) as caught:
        ask(
            client,
            stream=stream,
            model=model,
            tools=[WEATHER],
            tool_choice="required",
            extra_body=forced("[a-z]{5}"),
        )
    assert caught.value.code == "tool_choice_not_met"


@both_ways
def test_behind_the_one_call_that_is_wanted_the_gpu_is_free(
    sdk: openai.OpenAI, model: str, loop_thread: LoopThread, stream: bool
) -> None:
    """The model would have gone on for thousands of tokens."""
    extra = forced(r'✿FUNCTION✿: get_weather\n✿ARGS✿: \{"city": "[a-z]{3}"\}\n[a-z ]{3800}')
    assert becomes(loop_thread, 0)
    reply = ask(
        sdk, stream=stream, model=model, tools=[WEATHER], parallel_tool_calls=False, extra_body=extra, max_tokens=3000
    )
    assert becomes(loop_thread, 0)
    assert reply.only.finish == "tool_calls"
    assert reply.usage is not None
    assert 10 < reply.usage["completion_tokens"] < 1000
