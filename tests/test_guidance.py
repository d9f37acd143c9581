"""When an answer gets a grammar, and what an upstream has to show before it is sent one.

Source: vLLM 0.32.0 on the wire (`structural_tag`; a grammar that it cannot compile is answered 400, a field that it
does not know is ignored). What a grammar admits is held in `test_grammar`.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from admitting import Tag, admits
from asking import CITY, MESSAGES, ask, both_ways, call, client_of, named, raw_request, read_all, tool
from conftest import Florette
from proxy.app import create_app
from proxy.config import Config
from proxy.guidance import Guidance
from proxy.upstream import Patience, Upstream
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread, serve_app
from steps import DONE, Answers, Chunks, Fails, GoesSilent, Holds, Obeys, Says
from vllm_shapes import chunk, error

GET = tool("get_weather")
STRICT = tool("get_weather", strict=True)
CLOCK = tool("get_time", {"type": "object", "properties": {"zone": {"type": "string"}}})
ANSWER = {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]}
JSON_SCHEMA: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}

ROME = call("get_weather", '{"city": "Rome"}')
NUMBER = call("get_weather", '{"city": 1}')
#: As the model goes on behind what the prompt began for it.
ROME_ON = ROME.removeprefix("✿FUNCTION✿:")
ROME_NAMED = ROME_ON.removeprefix(" get_weather")


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of the test's own: what it can is remembered."""
    name: str = request.node.name
    return name


@pytest.fixture
def guided(upstream: ScriptedUpstream) -> ScriptedUpstream:
    """An upstream that takes grammars."""
    upstream.takes_grammars = True
    return upstream


def sent(upstream: ScriptedUpstream, number: int = -1) -> Any:
    """The response_format of a request as the upstream got it."""
    return upstream.received[number].json.get("response_format")


def grammar_in(upstream: ScriptedUpstream, number: int = -1) -> Tag:
    """The grammar that a request carried."""
    tag = sent(upstream, number)
    assert tag.keys() == {"type", "format"}
    assert tag["type"] == "structural_tag"
    grammar: Tag = tag["format"]
    return grammar


# -- which requests ----------------------------------------------------------------------------------------

DEMANDING: dict[str, Any] = {
    "required": {"tools": [GET], "tool_choice": "required"},
    "named": {"tools": [GET, CLOCK], "tool_choice": named("get_weather")},
    "allowed tools": {
        "tools": [GET, CLOCK],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [named("get_weather")]},
        },
    },
    "strict": {"tools": [CLOCK, STRICT]},
    "json schema": {"tools": [GET], "response_format": JSON_SCHEMA},
    "json object": {"tools": [GET], "response_format": {"type": "json_object"}},
}


@both_ways
@pytest.mark.parametrize("fields", DEMANDING.values(), ids=DEMANDING)
def test_what_demands_something_gets_a_grammar_of_it(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool, fields: Any
) -> None:
    guided.script(Says(ROME, cut=5, refuse=False))
    told = ask(client, stream=stream, model=model, **fields).only
    assert told.made == [("get_weather", '{"city": "Rome"}')]
    grammar = grammar_in(guided)
    written = ROME
    if fields.get("tool_choice"):
        written = ROME_NAMED if fields["tool_choice"] == named("get_weather") else ROME_ON
    assert admits(grammar, written)
    assert not admits(grammar, written.replace('"Rome"', "1"))
    assert not admits(grammar, written.replace("weather", "wether")) or "get_weather" not in written


