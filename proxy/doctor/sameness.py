"""Checks that a stream says what the whole answer says.

A model that is not steady cannot be compared: so each is asked for twice, and only what came twice is compared.
"""

from collections.abc import AsyncIterator, Sequence

from proxy.doctor.findings import Finding
from proxy.doctor.judging import differences
from proxy.doctor.probe import Check, Probe, check, user
from proxy.doctor.sse import Json
from proxy.doctor.tasks import (
    CLOCK,
    HAIL,
    PARIS,
    SMALL_TALK,
    TASKS,
    TWO_CITIES,
    WEATHER,
    WEATHER_QUESTION,
    called,
    result,
)

AREA = "streaming equals non-streaming"


def _same(name: str, asked: str | Sequence[Json], *tools: Json) -> Check:
    @check(AREA, name)
    async def same(probe: Probe) -> AsyncIterator[Finding]:
        twice = [await probe.both(asked, tools), await probe.both(asked, tools)]
        for finding in differences([pair[0] for pair in twice], [pair[1] for pair in twice]):
            yield finding

    return same


COMPARED = (
    _same("a text", SMALL_TALK, WEATHER, CLOCK),
    _same("a call", WEATHER_QUESTION, WEATHER, CLOCK),
    _same("a call with a nested object", TASKS[1].question, TASKS[1].tool),
    _same("two calls", TWO_CITIES, WEATHER),
    _same("an answer from a result", [user(WEATHER_QUESTION), called(PARIS), result(PARIS, HAIL)], WEATHER),
)
