"""Checks that make the model call tools of every kind; a rule holds their arguments against the schemas."""

import asyncio
from collections.abc import AsyncIterator

from proxy.doctor.exchange import Answer
from proxy.doctor.findings import Finding, lack, skipped, warn
from proxy.doctor.probe import Probe, check
from proxy.doctor.sse import Json
from proxy.doctor.tasks import NO_CALL, TASKS, named


@check("schema accuracy", "tools of every kind are called")
async def every_kind(probe: Probe) -> AsyncIterator[Finding]:
    """Freely and not streamed, by force and streamed; a rule holds the calls against the schemas."""
    # Awaited together, so that none is left behind when the other is given up.
    free, forced = await asyncio.gather(
        asyncio.gather(*(probe.ask(task.question, [task.tool]) for task in TASKS)),
        asyncio.gather(
            *(probe.ask(task.question, [task.tool], stream=True, tool_choice=named(task.tool)) for task in TASKS)
        ),
    )
    for answer in free:
        if not answer.said.calls:
            yield warn(NO_CALL, answer, due=_called(answer))
    for answer in forced:
        if not answer.said.calls:
            yield lack("The tool that was named was not called.", answer, _called(answer))


@check("schema accuracy", "strict tools are taken")
async def strict(probe: Probe) -> AsyncIterator[Finding]:
    """With `strict: true` a schema is a promise; a server that does not know it says so or passes over it."""
    tasks = [task for task in TASKS if len(task.tool["parameters"]["required"]) == len(_properties(task.tool))]
    asked = (probe.ask(task.question, [{**task.tool, "strict": True}]) for task in tasks)
    for answer in await asyncio.gather(*asked):
        if answer.status == 400:
            yield skipped("Strict tools are refused.", answer)
        elif not answer.said.calls:
            yield warn(NO_CALL, answer, due=_called(answer))


def _called(answer: Answer) -> str:
    return str(answer.request.fields["tools"][0]["function"]["name"])


def _properties(tool: Json) -> Json:
    return dict(tool["parameters"]["properties"])
