"""The doctor against endpoints with one fault each: it names the fault, and shows what it saw.

The faults are those of vLLM 0.32.0's own `hermes` parser, as recorded from one, and some of other servers'.
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from starlette.responses import JSONResponse, Response

from proxy.doctor import choices, examine, legacy, limits, planted, refusals, sameness, schemas, trips
from proxy.doctor.battery import RULES
from proxy.doctor.findings import Result, Verdict
from proxy.doctor.probe import Check
from proxy.doctor.rule import Rule
from recorded import (
    Json,
    Made,
    Script,
    Stage,
    chunk,
    chunks,
    completion,
    serve_stage,
    vllm_chunks,
    vllm_completion,
)
from serving import LoopThread

#: The comparison of a call streamed with the same call whole.
A_CALL = sameness.COMPARED[1]

ARGUMENTS = "arguments are a JSON object"
LEAKS = "no marker stands in text or arguments"
FINISH = "finish_reason says what was made"
FIRST_PIECE = 'a call\'s arguments begin as "" and go on as text'


@pytest.fixture(scope="module")
def stage(loop_thread: LoopThread) -> Iterator[Stage]:
    """An endpoint that plays what each test writes for it."""
    with serve_stage(loop_thread) as served:
        yield served


def examined(url: str, *checks: Check, rules: Sequence[Rule] = ()) -> dict[str, Result]:
    """What the doctor says, by the check's name."""
    card = asyncio.run(examine(url, "m", checks=checks, rules=rules))
    return {result.name: result for result in card.results}


def complaints(url: str, *checks: Check) -> dict[str, Result]:
    """What these checks and all rules find wrong or odd."""
    found = examined(url, *checks, rules=RULES)
    return {name: result for name, result in found.items() if result.verdict > Verdict.PASS}


def told(result: Result) -> str:
    """All that was seen of it."""
    answers = [finding.answer.told() for finding in result.findings if finding.answer]
    return " ".join([*(f"{finding.said} {finding.came} {finding.due}" for finding in result.findings), *answers])


def says(whole: Json, stream: list[Json]) -> Script:
    """An endpoint that always says this, in either way."""
    return lambda body: stream if body.get("stream") else whole


@dataclass(frozen=True)
class Fault:
    """What an endpoint says, streamed and not, and by which lines of the scorecard it is to be seen."""

    name: str
    whole: Json
    stream: list[Json]
    check: Check
    seen: dict[str, str]


PARIS: Made = ("get_weather", ['{"city":', ' "Paris"}'])
MARKUP = '<tool_call>\n{"name": "get_weather"}\n</tool_call>'