@both_ways
def test_legacy_functions_are_demanded_by_a_grammar_of_one_call(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    guided.script(Says(ROME_NAMED, refuse=False))
    request: Any = {"model": model, "messages": MESSAGES, "functions": [GET["function"]]}
    made = client.chat.completions.create(**request, function_call={"name": "get_weather"}, stream=stream)
    list(made)
    assert [admits(grammar_in(guided), ROME_NAMED * times) for times in (1, 2)] == [True, False]


@pytest.mark.parametrize(("parallel", "calls"), [(True, 3), (False, 1)])
def test_without_parallel_calls_the_grammar_is_of_one(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, parallel: bool, calls: int
) -> None:
    guided.script(Says(ROME_ON, refuse=False))
    ask(client, stream=False, model=model, tools=[GET], tool_choice="required", parallel_tool_calls=parallel)
    assert [admits(grammar_in(guided), ROME_ON + ROME * more) for more in range(3)] == [
        more < calls for more in range(3)
    ]


@pytest.mark.parametrize("fields", [{"tools": [GET]}, {"tools": [STRICT], "tool_choice": "none"}, {}])
@both_ways
def test_what_demands_nothing_gets_none_and_the_upstream_is_not_asked_whether_it_could(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool, fields: Any
) -> None:
    guided.script(Says("Hello."))
    assert ask(client, stream=stream, model=model, **fields).only.content == "Hello."
    assert sent(guided) is None
    assert guided.probes == []


@both_ways
@pytest.mark.parametrize("fields", DEMANDING.values(), ids=DEMANDING)
def test_guided_off_sends_none(
    florette: Florette, guided: ScriptedUpstream, model: str, stream: bool, fields: Any
) -> None:
    guided.script(Says(ROME))
    with client_of(florette(guided="off")) as sdk:
        ask(sdk, stream=stream, model=model, **fields)
    assert sent(guided) is None
    assert guided.probes == []


@both_ways
def test_guided_always_holds_every_call_to_its_schema_and_leaves_the_rest_free(
    florette: Florette, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    guided.script(Says("Hello.", refuse=False))
    with client_of(florette(guided="always")) as sdk:
        assert ask(sdk, stream=stream, model=model, tools=[GET]).only.content == "Hello."
    grammar = grammar_in(guided)
    assert [admits(grammar, text) for text in ("Hello.", "Wait.\n" + ROME, NUMBER)] == [True, True, False]


def test_guided_can_be_set_for_a_model(florette: Florette, guided: ScriptedUpstream, model: str) -> None:
    guided.script(Says("Hello.", refuse=False), Says("Hello."))
    with client_of(florette(guided="off", models={model: {"guided": "always"}})) as sdk:
        ask(sdk, stream=False, model=model, tools=[GET])
        ask(sdk, stream=False, model="another", tools=[GET])
    assert [bool(sent(guided, number)) for number in (0, 1)] == [True, False]


@both_ways
@pytest.mark.parametrize("choice", ["auto", "required"])
@pytest.mark.parametrize(
    "own",
    [
        {"structured_outputs": {"regex": "x+"}},
        {"guided_json": {"type": "object"}},
        {"guided_regex": "x+"},
        {"guided_choice": ["x"]},
        {"guided_grammar": "root ::= x"},
        {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
        {"response_format": {"type": "regex", "pattern": "x+"}},
        {"response_format": {"type": ["json_object"]}},
    ],
    ids=repr,
)
def test_a_callers_own_constraint_is_left_alone(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool, choice: str, own: Any
) -> None:
    """Two at once are refused, and his is the one that he wants."""
    guided.script(Says(ROME))
    ask(client, stream=stream, model=model, tools=[STRICT], tool_choice=choice, extra_body=own)
    received = guided.received[0].json
    assert {name: received[name] for name in own} == own
    assert "response_format" in own or "response_format" not in received


@pytest.mark.parametrize("own", [{"structured_outputs": None}, {"guided_json": {}}, {"response_format": None}])
def test_a_constraint_that_is_none_is_none(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, own: Any
) -> None:
    guided.script(Says(ROME, refuse=False))
    ask(client, stream=False, model=model, tools=[STRICT], extra_body=own)
    assert admits(grammar_in(guided), ROME)


# -- an answer that was made to comply ---------------------------------------------------------------------


def test_an_answer_that_has_to_fit_is_not_held_back(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str
) -> None:
    """Its first piece is there while the upstream still writes the rest."""
    held = Holds(Says.pieces('{"degrees"', ": 21}", refuse=False), after=2)
    guided.script(held)
    request: Any = {"model": model, "messages": MESSAGES, "tools": [GET], "response_format": JSON_SCHEMA}
    with client.chat.completions.create(**request, stream=True, timeout=PATIENCE_S) as chunks:
        said = (choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content)
        assert next(said) == '{"degrees"'
        assert held.reached.is_set()
        held.release()
        assert "".join(said) == ": 21}"


def test_a_strict_call_that_has_to_fit_is_not_held_back(
    florette: Florette, guided: ScriptedUpstream, model: str
) -> None:
    held = Holds(Says.pieces(ROME[:-10], ROME[-10:], refuse=False), after=2)
    guided.script(held)
    request: Any = {"model": model, "messages": MESSAGES, "tools": [STRICT], "tool_choice": "required", "stream": True}
    with client_of(florette(repairs=1)) as sdk, sdk.chat.completions.create(**request, timeout=PATIENCE_S) as chunks:
        calls = (made for chunk in chunks for choice in chunk.choices for made in choice.delta.tool_calls or ())
        assert next(calls).function.name == "get_weather"
        assert not guided.received[0].left.is_set()
        held.release()
        list(calls)


@both_ways
def test_an_answer_that_has_to_fit_is_json_whatever_the_grammar_lets_through(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    """Seen on vLLM 0.32.0: xgrammar lets control characters into strings."""
    guided.script(Says('{"degrees": 21,\n"where": "a\n\x1b\\\tb"}', cut=1, refuse=False))
    told = ask(client, stream=stream, model=model, tools=[GET], response_format=JSON_SCHEMA).only
    assert told.content == '{"degrees": 21,\n"where": "a\\n\\u001b\\tb"}'


DIFFERENT: Any = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}


@both_ways
def test_an_answer_is_checked_where_no_grammar_can_hold_it(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    """Items that differ from one another: xgrammar takes the word, and does not heed it."""
    guided.script(Says("[1, 1]", cut=2, refuse=False), Says("[1, 2]", cut=2, refuse=False))
    answer_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": DIFFERENT}}
    told = ask(client, stream=stream, model=model, tools=[GET], response_format=answer_format).only
    assert told.content == "[1, 2]"
    assert admits(grammar_in(guided, 1), "[1, 2]")


@both_ways
def test_a_strict_call_is_repaired_where_no_grammar_can_hold_it(
    florette: Florette, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    schema = {"type": "object", "properties": {"days": DIFFERENT}}
    wrong, right = (call("get_weather", f'{{"days": [{days}]}}') for days in ("1, 1", "1, 2"))
    guided.script(Says(wrong, cut=3, refuse=False), Says(right, cut=3, refuse=False))
    with client_of(florette(repairs=1)) as sdk:
        told = ask(sdk, stream=stream, model=model, tools=[tool("get_weather", schema, strict=True)]).only
    assert told.made == [("get_weather", '{"days": [1, 2]}')]


@both_ways
def test_a_demand_is_checked_all_the_same(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    """A server may take the field of some models only; the second try carries the grammar, too."""
    guided.script(Says("I would rather not.", refuse=False), Says(ROME_ON, refuse=False))
    told = ask(client, stream=stream, model=model, tools=[GET], tool_choice="required").only
    assert told.made == [("get_weather", '{"city": "Rome"}')]
    assert admits(grammar_in(guided, 1), ROME_ON)


# -- the probe ---------------------------------------------------------------------------------------------


@both_ways
def test_an_upstream_is_probed_once_for_each_model(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    guided.script(*[Says(ROME_ON, refuse=False)] * 3)
    for name in (model, model, model + " 2"):
        ask(client, stream=stream, model=name, tools=[GET], tool_choice="required")
    assert [probe.json["model"] for probe in guided.probes] == [model, model + " 2"]


def test_a_probe_costs_little_and_comes_with_the_callers_key(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str
) -> None:
    guided.script(Says(ROME_ON, refuse=False))
    ask(client, stream=False, model=model, tools=[GET], tool_choice="required")
    [probe] = guided.probes
    assert probe.headers["authorization"] == "Bearer test"
    assert probe.json["max_tokens"] <= 16
    assert len(probe.body) < 400


NOT_ABLE = {
    "400": Fails(400),
    "422": Fails(422),
    "ignored": Says("Hello! How can I help?", refuse=False),
    "other case": Says("ZQ-FLORETTE-7", refuse=False),
}


@both_ways
@pytest.mark.parametrize("probed", NOT_ABLE.values(), ids=NOT_ABLE)
def test_an_upstream_that_takes_no_grammar_is_asked_plainly_from_then_on(
    client: openai.OpenAI, upstream: ScriptedUpstream, model: str, stream: bool, probed: Any
) -> None:
    upstream.probed = probed
    upstream.script(Says(ROME_ON), Says(ROME_ON))
    for _ in range(2):
        ask(client, stream=stream, model=model, tools=[GET], tool_choice="required")
    assert len(upstream.probes) == 1
    assert [sent(upstream, number) for number in (0, 1)] == [None, None]


@pytest.mark.parametrize("probed", [Says("", refuse=False, reasoning="Hm."), Says("zq-flo", refuse=False)])
def test_an_upstream_that_came_to_no_other_word_is_able(
    client: openai.OpenAI, upstream: ScriptedUpstream, model: str, probed: Any
) -> None:
    """A model that thinks first may use up the few tokens of a probe."""
    upstream.probed = probed
    upstream.script(Says(ROME_ON, refuse=False))
    ask(client, stream=False, model=model, tools=[GET], tool_choice="required")
    assert admits(grammar_in(upstream), ROME_ON)


#: A caller's own fault tells nothing of the upstream.
UNCLEAR = {"404": Fails(404), "401": Fails(401)}

#: What an upstream in trouble answers; it is asked at once, and once.
TROUBLE = {"503": Fails(503), "not JSON": Answers("busy"), "no completion": Answers({"status": "busy"})}


@both_ways
@pytest.mark.parametrize("probed", UNCLEAR.values(), ids=UNCLEAR)
def test_a_probe_that_fails_stops_nothing_and_is_not_remembered(
    florette: Florette, upstream: ScriptedUpstream, model: str, stream: bool, probed: Any
) -> None:
    upstream.probed = probed
    upstream.script(Says(ROME_ON), Says(ROME_ON, refuse=False))
    with client_of(florette(retries=0)) as sdk:
        ask(sdk, stream=stream, model=model, tools=[GET], tool_choice="required")
        upstream.probed, upstream.takes_grammars = None, True
        ask(sdk, stream=stream, model=model, tools=[GET], tool_choice="required")
    assert sent(upstream, 0) is None
    assert admits(grammar_in(upstream, 1), ROME_ON)
    assert len(upstream.probes) == 2


@pytest.fixture
def clock() -> list[float]:
    """The time that Florette reads, in seconds; tests turn it forward."""
    return [1_800_000_000.0]


@pytest.fixture
def timed(upstream: ScriptedUpstream, loop_thread: LoopThread, clock: list[float]) -> Iterator[openai.OpenAI]:
    """A client of a Florette that reads `clock`."""
    app = create_app(Config(upstream=upstream.url), now=lambda: clock[0])
    with serve_app(app, loop_thread) as url, client_of(url) as sdk:
        yield sdk


def test_an_upstream_that_could_not_is_asked_again_after_ten_minutes(
    timed: openai.OpenAI, upstream: ScriptedUpstream, clock: list[float]
) -> None:
    """It may have been replaced."""
    upstream.script(*[Says(ROME_ON, refuse=False)] * 3)
    probes = []
    for later_s in (0, 599, 2):
        clock[0] += later_s
        upstream.takes_grammars = later_s == 2
        ask(timed, stream=False, tools=[GET], tool_choice="required")
        probes.append(len(upstream.probes))
    assert probes == [1, 1, 2]
    assert [bool(sent(upstream, number)) for number in range(3)] == [False, False, True]


@pytest.mark.parametrize("probed", TROUBLE.values(), ids=TROUBLE)
def test_an_upstream_in_trouble_is_left_alone_for_half_a_minute(
    timed: openai.OpenAI, upstream: ScriptedUpstream, clock: list[float], probed: Any
) -> None:
    """Its requests are made without a grammar meanwhile: they have enough to wait for."""
    upstream.probed = probed
    upstream.script(*[Says(ROME_ON, refuse=False)] * 3)
    probes = []
    for later_s in (0, 29, 2):
        clock[0] += later_s
        if later_s == 2:
            upstream.probed, upstream.takes_grammars = None, True
        ask(timed, stream=False, tools=[GET], tool_choice="required")
        probes.append(len(upstream.probes))
    assert probes == [1, 1, 2]
    assert [bool(sent(upstream, number)) for number in range(3)] == [False, False, True]


@both_ways
def test_a_grammar_that_makes_the_upstream_fail_is_left_out(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    """vLLM 0.32 answers 500 to some, such as a schema that is a reference to itself."""
    guided.script(Fails(500), Says(ROME_ON, refuse=False), Says(ROME_ON, refuse=False))
    for _ in range(2):
        assert ask(client, stream=stream, model=model, tools=[GET], tool_choice="required").only.made
    assert [bool(sent(guided, number)) for number in range(3)] == [True, False, False]


@both_ways
def test_a_grammar_of_which_nobody_knows_whether_it_was_kept_to_is_no_proof(
    client: openai.OpenAI, upstream: ScriptedUpstream, model: str, stream: bool
) -> None:
    """A model that thinks may come to no word at all, whether or not it was held to one."""
    upstream.probed = Says("", reasoning="Let me think.")
    upstream.script(Says("I would say so.", refuse=False), Says('{"city": "Rome"}', refuse=False))
    wanted = {"type": "json_schema", "json_schema": {"name": "w", "schema": CITY}}
    told = ask(client, stream=stream, model=model, tools=[GET], response_format=wanted).only
    assert told.content == '{"city": "Rome"}'
    assert sent(upstream, 0) is not None


def test_an_upstream_that_could_is_not_asked_again(
    timed: openai.OpenAI, guided: ScriptedUpstream, clock: list[float]
) -> None:
    """A replaced one would refuse the grammar itself."""
    guided.script(*[Says(ROME_ON, refuse=False)] * 2)
    for later_s in (0, 10**6):
        clock[0] += later_s
        ask(timed, stream=False, tools=[GET], tool_choice="required")
    assert len(guided.probes) == 1


def test_requests_that_come_at_the_same_time_share_a_probe(
    florette: Florette, guided: ScriptedUpstream, model: str
) -> None:
    probe = Holds(Obeys())
    guided.probed = probe
    guided.script(Says("through"), *[Says(ROME_ON, refuse=False)] * 3)
    demand = {"model": model, "tools": [GET], "tool_choice": "required"}
    first = raw_request(florette(), **demand)
    assert probe.reached.wait(PATIENCE_S)
    others = [raw_request(florette(), **demand) for _ in range(2)]
    # What came before this request, on a connection that is as new, has been read when it is answered.
    assert b"through" in read_all(raw_request(florette(), model="m", tools=[GET]))
    assert len(guided.probes) == 1
    probe.release()
    for line in (first, *others):
        assert b'"tool_calls"' in read_all(line)
    assert len(guided.probes) == 1


def test_a_probe_of_one_model_holds_up_no_other(
    florette: Florette, client: openai.OpenAI, guided: ScriptedUpstream, model: str
) -> None:
    """Behind one address there may be a fast one and one that is still being loaded."""
    probe = Holds(Obeys())
    guided.probed = lambda request: probe if request.json["model"] == "slow" else Obeys()
    guided.script(*[Says(ROME_ON, refuse=False)] * 2)
    slow = raw_request(florette(), model="slow", tools=[GET], tool_choice="required")
    assert probe.reached.wait(PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, client, stream=False, model=model, tools=[GET], tool_choice="required")
        try:
            assert asked.result(PATIENCE_S).only.made
        finally:
            probe.release()
    assert b'"tool_calls"' in read_all(slow)


def test_a_caller_who_leaves_during_the_probe_leaves_it_to_the_next(
    florette: Florette, client: openai.OpenAI, guided: ScriptedUpstream, model: str
) -> None:
    guided.probed = GoesSilent()
    guided.script(Says(ROME_ON, refuse=False))
    line = raw_request(florette(), model=model, tools=[GET], tool_choice="required")
    while not guided.probes:
        assert not line.recv(0)
    line.close()
    assert guided.probes[0].left.wait(PATIENCE_S)
    guided.probed = None
    ask(client, stream=False, model=model, tools=[GET], tool_choice="required")
    assert admits(grammar_in(guided), ROME_ON)


# -- a grammar that is refused -----------------------------------------------------------------------------

ODD = tool("get_weather", {**CITY, "properties": {"city": {"type": "string", "pattern": "(?=x)y"}}})
REFUSED = {
    "400": Fails(400),
    "422": Fails(422),
    "in the stream": Chunks([error("Failed to convert the grammar", 400, "BadRequestError"), DONE]),
}


@pytest.mark.parametrize(
    ("stream", "refusal"),
    [(stream, refusal) for refusal in REFUSED for stream in (False, True) if stream or refusal != "in the stream"],
)
def test_a_grammar_that_is_refused_is_left_out_and_not_tried_again(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool, refusal: str
) -> None:
    """By any model: it is the compiler that cannot take it."""
    odd = tool("get_weather", {**ODD["function"]["parameters"], "description": f"{refusal} {stream}"})
    guided.script(REFUSED[refusal], Says(ROME_ON), Says(ROME_ON), Says(ROME_ON, refuse=False))
    for asked in (odd, odd, GET):
        told = ask(client, stream=stream, model=model, tools=[asked], tool_choice="required").only
        assert told.made == [("get_weather", '{"city": "Rome"}')]
    assert [bool(sent(guided, number)) for number in range(4)] == [True, False, False, True]


@both_ways
def test_a_request_that_is_refused_without_its_grammar_too_is_told_that_and_nothing_is_remembered(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    """Then it was not the grammar."""
    too_long = error("This model's maximum context length is 64 tokens.", 400)
    guided.script(Fails(400), Fails(400, too_long), Says(ROME_ON, refuse=False))
    with pytest.raises(openai.BadRequestError, match="maximum context length") as caught:
        ask(client, stream=stream, model=model, tools=[GET], tool_choice="required")
    assert caught.value.code == "context_length_exceeded"
    ask(client, stream=stream, model=model, tools=[GET], tool_choice="required")
    assert [bool(sent(guided, number)) for number in range(3)] == [True, False, True]


@both_ways
def test_a_refused_grammar_is_remembered_also_if_the_model_then_does_not_obey(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    """The upstream took the request without it: every further try would only be refused again."""
    odd = tool("get_weather", {**ODD["function"]["parameters"], "description": f"disobeyed {stream}"})
    guided.script(Fails(400), Says("No."), Says("No."), Says(ROME_ON))
    with pytest.raises(openai.APIError, match="tool_choice demands it"):
        ask(client, stream=stream, model=model, tools=[odd], tool_choice="required")
    ask(client, stream=stream, model=model, tools=[odd], tool_choice="required")
    assert sent(guided, 3) is None


@both_ways
def test_another_error_is_the_callers_at_once(
    florette: Florette, guided: ScriptedUpstream, model: str, stream: bool
) -> None:
    guided.script(Fails(503))
    with client_of(florette(retries=0)) as sdk, pytest.raises(openai.InternalServerError, match="the script says so"):
        ask(sdk, stream=stream, model=model, tools=[GET], tool_choice="required")


def test_a_refusal_behind_the_first_words_cannot_be_made_good(
    client: openai.OpenAI, guided: ScriptedUpstream, model: str
) -> None:
    said = chunk({"role": "assistant", "content": "Let me"})
    guided.script(Chunks([said, error("too late", 400, "BadRequestError"), DONE]))
    with pytest.raises(openai.APIError, match="too late"):
        ask(client, stream=True, model=model, tools=[STRICT])


# -- memory ------------------------------------------------------------------------------------------------


@pytest.fixture
def asked() -> list[str]:
    """The models for which an upstream was probed."""
    return []


@pytest.fixture
async def guidance(asked: list[str]) -> Guidance:
    """That of an upstream that takes grammars."""

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        asked.append(body.get("model"))
        word = body["response_format"]["format"]["value"]
        return httpx.Response(200, json={"choices": [{"message": {"content": word}, "finish_reason": "stop"}]})

    upstream = Upstream("http://upstream/v1", None, Patience(), httpx.MockTransport(answer))
    return Guidance(upstream, lambda: 0.0)


async def test_models_and_refused_grammars_are_remembered_up_to_a_bound(guidance: Guidance, asked: list[str]) -> None:
    """Callers choose both names: an endless supply must not fill the memory. The oldest is forgotten first."""
    grammars = [{"type": "const_string", "value": str(number)} for number in range(1025)]
    for grammar in grammars:
        guidance.refused(grammar, {"model": "m"})
    known = [await guidance.support(grammar, {"model": "m"}, {}) for grammar in (grammars[0], grammars[1])]
    assert known == ["yes", "no"]
    for number in [*range(256), 0]:
        assert await guidance.support(grammars[0], {"model": str(number)}, {}) == "yes"
    assert asked == ["m", *map(str, range(256))]
    await guidance.support(grammars[0], {"model": "m"}, {})
    assert asked[-1] == "m"


async def test_a_request_that_names_no_model_is_probed_without(guidance: Guidance, asked: list[Any]) -> None:
    assert await guidance.support({}, {}, {}) == "yes"
    assert asked == [None]
