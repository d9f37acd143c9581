"""The upstream is dropped when it has said all that is wanted: its GPU is free, and the usage stays honest.

Source: vLLM 0.32.0 (a disconnect aborts the generation; `continuous_usage_stats` counts on every chunk); OpenAI's API
reference for `parallel_tool_calls`.
"""

from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asking import MESSAGES, ask, both_ways, call, fold, named, tool
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Begins, GoesSilent, Holds, Says

TOOLS = [tool("get_weather"), tool("search")]
ROME = call("get_weather", '{"city": "Rome"}')
OSLO = call("get_weather", '{"city": "Oslo"}')
CLOSED = ROME.rstrip()
MADE = [("get_weather", '{"city": "Rome"}')]

SINGLE: dict[str, Any] = {
    "parallel_tool_calls": {"tools": TOOLS, "parallel_tool_calls": False},
    "named": {"tools": TOOLS, "tool_choice": named("get_weather")},
    "required": {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False},
}

one_call = pytest.mark.parametrize("fields", SINGLE.values(), ids=SINGLE)


@both_ways
@one_call
def test_the_upstream_is_dropped_when_the_first_calls_json_closes(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, fields: Any
) -> None:
    """It would never have ended by itself; whether the caller's answer is streamed makes no difference."""
    upstream.script(GoesSilent(Begins(CLOSED[:-1], "}")))
    told = ask(client, stream=stream, **fields).only
    assert (told.made, told.finish) == (MADE, "tool_calls")
    assert upstream.received[0].left.wait(PATIENCE_S)


