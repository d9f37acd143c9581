"""Checks of the round trip: calls go out, results come back, and an answer is made of them."""

from collections.abc import AsyncIterator

from proxy.doctor.findings import Finding, fail, skipped, warn
from proxy.doctor.judging import judge_used
from proxy.doctor.probe import Probe, check, user
from proxy.doctor.said import Call
from proxy.doctor.tasks import FROST, HAIL, PARIS, ROME, TWO_CITIES, WEATHER, WEATHER_QUESTION, called, result


@check("round trip", "a result is answered from")
async def one_result(probe: Probe) -> AsyncIterator[Finding]:
    """With the endpoint's own call, handed back as it came."""
    first = await probe.ask(WEATHER_QUESTION, [WEATHER])
    calls = first.said.calls[:1]
    if not calls:
        yield skipped("The model made no call to hand back.", first)
    for call in calls:
        for answer in await probe.both([user(WEATHER_QUESTION), called(call), result(call, HAIL)], [WEATHER]):
            for finding in judge_used(answer, ["17"], [call]):
                yield finding


@check("round trip", "results are answered from in whatever order they come")
async def two_results(probe: Probe) -> AsyncIterator[Finding]:
    """They find their calls by id."""
    messages = [user(TWO_CITIES), called(PARIS, ROME), result(ROME, FROST), result(PARIS, HAIL)]
    for answer in await probe.both(messages, [WEATHER]):
        for finding in judge_used(answer, ["17", "43"], [PARIS, ROME]):
            yield finding


@check("round trip", "a later question makes a new call with a new id")
async def later_call(probe: Probe) -> AsyncIterator[Finding]:
    """An id that comes again would give the new call the old result."""
    first = await probe.ask(WEATHER_QUESTION, [WEATHER])
    if not first.said.calls:
        yield skipped("The model made no call to go on from.", first)
        return
    call = first.said.calls[0]
    messages = [user(WEATHER_QUESTION), called(call), result(call, HAIL), {"role": "assistant", "content": HAIL}]
    for answer in await probe.both([*messages, user("And what is the weather in Rome?")], [WEATHER]):
        if not answer.said.calls:
            yield warn("The model made no call, so nobody can tell.", answer, due='get_weather({"city": "Rome"})')
        elif call.id in {new.id for new in answer.said.calls}:
            yield fail("The new call has the old one's id.", answer, came=call.id, due="another id")


@check("round trip", "a broken call in the history fails no request")
async def broken_history(probe: Probe) -> AsyncIterator[Finding]:
    """A model that once wrote half a call must not end the conversation."""
    broken = Call("call_broken", "get_weather", '{"city": "Par')
    messages = [user(WEATHER_QUESTION), called(broken), result(broken, "Error: the arguments are no JSON.")]
    for answer in await probe.both(messages, [WEATHER]):
        if not answer.choices:
            yield fail("The request failed.", answer, due="a chat completion")
