"""Checks of how answers end, of what they count, and of a demanded form beside tools."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from proxy.doctor.exchange import Answer, NoAnswer
from proxy.doctor.findings import Finding, fail, passed, warn
from proxy.doctor.judging import judge_cuts, judge_formed
from proxy.doctor.probe import Probe, check
from proxy.doctor.sse import Json
from proxy.doctor.tasks import CLOCK, SMALL_TALK, WEATHER, WEATHER_QUESTION, tool

#: From inside the marker to inside the arguments, for tokens of one to six characters.
_LIMITS = (1, 3, 5, 7, 9, 11, 13, 15, 17, 19)

_GREETING = tool("greeting", "", greeting={"type": "string"})["parameters"]
_FORMAT = {"type": "json_schema", "json_schema": {"name": "greeting", "schema": _GREETING, "strict": True}}


@check("finish reasons", "a text that ends by itself says stop")
async def stop(probe: Probe) -> AsyncIterator[Finding]:
    """With no tools at all."""
    for answer in await probe.both(SMALL_TALK):
        if answer.said.finish != "stop":
            found = warn if answer.said.is_cut else fail
            yield found("It says something else.", answer, due="finish_reason stop")


@check("finish reasons", "a text that max_tokens cuts says length")
async def length(probe: Probe) -> AsyncIterator[Finding]:
    """Beside tools."""
    for answer in await _cut(probe, "Count from one to thirty, in words.", 3):
        if not answer.said.is_cut:
            yield fail("It does not.", answer, due="finish_reason length")


@check("finish reasons", "a call that max_tokens cuts says length, and nothing is made up for it")
async def cut_call(probe: Probe) -> AsyncIterator[Finding]:
    """Cut at ten places; that what claims to be complete parses is the rule for arguments."""
    full = await probe.ask(WEATHER_QUESTION, [WEATHER])
    pairs = await asyncio.gather(*(_cut(probe, WEATHER_QUESTION, limit) for limit in _LIMITS))
    answers = [answer for pair in pairs for answer in pair]
    for finding in judge_cuts(full, answers):
        yield finding


async def _cut(probe: Probe, question: str, limit: int) -> Sequence[Answer]:
    """The answers under this limit; some models know it by its newer name only."""
    answers = await probe.both(question, [WEATHER], max_tokens=limit)
    if any(answer.status == 400 for answer in answers):
        answers = await probe.both(question, [WEATHER], max_completion_tokens=limit)
    return answers


@check("usage", "a stream that was not asked for usage tells none")
async def unasked_usage(probe: Probe) -> AsyncIterator[Finding]:
    """The rule looks for it; here is a stream to look at."""
    answer = await probe.ask(WEATHER_QUESTION, [WEATHER], stream=True, stream_options=None)
    yield passed(f"{len(_chunks(answer))} chunks")


@check("usage", "a stream counts the prompt as the whole answer does")
async def same_prompt(probe: Probe) -> AsyncIterator[Finding]:
    """The prompt is the same; how much was answered need not be."""
    whole, stream = await probe.both(WEATHER_QUESTION, [WEATHER])
    counts = [_prompt_tokens(answer) for answer in (whole, stream)]
    if counts[0] != counts[1]:
        yield fail("They differ.", stream, f"prompt_tokens {counts[1]}", f"prompt_tokens {counts[0]}")


def _chunks(answer: Answer) -> Sequence[Json]:
    """What it came in; NoAnswer if it says nothing."""
    if not answer.choices:
        raise NoAnswer(answer)
    return answer.stream.chunks if answer.stream else [answer.whole or {}]


def _prompt_tokens(answer: Answer) -> object:
    usages = [usage for chunk in _chunks(answer) if isinstance(usage := chunk.get("usage"), dict)]
    return usages[-1].get("prompt_tokens") if usages else None


@check("response_format", "a text beside tools is of the form that was demanded")
async def formed_text(probe: Probe) -> AsyncIterator[Finding]:
    """No tool is needed here, so the answer has to be JSON."""
    for answer in await probe.both("Greet Ada.", [WEATHER], response_format=_FORMAT):
        for finding in judge_formed(answer, _GREETING, wants_call=False):
            yield finding


@check("response_format", "the form does not keep a tool from being called")
async def formed_call(probe: Probe) -> AsyncIterator[Finding]:
    """Guided decoding that knows the form alone would forbid the call."""
    for answer in await probe.both(WEATHER_QUESTION, [WEATHER, CLOCK], response_format=_FORMAT):
        for finding in judge_formed(answer, _GREETING, wants_call=True):
            yield finding
