"""The calls of one answer that are run here: each starts as soon as it is complete, and every one gets a result."""

import asyncio
import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proxy.events import ToolEnd, ToolEvent, ToolProgress, ToolStart
from proxy.inbox import Inbox
from proxy.rounds import MadeCall
from tools.context import MAX_PROGRESS_CHARS, ToolContext
from tools.executor import Call, Executor, Result, unknown
from tools.settings import Wishes

logger = logging.getLogger(__name__)

#: So many reports of progress of one call are told; a tool that says more says nothing new.
_MOST_PROGRESS = 1000

#: So often, and so long apart, the directory of an answer is removed.
_REMOVALS = 3
_REMOVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far an answer goes whose tools run here; beyond any of these the model answers without tools.

    `rounds` of calls; `calls` in all of them; `time_s` for the whole answer, `tool_time_s` of it for tools; `tokens`
    read and written over all turns; `repeats`: in so many rounds the very same call is run. `heartbeat_s`: after so
    much silence the caller is told that the answer goes on.
    """

    rounds: int = 10
    calls: int = 100
    time_s: float = 600.0
    tool_time_s: float = 300.0
    tokens: int = 1_000_000
    repeats: int = 3
    heartbeat_s: float = 10.0


class Running:
    """Runs calls by the executor. `clock` gives seconds that only go forward.

    `wishes` are the request's, by tool; no other tool is run, whatever the model calls and the executor has.
    `tells`: somebody wants to hear of the calls while they run.
    """

    def __init__(
        self,
        executor: Executor,
        context: ToolContext,
        wishes: Mapping[str, Wishes],
        inbox: Inbox,
        bounds: Bounds,
        clock: Callable[[], float],
        *,
        tells: bool,
    ) -> None:
        self._executor = executor
        self._context = context
        self._wishes = wishes
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
        self._tells = tells
        self._too_many: set[str] = set()
        self._progress_left: dict[str, int] = {}
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
        if len(self._tasks) >= self._bounds.calls:
            self._too_many.add(call.id)
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
        for _ in range(_REMOVALS):
            if self._workdir is None or not self._workdir.exists():
                break
            await asyncio.to_thread(shutil.rmtree, self._workdir, ignore_errors=True)
            # A process that is being killed may still write; it is gone in half a second.
            await asyncio.sleep(_REMOVAL_S if self._workdir.exists() else 0)

    async def _run(self, call: Call) -> Result:
        self._tell(ToolStart(call.id, call.name, call.arguments))
        result = await self._result(call)
        self._tell(
            ToolEnd(call.id, call.name, result.status, result.text, result.duration_s, result.cached, result.details)
        )
        return result

    async def _result(self, call: Call) -> Result:
        if call.name not in self._wishes:
            return unknown(call, self._wishes)
        if call.id in self._too_many:
            self.exhausted = True
            return Result(call, "error", "Error: too many calls were made for one answer; this one was not.")
        key = (call.name, _canonical(call.arguments))
        self._made_now.add(key)
        if self._rounds_of[key] >= self._bounds.repeats:
            self.exhausted = True
            return Result(
                call, "error", "Error: this very call was made before, more than once; its result stands above."
            )
        late = Result(call, "timeout", "Error: the time for tools is used up; this call was stopped.")
        left_s = self._left_s()
        # A tool that knows when it is over may give what it has until then.
        wishes = self._wishes[call.name].within(left_s)
        try:
            async with asyncio.timeout(left_s):
                return await self._executor.execute(call, self._context_of(call), wishes=wishes)
        except TimeoutError:
            return late
        except OSError:
            logger.exception("there is no directory for tools to work in")
            return Result(call, "error", "Error: the server has no room for tools to work in.")

    def _context_of(self, call: Call) -> ToolContext:
        context = replace(self._context, progress=lambda text: self._progress(call.id, text))
        equipped = self._executor.toolbox.tools.get(call.name)
        if equipped is not None and equipped.tool.uses_kernels:
            # It works in its kernel's, and what is not made cannot be left.
            return context
        if self._workdir is None:
            self._workdir = Path(tempfile.mkdtemp(prefix="florette-"))
        return replace(context, workdir=self._workdir)

    def _progress(self, call_id: str, text: str) -> None:
        left = self._progress_left.setdefault(call_id, _MOST_PROGRESS)
        if left:
            self._progress_left[call_id] = left - 1
            self._tell(ToolProgress(call_id, str(text)[:MAX_PROGRESS_CHARS]))

    def _left_s(self) -> float:
        busy_s = self._clock() - self._busy_since if self._going else 0.0
        return max(0.0, min(self._until - self._clock(), self._tool_time_left_s - busy_s))

    def _ended(self, _: asyncio.Task[Result]) -> None:
        self._going -= 1
        if not self._going:
            self._tool_time_left_s -= self._clock() - self._busy_since
        self._inbox.wake()

    def _tell(self, event: ToolEvent) -> None:
        # Nobody's silence is broken by what is not written.
        if self._tells:
            self._inbox.tell([(0, event)])


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