VLLM_FAULTS = [
    Fault(
        "1: a stream is the model's own text, a whole answer is written anew",
        vllm_completion(None, ("get_weather", '{"city": "北京"}')),
        vllm_chunks("", ("get_weather", ['{"city":  "\\u5317', '\\u4eac" }'])),
        A_CALL,
        {"a call": "in other characters"},
    ),
    Fault(
        "2: a call without arguments has empty ones, or is no call",
        vllm_completion(MARKUP),
        vllm_chunks("", ("get_weather", [])),
        A_CALL,
        {ARGUMENTS: "get_weather()", LEAKS: "<tool_call>", "a call": "says something else"},
    ),
    Fault(
        "3: a key `name` inside the arguments becomes the function's name",
        vllm_completion(None, PARIS),
        vllm_chunks("", ("bob", ['{"name": "bob"}, "name": "search"'])),
        choices.auto,
        {ARGUMENTS: "Extra data", "a call is of a tool that was declared": "bob"},
    ),
    Fault(
        "4: broken JSON is passed on as it is, or is no call",
        vllm_completion('<tool_call>\n{"name": "get_weather", "arguments": {"city": Paris}}\n</tool_call>'),
        vllm_chunks("", ("get_weather", ['{"city": Paris}'])),
        choices.auto,
        {ARGUMENTS: '{"city": Paris}', LEAKS: "</tool_call>"},
    ),
    Fault(
        "5: an end marker in a string ends the arguments",
        vllm_completion('<tool_call>\n{"name": "save_note", "arguments": {"text": "a</tool_call>"}}'),
        vllm_chunks("", ("save_note", ['{"text": "a'])),
        planted.in_arguments,
        {ARGUMENTS: "Unterminated string", LEAKS: "<tool_call>"},
    ),
    Fault(
        "6: a call that is cut in its name is markup",
        vllm_completion('<tool_call>\n{"name": "get_w', finish="length"),
        vllm_chunks("", finish="length"),
        limits.cut_call,
        {LEAKS: "get_w"},
    ),
    Fault(
        "7: arguments in a string are encoded twice",
        vllm_completion(None, ("get_weather", '"{\\"city\\": \\"Paris\\"}"')),
        vllm_chunks("", ("get_weather", ['"{\\"city\\": ', '\\"Paris\\"}"'])),
        choices.auto,
        {ARGUMENTS: "encoded twice"},
    ),
    Fault(
        "7: a function that nobody declared is passed on",
        vllm_completion(None, ("get_whether", "{}")),
        vllm_chunks("", ("get_whether", ["{}"])),
        choices.auto,
        {"a call is of a tool that was declared": "get_whether"},
    ),
    Fault(
        "8: a named choice does not enforce the schema",
        vllm_completion(None, ("get_time", '[["Paris"]]'), finish="stop"),
        vllm_chunks("", ("get_time", ['"Paris"']), finish="stop"),
        choices.by_name,
        {ARGUMENTS: '[["Paris"]]'},
    ),
    Fault(
        "9: required, and a control character in a string",
        vllm_completion('[{"name": "get_weather", "parameters": {"city": "P\x0b"}}]', finish="tool_calls"),
        vllm_chunks("", ("get_weather", ['{"city": "P"}', "}"])),
        choices.required,
        {FINISH: "promises calls", ARGUMENTS: "Extra data", "required: a call even for small talk": "No tool"},
    ),
    Fault(
        "10: the second call is generated and thrown away",
        vllm_completion(None, PARIS),
        [*vllm_chunks("", PARIS)[:-1], *[chunk({"content": None})] * 12, chunk({}, "tool_calls")],
        choices.one_call,
        {"a stream ends when its last call does": "12 chunks"},
    ),
    Fault(
        "12: tool_choice none leaves the markup in the text",
        vllm_completion(MARKUP),
        vllm_chunks(MARKUP),
        choices.none,
        {LEAKS: "<tool_call>"},
    ),
]


@pytest.mark.parametrize("fault", VLLM_FAULTS, ids=lambda fault: fault.name)
def test_each_fault_of_vllms_parser_is_recognised(stage: Stage, fault: Fault) -> None:
    """Number 11, its quadratic time, is none that an answer could show."""
    found = complaints(stage.play(says(fault.whole, fault.stream)), fault.check)
    for name, evidence in fault.seen.items():
        assert name in found, found.keys()
        assert evidence in told(found[name])
    # What any answer of vLLM's shows, and that a call which was lost cannot be judged, is beside the point.
    beside = {name for name, result in found.items() if result.verdict is Verdict.WARNING}
    assert found.keys() - fault.seen.keys() <= beside | {FIRST_PIECE}


def test_a_first_piece_without_arguments_is_told_of_every_stream_of_vllms(stage: Stage) -> None:
    found = complaints(stage.play(says(vllm_completion(None, PARIS), vllm_chunks("", PARIS))), choices.auto)
    assert list(found) == [FIRST_PIECE]
    assert found[FIRST_PIECE].verdict is Verdict.FAIL
    assert '"function": {"name": "get_weather"}}' in told(found[FIRST_PIECE])


def test_an_endpoint_without_fault_is_without_complaint(stage: Stage) -> None:
    assert complaints(stage.play(says(completion(None, PARIS), chunks("", PARIS))), choices.auto, A_CALL) == {}


# -- what the model did not do, and what the endpoint did not do ------------------------------------------

