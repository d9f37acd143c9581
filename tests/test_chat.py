"""What a turn makes of ends: stop strings, cut-off calls, and answers that are dropped before the upstream is done.

Source: the design (nothing is invented for a call that was cut off, and it never ends in `tool_calls`), and vLLM's
behaviour: a stop string ends the text wherever it stands, inside a call, too.
"""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from scripted import ScriptedUpstream
from steps import Says

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION: Any = {"name": "get_weather", "parameters": CITY}
TOOL: Any = {"type": "function", "function": FUNCTION}
MESSAGES: Any = [{"role": "user", "content": "hi"}]
ROME = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'

MODERN: Any = {"tools": [TOOL]}
LEGACY: Any = {"functions": [FUNCTION]}
SINGLE: Any = {"tools": [TOOL], "parallel_tool_calls": False}


def whole(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(model="m", messages=MESSAGES, **fields).choices[0]


def streamed(client: openai.OpenAI, **fields: Any) -> list[ChatCompletionChunk]:
    return list(client.chat.completions.create(model="m", messages=MESSAGES, stream=True, **fields))


def finishes(chunks: list[ChatCompletionChunk]) -> dict[int, str]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {choice.index: choice.finish_reason for choice in choices if choice.finish_reason}


@pytest.mark.parametrize(("form", "finish"), [(SINGLE, "tool_calls"), (LEGACY, "function_call")])
def test_an_answer_that_has_its_one_call_is_complete_whatever_cuts_the_upstream_off_behind_it(
    client: openai.OpenAI, upstream: ScriptedUpstream, form: Any, finish: str
) -> None:
    says = Says(ROME + ROME[:-8], finish="length")
    upstream.script(says, says)
    assert whole(client, **form).finish_reason == finish
    assert finishes(streamed(client, **form)) == {0: finish}


def test_one_choice_may_be_complete_while_the_other_is_cut_off(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says([ROME + ROME + "x" * 50, "talk " * 40], finish="length", cut=9))
    assert finishes(streamed(client, n=2, **SINGLE)) == {0: "tool_calls", 1: "length"}


@pytest.mark.parametrize("stop", [["."], ["n1", "n2", "."]])
def test_a_stop_string_inside_the_arguments_cuts_the_call_off(
    client: openai.OpenAI, upstream: ScriptedUpstream, stop: list[str]
) -> None:
    """The upstream's to apply, or Florette's where it did not fit: `/data/v1` was never what the model meant."""
    says = Says(ROME.replace("Rome", "/data/v1.old"))
    upstream.script(says, says)
    choice = whole(client, stop=stop, **MODERN)
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "/data/v1'
    assert finishes(streamed(client, stop=stop, **MODERN)) == {0: "length"}


def test_a_stop_string_behind_the_name_gives_no_finished_call(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says(ROME))
    assert whole(client, stop="\n", **MODERN).finish_reason != "tool_calls"


def test_a_stop_string_behind_a_call_leaves_it_complete(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(ROME + "\nEND"))
    assert whole(client, stop="END", **MODERN).finish_reason == "tool_calls"


@pytest.mark.parametrize("ending", ["```", "```\n", "```\nand so"])
def test_a_code_block_that_was_closed_is_a_complete_call(
    client: openai.OpenAI, upstream: ScriptedUpstream, ending: str
) -> None:
    """Only what follows could show that the fence was part of the code; what was cut off shows nothing."""
    upstream.script(Says(f"✿FUNCTION✿: code_interpreter\n✿ARGS✿:\n```py\nprint(1)\n{ending}", finish="length"))
    choice = whole(client, tools=[{"type": "function", "function": {"name": "code_interpreter"}}])
    assert choice.message.tool_calls[0].function.arguments == '{"code": "print(1)"}'
    assert choice.finish_reason == "length"


def test_without_tools_in_the_prompt_more_stop_strings_than_the_upstream_takes_work_too(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says("helloE"))
    choice = whole(client, tool_choice="none", stop=list("ABCDE"), **MODERN)
    assert (choice.message.content, choice.finish_reason) == ("hello", "stop")


@pytest.mark.parametrize(
    ("fields", "text"),
    [(SINGLE, ROME + ROME), ({**MODERN, "stop": ["1", "2", "END"]}, "hello END x")],
)
def test_usage_is_told_also_when_the_upstream_is_dropped(
    client: openai.OpenAI, upstream: ScriptedUpstream, fields: Any, text: str
) -> None:
    """As far as it has come: the upstream is asked to count on every chunk."""
    upstream.script(Says(text, cut=3))
    *said, last = streamed(client, stream_options={"include_usage": True}, **fields)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.prompt_tokens == 10
    assert 0 < last.usage.completion_tokens < len(text)
    assert all(chunk.usage is None for chunk in said)


def test_a_caller_who_wants_usage_on_every_chunk_gets_it(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """vLLM's `continuous_usage_stats`."""
    upstream.script(Says("hello", cut=2))
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(client, stream_options=options, **MODERN)
    assert any(chunk.usage and chunk.choices for chunk in chunks)


def test_log_probabilities_are_not_lost_while_text_is_held_back(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    text = "a ✿ b\n\nc"
    upstream.script(Says(text, cut="char"))
    chunks = streamed(client, logprobs=True, **MODERN)
    entries = [
        entry for c in chunks for choice in c.choices if choice.logprobs for entry in choice.logprobs.content or ()
    ]
    assert "".join(entry.token for entry in entries) == text


@pytest.mark.parametrize("stop", ["", [""], ["a", "b", ""]])
def test_an_empty_stop_string_is_refused(client: openai.OpenAI, upstream: ScriptedUpstream, stop: Any) -> None:
    """By vLLM, too: it would end every answer before it began."""
    with pytest.raises(openai.BadRequestError, match="stop"):
        whole(client, stop=stop, **MODERN)
    assert upstream.received == []
