"""`repairs`: a call that is wrong is held back and asked for again, and what comes out is one stream.

Source: the design: the corrected call goes into the same stream under the id of the held one, and what was sent
before is never changed.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asking import CITY, MESSAGES, Told, ask, both_ways, call, client_of, fold, named, tool
from conftest import Florette
from proxy.app import create_app
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread, serve_app
from steps import Begins, GoesSilent, Holds, Says

STRICT = tool("get_weather", strict=True)
LOOSE = tool("search", {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]})
TOOLS = [STRICT, LOOSE]

ROME = call("get_weather", '{"city": "Rome"}')
OSLO = call("get_weather", '{"city": "Oslo"}')
WRONG = call("get_weather", '{"town": "Rome"}')
UNKNOWN = call("get_whether", '{"city": "Rome"}')
MADE = ("get_weather", '{"city": "Rome"}')


@pytest.fixture(scope="module")
def once(florette: Florette) -> Iterator[openai.OpenAI]:
    """In front of a Florette that asks once more for a call that is wrong."""
    with client_of(florette(repairs=1)) as sdk:
        yield sdk


def answer(sdk: openai.OpenAI, *, stream: bool, **fields: Any) -> Told:
    """Asks with a strict tool and one that is not."""
    return ask(sdk, stream=stream, **{"tools": TOOLS, **fields}).only


# -- what is asked for again -------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (WRONG, ROME),
        (UNKNOWN, ROME),
        (UNKNOWN, call("search", '{"q": "x"}')),
        ("✿FUNCTION✿: get_weather", ROME),
        (WRONG.rstrip("}\n"), ROME),
    ],
    ids=["schema", "name", "another tool", "nothing given", "ended by the end"],
)
def test_a_call_that_is_wrong_is_asked_for_again_and_the_caller_sees_the_right_one_alone(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, wrong: str, right: str
) -> None:
    upstream.script(Says(f"Let me see.\n{wrong}", cut=4), Says(right, cut=4))
    told = answer(once, stream=stream)
    [(name, arguments)] = told.made
    assert (told.content, call(name, arguments), told.finish) == ("Let me see.", right, "tool_calls")


@both_ways
def test_repairs_are_off_unless_they_are_wanted(
    client: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(WRONG + UNKNOWN, cut=4))
    assert [name for name, _ in answer(client, stream=stream).made] == ["get_weather", "get_whether"]


@both_ways
@pytest.mark.parametrize(
    "right", [ROME, call("search", '{"p": 1}'), ROME + call("search", "{}")], ids=["strict", "not strict", "both"]
)
def test_a_right_call_and_one_of_a_tool_that_is_not_strict_go_out_as_they_are(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, right: str
) -> None:
    upstream.script(Says(right, cut=4))
    assert "".join(call(name, given) for name, given in answer(once, stream=stream).made) == right


@both_ways
def test_a_call_that_was_cut_off_is_not_asked_for_again(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """It is not wrong but unfinished; `length` says so."""
    upstream.script(Says(WRONG[:-6], cut=4, finish="length"))
    told = answer(once, stream=stream)
    assert (told.made, told.finish) == ([("get_weather", '{"town": "R')], "length")


# -- the second prompt -------------------------------------------------------------------------------------


def second_prompt(upstream: ScriptedUpstream) -> str:
    """What stands in the second prompt behind the user's words."""
    content: str = upstream.received[1].json["messages"][-1]["content"]
    return content.removeprefix(MESSAGES[0]["content"])


def test_the_model_is_told_of_its_call_and_what_is_wrong_with_it(
    once: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says("Let me see.\n" + WRONG), Says(ROME))
    answer(once, stream=False)
    prompt = second_prompt(upstream)
    assert prompt.startswith('\n\nLet me see.✿FUNCTION✿: get_weather\n✿ARGS✿: {"town": "Rome"}\n✿RESULT✿: Error: ')
    assert "'city' is a required property" in prompt
    assert "'town' was unexpected" in prompt
    assert prompt.endswith("Make this call again, corrected, and behind it those that were to follow.\n✿RETURN✿")


