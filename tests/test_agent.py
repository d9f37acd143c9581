"""Tools that run here, over HTTP: rounds of turns that the caller sees as one answer, streamed and not."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest

from asking import CITY, Reply, ask, both_ways, call, client_of, fold, named, raw_request, tool
from conftest import Florette
from exchange import Received
from misbehaving import PIXEL, Gate, WaitAtGate
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Answers, Begins, Chunks, Fails, GoesSilent, Holds, Says, Step

Json = dict[str, Any]

#: What every Florette of these tests can run.
TOOLS = [
    "echo",
    "draw",
    "fail",
    "flood",
    "hang",
    "crash",
    "tell_progress",
    "surroundings",
    "wait_at_gate",
    "meet",
    "time_left",
]
CONFIG: Json = {
    "tools": TOOLS,
    "models": {
        "assistant": {"upstream_model": "m", "tools": TOOLS},
        "renamed": {"upstream_model": "m"},
        "quiet": {"upstream_model": "m", "default_system": "", "tools": ["echo"]},
    },
}


@pytest.fixture
def gate() -> Iterator[Gate]:
    """What `wait_at_gate` waits for."""
    WaitAtGate.gate = Gate()
    yield WaitAtGate.gate
    WaitAtGate.gate.open()


@pytest.fixture
def url(florette: Florette) -> str:
    return florette(**CONFIG)


@pytest.fixture
def sdk(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as made:
        yield made


def echo(text: str) -> str:
    return call("echo", json.dumps({"text": text})) + "✿RESULT✿"


def prompt_of(received: Received) -> str:
    return "\n".join(str(message["content"]) for message in received.json["messages"])


def messages_of(sdk: openai.OpenAI, *, stream: bool, **fields: Any) -> list[Json]:
    """`florette.messages` of the answer."""
    request: Any = {
        "model": "assistant",
        "messages": [{"role": "user", "content": "Go."}],
        "extra_body": {"florette": {"messages": True}},
        **fields,
    }
    if not stream:
        return list(sdk.chat.completions.create(**request).to_dict()["florette"]["messages"])
    told = [chunk.to_dict().get("florette") for chunk in sdk.chat.completions.create(stream=True, **request)]
    [florette] = [each for each in told if each]
    return list(florette["messages"])


# -- rounds ------------------------------------------------------------------------------------------------


@both_ways
def test_a_tool_is_run_and_the_caller_sees_the_answer_alone(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(echo("21 degrees"), tokens=(10, 5)), Says(": It is warm.", tokens=(20, 3)))
    reply = ask(sdk, stream=stream, model="assistant")
    assert (reply.only.content, reply.only.calls, reply.only.finish) == ("It is warm.", [], "stop")
    first, second = upstream.received
    assert "### echo\n\necho: Says what it is told." in prompt_of(first)
    assert '✿FUNCTION✿: echo\n✿ARGS✿: {"text": "21 degrees"}\n✿RESULT✿: 21 degrees\n✿RETURN✿' in prompt_of(second)
    assert first.json["model"] == second.json["model"] == "m"
    assert reply.usage == {"prompt_tokens": 30, "completion_tokens": 8, "total_tokens": 38}


@both_ways
def test_a_hosted_entry_of_the_request_does_the_same(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(echo("hi")), Says(": Hi."))
    reply = ask(sdk, stream=stream, tools=[{"type": "echo"}])
    assert (reply.only.content, reply.only.calls) == ("Hi.", [])
    assert all("tools" not in received.json for received in upstream.received)


@both_ways
def test_text_before_a_call_streams_as_content_and_the_next_turn_is_a_paragraph(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says("Let me see. " + echo("a")), Says(": And now. " + echo("b")), Says(": Done.", cut=2))
    reply = ask(sdk, stream=stream, model="assistant")
    assert reply.only.content == "Let me see.\n\nAnd now.\n\nDone."


@both_ways
def test_calls_side_by_side_are_answered_in_their_order(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    calls = "".join(call("meet", "{}") for _ in range(3))
    upstream.script(Says(calls + "✿RESULT✿"), Says(": All met."))
    assert ask(sdk, stream=stream, model="assistant").only.content == "All met."
    assert prompt_of(upstream.received[1]).count("✿RESULT✿: met") == 3


def test_a_tool_starts_while_the_model_still_writes(sdk: openai.OpenAI, upstream: ScriptedUpstream, gate: Gate) -> None:
    first, rest = call("wait_at_gate", '{"text": "one"}'), call("echo", '{"text": "two"}') + "✿RESULT✿"
    held = Holds(Says.pieces(first, "✿FUNCTION✿: echo\n", rest.partition("\n")[2]), after=3)
    upstream.script(held, Says(": Done."))
    with sdk.chat.completions.create(model="assistant", messages=[{"role": "user", "content": "x"}], stream=True) as s:
        assert held.reached.wait(PATIENCE_S)
        assert gate.started.wait(PATIENCE_S)
        gate.open()
        held.release()
        assert fold(s).only.content == "Done."


@both_ways
def test_the_seeds_dialog_is_told_as_three_messages(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(echo("a")), Says(": Done."))
    [made, result, answer] = messages_of(sdk, stream=stream)
    call_id = made["tool_calls"][0]["id"]
    assert made == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": call_id, "type": "function", "function": {"name": "echo", "arguments": '{"text": "a"}'}}],
    }
    assert result == {"role": "tool", "tool_call_id": call_id, "content": "a"}
    assert answer == {"role": "assistant", "content": "Done."}


def test_the_dialog_can_be_sent_back_as_it_is(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a")), Says(": Done."), Says("Again."))
    dialog = messages_of(sdk, stream=False)
    history: Any = [{"role": "user", "content": "Go."}, *dialog, {"role": "user", "content": "And?"}]
    assert ask(sdk, stream=False, model="assistant", messages=history).only.content == "Again."
    assert prompt_of(upstream.received[2]).count("✿RESULT✿: a") == 1


@both_ways
def test_who_asks_is_told_of_each_call_its_progress_and_its_result(
    url: str, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(call("tell_progress", '{"steps": 2}') + "✿RESULT✿"), Says(": Done."))
    body = {
        "model": "assistant",
        "messages": [{"role": "user", "content": "Go."}],
        "florette": {"events": True},
        "stream": stream,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S)
    if stream:
        chunks = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
        asides = [chunk for chunk in chunks if "florette" in chunk]
        assert all(chunk["choices"] == [] for chunk in asides)
        assert len({chunk["id"] for chunk in chunks}) == 1
        told = [chunk["florette"] for chunk in asides]
    else:
        told = answer.json()["florette"]["events"]
    [call_id] = {event["id"] for event in told}
    assert call_id.startswith("call_")
    assert told[0] == {"type": "tool_call", "id": call_id, "name": "tell_progress", "arguments": '{"steps": 2}'}
    assert [event["text"] for event in told[1:3]] == ["step 1", "step 2"]
    duration_s = told[3].pop("duration_s")
    assert duration_s > 0
    assert told[3] == {
        "type": "tool_result",
        "id": call_id,
        "name": "tell_progress",
        "status": "ok",
        "content": "done",
        "cached": False,
    }


def test_who_does_not_ask_is_told_of_nothing(url: str, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a")), Says(": Done."))
    body = {"model": "assistant", "messages": [{"role": "user", "content": "Go."}], "stream": True}
    told = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).text
    assert "florette" not in told
    assert "echo" not in told


# -- the caller's tools and ours ---------------------------------------------------------------------------

MINE = tool("get_weather", CITY)
MIXED = echo("ours").removesuffix("✿RESULT✿") + call("get_weather", '{"city": "Rome"}') + "✿RESULT✿"


@both_ways
def test_a_mixed_turn_hands_back_the_callers_calls_and_puts_ours_back_later(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says("Both. " + MIXED), Says(": Done."), Says("Still known."))
    asked: Any = {"model": "assistant", "tools": [MINE]}
    first = ask(sdk, stream=stream, **asked)
    assert first.only.made == [("get_weather", '{"city": "Rome"}')]
    assert (first.only.content, first.only.finish) == ("Both.", "tool_calls")
    history = came_back(first, "sunny")
    assert ask(sdk, stream=stream, messages=history, **asked).only.content == "Done."
    both = (
        '✿FUNCTION✿: echo\n✿ARGS✿: {"text": "ours"}\n✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'
        "✿RESULT✿: ours\n✿RESULT✿: sunny\n✿RETURN✿"
    )
    assert prompt_of(upstream.received[1]).count(both) == 1
    # And in every further request, once.
    later = [*history, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Sure?"}]
    assert ask(sdk, stream=stream, messages=later, **asked).only.content == "Still known."
    assert prompt_of(upstream.received[2]).count("✿RESULT✿: ours") == 1


def came_back(reply: Reply, *results: str) -> list[Any]:
    """The history with which a caller comes back, as its framework writes it."""
    told = reply.only
    calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in told.calls
    ]
    return [
        {"role": "user", "content": "How is it in Rome?"},
        {"role": "assistant", "content": told.content or None, "tool_calls": calls},
        *(
            {"role": "tool", "tool_call_id": call["id"], "content": result}
            for call, result in zip(calls, results, strict=True)
        ),
    ]


@both_ways
def test_rounds_before_the_mixed_turn_are_put_back_too(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(echo("earlier")), Says(call("get_weather", '{"city": "Rome"}') + "✿RESULT✿"), Says(": Done."))
    asked: Any = {"model": "assistant", "tools": [MINE]}
    first = ask(sdk, stream=stream, **asked)
    assert first.only.made == [("get_weather", '{"city": "Rome"}')]
    ask(sdk, stream=stream, messages=came_back(first, "sunny"), **asked)
    told = prompt_of(upstream.received[2])
    assert told.index("✿RESULT✿: earlier") < told.index("✿FUNCTION✿: get_weather") < told.index("✿RESULT✿: sunny")


def test_a_caller_that_keeps_the_dialog_does_not_get_ours_twice(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(MIXED), Says(": Done."))
    dialog = messages_of(sdk, stream=False, tools=[MINE])
    theirs = next(made["id"] for made in dialog[0]["tool_calls"] if made["function"]["name"] == "get_weather")
    history: Any = [
        {"role": "user", "content": "Go."},
        *dialog,
        {"role": "tool", "tool_call_id": theirs, "content": "sunny"},
    ]
    ask(sdk, stream=False, model="assistant", messages=history, tools=[MINE])
    assert prompt_of(upstream.received[1]).count("✿RESULT✿: ours") == 1


def test_the_callers_tool_of_the_same_name_wins(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("echo", '{"city": "Rome"}') + "✿RESULT✿"))
    reply = ask(sdk, stream=False, model="assistant", tools=[tool("echo", CITY)])
    assert reply.only.made == [("echo", '{"city": "Rome"}')]
    assert prompt_of(upstream.received[0]).count("### echo") == 1


def test_a_tool_that_nobody_has_is_answered_here(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("paint", '{"x": 1}') + "✿RESULT✿"), Says(": Sorry."))
    assert ask(sdk, stream=False, model="assistant", tools=[MINE]).only.content == "Sorry."
    assert "there is no tool named 'paint'" in prompt_of(upstream.received[1])


@both_ways
def test_a_tool_that_the_request_does_not_offer_is_not_run_whoever_names_it(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    """It may be one that the key may not use: a web page could make the model name it."""
    upstream.script(Says(call("draw", "{}") + "✿RESULT✿"), Says(": Sorry."))
    assert ask(sdk, stream=stream, tools=[{"type": "echo"}]).only.content == "Sorry."
    told = prompt_of(upstream.received[1])
    assert "there is no tool named 'draw'. The tools are: echo." in told
    assert ".png" not in told


def test_the_older_form_works_beside_an_entry_of_ours(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a")), Says(": Done."))
    fields: Any = {"functions": [{"name": "mine", "parameters": CITY}], "tools": [{"type": "echo"}]}
    assert ask(sdk, stream=False, **fields).only.content == "Done."


def test_log_probabilities_do_not_tell_of_calls_that_run_here(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a"), cut=2), Says(": Done.", cut=2))
    assert ask(sdk, stream=True, model="assistant", logprobs=True).only.tokens == []


def test_the_older_form_works_with_our_tools(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a")), Says(call("mine", '{"city": "Rome"}')))
    answer = sdk.chat.completions.create(
        model="assistant",
        messages=[{"role": "user", "content": "Go."}],
        functions=[{"name": "mine", "parameters": CITY}],
        extra_body={"florette": {"messages": True}},
    )
    made = answer.choices[0].message.function_call
    assert made is not None
    assert (made.name, json.loads(made.arguments)) == ("mine", {"city": "Rome"})
    told: Any = answer.to_dict()["florette"]
    assert [message["role"] for message in told["messages"]] == ["assistant", "function", "assistant"]
    assert told["messages"][1]["name"] == "echo"


def test_the_older_form_tells_its_dialog_in_its_own_way(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a")), Says(": Done."))
    told = messages_of(sdk, stream=True, functions=[{"name": "mine", "parameters": CITY}])
    assert told == [
        {"role": "assistant", "content": None, "function_call": {"name": "echo", "arguments": '{"text": "a"}'}},
        {"role": "function", "name": "echo", "content": "a"},
        {"role": "assistant", "content": "Done."},
    ]


# -- demands -----------------------------------------------------------------------------------------------


def test_a_forced_call_is_forced_in_the_first_turn_only(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says('\n✿ARGS✿: {"text": "a"}\n✿RESULT✿'), Says(": Done."))
    assert ask(sdk, stream=False, model="assistant", tool_choice=named("echo")).only.content == "Done."
    assert prompt_of(upstream.received[0]).endswith("✿FUNCTION✿: echo")
    assert prompt_of(upstream.received[1]).endswith("✿RETURN✿")


def test_a_hosted_tool_can_be_named_by_its_type(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says('\n✿ARGS✿: {"text": "a"}\n✿RESULT✿'), Says(": Done."))
    choice: Any = {"type": "echo"}
    assert ask(sdk, stream=False, tools=[{"type": "echo"}], tool_choice=choice).only.content == "Done."


def test_what_is_allowed_holds_for_all_turns(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(' echo\n✿ARGS✿: {"text": "a"}\n✿RESULT✿'), Says(": Done."))
    allowed: Any = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named("echo")]}}
    assert ask(sdk, stream=False, model="assistant", tool_choice=allowed).only.content == "Done."
    for received in upstream.received:
        assert "### echo" in prompt_of(received)
        assert "### draw" not in prompt_of(received)


def test_with_choice_none_nothing_is_run(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("No tools."))
    assert ask(sdk, stream=False, model="assistant", tool_choice="none").only.content == "No tools."
    assert "✿" not in prompt_of(upstream.received[0])


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"tools": [{"type": "web_surf"}]}, 400, "'web_surf' is not run by this server; those that are: echo, draw"),
        ({"tools": [{"type": "echo", "timeout_s": 0}]}, 400, "'timeout_s'"),
        ({"tools": [{"type": "echo", "volume": 11}]}, 400, "'volume': there is no such setting"),
        ({"tools": [{"type": "echo"}], "n": 2}, 400, "'n' must be 1"),
        ({"model": "assistant", "florette": {"evnts": True}}, 400, "florette"),
        ({"model": "assistant", "tool_choice": named("nothing")}, 400, "'nothing'"),
        ({"tools": [{"type": "echo", "file_ids": ["file-000000000000000000000000"]}]}, 400, "file-0000"),
        ({"tools": [{"type": "echo", "file_ids": [[]]}]}, 400, "'tools[0].file_ids': the id of a file must be"),
        ({"tools": [{"type": "echo", "file_ids": "file-1"}]}, 400, "'tools[0].file_ids': it must be a list"),
        ({"tools": [{"type": "echo", "container": {"file_ids": 1}}]}, 400, "'tools[0].container.file_ids'"),
        ({"tools": [{"type": "echo"}, {"type": "function", "function": {"name": []}}]}, 400, "name"),
        ({"tools": [{"type": "echo"}], "tool_choice": {"type": []}}, 400, "tool_choice"),
        ({"model": "assistant", "florette": []}, 400, "florette"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(
    url: str, upstream: ScriptedUpstream, fields: Json, status: int, said: str
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Go."}], **fields}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-lacking": "1"})
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]
    assert upstream.received == []


# -- failures ----------------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (call("fail", '{"how": "final"}'), "Error: The shop is closed."),
        (call("fail", '{"how": "bug"}'), "Error: the tool failed because of a bug"),
        (call("crash", "{}"), "Error: The tool's process ended in the middle of the call."),
        (call("echo", '{"txt": "a"}'), "'text' is a required property"),
    ],
)
def test_a_failing_tool_is_told_to_the_model_and_the_loop_goes_on(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, made: str, said: str
) -> None:
    upstream.script(Says(made + "✿RESULT✿"), Says(": Then without."))
    reply = ask(sdk, stream=stream, model="assistant")
    assert (reply.only.content, reply.only.finish) == ("Then without.", "stop")
    told = prompt_of(upstream.received[1])
    assert said in told
    assert "Traceback" not in told
    assert "secret" not in told


def test_a_tool_that_hangs_is_stopped(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("hang", "{}") + "✿RESULT✿"), Says(": Too slow."))
    with client_of(florette(**CONFIG)) as sdk:
        reply = ask(sdk, stream=True, tools=[{"type": "hang", "timeout_s": 1}])
    assert reply.only.content == "Too slow."
    assert "took longer than 1 s" in prompt_of(upstream.received[1])


def test_a_flood_is_cut_and_kept_as_a_file(url: str, sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    models = {"data": [{"id": "m", "max_model_len": 131072}]}
    upstream.script(Says(call("flood", '{"characters": 100000}') + "✿RESULT✿"), Answers(models), Says(": Much."))
    assert ask(sdk, stream=False, model="assistant").only.content == "Much."
    told = prompt_of(upstream.received[-1])
    assert told.count("x" * 5000)
    assert len(told) < 30_000
    [link] = re.findall(r"whole text is in (http://\S+)", told)
    kept = httpx.get(link)
    assert kept.text == "x" * 100_000
    assert kept.headers["content-disposition"].startswith("attachment")


def test_results_are_cut_by_the_upstreams_context(florette: Florette, upstream: ScriptedUpstream) -> None:
    models = {"data": [{"id": "short", "max_model_len": 4096}]}
    upstream.script(
        Says(call("flood", '{"characters": 15000}') + "✿RESULT✿", tokens=(900, 100)),
        Answers(models),
        Answers({"count": 7500}),
        Says(": Much."),
    )
    config = {**CONFIG, "models": {"assistant": {"upstream_model": "short", "tools": ["flood"]}}}
    with client_of(florette(**config)) as sdk:
        assert ask(sdk, stream=False, model="assistant").only.content == "Much."
    counted = upstream.received[2]
    assert (counted.path, counted.json["model"]) == ("/tokenize", "short")
    # 4096 less a quarter less the 1000 that are there: 2072 of 7500 tokens.
    assert prompt_of(upstream.received[3]).count("x") - "flood".count("x") == pytest.approx(15000 * 2072 / 7500, abs=20)


def test_images_become_links_that_a_page_can_open(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("draw", '{"shape": "dot"}') + "✿RESULT✿"), Says(": There."))
    ask(sdk, stream=False, model="assistant")
    [link] = re.findall(r"!\[dot.png\]\((http://[^)]+)\)", prompt_of(upstream.received[1]))
    image = httpx.get(link)
    assert (image.content, image.headers["content-type"]) == (PIXEL, "image/png")


@both_ways
@pytest.mark.parametrize("step", [Fails(500), Fails(400), Begins("half an"), Chunks([{"error": {"message": "x"}}])])
def test_an_upstream_that_fails_later_is_an_error_and_never_an_answer(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool, step: Step
) -> None:
    if isinstance(step, Chunks) and not stream:
        pytest.skip("a stream's own way to fail")
    upstream.script(Says(echo("a")), step)
    with pytest.raises(openai.APIError):
        ask(sdk, stream=stream, model="assistant")


def test_a_context_that_nobody_tells_of_bounds_nothing(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("flood", '{"characters": 15000}') + "✿RESULT✿"), Fails(404), Says(": Much."))
    config = {**CONFIG, "models": {"assistant": {"upstream_model": "untold", "tools": ["flood"]}}}
    with client_of(florette(**config)) as untold:
        assert ask(untold, stream=False, model="assistant").only.content == "Much."
    assert prompt_of(upstream.received[2]).count("x" * 15000) == 1


def test_where_nobody_counts_tokens_they_are_estimated(florette: Florette, upstream: ScriptedUpstream) -> None:
    models = {"data": [{"id": "uncounted", "max_model_len": 4096}, "no model", {"id": "other"}]}
    upstream.script(
        Says(call("flood", '{"characters": 15000}') + "✿RESULT✿", tokens=(900, 100)),
        Answers(models),
        Fails(404),
        Says(": Much."),
    )
    config = {**CONFIG, "models": {"assistant": {"upstream_model": "uncounted", "tools": ["flood"]}}}
    with client_of(florette(**config)) as sdk:
        assert ask(sdk, stream=False, model="assistant").only.content == "Much."
    # 2072 tokens of three bytes each.
    assert prompt_of(upstream.received[3]).count("x") == pytest.approx(2072 * 3, abs=20)


def test_what_cannot_be_kept_is_cut_all_the_same(florette: Florette, upstream: ScriptedUpstream) -> None:
    models = {"data": [{"id": "full", "max_model_len": 4096}]}
    upstream.script(
        Says(call("flood", '{"characters": 15000}') + "✿RESULT✿"), Answers(models), Answers("?"), Says(": Much.")
    )
    config = {**CONFIG, "models": {"assistant": {"upstream_model": "full", "tools": ["flood"]}}}
    with client_of(florette(**config, files_quota_bytes=1000)) as sdk:
        assert ask(sdk, stream=False, model="assistant").only.content == "Much."
    assert "the whole text could not be kept: There" in prompt_of(upstream.received[3])


# -- limits ------------------------------------------------------------------------------------------------


def never_done(received: Received) -> Step:
    """Calls one more time, as long as it may."""
    offered = "✿FUNCTION✿" in prompt_of(received).partition("✿RESULT✿: Tool results")[0]
    return Says(echo(f"{received.number}")) if offered else Says("Enough.")


@both_ways
def test_rounds_have_an_end_and_behind_it_is_an_answer(
    florette: Florette, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(*[never_done] * 4)
    with client_of(florette(**CONFIG, agent_rounds=3)) as sdk:
        reply = ask(sdk, stream=stream, model="assistant")
    assert (reply.only.content, reply.only.finish) == ("Enough.", "stop")
    last = prompt_of(upstream.received[3])
    assert "No more tools can be called now." in last
    assert "### echo" not in last
    assert "0" in last


def test_the_very_same_call_is_not_made_for_ever(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("same")), Says(echo("same")), Says(echo("same")), Says("Enough."))
    with client_of(florette(**CONFIG, agent_repeats=2)) as sdk:
        assert ask(sdk, stream=False, model="assistant").only.content == "Enough."
    assert "this very call was made before" in prompt_of(upstream.received[3])


def test_tokens_have_an_end(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a"), tokens=(900, 101)), Says("Enough."))
    with client_of(florette(**CONFIG, agent_tokens=1000)) as sdk:
        assert ask(sdk, stream=True, model="assistant").only.content == "Enough."
    assert "No more tools" in prompt_of(upstream.received[1])


@pytest.mark.parametrize("limit", ["agent_time_s", "agent_tool_time_s"])
def test_time_has_an_end(florette: Florette, upstream: ScriptedUpstream, limit: str, gate: Gate) -> None:
    upstream.script(Says(call("wait_at_gate", '{"text": "a"}') + "✿RESULT✿"), Says("Enough."))
    with client_of(florette(**CONFIG, **{limit: 0.5})) as sdk:
        assert ask(sdk, stream=True, model="assistant").only.content == "Enough."
    told = prompt_of(upstream.received[1])
    assert "the time for tools is used up" in told
    assert "No more tools" in told
    assert gate.cancelled.is_set()


def test_a_tool_is_told_how_much_of_the_time_for_tools_is_left(florette: Florette, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("time_left", "{}")), Says("Done."))
    with client_of(florette(**CONFIG, agent_tool_time_s=7.0)) as sdk:
        ask(sdk, stream=False, model="assistant")
    told = re.search(r"RESULT✿: ([\d.]+)", prompt_of(upstream.received[1]))
    assert told and 0 < float(told[1]) <= 7.0


@both_ways
def test_the_callers_max_tokens_hold_for_all_turns(
    sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool
) -> None:
    upstream.script(Says(echo("a"), tokens=(10, 30)), Says(echo("b"), tokens=(10, 20)))
    reply = ask(sdk, stream=stream, model="assistant", max_tokens=50)
    assert reply.only.finish == "length"
    assert [received.json["max_tokens"] for received in upstream.received] == [50, 20]


def test_a_bound_may_be_a_text_as_vllm_takes_it(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a"), tokens=(10, 30)), Says(": Done."))
    body: Any = {"max_tokens": "50", "max_completion_tokens": True}
    ask(sdk, stream=False, model="assistant", extra_body=body)
    assert [received.json["max_tokens"] for received in upstream.received] == ["50", 20]


@both_ways
def test_a_call_that_is_cut_off_is_not_run(sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says('✿FUNCTION✿: echo\n✿ARGS✿: {"text": "hal', finish="length"))
    reply = ask(sdk, stream=stream, model="assistant")
    assert (reply.only.content, reply.only.calls, reply.only.finish) == ("", [], "length")


# -- while it runs -----------------------------------------------------------------------------------------


def test_comments_keep_the_connection_awake(florette: Florette, upstream: ScriptedUpstream, gate: Gate) -> None:
    upstream.script(Says(call("wait_at_gate", '{"text": "a"}') + "✿RESULT✿"), Says(": Done."))
    body = {"model": "assistant", "messages": [{"role": "user", "content": "Go."}], "stream": True}
    url = florette(**CONFIG, heartbeat_s=0.02) + "/v1/chat/completions"
    came = b""
    with httpx.stream("POST", url, json=body, timeout=PATIENCE_S) as answer:
        for part in answer.iter_raw():
            came += part
            if came.count(b": waiting\n\n") == 3:
                gate.open()
    assert came.count(b": waiting\n\n") >= 3
    assert came.endswith(b"data: [DONE]\n\n")


def test_comments_come_although_the_tool_tells_of_progress_that_nobody_asked_for(
    florette: Florette, upstream: ScriptedUpstream, gate: Gate
) -> None:
    upstream.script(Says(call("tell_without_end", "{}") + "✿RESULT✿"), Says(": Done."))
    body = {"model": "m", "messages": [{"role": "user", "content": "Go."}], "stream": True}
    config = {**CONFIG, "tools": ["tell_without_end"], "models": {}, "heartbeat_s": 0.02}
    url = florette(**config) + "/v1/chat/completions"
    with httpx.stream("POST", url, json=body | {"tools": [{"type": "tell_without_end"}]}, timeout=PATIENCE_S) as answer:
        came = b""
        for part in answer.iter_raw():
            came += part
            if came.count(b": waiting\n\n") == 3:
                gate.open()
    assert came.endswith(b"data: [DONE]\n\n")


def test_progress_has_an_end(url: str, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(call("tell_progress", '{"steps": 1500}') + "✿RESULT✿"), Says(": Done."))
    body = {"model": "assistant", "messages": [{"role": "user", "content": "Go."}], "florette": {"events": True}}
    told = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).json()["florette"]["events"]
    assert len([event for event in told if event["type"] == "tool_progress"]) == 1000


def test_calls_have_an_end(florette: Florette, upstream: ScriptedUpstream) -> None:
    calls = "".join(call("echo", json.dumps({"text": f"<{number}>"})) for number in range(5))
    upstream.script(Says(calls + "✿RESULT✿"), Says("Enough."))
    with client_of(florette(**CONFIG, agent_calls=3)) as sdk:
        assert ask(sdk, stream=False, model="assistant").only.content == "Enough."
    told = prompt_of(upstream.received[1])
    assert told.count("too many calls were made for one answer") == 2
    assert "No more tools can be called now." in told


@both_ways
def test_who_leaves_while_a_tool_runs_cancels_it(
    url: str, upstream: ScriptedUpstream, stream: bool, gate: Gate
) -> None:
    upstream.script(Says(call("wait_at_gate", '{"text": "a"}') + "✿RESULT✿"))
    with leaving(url, stream=stream):
        assert gate.started.wait(PATIENCE_S)
    assert gate.cancelled.wait(PATIENCE_S)


@both_ways
def test_who_leaves_in_a_later_turn_frees_the_upstream(url: str, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says(echo("a")), GoesSilent())
    with leaving(url, stream=stream):
        upstream.wait_for(2)
    assert upstream.received[1].left.wait(PATIENCE_S)


@contextmanager
def leaving(url: str, *, stream: bool) -> Iterator[None]:
    """Asks over a connection of its own, and drops it at the end of the block."""
    line = raw_request(url, model="assistant", stream=stream)
    try:
        yield
    finally:
        line.close()


def test_who_leaves_while_the_model_and_a_tool_are_at_work_stops_both(
    url: str, upstream: ScriptedUpstream, gate: Gate
) -> None:
    upstream.script(GoesSilent(Begins(call("wait_at_gate", '{"text": "a"}'), "✿FUNCTION✿")))
    with leaving(url, stream=True):
        assert gate.started.wait(PATIENCE_S)
    assert gate.cancelled.wait(PATIENCE_S)
    assert upstream.received[0].left.wait(PATIENCE_S)


def test_ten_callers_at_once_do_not_hear_each_other(url: str, upstream: ScriptedUpstream) -> None:
    def answer(received: Received) -> Step:
        told = prompt_of(received)
        [who] = set(re.findall(r"I am caller (\d+)\.", told))
        if "✿RESULT✿: secret" not in told:
            return Says(echo(f"secret {who}"), cut=3)
        assert set(re.findall(r"secret (\d+)", told)) == {who}
        return Says(f": You are {who}.", cut=2)

    upstream.script(*[answer] * 20)
    told: dict[int, str] = {}

    def one(number: int) -> None:
        with client_of(url) as sdk:
            messages = [{"role": "user", "content": f"I am caller {number}."}]
            told[number] = ask(sdk, stream=number % 2 == 0, model="assistant", messages=messages).only.content

    threads = [threading.Thread(target=one, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == {number: f"You are {number}." for number in range(10)}


# -- models ------------------------------------------------------------------------------------------------

UPSTREAM_MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "max_model_len": 4096}]}


def test_the_aliases_are_among_the_models(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Answers(UPSTREAM_MODELS))
    models = {model.id: model.to_dict() for model in sdk.models.list()}
    assert list(models) == ["m", "assistant", "renamed", "quiet"]
    assert models["assistant"] == {**models["m"], "id": "assistant", "owned_by": "florette"}


@both_ways
def test_an_alias_is_answered_by_its_own_name(sdk: openai.OpenAI, upstream: ScriptedUpstream, stream: bool) -> None:
    upstream.script(Says(echo("a")), Says(": Done."))
    request: Any = {"model": "assistant", "messages": [{"role": "user", "content": "Go."}]}
    if stream:
        assert {chunk.model for chunk in sdk.chat.completions.create(stream=True, **request)} == {"assistant"}
    else:
        assert sdk.chat.completions.create(**request).model == "assistant"


def test_a_mere_alias_passes_with_the_upstreams_name(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hi"), Says(call("get_weather", '{"city": "Rome"}')), Answers({"data": []}))
    assert ask(sdk, stream=False, model="renamed").only.content == "hi"
    assert ask(sdk, stream=False, model="renamed", tools=[MINE]).only.made == [("get_weather", '{"city": "Rome"}')]
    sdk.embeddings.create(model="renamed", input="x", encoding_format="float")
    assert [received.json["model"] for received in upstream.received] == ["m"] * 3
    assert "tools" not in upstream.received[0].json


def test_an_alias_is_talked_to_in_its_own_way(sdk: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hi"))
    ask(sdk, stream=False, model="quiet")
    assert prompt_of(upstream.received[0]).startswith("# Tools")


# -- keys and files ----------------------------------------------------------------------------------------


@pytest.fixture
def keyed(florette: Florette) -> Iterator[Callable[[str], openai.OpenAI]]:
    keys = [
        {"name": "ada", "sha256": hashlib.sha256(b"sk-ada").hexdigest()},
        {"name": "bob", "sha256": hashlib.sha256(b"sk-bob").hexdigest(), "tools": ["echo"]},
    ]
    base = florette(**CONFIG, api_keys=keys) + "/v1"
    made: list[openai.OpenAI] = []

    def client(key: str) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=base, api_key=key, max_retries=0))
        return made[-1]

    yield client
    for each in made:
        each.close()


def test_a_key_may_use_its_tools_only(keyed: Callable[[str], openai.OpenAI], upstream: ScriptedUpstream) -> None:
    upstream.script(Says(echo("a")), Says(": Done."), Answers(UPSTREAM_MODELS))
    bob = keyed("sk-bob")
    with pytest.raises(openai.PermissionDeniedError, match="The key 'bob' may not use the tool 'draw'"):
        ask(bob, stream=False, model="assistant")
    with pytest.raises(openai.PermissionDeniedError):
        ask(bob, stream=False, tools=[{"type": "draw"}])
    assert ask(bob, stream=False, tools=[{"type": "echo"}]).only.content == "Done."
    assert [model.id for model in bob.models.list()] == ["m", "renamed", "quiet"]


def test_a_file_of_the_caller_reaches_the_tool_and_one_of_its_own_making_is_bound_to_the_key(
    keyed: Callable[[str], openai.OpenAI], upstream: ScriptedUpstream
) -> None:
    ada, bob = keyed("sk-ada"), keyed("sk-bob")
    file = ada.files.create(file=("data.csv", b"a,b\n1,2\n"), purpose="user_data")
    upstream.script(
        Says(call("surroundings", "{}") + call("draw", "{}") + "✿RESULT✿"),
        Says(": Seen."),
    )
    content: Any = [{"type": "text", "text": "Look."}, {"type": "file", "file": {"file_id": file.id}}]
    asked: Any = [{"role": "user", "content": content}]
    assert ask(ada, stream=False, model="assistant", messages=asked).only.content == "Seen."
    first, second = map(prompt_of, upstream.received)
    assert "(Uploaded [file](data.csv)) Look." in first
    assert '"files": {"data.csv": "a,b\\n1,2\\n"}' in second
    assert '"caller": "ada"' in second
    [link] = re.findall(r"!\[dot.png\]\((http://[^)]+)\)", second)
    assert httpx.get(link).content == PIXEL, "the link opens without a key"
    assert httpx.get(link.partition("?")[0]).status_code == 401
    made = re.findall(r"file-\w+", link)[0]
    assert ada.files.content(made).content == PIXEL
    with pytest.raises(openai.NotFoundError):
        bob.files.content(made)
    with pytest.raises(openai.BadRequestError, match=file.id):
        ask(bob, stream=False, tools=[{"type": "echo"}], messages=asked)


def test_what_is_pending_is_bound_to_the_key(keyed: Callable[[str], openai.OpenAI], upstream: ScriptedUpstream) -> None:
    upstream.script(Says(MIXED), Says(": Done."))
    asked: Any = {"tools": [MINE, {"type": "echo"}]}
    first = ask(keyed("sk-ada"), stream=False, **asked)
    ask(keyed("sk-bob"), stream=False, messages=came_back(first, "sunny"), **asked)
    assert "✿RESULT✿: ours" not in prompt_of(upstream.received[1])
