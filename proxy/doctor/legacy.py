"""Checks of the older form: `functions`, `function_call`, and results without ids."""

from collections.abc import AsyncIterator

from proxy.doctor.findings import Finding, fail, lack
from proxy.doctor.judging import judge_used
from proxy.doctor.probe import Probe, check, user
from proxy.doctor.sse import Json
from proxy.doctor.tasks import HAIL, PARIS, WEATHER, WEATHER_QUESTION


@check("legacy functions", "functions are answered by a function_call")
async def functions(probe: Probe) -> AsyncIterator[Finding]:
    """Forced by name, so that a server which passes over `functions` is seen to do so."""
    forced = {"name": WEATHER["name"]}
    for answer in await probe.both(WEATHER_QUESTION, functions=[WEATHER], function_call=forced):
        if not answer.said.calls:
            yield lack("No function was called.", answer, "function_call: get_weather")
        elif not answer.said.legacy:
            yield fail("The call came in the newer form.", answer, due="function_call: get_weather")


@check("legacy functions", "a function's result is answered from")
async def function_result(probe: Probe) -> AsyncIterator[Finding]:
    """The older form has no ids: a result names its function."""
    call = {"name": PARIS.name, "arguments": PARIS.arguments}
    messages: list[Json] = [
        user(WEATHER_QUESTION),
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": WEATHER["name"], "content": HAIL},
    ]
    for answer in await probe.both(messages, functions=[WEATHER]):
        for finding in judge_used(answer, ["17"], [PARIS]):
            yield finding
