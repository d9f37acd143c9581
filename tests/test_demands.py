"""`tool_choice: required` and named ones over an upstream that takes no grammar: checked, and asked for once more.

Source: OpenAI's API reference for `tool_choice` (the model must call a tool); that a demand which is not met is an
error and never an empty `tool_calls` is Florette's own.
"""

from dataclasses import dataclass
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asking import CITY, MESSAGES, ask, both_ways, call, client_of, fold, named, raw_request, tool
from conftest import Florette
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Begins, Fails, GoesSilent, Holds, Says

TOOLS = [tool("get_weather"), tool("get_time", {"type": "object", "properties": {"zone": {"type": "string"}}})]
FUNCTIONS: Any = [entry["function"] for entry in TOOLS]
NAMED = named("get_weather")

#: As the model goes on behind what the prompt began for it.
ROME_ON = ' get_weather\n✿ARGS✿: {"city": "Rome"}\n'
ROME = ("get_weather", '{"city": "Rome"}')

SECRET = "Rome is nice this time of the year."

DEMANDS = [pytest.param("required", " get_weather", id="required"), pytest.param(NAMED, "", id="named")]


def prompt_of(upstream: ScriptedUpstream, number: int) -> str:
    """The text of a request's last message."""
    content: str = upstream.received[number].json["messages"][-1]["content"]
    return content


@both_ways
@pytest.mark.parametrize(("choice", "name"), DEMANDS)
def test_a_demand_that_is_not_met_is_stated_once_more_and_the_caller_sees_the_call_alone(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, choice: Any, name: str
) -> None:
    upstream.script(Says(SECRET, cut=4), Says(f'{name}\n✿ARGS✿: {{"city": "Rome"}}\n', cut=4))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice=choice).only
    assert (told.content, told.made, told.finish) == ("", [ROME], "tool_calls")


@pytest.mark.parametrize(("choice", "wanted"), [("required", "get_weather or get_time"), (NAMED, "get_weather")])
def test_the_second_prompt_holds_what_the_model_said_and_what_it_has_to_do(
    client: openai.OpenAI, upstream: ScriptedUpstream, choice: Any, wanted: str
) -> None:
    upstream.script(Says(SECRET), Says(call(*ROME)))
    ask(client, stream=False, tools=TOOLS, tool_choice=choice)
    first, second = (request.json for request in upstream.received)
    assert [message["role"] for message in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1]["content"] == MESSAGES[0]["content"]
    assert second["messages"][2]["content"] == SECRET
    assert f"You have to call {wanted} now" in prompt_of(upstream, 1)
    begun = prompt_of(upstream, 0).removeprefix(MESSAGES[0]["content"])
    assert begun.startswith("\n\n✿FUNCTION✿:")
    assert prompt_of(upstream, 1).endswith(begun), "the call is begun for the model as before"


def test_a_model_that_said_nothing_is_not_quoted(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("\n"), Says(ROME_ON))
    ask(client, stream=False, tools=TOOLS, tool_choice="required")
    roles = [message["role"] for message in upstream.received[1].json["messages"]]
    assert roles == ["system", "user", "user"]


@pytest.mark.parametrize("again", ["Let me see.\n" + call(*ROME), ROME_ON])
@both_ways
def test_what_the_model_says_around_the_call_that_it_was_asked_for_again_is_left_out(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, again: str
) -> None:
    """It was asked for the call and nothing else: an apology to us is nothing for the caller."""
    upstream.script(Says(SECRET, cut=4), Says(again, cut=4))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice="required").only
    assert (told.content, told.made) == ("", [ROME])


@both_ways
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_text_before_a_demanded_call_is_kept(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, choice: Any
) -> None:
    upstream.script(Says("Let me\n  see.\n" + call(*ROME), cut=3))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice=choice).only
    assert (told.content, told.made, told.finish) == ("Let me\n  see.", [ROME], "tool_calls")


@both_ways
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_demand_that_is_not_met_twice_is_an_error(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, choice: Any
) -> None:
    upstream.script(Says(SECRET, cut=4), Says("I would rather not.", cut=4))
    with pytest.raises(openai.APIError) as caught:
        ask(client, stream=stream, tools=TOOLS, tool_choice=choice)
    assert caught.value.code == "tool_choice_not_met"
    if not stream:
        assert isinstance(caught.value, openai.InternalServerError)
        assert caught.value.status_code == 502


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_stream_that_ends_in_that_error_has_told_nothing_of_either_answer(
    florette: Florette, upstream: ScriptedUpstream, choice: Any
) -> None:
    upstream.script(Says(SECRET, cut=4), Says("I would rather not.", cut=4))
    with client_of(florette()) as sdk:
        chunks = sdk.chat.completions.create(model="m", messages=MESSAGES, stream=True, tools=TOOLS, tool_choice=choice)
        told = []
        with pytest.raises(openai.APIError):
            told += [said for chunk in chunks for said in chunk.choices]
    assert not any(said.delta.content or said.delta.tool_calls or said.finish_reason for said in told)