@both_ways
def test_so_it_is_with_functions(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(GoesSilent(Begins(CLOSED)))
    functions: Any = [entry["function"] for entry in TOOLS]
    request: Any = {"model": "m", "messages": MESSAGES, "functions": functions}
    if stream:
        choices = [c for chunk in client.chat.completions.create(**request, stream=True) for c in chunk.choices]
        assert choices[-1].finish_reason == "function_call"
    else:
        assert client.chat.completions.create(**request).choices[0].finish_reason == "function_call"
    assert upstream.received[0].left.wait(PATIENCE_S)


def test_behind_the_marker_of_a_result_it_is_dropped_at_once(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """Also where it does not heed stop strings, and several calls may be made: results are not the model's to make."""
    upstream.script(GoesSilent(Begins(ROME, OSLO, "✿RESULT✿")))
    told = ask(client, stream=True, tools=TOOLS).only
    assert [name for name, _ in told.made] == ["get_weather", "get_weather"]
    assert upstream.received[0].left.wait(PATIENCE_S)


def test_where_several_calls_may_be_made_it_is_not_dropped(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    held = Holds(Says.pieces(ROME, OSLO), after=2)
    upstream.script(held)
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS}
    chunks = client.chat.completions.create(**request, stream=True)
    assert held.reached.wait(PATIENCE_S)
    assert not upstream.received[0].left.is_set()
    held.release()
    assert len(fold(chunks).only.made) == 2


@both_ways
def test_of_two_choices_both_have_to_be_complete(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says([ROME + OSLO, "Let me see.\n" + OSLO + ROME], cut=9))
    reply = ask(client, stream=stream, n=2, **SINGLE["parallel_tool_calls"])
    assert [told.made for told in reply.choices] == [MADE, [("get_weather", '{"city": "Oslo"}')]]
    assert [told.finish for told in reply.choices] == ["tool_calls", "tool_calls"]


@given(
    text=st.sampled_from(
        [ROME + OSLO, ROME * 3, CLOSED + OSLO, ROME + "And more.\n" + OSLO, CLOSED + '{"city": "Oslo"}']
    ),
    cut=st.none() | st.integers(1, 60),
    stream=st.booleans(),
    fields=st.sampled_from(list(SINGLE.values())),
)
def test_a_second_call_never_gets_out(
    client: openai.OpenAI, upstream_server: ScriptedUpstream, text: str, cut: int | None, stream: bool, fields: Any
) -> None:
    """However the text is cut, and much of it may come at once."""
    with upstream_server.fresh() as upstream:
        upstream.script(Says(text, cut=cut))
        told = ask(client, stream=stream, **fields).only
    assert (told.content, told.made, told.finish) == ("", MADE, "tool_calls")


# -- usage -------------------------------------------------------------------------------------------------


@both_ways
@one_call
def test_the_usage_is_the_last_count_that_was_told(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, fields: Any
) -> None:
    """The script counts a token a chunk: the role is chunk 0, so the call is complete with the third token."""
    pieces = CLOSED[:9], CLOSED[9:20], CLOSED[20:], "\n", "more " * 50
    upstream.script(Holds(Says.pieces(*pieces, tokens=(10, 99)), after=4))
    usage = ask(client, stream=stream, **fields).usage
    assert usage == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}


@both_ways
def test_a_usage_that_nobody_told_is_estimated_and_says_so(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """A chunk has a token at least; four characters of a prompt are one."""
    upstream.script(Holds(Says.pieces(CLOSED[:9], CLOSED[9:20], CLOSED[20:], "more", usage=False), after=4))
    usage = ask(client, stream=stream, **SINGLE["parallel_tool_calls"]).usage
    assert usage is not None
    prompt = sum(len(message["content"]) for message in upstream.received[0].json["messages"])
    assert prompt / 5 < usage["prompt_tokens"] < prompt / 3
    assert 3 <= usage["completion_tokens"] <= 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["estimated"] is True


@both_ways
@pytest.mark.parametrize("fields", [{"tools": TOOLS}, *SINGLE.values()])
def test_the_usage_of_an_answer_that_came_whole_is_the_upstreams(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, fields: Any
) -> None:
    """With one call, too, if nothing came behind it."""
    upstream.script(Says(CLOSED[:-1], finish="length", tokens=(10, 99)))
    usage = ask(client, stream=stream, **fields).usage
    assert usage == {"prompt_tokens": 10, "completion_tokens": 99, "total_tokens": 109}


@both_ways
def test_a_usage_that_the_upstream_never_tells_is_not_made_up_for_a_whole_answer(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says("Hello.", usage=False))
    assert ask(client, stream=stream, tools=TOOLS).usage is None


def test_a_stream_that_did_not_ask_for_usage_is_told_none(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(CLOSED))
    request: Any = {"model": "m", "messages": MESSAGES, **SINGLE["parallel_tool_calls"]}
    assert fold(client.chat.completions.create(**request, stream=True)).usage is None
    assert "stream_options" not in upstream.received[0].json


# -- a model that does not end -----------------------------------------------------------------------------

ENOUGH = 4096


@pytest.mark.parametrize("blank", [" ", "\n", "\t \n"])
@pytest.mark.parametrize("fields", [{"tools": TOOLS}, SINGLE["named"]], ids=["auto", "named"])
@both_ways
def test_blanks_without_end_inside_a_call_are_an_error(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, fields: Any, blank: str
) -> None:
    """What a small model does that a grammar holds to JSON, and that has nothing to say."""
    upstream.script(Says(ROME[:-3] + '",' + blank * (ENOUGH + 10), cut=500))
    with pytest.raises(openai.APIError) as caught:
        ask(client, stream=stream, **fields)
    assert caught.value.code == "runaway_arguments"
    if not stream:
        assert isinstance(caught.value, openai.InternalServerError)
        assert caught.value.status_code == 502


def test_such_an_upstream_is_dropped(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(GoesSilent(Begins(ROME[:-3] + '",', *[" " * 500] * 9)))
    with pytest.raises(openai.APIError, match="blanks"):
        ask(client, stream=True, tools=TOOLS)
    assert upstream.received[0].left.wait(PATIENCE_S)


@both_ways
def test_as_many_blanks_as_pretty_json_can_have_are_none_too_many(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    blanks = "\n" + " " * (ENOUGH - 10)
    upstream.script(Says(call("get_weather", f'{{{blanks}"city":{blanks}"Rome"{blanks}}}'), cut=700))
    told = ask(client, stream=stream, tools=TOOLS).only
    assert [name for name, _ in told.made] == ["get_weather"]
    assert told.finish == "tool_calls"


@both_ways
def test_blanks_in_a_string_are_the_models_own(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    text = f'{{"city": "{" " * (2 * ENOUGH)}"}}'
    upstream.script(Says(call("get_weather", text), cut=700))
    assert ask(client, stream=stream, tools=TOOLS).only.made == [("get_weather", text)]