TEXT = says(completion("Hello."), chunks("Hello."))
ONE_CALL = says(completion(None, PARIS), chunks("", PARIS))
ERROR_SHAPE = "FAIL: The error object is not OpenAI's: see message, type, param, code."
TWICE = says(completion(None, PARIS, PARIS), chunks("", PARIS, PARIS))


def refused(status: int, body: Json) -> Script:
    return lambda _: JSONResponse(body, status)


def calls_once(body: Json) -> Json | list[Json] | Response:
    """Only the first message of a conversation."""
    return (ONE_CALL if len(body["messages"]) == 1 else TEXT)(body)


def takes_no_history(body: Json) -> Json | list[Json] | Response:
    """Only the first message of a conversation is answered."""
    return TEXT(body) if len(body["messages"]) == 1 else vllm_error("no", 400)


def stops_at_once(body: Json) -> Json | list[Json] | Response:
    """Refuses `max_tokens` as newer models of OpenAI's do, and honours its newer name."""
    if "max_tokens" in body:
        return vllm_error("Use 'max_completion_tokens' instead.", 400)
    finish = "length" if "max_completion_tokens" in body else "stop"
    return says(completion("One.", finish=finish), chunks("One.", finish=finish))(body)


def counts_otherwise(body: Json) -> Json | list[Json] | Response:
    """Tells another prompt's length of a whole answer."""
    whole = completion("Hi") | {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
    return says(whole, chunks("Hi"))(body)


def verdicts(found: dict[str, Result]) -> dict[str, str]:
    """The first of the worst findings of each."""
    worst = {
        name: [each for each in result.findings if each.verdict is result.verdict] for name, result in found.items()
    }
    return {
        name: ": ".join([found[name].verdict.name, *(each.said for each in same[:1])]) for name, same in worst.items()
    }


@pytest.mark.parametrize(
    ("script", "check", "said"),
    [
        (TEXT, choices.auto, "WARNING: The model made no call, so nobody can tell."),
        (ONE_CALL, choices.auto_small_talk, "WARNING: The model called a tool that nobody needs."),
        (ONE_CALL, choices.none, "FAIL: A tool was called."),
        (TEXT, choices.required, "FAIL: No tool was called."),
        (TEXT, choices.by_name, "FAIL: The tool that was named was not called."),
        (ONE_CALL, choices.by_name, "FAIL: The tool that was named was not called."),
        (ONE_CALL, choices.two_calls, "WARNING: The model did not make two calls, so nobody can tell."),
        (TWICE, choices.two_calls, "FAIL: The calls are not about both cities."),
        (TWICE, choices.one_call, "FAIL: There are several calls."),
        (TEXT, choices.one_call, "WARNING: The model made no call, so nobody can tell."),
        (TEXT, schemas.every_kind, "FAIL: The tool that was named was not called."),
        (TEXT, schemas.strict, "WARNING: The model made no call, so nobody can tell."),
        (TEXT, choices.two_choices, "FAIL: There are not two choices."),
        (TEXT, legacy.functions, "FAIL: No function was called."),
        (ONE_CALL, legacy.functions, "FAIL: The call came in the newer form."),
        (TEXT, legacy.function_result, "FAIL: The answer does not use the result."),
        (TEXT, trips.two_results, "FAIL: The answer does not use the result."),
        (ONE_CALL, trips.two_results, "FAIL: It calls again instead of answering."),
        (ONE_CALL, trips.one_result, "FAIL: It calls again instead of answering."),
        (calls_once, trips.later_call, "WARNING: The model made no call, so nobody can tell."),
        (takes_no_history, trips.broken_history, "FAIL: The request failed."),
        (stops_at_once, limits.length, "PASS"),
        (counts_otherwise, limits.same_prompt, "FAIL: They differ."),
        (TEXT, limits.same_prompt, "PASS"),
        (refused(404, {"error": "no such model"}), refusals.no_model, ERROR_SHAPE),
        (ONE_CALL, trips.later_call, "FAIL: The new call has the old one's id."),
        (ONE_CALL, limits.stop, "FAIL: It says something else."),
        (TEXT, limits.length, "FAIL: It does not."),
        (TEXT, limits.formed_text, "FAIL: The text is not of the form."),
        (ONE_CALL, limits.formed_text, "WARNING: The model did the other thing, so nobody can tell."),
        (TEXT, planted.in_question, "WARNING: The model did not repeat it, so nobody can tell."),
        (TEXT, planted.in_arguments, "WARNING: The model made no call, so nobody can tell."),
    ],
)
def test_what_the_model_did_not_do_is_told_from_what_the_endpoint_did_wrong(
    stage: Stage, script: Script, check: Check, said: str
) -> None:
    assert verdicts(examined(stage.play(script), check)) == {check.name: said}


# -- answers that are none --------------------------------------------------------------------------------

NO_PARSER = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'


def vllm_error(message: str, status: int) -> Response:
    """VLLM's error object, whose code is the status."""
    error = {"message": message, "type": "BadRequestError", "param": None, "code": status}
    return JSONResponse({"error": error}, status)


def test_a_vllm_without_a_tool_parser_fails_with_its_own_words_for_evidence(stage: Stage) -> None:
    found = complaints(stage.play(lambda body: vllm_error(NO_PARSER, 400)), choices.auto, trips.one_result)
    assert verdicts(found) == {
        choices.auto.name: "FAIL: There was no answer.",
        trips.one_result.name: "FAIL: There was no answer.",
    }
    assert "requires --enable-auto-tool-choice" in told(found[choices.auto.name])


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (schemas.strict, "Strict tools are refused."),
        (choices.two_choices, "Several choices are refused."),
        (limits.formed_text, "A response_format beside tools is refused."),
        (limits.formed_call, "A response_format beside tools is refused."),
    ],
)
def test_what_is_refused_openly_is_skipped(stage: Stage, check: Check, said: str) -> None:
    found = examined(stage.play(lambda body: vllm_error("no", 400)), check)
    assert verdicts(found) == {check.name: f"SKIPPED: {said}"}