@both_ways
def test_another_tool_than_the_named_one_is_a_mistake(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """The upstream is dropped at its name."""
    upstream.script(Says(call("get_time", '{"zone": "CET"}'), cut=4), Says('\n✿ARGS✿: {"city": "Rome"}', cut=4))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice=NAMED).only
    assert told.made == [ROME]
    assert "CET" not in repr(upstream.received[1].json["messages"])


@both_ways
def test_a_legacy_function_call_is_demanded_likewise(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(SECRET, cut=4), Says('\n✿ARGS✿: {"city": "Rome"}', cut=4))
    request: Any = {"model": "m", "messages": MESSAGES, "functions": FUNCTIONS, "function_call": {"name": ROME[0]}}
    if stream:
        deltas = [c.delta for chunk in client.chat.completions.create(**request, stream=True) for c in chunk.choices]
        said = [delta.function_call for delta in deltas if delta.function_call]
        made = "".join(part.name or "" for part in said), "".join(part.arguments or "" for part in said)
        assert not any(delta.content for delta in deltas)
    else:
        message = client.chat.completions.create(**request).choices[0].message
        made = message.function_call.name, message.function_call.arguments
        assert message.content is None
    assert made == ROME


# -- what is no mistake ------------------------------------------------------------------------------------


@both_ways
def test_an_answer_that_max_tokens_cut_off_is_told_as_it_is(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """The model had no room to call; a second try would have no more."""
    upstream.script(Says(SECRET, cut=4, finish="length"))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice="required").only
    assert (told.content, told.made, told.finish) == (SECRET, [], "length")


@both_ways
def test_a_demanded_call_that_max_tokens_cut_off_ends_in_length(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(ROME_ON[:-6], cut=4, finish="length"))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice="required").only
    assert (told.made, told.finish) == ([("get_weather", '{"city": "R')], "length")


@both_ways
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_who_demands_nothing_is_told_whatever_the_model_said(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, choice: str
) -> None:
    upstream.script(Says(SECRET, cut=4))
    assert ask(client, stream=stream, tools=TOOLS, tool_choice=choice).only.content == SECRET


# -- several choices ---------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("talker", [0, 1])
def test_of_two_choices_only_the_one_that_did_not_obey_is_asked_again(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, talker: int
) -> None:
    texts = [ROME_ON, ROME_ON]
    texts[talker] = SECRET
    upstream.script(Says(texts, cut=5), Says(ROME_ON.replace("Rome", "Oslo"), cut=5))
    reply = ask(client, stream=stream, tools=TOOLS, tool_choice="required", n=2)
    made = [[ROME], [ROME]]
    made[talker] = [("get_weather", '{"city": "Oslo"}')]
    assert [told.made for told in reply.choices] == made
    assert [told.finish for told in reply.choices] == ["tool_calls", "tool_calls"]
    assert [request.json["n"] for request in upstream.received] == [2, 1]


