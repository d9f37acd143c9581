"""Kernels under siege: a neighbour goes on working in a session of its own while strangers' code does its worst.

Nothing is pretended: the code runs in real sandboxes, and the server is this process.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from readable_python import open_directory, readable_python
from tools.items import TextItem
from tools.kernel_settings import Isolation, KernelSettings
from tools.kernels.service import open_kernels
from tools.kernels.telling import for_model
from tools.outcomes import Kernels, Outcome, Shown, Written

MEGABYTE = 1 << 20

#: The least that is allowed, or little, so that bombs go off soon; cells that are to take too long have their own time.
#: Nothing is imported beforehand, as that costs a second of each kernel.
SMALL: dict[str, Any] = {
    "memory_bytes": 256 * MEGABYTE,
    "disk_bytes": 16 * MEGABYTE,
    "file_bytes": 8 * MEGABYTE,
    "processes": 32,
    "cell_time_s": 10.0,
    "interrupt_grace_s": 1.5,
    "output_bytes": 200_000,
    "messages": 200,
    "images": 3,
    "image_bytes": 200_000,
    "preload": (),
    "pool": 0,
}

#: A server that is silent for so long lets everybody wait; under all other loads here it is a few milliseconds.
SILENT_S = 3.0

#: The neighbour's cell takes 5 ms; beside a bomb that uses all processors, some tenths of a second.
PATIENCE_S = 10.0

_TICK_S = 0.01


def told(outcome: Outcome) -> str:
    """What the model reads."""
    return "\n".join(item.text for item in for_model(outcome) if isinstance(item, TextItem))


def said(outcome: Outcome) -> str:
    """What the code printed, and the value of its last expression, without the last line end."""
    pieces = [piece.text for piece in outcome.pieces if isinstance(piece, Written | Shown)]
    return "".join(pieces).rstrip("\n")


@dataclass
class Siege:
    """The kernels, a neighbour's session, which counts its cells, and one of an attacker who does not break his own."""

    kernels: Kernels
    isolation: str
    canary: str
    _counted: int = 0
    _sessions: Iterator[int] = field(default_factory=lambda: iter(range(10**6)))

    def session(self) -> str:
        """A session that nobody has used."""
        return f"session-{next(self._sessions)}"

    async def run(self, code: str, session: str = "prisoner", **how: Any) -> Outcome:
        """Runs the attacker's code."""
        return await self.kernels.run(code, caller="attacker", session=session, **how)

    async def said(self, code: str, session: str = "prisoner") -> str:
        """What the code printed; it must run through."""
        outcome = await self.run(code, session)
        assert outcome.status == "ok", outcome
        return said(outcome)

    async def attack(self, code: str, session: str | None = None, **how: Any) -> Outcome:
        """Runs it, in a new session unless one is given; meanwhile and after it the neighbour and the server go on."""
        code = f"import os, time, ctypes, mmap, socket, signal, struct, sys\n{code}"
        running = asyncio.create_task(self.run(code, session or self.session(), **how))
        watching = asyncio.create_task(_longest_silence(running))
        while not running.done():
            await self.goes_on()
            await asyncio.wait({running}, timeout=10 * _TICK_S)
        await self.goes_on()
        silent_s = await watching
        assert silent_s < SILENT_S, f"the server was silent for {silent_s:.1f} s"
        return running.result()

    async def goes_on(self) -> None:
        """The neighbour's kernel answers, and knows what it knew."""
        self._counted += 1
        code = "count = globals().get('count', 0) + 1; print(count)"
        outcome = await self.kernels.run(code, caller="neighbour", session="neighbour")
        assert said(outcome) == str(self._counted), outcome
        assert outcome.duration_s < PATIENCE_S, outcome


async def _longest_silence(running: asyncio.Task[Outcome]) -> float:
    longest_s = 0.0
    while not running.done():
        began = time.monotonic()
        await asyncio.sleep(_TICK_S)
        longest_s = max(longest_s, time.monotonic() - began - _TICK_S)
    return longest_s


#: Tests of what both kinds of sandboxes promise, and of what one does in its own way; `siege` takes the word.
EITHER = pytest.mark.parametrize("siege", ["auto", "landlock"], indirect=True)
LANDLOCK = pytest.mark.parametrize("siege", ["landlock"], indirect=True)


@contextlib.asynccontextmanager
async def besieged(isolation: Isolation = "auto", **settings: Any) -> AsyncIterator[Siege]:
    """Kernels with small limits, and whatever else is set; the environment has a key that nobody is to see."""
    with open_directory() as place:
        if isolation == "landlock":
            settings = {"python": readable_python(place), **settings}
        async with _besieged(KernelSettings(isolation=isolation, **{**SMALL, **settings})) as siege:
            yield siege


@contextlib.asynccontextmanager
async def _besieged(settings: KernelSettings) -> AsyncIterator[Siege]:
    kernels = open_kernels(settings)
    if missing := kernels.unavailable():
        pytest.skip(f"NOT TESTED, THE SANDBOX MAY LEAK: {missing}")
    canary = secrets.token_hex(16)
    os.environ["FLORETTE_UPSTREAM_KEY"] = canary
    try:
        await kernels.start()
        siege = Siege(kernels, str(kernels.described()["isolation"]), canary)
        await siege.goes_on()
        yield siege
    finally:
        await kernels.aclose()
        os.environ.pop("FLORETTE_UPSTREAM_KEY", None)


class Sieges(contextlib.AsyncExitStack):
    """A siege for each isolation, made when it is first asked for; of each caller there are few sessions at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[Isolation, Siege] = {}

    async def of(self, isolation: Isolation) -> Siege:
        """The one for it."""
        if isolation not in self._made:
            self._made[isolation] = await self.enter_async_context(besieged(isolation, sessions_per_caller=3))
        return self._made[isolation]
