"""Checks of who decides about calls, and how many: tool_choice, parallel_tool_calls, n."""

from collections.abc import AsyncIterator

from proxy.doctor.findings import Finding, fail, lack, skipped, warn
from proxy.doctor.probe import Probe, check
from proxy.doctor.tasks import CLOCK, NO_CALL, SMALL_TALK, TWO_CITIES, WEATHER, WEATHER_QUESTION, named

TOOLS = (WEATHER, CLOCK)


@check("tool_choice", "auto: a question for a tool calls it")
async def auto(probe: Probe) -> AsyncIterator[Finding]:
    """Whether it calls is the model's will."""
    for answer in await probe.both(WEATHER_QUESTION, TOOLS, tool_choice="auto"):
        if not answer.said.calls:
            yield warn(NO_CALL, answer, due="get_weather")


@check("tool_choice", "auto: small talk calls nothing")
async def auto_small_talk(probe: Probe) -> AsyncIterator[Finding]:
    """The model's will, too."""
    for answer in await probe.both(SMALL_TALK, TOOLS):
        if answer.said.calls:
            yield warn("The model called a tool that nobody needs.", answer, due="text")


@check("tool_choice", "none: no call")
async def none(probe: Probe) -> AsyncIterator[Finding]:
    """Whatever the model would have liked to do; its markers are looked for by a rule."""
    for answer in await probe.both(WEATHER_QUESTION, TOOLS, tool_choice="none"):
        if answer.said.calls:
            yield fail("A tool was called.", answer, due="text")


@check("tool_choice", "required: a call even for small talk")
async def required(probe: Probe) -> AsyncIterator[Finding]:
    """The endpoint's duty, whatever the model likes."""
    for answer in await probe.both(SMALL_TALK, TOOLS, tool_choice="required"):
        if not answer.said.calls:
            yield lack("No tool was called.", answer, "a call of get_weather or get_time")


@check("tool_choice", "named: that tool and no other")
async def by_name(probe: Probe) -> AsyncIterator[Finding]:
    """Asked about the weather, it has to look at the clock."""
    for answer in await probe.both(WEATHER_QUESTION, TOOLS, tool_choice=named(CLOCK)):
        if {call.name for call in answer.said.calls} != {CLOCK["name"]}:
            yield lack("The tool that was named was not called.", answer, "get_time(...)")


@check("parallel calls", "two cities make two calls")
async def two_calls(probe: Probe) -> AsyncIterator[Finding]:
    """How many it makes is the model's will."""
    for answer in await probe.both(TWO_CITIES, [WEATHER]):
        asked = [city for city in ("Paris", "Rome") if any(city in call.arguments for call in answer.said.calls)]
        if len(answer.said.calls) < 2:
            yield warn("The model did not make two calls, so nobody can tell.", answer, due="two calls of get_weather")
        elif len(asked) < 2:
            yield fail("The calls are not about both cities.", answer, due="one call for Paris, one for Rome")


@check("parallel calls", "parallel_tool_calls false: one call at most")
async def one_call(probe: Probe) -> AsyncIterator[Finding]:
    """The same question; here one is all that may come."""
    for answer in await probe.both(TWO_CITIES, [WEATHER], parallel_tool_calls=False):
        if len(answer.said.calls) > 1:
            yield fail("There are several calls.", answer, due="one call")
        elif not answer.said.calls:
            yield warn(NO_CALL, answer, due="one call of get_weather")


@check("wire form", "n 2: two choices, each whole")
async def two_choices(probe: Probe) -> AsyncIterator[Finding]:
    """Without the settings that make it steady: some servers refuse two equal answers."""
    for answer in await probe.both(WEATHER_QUESTION, TOOLS, n=2, temperature=None, seed=None):
        if answer.status == 400:
            yield skipped("Several choices are refused.", answer)
        elif len(answer.choices) != 2:
            yield fail("There are not two choices.", answer, f"{len(answer.choices)} choices", "two")
