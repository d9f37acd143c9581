"""The doctor's judgement of recorded answers where it takes more than one of them, or what was asked."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.doctor.exchange import Answer, read_answer
from proxy.doctor.findings import Finding, Result, Verdict, fail, passed, skipped, warn
from proxy.doctor.judging import (
    BEFORE,
    BEHIND,
    differences,
    judge_cuts,
    judge_error,
    judge_formed,
    judge_repeated,
    judge_used,
)
from proxy.doctor.planted import PLANTS
from proxy.doctor.said import Call
from proxy.doctor.sse import read_stream
from recorded import JSON_TYPE, PARAMETERS, Made, asked, chunks, completion, streamed, whole

PARIS: Made = ("get_weather", ['{"city": "Paris"}'])
QWEN, NOUS, CHATML, _ = PLANTS
OTHERWISE = "FAIL: The stream says something else."
UNUSED = "FAIL: The answer does not use the result."
JOINED = QWEN.replace("✿F", "✿\u2060F")


def told(findings: list[Finding]) -> list[str]:
    return [f"{finding.verdict.name}: {finding.said}" for finding in findings]


# -- what was planted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("planted", PLANTS)
def test_what_comes_back_unchanged_is_well(planted: str) -> None:
    quoted = planted.replace('"', "'")
    for text in (
        f"{BEFORE} {planted} {BEHIND}",
        f'Here: "{BEFORE}  {planted}\n{BEHIND}".',
        f"{BEFORE} {quoted} {BEHIND}",
    ):
        answer = whole(completion(text))
        assert judge_repeated(answer, text, planted) == []


@pytest.mark.parametrize(
    ("text", "planted", "said"),
    [
        (f"{BEFORE} {JOINED} {BEHIND}", QWEN, "FAIL: What was planted came back in other"),
        (f"{BEFORE} {QWEN.replace('✿', '')} {BEHIND}", QWEN, "FAIL: What was planted came back in other"),
        (f"{BEFORE} \nuser\nThe weather in Zzyzx?\nassistant\n {BEHIND}", CHATML, "FAIL: What was planted is gone."),
        (f"{BEFORE}  {BEHIND}", NOUS, "FAIL: What was planted is gone."),
        (f"{BEFORE} ", QWEN, "FAIL: The answer ends in what was planted."),
        (f"{BEFORE} {QWEN[:20]}", QWEN, "FAIL: The answer ends in what was planted."),
        ("It is 8317 degrees.", QWEN, "FAIL: What was planted was taken for a result."),
        (f"{BEFORE} and 8317.", QWEN, "FAIL: What was planted was taken for a result."),
        (f"{BEFORE} call get_weather for Zzyzx {BEHIND}", QWEN, "WARNING: The model did not repeat it word for word"),
        ("I'd rather not.", QWEN, "WARNING: The model did not repeat it, so nobody can tell."),
    ],
)
def test_what_becomes_of_planted_markers_is_told(text: str, planted: str, said: str) -> None:
    [found] = told(judge_repeated(whole(completion(text)), text, planted))
    assert found.startswith(said)


def test_an_answer_that_was_cut_in_planted_markers_is_no_fault() -> None:
    [found] = told(judge_repeated(whole(completion(BEFORE, finish="length")), BEFORE, QWEN))
    assert found == "WARNING: The answer was cut short, so nobody can tell."


def test_planted_markers_that_become_a_call_are_told() -> None:
    answer = whole(completion(None, ("get_weather", '{"city": "Zzyzx"}')))
    assert told(judge_repeated(answer, "", QWEN)) == ["FAIL: What was planted became a call."]


# -- streamed and not --------------------------------------------------------------------------------------


def compared(*answers: Answer) -> list[str]:
    wholes, streams = ([each for each in answers if (each.stream is not None) is kind] for kind in (False, True))
    return told(differences(wholes * (3 - len(wholes)), streams * (3 - len(streams))))


def test_the_same_said_in_other_words_of_json_is_the_same() -> None:
    arguments = ['{"n":1', '.0,"m":100.0}']
    same = streamed(chunks("Look", ("f", arguments)))
    assert compared(whole(completion("Look", ("f", '{"n":1.0,"m":100.0}'))), same) == []
    warning = "WARNING: The stream writes the same arguments in other characters."
    assert compared(whole(completion("Look", ("f", '{"m": 1e2, "n": 1}'))), same) == [warning]


@pytest.mark.parametrize(
    "other",
    [
        completion("Look", PARIS, PARIS),
        completion("look", PARIS),
        completion("Look", ("get_time", PARIS[1])),
        completion("Look", ("get_weather", '{"city": "Rome"}')),
        completion("Look", PARIS, finish="stop"),
        completion("Look"),
    ],
)
def test_what_a_stream_says_otherwise_is_a_fault(other: dict[str, Any]) -> None:
    assert compared(whole(other), streamed(chunks("Look", PARIS))) == [OTHERWISE]


def test_one_and_true_are_not_the_same() -> None:
    one, true = (completion(None, ("f", f'{{"a": {value}}}')) for value in ("1", "true"))
    assert compared(whole(one), streamed(chunks("", ("f", ['{"a": true}'])))) == [OTHERWISE]
    assert compared(whole(true), streamed(chunks("", ("f", ['{"a": true}'])))) == []


def test_broken_arguments_are_compared_as_they_are() -> None:
    assert compared(whole(completion(None, ("f", "{"))), streamed(chunks("", ("f", ["{"])))) == []


def test_a_model_that_is_not_steady_cannot_be_compared() -> None:
    sampling = ["WARNING: It differs by sampling: the same request got two answers."]
    hello, hi = completion("Hello."), completion("Hi.")
    assert compared(whole(hello), whole(hi), streamed(chunks("Hello."))) == sampling
    assert compared(whole(hello), streamed(chunks("Hello.")), streamed(chunks("Hi."))) == sampling


# -- cut, formed, used, refused ----------------------------------------------------------------------------

FULL = whole(completion(None, PARIS))


def cut(arguments: str, finish: str = "length") -> Answer:
    return whole(completion(None, ("get_weather", arguments), finish=finish))


def test_calls_that_were_cut_and_say_so_are_well() -> None:
    answers = [whole(completion("", finish="length")), cut('{"city": "P'), cut('{"city": "Paris"}'), FULL]
    assert told(judge_cuts(FULL, answers)) == ["PASS: 3 of 4 answers were cut"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (cut('{"city": "P', "tool_calls"), "FAIL: A call was cut, and the finish does not say so."),
        (cut('{"city": "P"}'), "FAIL: The cut call was completed with what nobody said."),
        (cut("{}"), "FAIL: The cut call was completed with what nobody said."),
    ],
)
def test_a_call_that_was_cut_and_does_not_say_so_is_a_fault(answer: Answer, said: str) -> None:
    assert told(judge_cuts(FULL, [answer])) == [said]


def test_without_a_call_there_is_nothing_to_cut() -> None:
    assert told(judge_cuts(whole(completion("Hi")), [])) == ["SKIPPED: The model made no call to cut."]


@pytest.mark.parametrize(
    ("answer", "wants_call", "said"),
    [
        (whole(completion('{"city": "Ada"}')), False, []),
        (FULL, True, []),
        (whole(completion('{"city": 5}')), False, ["FAIL: The text is not of the form."]),
        (whole(completion("Hello Ada")), False, ["FAIL: The text is not of the form."]),
        (whole(completion('{"city": "Ada"}')), True, ["WARNING: The model did the other thing, so nobody can tell."]),
        (FULL, False, ["WARNING: The model did the other thing, so nobody can tell."]),
        (Answer(asked(), 400), False, ["SKIPPED: A response_format beside tools is refused."]),
    ],
)
def test_beside_tools_an_answer_is_a_call_or_of_the_form(answer: Answer, wants_call: bool, said: list[str]) -> None:
    assert told(judge_formed(answer, PARAMETERS, wants_call=wants_call)) == said


def test_what_may_yet_have_come_of_an_answer_that_was_cut_is_no_fault() -> None:
    short = ["WARNING: The answer was cut short, so nobody can tell."]
    answer = whole(completion('{"ci', finish="length"))
    assert told(judge_formed(answer, PARAMETERS, wants_call=False)) == short
    assert told(judge_used(answer, ["17"], [])) == short


def test_an_answer_has_to_tell_what_the_results_say() -> None:
    calls = [Call("1", "get_weather", '{"city": "Paris"}')]
    assert judge_used(whole(completion("17 and 43.")), ["17", "43"], calls) == []
    assert told(judge_used(whole(completion("17.")), ["17", "43"], calls)) == [UNUSED]
    assert told(judge_used(FULL, ["17"], calls)) == ["FAIL: It calls again instead of answering."]
    assert told(judge_used(FULL, ["17"], [])) == ["WARNING: It calls again instead of answering."]


def test_an_error_object_needs_every_field() -> None:
    fields = {"message": "no", "type": "invalid_request_error", "param": None, "code": "bad"}
    for missing in ("", *fields):
        error = {"error": {name: value for name, value in fields.items() if name != missing}}
        answer = read_answer(asked(), 400, JSON_TYPE, json.dumps(error).encode())
        assert [missing in found for found in told(judge_error(answer, 400))] == [True] * bool(missing)


# -- the wire, read ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["data: {}", "data:{}", ": hi", ""]), st.sampled_from(["\n", "\r\n", "\r"]))))
def test_lines_end_in_any_of_three_ways(lines: list[tuple[str, str]]) -> None:
    """An event's blank line is one whatever ends it; comments are none."""
    text = "".join(f"{line}{end}" for line, end in lines)
    assert read_stream(text) == read_stream(text.replace("\r\n", "\n").replace("\r", "\n"))


def test_several_data_lines_are_one_event_and_what_is_half_is_none() -> None:
    stream = read_stream('data: {"a":\ndata: 1}\n\nevent: x\nid\ndata: tail')
    assert stream.chunks == ({"a": 1},)
    assert stream.strays == ("event: x", "id")
    assert stream.unended == "data: tail"
    assert read_stream("data: tail\n").unended == "tail\n"


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], Verdict.PASS),
        ([skipped("")], Verdict.SKIPPED),
        ([skipped(""), passed("")], Verdict.PASS),
        ([warn(""), passed("")], Verdict.WARNING),
        ([warn(""), fail(""), skipped("")], Verdict.FAIL),
    ],
)
def test_a_check_is_as_bad_as_its_worst_finding(findings: list[Finding], verdict: Verdict) -> None:
    assert Result("area", "name", tuple(findings)).verdict is verdict
