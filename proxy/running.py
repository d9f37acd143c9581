"""The calls of one answer that are run here: each starts as soon as it is complete, and every one gets a result."""

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proxy.events import ToolEnd, ToolEvent, ToolProgress, ToolStart
from proxy.inbox import Inbox
from proxy.rounds import MadeCall
from tools.context import ToolContext
from tools.executor import Call, Executor, Keep, Result
from tools.settings import Wishes


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far an answer goes whose tools run here; beyond any of these the model answers without tools.

    `rounds` of calls; `time_s` for the whole answer, `tool_time_s` of it for tools; `tokens` read and written over all
    turns; `repeats`: in so many rounds the very same call is run. `heartbeat_s`: after so much silence the caller is
    told that the answer goes on.
    """

    rounds: int = 10
    time_s: float = 600.0
    tool_time_s: float = 300.0
    tokens: int = 1_000_000
    repeats: int = 3
    heartbeat_s: float = 10.0


class Running:
    """Runs calls by the executor. `clock` gives seconds that only go forward; `wishes` are the request's, by tool."""

    def __init__(
        self,
        executor: Executor,
        context: ToolContext,
        wishes: Mapping[str, Wishes],
        keep: Keep,
        inbox: Inbox,
        bounds: Bounds,
        clock: Callable[[], float],
    ) -> None:
        self._executor = executor
        self._context = context
        self._wishes = wishes
        self._keep = keep
        self._inbox = inbox
        self._bounds = bounds
        self._clock = clock
        self._until = clock() + bounds.time_s
        self._tool_time_left_s = bounds.tool_time_s
        self._busy_since = 0.0
        self._tasks: dict[str, asyncio.Task[Result]] = {}
        self._going = 0
        self._rounds_of: Counter[tuple[str, str]] = Counter()
        self._made_now: set[tuple[str, str]] = set()
        self._workdir: Path | None = None
        self.exhausted = False

    @property
    def busy(self) -> bool:
        """True while a call runs."""
        return self._going > 0

    def is_over(self) -> bool:
        """True if no further call is to be run."""
        return self.exhausted or self._left_s() <= 0

    def start(self, call: MadeCall) -> None:
        """Begins to run the call."""
        if not self._going:
            self._busy_since = self._clock()
        self._going += 1
        task = asyncio.create_task(self._run(Call(call.id, call.name, call.arguments)))
        self._tasks[call.id] = task
        task.add_done_callback(self._ended)

    def results(self, calls: Sequence[MadeCall]) -> list[Result]:
        """The results of these calls, which have ended; and the round is over."""
        self._rounds_of.update(self._made_now)
        self._made_now.clear()
        return [self._tasks[call.id].result() for call in calls]

    async def aclose(self) -> None:
        """Cancels what runs, and leaves nothing behind."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._workdir is not None:
            await asyncio.to_thread(shutil.rmtree, self._workdir, ignore_errors=True)

    async def _run(self, call: Call) -> Result:
        self._tell(ToolStart(call.id, call.name, call.arguments))
        result = await self._result(call)
        self._tell(
            ToolEnd(call.id, call.name, result.status, result.text, result.duration_s, result.cached),
        )
        return result

    async def _result(self, call: Call) -> Result:
        key = (call.name, _canonical(call.arguments))
        self._made_now.add(key)
        if self._rounds_of[key] >= self._bounds.repeats:
            self.exhausted = True
            return Result(
                call, "error", "Error: this very call was made before, more than once; its result stands above."
            )
        late = Result(call, "timeout", "Error: the time for tools is used up; this call was stopped.")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._left_s()):
                return await self._executor.execute(
                    call, self._context_of(call), keep=self._keep, wishes=self._wishes.get(call.name)
                )
        return late

    def _context_of(self, call: Call) -> ToolContext:
        if self._workdir is None:
            self._workdir = Path(tempfile.mkdtemp(prefix="florette-"))
        return replace(
            self._context,
            workdir=self._workdir,
            progress=lambda text: self._tell(ToolProgress(call.id, text)),
        )

    def _left_s(self) -> float:
        busy_s = self._clock() - self._busy_since if self._going else 0.0
        return max(0.0, min(self._until - self._clock(), self._tool_time_left_s - busy_s))

    def _ended(self, _: asyncio.Task[Result]) -> None:
        self._going -= 1
        if not self._going:
            self._tool_time_left_s -= self._clock() - self._busy_since
        self._inbox.wake()

    def _tell(self, event: ToolEvent) -> None:
        self._inbox.tell([(0, event)])


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
