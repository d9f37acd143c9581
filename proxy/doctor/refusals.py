"""Checks of what an endpoint says to requests that are none."""

from collections.abc import AsyncIterator

from proxy.doctor.findings import Finding, skipped
from proxy.doctor.judging import judge_error
from proxy.doctor.probe import Check, Probe, check, user
from proxy.doctor.sse import Json
from proxy.doctor.tasks import SMALL_TALK, WEATHER

AREA = "errors"

_TOOLS = [{"type": "function", "function": WEATHER}]

#: What is wrong -> the fields that make it so, on top of a good request with tools.
_FAULTS: dict[str, Json] = {
    "no messages": {"messages": None},
    "an empty list of messages": {"messages": []},
    "tools that are no list": {"tools": "get_weather"},
    "a tool_choice that names no declared tool": {"tool_choice": {"type": "function", "function": {"name": "other"}}},
    "a temperature that is no number": {"temperature": "hot"},
    "the same in a stream: a status, not an event": {"temperature": "hot", "stream": True},
}


def _refused(name: str, fields: Json) -> Check:
    @check(AREA, name)
    async def refused(probe: Probe) -> AsyncIterator[Finding]:
        good: Json = {"model": probe.model, "messages": [user(SMALL_TALK)], "tools": _TOOLS}
        body = {field: value for field, value in (good | fields).items() if value is not None}
        for finding in judge_error(await probe.chat(body), 400):
            yield finding

    return refused


FAULTS = tuple(_refused(name, fields) for name, fields in _FAULTS.items())


@check(AREA, "a body that is no JSON")
async def no_json(probe: Probe) -> AsyncIterator[Finding]:
    """Half of one."""
    for finding in judge_error(await probe.chat(b'{"model": "m", "messages": ['), 400):
        yield finding


@check(AREA, "a model that does not exist")
async def no_model(probe: Probe) -> AsyncIterator[Finding]:
    """A server with one model may serve it under any name."""
    answer = await probe.chat({"model": "no-such-model", "messages": [user(SMALL_TALK)], "tools": _TOOLS})
    if answer.choices:
        yield skipped("Any model name is served.", answer)
        return
    for finding in judge_error(answer, 404, 400):
        yield finding


@check(AREA, "a path that does not exist")
async def no_path(probe: Probe) -> AsyncIterator[Finding]:
    """Beside the chat completions."""
    for finding in judge_error(await probe.get("/no-such-path"), 404):
        yield finding
