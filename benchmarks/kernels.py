"""How fast kernels in sandboxes are, beside a plain local kernel of jupyter_client's, in one run.

    python -m benchmarks.kernels [--quick]

Takes a minute and a half, `--quick` a third of that. Linux only; bubblewrap must work (`florette doctor --config`).
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import psutil
from jupyter_client.manager import AsyncKernelManager

from benchmarks import machine
from tools.kernel_settings import KernelSettings
from tools.kernels.service import EmbeddedKernels
from tools.outcomes import Outcome, Picture, Shown

#: What a user's first cell often is; the libraries are imported in a kernel of the pool already.
_FIGURE = """
import pandas as pd
import matplotlib.pyplot as plt
plt.plot([1, 3, 2])
plt.show()
pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
"""

_TABLE = """
import pandas as pd
pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
"""

_ENDLESS = "while True: pass"

#: So long a cell runs before it is interrupted; no cell has less time.
_BUSY_S = 1.0

#: To see that a kernel is ready, and to wait for one of fifty.
_LOOK_S = 0.05
_PATIENCE_S = 600.0

_MS = 1000.0
_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: ours, the plain kernel's if there is one, and the target, if there is one."""

    name: str
    unit: str
    ours: float
    plain: float | None = None
    target: float | None = None
    target_text: str = ""

    def written(self) -> str:
        """The line in Markdown."""
        plain = "" if self.plain is None else f"{self.plain:.4g}"
        verdict = "" if self.target is None else ("ok" if self.ours <= self.target else "FAIL")
        return f"|{self.name}|{self.unit}|{self.ours:.4g}|{plain}|{self.target_text}|{verdict}|"


class _Plain:
    """A kernel as jupyter_client starts it by itself: TCP, no sandbox, its own way to wait."""

    async def start(self) -> None:
        self.manager = AsyncKernelManager()
        await self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=60)

    async def run(self, code: str) -> None:
        await self.client.execute_interactive(code, output_hook=lambda _: None)

    async def interrupted_s(self) -> float:
        running = asyncio.create_task(self.run(_ENDLESS))
        await asyncio.sleep(_BUSY_S)
        began = time.perf_counter()
        await self.manager.interrupt_kernel()
        await running
        return time.perf_counter() - began

    def memory_bytes(self) -> int:
        pid = self.manager.provisioner.pid  # type: ignore[union-attr]
        return _memory_bytes(psutil.Process(pid))

    async def aclose(self) -> None:
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)


