"""What a check asks with: an endpoint, a model, and the settings under which that model is steady.

A Check is a function that takes a Probe and yields findings; `check` makes one. Adding one is writing one function.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from proxy.doctor.client import Endpoint, Unfit
from proxy.doctor.exchange import Answer, NoAnswer, Request
from proxy.doctor.findings import Finding, Result, fail
from proxy.doctor.sse import Json

#: Tried in this order: some servers take no seed, and some models no temperature.
_STEADY: tuple[Json, ...] = ({"temperature": 0, "seed": 7}, {"temperature": 0}, {})

_CHAT = "/chat/completions"


class Probe:
    """Asks, and remembers every answer for the rules that hold for all of them."""

    def __init__(self, endpoint: Endpoint, model: str, steady: Json) -> None:
        self.model = model
        self.answers: list[Answer] = []
        self._endpoint = endpoint
        self._steady = steady

    async def ask(
        self, asked: str | Sequence[Json], tools: Sequence[Json] = (), *, stream: bool = False, **fields: object
    ) -> Answer:
        """The answer to a question, or to a conversation. `fields` are added to the request; None leaves one out."""
        messages = [user(asked)] if isinstance(asked, str) else list(asked)
        body: Json = {"model": self.model, "messages": messages, **self._steady}
        if tools:
            body["tools"] = [{"type": "function", "function": tool} for tool in tools]
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        body |= fields
        return await self.send(Request(_CHAT, {name: value for name, value in body.items() if value is not None}))

    async def both(self, asked: str | Sequence[Json], tools: Sequence[Json] = (), **fields: object) -> Sequence[Answer]:
        """The same asked twice: the whole answer, then the streamed one."""
        ways = (self.ask(asked, tools, stream=stream, **fields) for stream in (False, True))
        return await asyncio.gather(*ways)

    async def chat(self, body: Json | bytes) -> Answer:
        """The answer to exactly this body, which may be no request at all; it is not held against the rules."""
        return await self._endpoint.send(Request(_CHAT, body))

    async def get(self, path: str) -> Answer:
        """What stands at a path; it is not held against the rules."""
        return await self._endpoint.send(Request(path))

    async def send(self, request: Request) -> Answer:
        """The answer to a request that should have one."""
        answer = await self._endpoint.send(request)
        self.answers.append(answer)
        return answer


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the scorecard."""

    area: str
    name: str
    seek: Callable[[Probe], AsyncIterator[Finding]]

    async def result(self, probe: Probe) -> Result:
        """What it finds; that nothing was answered is a finding, too."""
        findings: list[Finding] = []
        try:
            async for finding in self.seek(probe):
                findings.append(finding)  # noqa: PERF401 - what was found before there was no answer stands
        except NoAnswer as none:
            findings.append(fail("There was no answer.", none.args[0], due="a chat completion"))
        return Result(self.area, self.name, tuple(findings))


def check(area: str, name: str) -> Callable[[Callable[[Probe], AsyncIterator[Finding]]], Check]:
    """Makes a Check of a function."""
    return lambda seek: Check(area, name, seek)


def user(content: object) -> Json:
    """A user's message."""
    return {"role": "user", "content": content}


async def open_probe(endpoint: Endpoint, model: str) -> Probe:
    """A probe that got a first answer; Unfit if the endpoint gives none."""
    for steady in _STEADY:
        probe = Probe(endpoint, model, steady)
        answer = await probe.ask("Say hello.")
        if answer.status != 400:
            break
    endpoint.check_patience()
    if answer.status == 0:
        raise Unfit(f"{endpoint.base_url} cannot be reached: {answer.broke}.")
    if not answer.choices:
        raise Unfit(f"{endpoint.base_url} gives no answer to a plain question to {model!r}: {answer.told()}")
    return probe