@pytest.mark.parametrize("check", [trips.one_result, trips.later_call, limits.cut_call])
def test_what_hangs_on_a_call_is_skipped_without_one(stage: Stage, check: Check) -> None:
    assert examined(stage.play(TEXT), check)[check.name].verdict is Verdict.SKIPPED


GOOD_ERROR = {"message": "no", "type": "invalid_request_error", "param": "tools", "code": None}


@pytest.mark.parametrize(
    ("script", "said", "evidence"),
    [
        (refused(422, {"detail": [{"msg": "Field required"}]}), "The status is another.", "422"),
        (refused(400, {"detail": "Not Found"}), "see message, type, param, code.", "detail"),
        (refused(400, {"error": "Unauthorized"}), "see message, type, param, code.", "Unauthorized"),
        (refused(400, {"error": {**GOOD_ERROR, "code": 400}}), "see code.", '"code":400'),
        (refused(400, {"error": {**GOOD_ERROR, "message": ""}}), "see message.", '"message":""'),
        (TEXT, "The status is another.", "Hello."),
    ],
)
def test_an_error_that_is_not_openais_is_told(stage: Stage, script: Script, said: str, evidence: str) -> None:
    [check] = [check for check in refusals.FAULTS if check.name == "no messages"]
    [finding] = examined(stage.play(script), check)[check.name].findings
    assert said in finding.said
    assert evidence in finding.came


def test_an_error_as_openai_words_it_passes(stage: Stage) -> None:
    checks = [*refusals.FAULTS, refusals.no_model]
    found = examined(stage.play(refused(400, {"error": GOOD_ERROR})), *checks)
    assert {name: result.verdict for name, result in found.items()} == {check.name: Verdict.PASS for check in checks}


def test_a_server_that_serves_any_model_name_is_not_blamed(stage: Stage) -> None:
    found = examined(stage.play(lambda body: completion("Hello.")), refusals.no_model)
    assert verdicts(found) == {refusals.no_model.name: "SKIPPED: Any model name is served."}