@both_ways
def test_two_choices_that_did_not_obey_are_asked_again_one_by_one(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """Each is told of its own words."""
    upstream.script(Says(["one", "two"]), Says(ROME_ON), Says(ROME_ON.replace("Rome", "Oslo")))
    reply = ask(client, stream=stream, tools=TOOLS, tool_choice="required", n=2)
    assert [told.made[0][1] for told in reply.choices] == ['{"city": "Rome"}', '{"city": "Oslo"}']
    quoted = [request.json["messages"][2]["content"] for request in upstream.received[1:]]
    assert quoted == ["one", "two"]


# -- what is told besides ----------------------------------------------------------------------------------


@both_ways
def test_usage_is_the_sum_over_the_tries(client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    """The first one's as far as it was counted when the upstream was dropped: a token a chunk in the script."""
    upstream.script(Says("talk", cut="char", tokens=(10, 4)), Says(ROME_ON, tokens=(30, 9)))
    usage = ask(client, stream=stream, tools=TOOLS, tool_choice="required").usage
    assert usage is not None
    assert usage["prompt_tokens"] == 40
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 13 <= usage["completion_tokens"] <= 14
    assert "estimated" not in usage


@both_ways
def test_no_log_probabilities_of_the_first_answer_are_told(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """They hold its words."""
    upstream.script(Says(SECRET, cut=4), Says(ROME_ON, cut=4))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice="required", logprobs=True).only
    assert "".join(told.tokens) == ROME_ON


@both_ways
def test_log_probabilities_of_text_that_was_held_back_come_with_it(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    text = "Let me see.\n" + call(*ROME)
    upstream.script(Says(text, cut=4))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice="required", logprobs=True).only
    assert "".join(told.tokens) == text


@both_ways
def test_an_error_of_the_second_try_is_the_callers(
    florette: Florette, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(SECRET, cut=4), Fails(503))
    with client_of(florette(retries=0)) as sdk, pytest.raises(openai.APIError, match="the script says so"):
        ask(sdk, stream=stream, tools=TOOLS, tool_choice="required")


@both_ways
def test_a_caller_who_leaves_during_the_second_try_frees_the_upstream(
    florette: Florette, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(SECRET, cut=4), GoesSilent(Begins("Let me")))
    line = raw_request(florette(), tools=TOOLS, tool_choice="required", stream=stream)
    upstream.wait_for(2)
    line.close()
    assert upstream.received[1].left.wait(PATIENCE_S)


def test_the_first_try_is_dropped_once_it_cannot_be_what_was_demanded(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    """Seen from the upstream, which is still in the middle of the other tool's call."""
    wrong = Holds(Says(call("get_time", '{"zone": "CET"}'), cut=22), after=3)
    upstream.script(wrong, Says('\n✿ARGS✿: {"city": "Rome"}'))
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED}
    told = fold(client.chat.completions.create(**request, stream=True)).only
    assert told.made == [ROME]
    assert upstream.received[0].left.is_set()


def test_a_tool_is_demanded_by_the_name_that_the_model_knows(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(SECRET), Says(SECRET))
    with pytest.raises(openai.APIError, match="'get_weather'"):
        ask(
            client,
            stream=False,
            tools=[tool("get_weather", CITY, name_for_model="天气")],
            tool_choice=NAMED,
        )
    assert "call 天气 now" in prompt_of(upstream, 1)


@dataclass(frozen=True)
class Try:
    """What a model says, and the tool that it calls by that, if any."""

    text: str
    tool: str | None = None


TRIES = st.sampled_from(
    [
        Try(SECRET),
        Try("Hm."),
        Try("No.\n✿RESULT✿: 30 degrees"),
        Try("Look:\n```\n✿FUNCTION✿: nothing\n```\n"),
        Try("Let me see.\n" + call(*ROME), "get_weather"),
        Try(call(*ROME) + "✿RESULT✿", "get_weather"),
        Try(call("get_time", '{"zone": "CET"}'), "get_time"),
    ]
)


@given(tries=st.tuples(TRIES, TRIES), named_one=st.booleans(), cut=st.none() | st.integers(1, 30))
def test_a_demand_is_met_by_the_first_try_that_meets_it_or_it_is_an_error(
    client: openai.OpenAI, upstream_server: ScriptedUpstream, tries: tuple[Try, Try], named_one: bool, cut: int | None
) -> None:
    """Streamed and not the same, and never a finished answer without a call."""
    met = [said.tool == "get_weather" if named_one else said.tool is not None for said in tries]
    for stream in (False, True):
        with upstream_server.fresh() as upstream:
            upstream.script(*[Says(said.text, cut=cut) for said in tries[: 1 if met[0] else 2]])
            demand: Any = {"tools": TOOLS, "tool_choice": NAMED if named_one else "required"}
            if any(met):
                told = ask(client, stream=stream, **demand).only
                assert [name for name, _ in told.made] == [tries[met.index(True)].tool]
                assert told.finish == "tool_calls"
            else:
                with pytest.raises(openai.APIError, match="tool_choice demands it"):
                    ask(client, stream=stream, **demand)


ONLY_TIME = {"type": "function", "function": {"name": "get_time"}}


@pytest.mark.parametrize("mode", ["auto", "required"])
@both_ways
def test_a_tool_that_the_caller_has_and_does_not_allow_is_not_called(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, mode: str
) -> None:
    """The caller's framework would run it: it has that tool."""
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [ONLY_TIME]}}
    upstream.script(Says("\n" + call(*ROME)), Says('\n✿FUNCTION✿: get_time\n✿ARGS✿: {"zone": "CET"}\n'))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice=allowed).only
    assert [name for name, _ in told.made] == ["get_time"]
    assert "get_time" in prompt_of(upstream, 1)


def test_a_tool_that_is_not_allowed_is_an_error_if_the_model_insists(
    client: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [ONLY_TIME]}}
    upstream.script(Says(call(*ROME)), Says(call(*ROME)))
    with pytest.raises(openai.APIError, match="that tool_choice does not allow") as caught:
        ask(client, stream=False, tools=TOOLS, tool_choice=allowed)
    assert caught.value.code == "tool_choice_not_met"


@both_ways
def test_a_call_of_a_tool_that_there_is_not_meets_no_demand(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(" nope\n✿ARGS✿: {}\n"), Says(ROME_ON))
    told = ask(client, stream=stream, tools=TOOLS, tool_choice="required").only
    assert told.made == [ROME]