def test_the_model_is_told_which_tools_there_are(once: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    """By the names that it knows."""
    upstream.script(Says(UNKNOWN), Says(call("天气", '{"city": "Rome"}')))
    told = answer(once, stream=False, tools=[tool("get_weather", CITY, name_for_model="天气"), LOOSE])
    assert "there is no tool named 'get_whether'; the tools are 天气, search" in second_prompt(upstream)
    assert told.made == [MADE]


def test_the_model_is_told_which_calls_were_right(once: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(OSLO + WRONG), Says(ROME))
    answer(once, stream=False)
    first, second = second_prompt(upstream).split("✿RESULT✿: ")[1:]
    assert first.startswith("This call is accepted")
    assert second.startswith("Error: ")


# -- one stream --------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    "again",
    [
        ROME,
        OSLO + ROME,
        call("get_weather", '{ "city" : "Oslo" }') + ROME,
        call("search", '{"q": "a"}') + OSLO + ROME,
        "I am sorry.\n" + ROME,
    ],
    ids=["it alone", "all again", "all again in other words", "all again in another order", "with words"],
)
def test_calls_before_it_stay_as_they_were_and_are_not_repeated(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, again: str
) -> None:
    upstream.script(Says("Look.\n" + OSLO + call("search", '{"q": "a"}') + WRONG, cut=5), Says(again, cut=5))
    told = answer(once, stream=stream)
    assert told.content == "Look."
    assert told.made == [("get_weather", '{"city": "Oslo"}'), ("search", '{"q": "a"}'), MADE]
    assert len({call_id for call_id, _, _ in told.calls}) == 3


@both_ways
def test_calls_behind_it_come_with_the_second_try(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(WRONG + OSLO, cut=5), Says(ROME + OSLO, cut=5))
    assert answer(once, stream=stream).made == [MADE, ("get_weather", '{"city": "Oslo"}')]


@both_ways
@pytest.mark.parametrize("wrong", [[WRONG], [WRONG, WRONG]], ids=["once", "twice"])
def test_the_corrected_call_has_the_id_of_the_held_one(
    upstream: ScriptedUpstream, loop_thread: LoopThread, stream: bool, wrong: list[str]
) -> None:
    """Ids are drawn as calls begin: the first call's, and then the held one's."""
    numbers = count()
    app = create_app(Config(upstream=upstream.url, repairs=2), new_id=lambda: str(next(numbers)))
    upstream.script(Says(OSLO + wrong[0], cut=5), *[Says(text, cut=5) for text in wrong[1:]], Says(ROME + OSLO, cut=5))
    with serve_app(app, loop_thread) as url, client_of(url) as sdk:
        told = answer(sdk, stream=stream)
    first, held = (int(call_id.removeprefix("call_")) for call_id, _, _ in told.calls)
    assert held == first + 1


def test_a_call_that_need_not_be_held_streams_while_the_upstream_still_writes(
    once: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    held = Holds(Says.pieces("✿FUNCTION✿: search\n✿ARGS✿: {", '"q": "x"}\n'), after=2)
    upstream.script(held)
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "stream": True, "timeout": PATIENCE_S}
    with once.chat.completions.create(**request) as chunks:
        calls = (made for chunk in chunks for choice in chunk.choices for made in choice.delta.tool_calls or ())
        assert next(calls).function.name == "search"
        assert next(calls).function.arguments == "{"
        assert held.reached.is_set()
        held.release()
        assert "".join(made.function.arguments for made in calls) == '"q": "x"}'


def test_text_before_a_held_call_streams_while_the_upstream_still_writes(
    once: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    held = Holds(Says.pieces("Let me see.", "\n" + ROME), after=2)
    upstream.script(held)
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "stream": True, "timeout": PATIENCE_S}
    with once.chat.completions.create(**request) as chunks:
        said = (choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content)
        assert next(said) == "Let me see."
        held.release()
        list(said)


