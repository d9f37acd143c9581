"""Synchronous tools in processes that can be killed: what a thread could not be, once its time is over.

A process serves one tool, one call at a time, and is kept for the next call. It is ended when a call takes too long,
is no longer wanted, or breaks it.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.base import BaseTool, ToolContext
from tools.errors import InvalidArguments, RetryableToolError, ToolError
from tools.items import ContentItem, from_json
from tools.registry import source_of

_LENGTH_BYTES = 4

#: A result may be so long: 64 MiB of JSON is more than any model reads, and a picture is below it.
_MAX_FRAME_BYTES = 64 * 1024 * 1024

#: So long a cancelled call may take to end by itself; half of the second within which it has to be gone.
_GRACE_S = 0.4

#: So many idle processes are kept for each tool, and each for so many calls: what libraries leak is given back then.
_IDLE_PER_TOOL = 2
_CALLS_PER_PROCESS = 200

#: To start Python and import a heavy library takes a second or two; on a busy machine more.
_START_S = 60.0

#: What a process runs, and where it finds it.
_START = "import sys; sys.path.insert(0, sys.argv[1]); from tools.child import main; main()"
_ROOT = str(Path(__file__).parent.parent)

_ERRORS: Mapping[str, type[ToolError]] = {"invalid": InvalidArguments, "error": ToolError}


class ToolBug(Exception):
    """The tool raised what is no ToolError; the message is the traceback, for the log only."""


class Workers:
    """The processes. `environment` is what they see of the environment; None: the server's own."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = environment
        # By the tool itself: an id would be given to another one when the tool has gone.
        self._idle: dict[BaseTool, list[_Process]] = defaultdict(list)
        self._ending: set[asyncio.Task[None]] = set()

    async def run(
        self, tool: BaseTool, options: Mapping[str, Any], params: str, context: ToolContext
    ) -> list[ContentItem]:
        """The result of one call. Raises what the tool raises of ToolErrors; ToolBug for anything else."""
        idle = self._idle[tool]
        idle[:] = [process for process in idle if process.is_alive]
        process = idle.pop() if idle else await _Process.start(tool, options, self._environment)
        try:
            if not await process.takes(params, context):
                # It died while it was idle, and nobody had heard of it yet.
                self._end(process)
                process = await _Process.start(tool, options, self._environment)
                if not await process.takes(params, context):
                    raise ToolError("The tool's process ended before the call.")
            answer = await process.answer(context)
        except BaseException:
            self._end(process, running=True)
            raise
        if process.calls < _CALLS_PER_PROCESS and len(idle) < _IDLE_PER_TOOL:
            idle.append(process)
        else:
            self._end(process)
        return _items(answer)

    async def forget(self, tool: BaseTool) -> None:
        """Ends the idle processes of a tool that is not called any more."""
        for process in self._idle.pop(tool, []):
            self._end(process)
        await self._settle()

    async def aclose(self) -> None:
        """Ends all processes that run no call, and waits until those that are ending have gone."""
        for processes in self._idle.values():
            for process in processes:
                self._end(process)
        self._idle.clear()
        await self._settle()

    def _end(self, process: "_Process", *, running: bool = False) -> None:
        # Aside: who cancels a call does not wait for the process.
        task = asyncio.create_task(process.end(running=running))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _settle(self) -> None:
        if self._ending:
            await asyncio.wait(self._ending)


class _Process:
    """One process, ready for calls."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.calls = 0

    @classmethod
    async def start(
        cls, tool: BaseTool, options: Mapping[str, Any], environment: Mapping[str, str] | None
    ) -> "_Process":
        started = cls(
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _START, _ROOT),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=None if environment is None else dict(environment),
                # Ctrl-C in a terminal is the server's to tell.
                start_new_session=True,
            )
        )
        source = asdict(source_of(type(tool)))
        told = {"name": tool.name, "source": source, "options": dict(options), "path": sys.path}
        try:
            started._write(told | {"memory_bytes": tool.memory_bytes})
            async with asyncio.timeout(_START_S):
                answer = await started._read()
            if bug := answer.get("bug"):
                raise ToolBug(f"the tool {tool.name!r} cannot be loaded in a process of its own:\n{bug}")
        except BaseException:
            await asyncio.shield(started.end(running=True))
            raise
        return started

    @property
    def is_alive(self) -> bool:
        """False once it is known to have ended."""
        return self._process.returncode is None

    async def takes(self, params: str, context: ToolContext) -> bool:
        """Hands the call over; False if the process has gone without beginning it."""
        self.calls += 1
        try:
            self._write({"params": params, "context": _told(context)})
            return bool((await self._read()).get("taken"))
        except ToolError:
            return False

    async def answer(self, context: ToolContext) -> dict[str, Any]:
        """What becomes of the call."""
        while True:
            answer = await self._read()
            if "progress" not in answer:
                return answer
            context.progress(answer["progress"])

    async def end(self, *, running: bool = False) -> None:
        """Ends the process; one that runs a call is told that nobody waits for it, and killed if it goes on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            if running:
                self._process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                await self._process.wait()
        # It leads a group: what it has started goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    def _write(self, told: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        content = json.dumps(told).encode()
        try:
            self._process.stdin.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
        except (OSError, RuntimeError):
            # uvloop raises the latter where the other end has gone.
            raise ToolError("The tool's process ended before the call.") from None

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            size = int.from_bytes(await self._process.stdout.readexactly(_LENGTH_BYTES), "big")
            if size > _MAX_FRAME_BYTES:
                raise ToolError("The tool's result is too large.")
            answer: dict[str, Any] = json.loads(await self._process.stdout.readexactly(size))
        except asyncio.IncompleteReadError:
            # Killed, as by the kernel when memory runs out, or by its own library.
            raise ToolError("The tool's process ended in the middle of the call.") from None
        return answer


def _told(context: ToolContext) -> dict[str, Any]:
    files = [
        {"id": file.id, "name": file.name, "size_bytes": file.size_bytes, "sha256": file.sha256, "path": str(file.path)}
        for file in context.files
    ]
    return {
        "session_id": context.session_id,
        "caller": context.caller,
        "workdir": str(context.workdir),
        "files": files,
        "language": context.language,
        "deadline": context.deadline,
    }


def _items(answer: Mapping[str, Any]) -> list[ContentItem]:
    if "items" in answer:
        return from_json(answer["items"])
    if bug := answer.get("bug"):
        raise ToolBug(bug)
    if answer["kind"] == "retryable":
        raise RetryableToolError(answer["error"], retry_after_s=answer["retry_after_s"])
    raise _ERRORS[answer["kind"]](answer["error"])