def main() -> None:
    """Measures, and prints the table."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").splitlines()[0])
    cli.add_argument("--quick", action="store_true", help="fewer repeats and sessions")
    parsed = cli.parse_args()
    facts = machine.describe() | {"loop_ms": machine.loop_ms(), "load": machine.load()}
    lines = asyncio.run(_measure(*((3, 50, 8) if parsed.quick else (10, 300, 50))))
    print(", ".join(f"{name} {value}" for name, value in facts.items()) + f" -> {machine.load()}\n")
    print("|what|unit|sandboxed|plain|target||\n|---|---|---|---|---|---|")
    print("\n".join(line.written() for line in lines))


async def _measure(starts: int, cells: int, sessions: int) -> list[Line]:
    ours_ms, plain_ms = await _starts(starts)
    lines = [Line("start to the first result", "ms", ours_ms, plain_ms, plain_ms / 2, "half the plain one's")]
    plain, kernels = _Plain(), _kernels(pool=1)
    await plain.start()
    await kernels.start()
    try:
        await plain.run("import numpy, pandas, matplotlib.pyplot")
        lines += await _hits(kernels, plain, starts)
        lines += await _round_trips(kernels, plain, cells)
        lines += await _interrupts(kernels, plain, starts)
    finally:
        await kernels.aclose()
        await plain.aclose()
    return [*lines, *await _crowd(sessions)]


async def _starts(times: int) -> tuple[float, float]:
    kernels = _kernels(pool=0, preload=())
    ours, plains = [], []
    try:
        # What is done once for all kernels is no kernel's start.
        await _cell(kernels, "1", "once", session=None)
        for _ in range(times):
            # They take turns, so that both meet the same machine.
            ours.append(await _timed(lambda: _cell(kernels, "1", "starts", session=None)))
            plains.append(await _plain_start_s())
    finally:
        await kernels.aclose()
    return statistics.median(ours) * _MS, statistics.median(plains) * _MS


async def _plain_start_s() -> float:
    plain = _Plain()
    try:
        return await _timed(plain.start) + await _timed(lambda: plain.run("1"))
    finally:
        await plain.aclose()


async def _hits(kernels: EmbeddedKernels, plain: _Plain, times: int) -> list[Line]:
    results, figures, plains = [], [], []
    # A running kernel's second figure: what drawing itself costs.
    await plain.run(_FIGURE)
    for _ in range(times):
        await _one_is_ready()
        results.append(await _timed(lambda: _cell(kernels, _TABLE, "tables", session=None)))
        await _one_is_ready()
        figures.append(await _timed(lambda: _figure(kernels)))
        plains.append(await _timed(lambda: plain.run(_FIGURE)))
    return [
        Line("pool to the first table", "ms", statistics.median(results) * _MS, None, 50, "50"),
        Line(
            "pool to the first figure and table",
            "ms",
            statistics.median(figures) * _MS,
            statistics.median(plains) * _MS,
            50,
            "50",
        ),
    ]


async def _one_is_ready() -> None:
    # The pool is filled in the background, and kernels that wait there are stopped: it can be seen from outside only.
    while not any(map(_is_stopped, psutil.Process().children(recursive=True))):  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_S)


def _is_stopped(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


async def _round_trips(kernels: EmbeddedKernels, plain: _Plain, times: int) -> list[Line]:
    ours, plains = [], []
    await _cell(kernels, "1", "trips", session="s")
    await _one_is_ready()
    for _ in range(times):
        ours.append(await _timed(lambda: _cell(kernels, "1+1", "trips", session="s")))
        plains.append(await _timed(lambda: plain.run("1+1")))
    ours_ms, plain_ms = statistics.median(ours) * _MS, statistics.median(plains) * _MS
    return [Line("`1+1`, there and back", "ms", ours_ms, plain_ms, plain_ms, "the plain one's")]


async def _interrupts(kernels: EmbeddedKernels, plain: _Plain, times: int) -> list[Line]:
    ours = [
        await _timed(lambda: kernels.run(_ENDLESS, caller="interrupts", session="s", time_s=_BUSY_S)) - _BUSY_S
        for _ in range(times)
    ]
    plains = [await plain.interrupted_s() for _ in range(times)]
    return [Line("interrupt", "ms", statistics.median(ours) * _MS, statistics.median(plains) * _MS)]


async def _crowd(sessions: int) -> list[Line]:
    kernels = _kernels(pool=0, sessions=sessions, sessions_per_caller=sessions)
    try:
        took_s = await _timed(lambda: _all(kernels, "import numpy, pandas, matplotlib.pyplot", sessions))
        again_s = await _timed(lambda: _all(kernels, "1+1", sessions))
        memory = sum(map(_memory_bytes, psutil.Process().children())) / sessions / _MB
    finally:
        await kernels.aclose()
    return [
        Line(f"{sessions} sessions begun at once, each with the libraries: all have answered", "s", took_s),
        Line(f"`1+1` in all {sessions} at once", "s", again_s),
        Line("memory of one of them (PSS)", "MB", memory),
    ]


async def _all(kernels: EmbeddedKernels, code: str, sessions: int) -> None:
    async with asyncio.TaskGroup() as group:
        for number in range(sessions):
            group.create_task(_cell(kernels, code, "crowd", session=str(number)))


def _kernels(**settings: Any) -> EmbeddedKernels:
    kernels = EmbeddedKernels(KernelSettings(isolation="bwrap", wait_s=_PATIENCE_S, **settings))
    if reason := kernels.unavailable():
        raise SystemExit(reason)
    return kernels


async def _cell(kernels: EmbeddedKernels, code: str, caller: str, session: str | None) -> Outcome:
    outcome = await kernels.run(code, caller=caller, session=session)
    assert outcome.status == "ok", outcome
    return outcome


async def _figure(kernels: EmbeddedKernels) -> None:
    outcome = await _cell(kernels, _FIGURE, "figures", session=None)
    assert {type(piece) for piece in outcome.pieces} == {Picture, Shown}, outcome


async def _timed(do: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await do()
    return time.perf_counter() - began


def _memory_bytes(process: psutil.Process) -> int:
    return sum(each.memory_full_info().pss for each in [process, *process.children(recursive=True)])


if __name__ == "__main__":
    main()