def test_the_upstream_is_dropped_at_the_end_of_the_wrong_call(once: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    held = Holds(Says.pieces(WRONG, OSLO), after=2)
    upstream.script(held, Says(ROME))
    request: Any = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "stream": True}
    assert fold(once.chat.completions.create(**request)).only.made == [MADE]
    assert upstream.received[0].left.wait(PATIENCE_S)


# -- when it does not help ---------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("repairs", [1, 2, 3])
def test_behind_the_last_try_the_call_goes_out_as_it_is(
    florette: Florette, upstream: ScriptedUpstream, stream: bool, repairs: int
) -> None:
    """Whoever runs the tools tells the model what is wrong with it."""
    wrong = [call("get_weather", f'{{"town": "{number}"}}') for number in range(repairs + 1)]
    upstream.script(*[Says(text, cut=4) for text in wrong])
    with client_of(florette(repairs=repairs)) as sdk:
        told = answer(sdk, stream=stream)
    assert told.made == [("get_weather", f'{{"town": "{repairs}"}}')]
    assert told.finish == "tool_calls"


@both_ways
def test_the_tries_are_of_the_whole_answer(once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    """Or a model that is wrong each time could be asked for ever."""
    upstream.script(Says(WRONG, cut=4), Says(ROME + UNKNOWN, cut=4))
    assert [name for name, _ in answer(once, stream=stream).made] == ["get_weather", "get_whether"]


@both_ways
def test_a_model_that_gives_the_call_up_may_answer(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(WRONG, cut=4), Says("There is no weather\n in Rome.", cut=4))
    told = answer(once, stream=stream)
    assert (told.content, told.made, told.finish) == ("There is no weather\n in Rome.", [], "stop")


@both_ways
def test_behind_other_calls_such_an_answer_is_dropped(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """As prose behind a call always is."""
    upstream.script(Says(OSLO + WRONG, cut=4), Says("That is all.", cut=4))
    told = answer(once, stream=stream)
    assert (told.content, len(told.made), told.finish) == ("", 1, "tool_calls")


@both_ways
def test_a_second_try_that_is_cut_off_ends_in_length(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(WRONG, cut=4), Says(ROME[:-6], cut=4, finish="length"))
    told = answer(once, stream=stream)
    assert (told.made, told.finish) == ([("get_weather", '{"city": "R')], "length")


@both_ways
def test_a_call_that_was_made_and_is_cut_off_in_the_second_try_is_told_as_it_is(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """Nobody knows whether it would have been the same."""
    upstream.script(Says(OSLO + WRONG, cut=4), Says(OSLO[:-6], cut=4, finish="length"))
    told = answer(once, stream=stream)
    assert told.made == [("get_weather", '{"city": "Oslo"}'), ("get_weather", '{"city": "O')]
    assert told.finish == "length"


@both_ways
@pytest.mark.parametrize("choice", ["required", named("get_weather")])
def test_a_demanded_call_can_be_repaired_too(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, choice: Any
) -> None:
    """The repair and the demand have tries of their own."""
    upstream.script(*[Says(text, cut=4) for text in ("No.", WRONG, ROME)])
    assert answer(once, stream=stream, tool_choice=choice).made == [MADE]


@both_ways
def test_a_demand_stands_also_behind_a_wrong_call(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(*[Says(text, cut=4) for text in ("Look.\n" + WRONG, "Then not.", ROME)])
    assert answer(once, stream=stream, tool_choice="required").made == [MADE]
    assert upstream.received[2].json["messages"][-2] == {"role": "assistant", "content": "Then not."}


@both_ways
def test_an_answer_in_the_place_of_a_call_has_to_fit_its_format(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(*[Says(text, cut=4) for text in (WRONG, "None.", '{"a": 1}')])
    assert answer(once, stream=stream, response_format={"type": "json_object"}).content == '{"a": 1}'


# -- besides -----------------------------------------------------------------------------------------------


@both_ways
def test_each_choice_is_repaired_by_itself(once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says([ROME, WRONG], cut=4), Says(OSLO, cut=4))
    reply = ask(once, stream=stream, tools=TOOLS, n=2)
    assert [told.made for told in reply.choices] == [[MADE], [("get_weather", '{"city": "Oslo"}')]]
    assert upstream.received[1].json["n"] == 1


@both_ways
def test_the_wrong_calls_log_probabilities_are_not_told(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says("Look.\n" + WRONG, cut=7), Says(ROME, cut=7))
    told = answer(once, stream=stream, logprobs=True)
    assert "town" not in "".join(told.tokens)
    assert "".join(told.tokens).endswith(ROME)


@both_ways
def test_usage_is_the_sum_over_the_tries(once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says(WRONG, tokens=(10, 8), cut=9), Says(ROME, tokens=(30, 9), cut=9))
    usage = ask(once, stream=stream, tools=TOOLS).usage
    assert usage is not None
    assert usage["prompt_tokens"] == 40
    assert usage["total_tokens"] == 40 + usage["completion_tokens"]
    assert 9 < usage["completion_tokens"] <= 17


@both_ways
def test_a_legacy_function_call_is_repaired_likewise(
    once: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(WRONG, cut=4), Says(ROME, cut=4))
    request: Any = {"model": "m", "messages": MESSAGES, "functions": [STRICT["function"]]}
    if stream:
        deltas = [c.delta for chunk in once.chat.completions.create(**request, stream=True) for c in chunk.choices]
        said = [delta.function_call for delta in deltas if delta.function_call]
        assert [part.name for part in said if part.name] == ["get_weather"]
        assert "".join(part.arguments or "" for part in said) == '{"city": "Rome"}'
    else:
        message = once.chat.completions.create(**request).choices[0].message
        assert (message.function_call.name, message.function_call.arguments) == MADE


def test_a_caller_who_leaves_during_the_second_try_frees_the_upstream(
    once: openai.OpenAI, upstream: ScriptedUpstream
) -> None:
    upstream.script(Says("Look.\n" + WRONG), GoesSilent(Begins(ROME[:-8])))
    chunks: Any = once.chat.completions.create(model="m", messages=MESSAGES, tools=TOOLS, stream=True)
    next(chunks)
    upstream.wait_for(2)
    chunks.close()
    assert upstream.received[1].left.wait(PATIENCE_S)


Made = tuple[str, str]

CALLS: st.SearchStrategy[list[Made]] = st.lists(
    st.tuples(
        st.sampled_from(["get_weather", "search", "nobody"]),
        st.sampled_from(['{"city": "x"}', '{"city": "y"}', '{"town": "x"}', '{"q": "x"}']),
    ),
    max_size=3,
)


def is_wrong(made: Made) -> bool:
    """True for a call that no tool could be made of."""
    name, arguments = made
    return name == "nobody" or (name == "get_weather" and "city" not in arguments)


@settings(max_examples=50)
@given(tries=st.tuples(CALLS, CALLS, CALLS), cut=st.integers(1, 30))
def test_nothing_wrong_is_told_as_long_as_there_are_tries(
    florette: Florette, upstream_server: ScriptedUpstream, tries: tuple[list[Made], ...], cut: int
) -> None:
    """Streamed and not the same, whatever the model makes of it; `fold` holds the stream to be one."""
    needed = next((number for number, calls in enumerate(tries, 1) if not any(map(is_wrong, calls))), 3)
    texts = ["".join(call(*made) for made in calls) or "Hi." for calls in tries[:needed]]
    told = []
    for stream in (False, True):
        with upstream_server.fresh() as upstream, client_of(florette(repairs=2)) as sdk:
            upstream.script(*[Says(text, cut=cut) for text in texts])
            told.append(answer(sdk, stream=stream))
    whole, streamed = told
    assert (whole.content, whole.made, whole.finish) == (streamed.content, streamed.made, streamed.finish)
    assert not any(map(is_wrong, whole.made)) or any(map(is_wrong, tries[2]))
    assert set(whole.made) <= {made for calls in tries for made in calls}
    assert bool(whole.made) == (whole.finish == "tool_calls")
