"""Judging what was recorded, where a rule is not enough: because it depends on what was asked, or on several answers.

Each function takes answers and gives findings; none means that all is well.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from jsonschema import Draft202012Validator

from proxy.doctor.exchange import Answer
from proxy.doctor.findings import Finding, fail, lack, passed, skipped, warn
from proxy.doctor.rules import MARKERS
from proxy.doctor.said import Call, Said, as_object
from proxy.doctor.sse import Json, read_json, read_object

#: Where markers are planted: the words around them, and a city and a result that no model comes upon by itself.
BEFORE, BEHIND = "red apple", "green pear"
PLANTED_CITY, PLANTED_RESULT = "Zzyzx", "8317"

_ERROR_SHAPE = '{"error": {"message": "...", "type": "...", "param": null or "...", "code": null or "..."}}'


def judge_used(answer: Answer, facts: Sequence[str], calls: Sequence[Call]) -> list[Finding]:
    """Whether an answer to the results of these calls tells the facts that stood in them."""
    said, due = answer.said, f"a text with {' and '.join(facts)} in it"
    if said.calls:
        again = {call.arguments for call in said.calls} & {call.arguments for call in calls}
        return [(fail if again else warn)("It calls again instead of answering.", answer, due=due)]
    missing = [fact for fact in facts if fact not in said.content]
    return [lack("The answer does not use the result.", answer, due)] if missing else []


def judge_repeated(answer: Answer, text: str, planted: str) -> list[Finding]:
    """What became of the planted text, in a text that should hold it between BEFORE and BEHIND."""
    _, before, rest = text.partition(BEFORE)
    middle, behind, _ = rest.rpartition(BEHIND)
    due = f"{BEFORE} {planted} {BEHIND}"
    if any((read_object(call.arguments) or {}).get("city") == PLANTED_CITY for call in answer.said.calls):
        return [fail("What was planted became a call.", answer, due=due)]
    if not (before and behind):
        if before and planted.startswith(rest.strip()):
            return [lack("The answer ends in what was planted.", answer, due)]
        if PLANTED_RESULT in text:
            return [fail("What was planted was taken for a result.", answer, due=due)]
        return [warn("The model did not repeat it, so nobody can tell.", answer, due=due)]
    return _altered(answer, middle, planted, due)


def _altered(answer: Answer, middle: str, planted: str, due: str) -> list[Finding]:
    # A model may well write other quotes or line ends, but not other markers.
    kept = all(marker in middle for marker in MARKERS if marker in planted)
    if _letters(middle) == _letters(planted):
        return [] if kept else [fail("What was planted came back in other characters.", answer, due=due)]
    if _letters(middle) in ("", _letters(_without_markers(planted))):
        return [fail("What was planted is gone.", answer, due=due)]
    return [warn("The model did not repeat it word for word, so nobody can tell.", answer, due=due)]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text))


def _without_markers(text: str) -> str:
    for marker in MARKERS:
        text = text.replace(marker, "")
    return text


def differences(wholes: Sequence[Answer], streams: Sequence[Answer]) -> list[Finding]:
    """What differs between answers to one request: first among the wholes, then among the streams, then between."""
    for same in (wholes, streams):
        if len({_gist(answer.said) for answer in same}) > 1:
            return [warn("It differs by sampling: the same request got two answers.", same[0], due=same[1].told())]
    whole, stream = wholes[0], streams[0]
    if _gist(whole.said) != _gist(stream.said):
        return [fail("The stream says something else.", stream, due=whole.told())]
    if _arguments(whole.said) != _arguments(stream.said):
        return [warn("The stream writes the same arguments in other characters.", stream, due=whole.told())]
    return []


def _gist(said: Said) -> tuple[object, ...]:
    """All that must be the same; ids never are, and arguments are what they mean."""
    return said.content, tuple((call.name, _meant(call.arguments)) for call in said.calls), said.finish


def _arguments(said: Said) -> list[str]:
    return [call.arguments for call in said.calls]


def _meant(arguments: str) -> str:
    try:
        return json.dumps(read_json(arguments, parse_float=_number), sort_keys=True)
    except ValueError:
        return arguments


def _number(text: str) -> float:
    # 1.0 and 1 are one number in JSON.
    value = float(text)
    return int(value) if value.is_integer() else value


def judge_cuts(full: Answer, answers: Sequence[Answer]) -> list[Finding]:
    """What is wrong with answers that were cut short, given the same one in full."""
    if not full.said.calls:
        return [skipped("The model made no call to cut.", full)]
    whole, findings = read_object(full.said.calls[0].arguments), list[Finding]()
    for answer in answers:
        for call in answer.said.calls[-1:]:
            value = read_object(call.arguments)
            if value is None and not answer.said.is_cut:
                findings.append(fail("A call was cut, and the finish does not say so.", answer, due="length"))
            elif value is not None and value != whole:
                findings.append(fail("The cut call was completed with what nobody said.", answer, due=full.told()))
    cut = sum(answer.said.is_cut for answer in answers)
    return findings or [passed(f"{cut} of {len(answers)} answers were cut")]


def judge_formed(answer: Answer, schema: Json, *, wants_call: bool) -> list[Finding]:
    """Whether the answer is a call or fits the schema; which of them it should be is the model's will."""
    if answer.status == 400:
        return [skipped("A response_format beside tools is refused.", answer)]
    value = read_object(answer.said.content)
    if not answer.said.calls and (value is None or not Draft202012Validator(schema).is_valid(value)):
        return [lack("The text is not of the form.", answer, json.dumps(schema))]
    if bool(answer.said.calls) != wants_call:
        due = "a call" if wants_call else "JSON of the schema"
        return [warn("The model did the other thing, so nobody can tell.", answer, due=due)]
    return []


def judge_error(answer: Answer, *statuses: int) -> list[Finding]:
    """What is wrong with an error answer, which should have one of these statuses and OpenAI's shape."""
    if answer.status not in statuses:
        return [fail("The status is another.", answer, answer.told(), " or ".join(map(str, statuses)))]
    error = as_object((answer.whole or {}).get("error"))
    wanted: dict[str, Callable[[Any], bool]] = {
        "message": lambda value: isinstance(value, str) and value != "",
        "type": lambda value: isinstance(value, str),
        "param": lambda value: isinstance(value, str | None),
        "code": lambda value: isinstance(value, str | None),
    }
    if wrong := [name for name, fits in wanted.items() if name not in error or not fits(error[name])]:
        return [fail(f"The error object is not OpenAI's: see {', '.join(wrong)}.", answer, answer.text, _ERROR_SHAPE)]
    return []
