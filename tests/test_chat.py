"""What a turn makes of ends: stop strings, cut-off calls, and answers that are dropped before the upstream is done.

Source: the design (nothing is invented for a call that was cut off, and it never ends in `tool_calls`), and vLLM's
behaviour: a stop string ends the text wherever it stands, inside a call, too.
"""

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from conftest import Florette
from scripted import ScriptedUpstream
from steps import DONE, Answers, Chunks, Fails, Says
from vllm_shapes import chunk

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


def test_choices_first_appear_in_ascending_order(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """Whatever the upstream begins with: openai's SDK puts choices into a list by their order of appearance."""
    late = [chunk({"content": "b"}, index=1), chunk({"content": "a"}), chunk({}, "stop", index=1), chunk({}, "stop")]
    upstream.script(Chunks([*late, DONE]))
    chunks = streamed(client, n=2, **MODERN)
    first = [choice.index for c in chunks for choice in c.choices if choice.delta.role]
    assert first == [0, 1]
    assert finishes(chunks) == {0: "stop", 1: "stop"}


THOUGHTS = f"<think>Maybe ✿FUNCTION✿: other\n✿ARGS✿: {{}}\nno.</think>\n{ROME}"
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.mark.parametrize("choice", ["auto", "required", NAMED])
def test_nothing_in_the_thinking_is_a_call_whatever_the_choice(
    client: openai.OpenAI, upstream: ScriptedUpstream, choice: Any
) -> None:
    """A call that was begun for the model is begun behind its thinking."""
    upstream.script(Says(THOUGHTS), Says(THOUGHTS, cut="char"))
    other: Any = {"type": "function", "function": {"name": "other"}}
    message = whole(client, tools=[TOOL, other], tool_choice=choice).message
    assert [call.function.name for call in message.tool_calls] == ["get_weather"]
    assert message.content is None
    assert message.reasoning_content == "Maybe ✿FUNCTION✿: other\n✿ARGS✿: {}\nno."
    assert finishes(streamed(client, tools=[TOOL, other], tool_choice=choice)) == {0: "tool_calls"}


def test_a_named_choice_asks_for_one_call_and_the_rest_is_dropped(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    other: Any = {"type": "function", "function": {"name": "other"}}
    upstream.script(Says('\n✿ARGS✿: {"city": "Rome"}\n✿FUNCTION✿: other\n✿ARGS✿: {}'))
    choice = whole(client, tools=[TOOL, other], tool_choice=NAMED)
    assert [call.function.name for call in choice.message.tool_calls] == ["get_weather"]
    assert choice.finish_reason == "tool_calls"


def test_thinking_that_the_template_began_is_thinking(florette: Florette, upstream: ScriptedUpstream) -> None:
    """`thinking_begun`: the prompt ends in <think>, so only </think> is seen."""
    upstream.script(Says(f"I could {ROME}no wait.</think>{ROME}"), Says("Hm.</think>Hello"))
    with openai.OpenAI(base_url=florette(thinking_begun=True) + "/v1", api_key="x", max_retries=0) as sdk:
        called = whole(sdk, **MODERN).message
        assert len(called.tool_calls) == 1
        assert called.reasoning_content == f"I could {ROME}no wait."
        plain = whole(sdk, tool_choice="none", **MODERN).message
        assert (plain.reasoning_content, plain.content) == ("Hm.", "Hello")


def test_a_marker_in_the_thinking_that_ends_the_answer_is_no_finished_answer(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    """The upstream's stop strings count in thinking, too."""
    upstream.script(Says("<think>I would write ✿RESULT✿ and"))
    choice = whole(client, **MODERN)
    assert (choice.finish_reason, choice.message.reasoning_content) == ("length", "I would write ")


def test_an_assistants_words_are_not_continued_as_the_users(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """The prompt has the turn in the user's message: vLLM would go on in the user's name."""
    upstream.script(Says("x"))
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    whole(client, extra_body=extra, **MODERN)
    sent = upstream.received[0].json
    assert "continue_final_message" not in sent
    assert "add_generation_prompt" not in sent


@pytest.mark.parametrize("stop", [["x" * 257], ["x"] * 33])
def test_stop_strings_have_bounds(client: openai.OpenAI, upstream: ScriptedUpstream, stop: list[str]) -> None:
    with pytest.raises(openai.BadRequestError, match="stop"):
        whole(client, stop=stop, **MODERN)


@pytest.mark.parametrize(("code", "kind"), [(400, openai.BadRequestError), (404, openai.NotFoundError)])
def test_a_refusal_that_comes_behind_a_good_status_keeps_its_meaning(
    client: openai.OpenAI, upstream: ScriptedUpstream, code: int, kind: type[openai.APIStatusError]
) -> None:
    refused = {"error": {"message": "This model's maximum context length is 64 tokens.", "code": code}}
    upstream.script(Answers(refused), Chunks([refused, DONE]))
    for ask in (whole, streamed):
        with pytest.raises(kind, match="maximum context length"):
            ask(client, **MODERN)


CUT = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Ro'


@pytest.mark.parametrize("finish", ["abort", "error"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_the_upstream_gave_up_is_an_error_and_no_call(
    client: openai.OpenAI, upstream: ScriptedUpstream, finish: str, stream: bool
) -> None:
    """vLLM's own finish reasons: what has come may be half of anything."""
    upstream.script(Says(CUT, finish=finish))
    with pytest.raises(openai.APIError, match=f"before it was finished: {finish}"):
        streamed(client, **MODERN) if stream else whole(client, **MODERN)


def test_nothing_is_made_up_for_a_call_that_a_filter_cut_off(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    says = Says(CUT, finish="content_filter")
    upstream.script(says, says)
    choice = whole(client, **MODERN)
    assert choice.finish_reason == "content_filter"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Ro'
    assert finishes(streamed(client, **MODERN)) == {0: "content_filter"}


def test_an_upstream_that_is_too_busy_to_say_so_is_asked_again_in_a_second(
    florette: Florette, upstream: ScriptedUpstream
) -> None:
    upstream.script(Fails(503), Fails(503, headers={"Retry-After": "7"}))
    with openai.OpenAI(base_url=florette(retries=0) + "/v1", api_key="test", max_retries=0) as sdk:
        for seconds in ("1", "7"):
            with pytest.raises(openai.InternalServerError) as caught:
                streamed(sdk, **MODERN)
            assert caught.value.response.status_code == 503
            assert caught.value.response.headers["retry-after"] == seconds
