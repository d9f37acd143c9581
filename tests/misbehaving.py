"""Tools that do what tools should not do, and some that behave; synchronous ones, which run in a process, first.

A tool of a test has to be found by that process, so it cannot be written inside the test.
"""

import asyncio
import concurrent.futures
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from tools.base import (
    BaseTool,
    Details,
    FileItem,
    ImageItem,
    RetryableToolError,
    TextItem,
    ToolContext,
    ToolError,
    ToolOptions,
    register_tool,
)

#: The smallest PNG there is: one pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360000002000001"
    "e221bc330000000049454e44ae426082"
)

TEXT: dict[str, Any] = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


@register_tool("echo")
class Echo(BaseTool):
    """As in Qwen-Agent: the text of the arguments comes in, and text goes out."""

    description = "Says what it is told."
    parameters = ({"name": "text", "type": "string", "description": "What to say", "required": True},)

    def call(self, params: str, **kwargs: Any) -> str:
        return str(json.loads(params)["text"])


@register_tool()
def process_id() -> int:
    """The process that this runs in."""
    return os.getpid()


@register_tool()
def hang(context: ToolContext) -> str:
    """Never ends; says first which process it is."""
    context.progress(f"{os.getpid()}")
    while True:
        time.sleep(0.01)  # it is the server's to end this


@register_tool()
def start_another(context: ToolContext) -> str:
    """Starts a program that never ends, says which, and waits for it."""
    with subprocess.Popen(["sleep", "7777"]) as process:
        context.progress(f"{process.pid}")
    return ""


@register_tool()
def heed(ended: str, context: ToolContext) -> str:
    """Goes on until it is told that nobody waits, and then writes the file `ended`."""
    context.progress(f"{os.getpid()}")
    context.cancelled.wait()
    Path(ended).write_text("", encoding="utf-8")
    return ""


@register_tool()
def crash() -> str:
    """Ends its process."""
    os._exit(1)


@register_tool()
def flood(characters: int) -> str:
    """Says very much."""
    return "x" * characters


@register_tool()
def swell() -> int:
    """Takes all the memory there is."""
    return len(bytearray(64 * 1024**3))


@register_tool()
def print_much() -> str:
    """Prints beside its answer."""
    print("this is not the answer")
    sys.stdout.flush()
    return "the answer"


@register_tool()
def fail(how: str) -> str:
    """Fails in one of the ways there are."""
    raise {
        "final": ToolError("The shop is closed."),
        "again": RetryableToolError("The line is busy."),
        "bug": ValueError("secret /path/to/nowhere"),
    }[how]


@register_tool()
def tell_progress(steps: int, context: ToolContext) -> str:
    """Tells of each step."""
    for step in range(steps):
        context.progress(f"step {step + 1}")
    return "done"


@register_tool()
def surroundings(context: ToolContext) -> dict[str, Any]:
    """What a call is told beside its arguments."""
    files = {file.name: file.path.read_text("utf-8") for file in context.files}
    return {
        "session_id": context.session_id,
        "caller": context.caller,
        "language": context.language,
        "files": files,
        "workdir_is_empty": not list(context.workdir.iterdir()),
        "has_time_left": (context.remaining_s() or 0) > 0,
        "environment": sorted(os.environ),
    }


@register_tool()
def time_left(context: ToolContext) -> float:
    """The seconds that the call has."""
    return context.remaining_s() or 0.0


@register_tool()
def draw(shape: Annotated[str, Field(description="What to draw")] = "dot") -> list[Any]:
    """Draws a picture."""
    return [TextItem(f"a {shape}"), ImageItem(data=PIXEL, name=f"{shape}.png"), FileItem("notes.txt", data=b"a dot")]


@register_tool("explain")
class Explain(Echo):
    """Tells the caller's program more than the model."""

    cacheable = True

    def call(self, params: str, **kwargs: Any) -> Any:
        text = super().call(params)
        return [TextItem(text), Details({"characters": len(text)})]


class Greeting(ToolOptions):
    """How to greet."""

    greeting: Annotated[str, Field(min_length=1)]


@register_tool("greet")
class Greet(BaseTool):
    """A tool with an option, without which it is nothing."""

    description = "Greets somebody."
    parameters = TEXT
    Options = Greeting

    def call(self, params: Any, **kwargs: Any) -> str:
        return f"{self.options.greeting}, {self.validate_parameters(params)['text']}!"


# -- asynchronous ------------------------------------------------------------------------------------------


class Scripted(BaseTool):
    """Does what it is given, once for each call: returns a value, raises an error, or awaits what a function gives."""

    name = "scripted"
    description = "Does as it is told."
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}  # noqa: RUF012 - nobody changes it

    def __init__(self, *steps: Any) -> None:
        super().__init__()
        self._steps = list(steps)
        self.calls: list[Any] = []

    async def call(self, params: Any, **kwargs: Any) -> Any:
        self.calls.append(json.loads(params))
        step = self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]
        if isinstance(step, Exception):
            raise step
        return await step(kwargs["context"]) if callable(step) else step


class Watched(BaseTool):
    """Counts how many of its calls run at the same time; `full` is set at `most`, and each ends behind `release`."""

    name = "watched"
    description = "Waits."
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}  # noqa: RUF012 - nobody changes it

    def __init__(self, most: int, full_at: int | None = None) -> None:
        super().__init__()
        self.max_concurrency = most
        self.full = asyncio.Event()
        self.release = asyncio.Event()
        self.running = 0
        self.peak = 0
        self.cancelled = 0
        self._full_at = full_at or most

    async def call(self, params: Any, **kwargs: Any) -> str:
        self.running += 1
        self.peak = max(self.peak, self.running)
        if self.running == self._full_at:
            self.full.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return f"{json.loads(params)['n']}"


class Gate:
    """What a call waits for that a test, in another thread, watches."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.cancelled = threading.Event()
        self._opened: concurrent.futures.Future[None] = concurrent.futures.Future()

    def open(self) -> None:
        """Lets the call end."""
        if not self._opened.done():
            self._opened.set_result(None)

    async def passed(self) -> None:
        """Waits for that."""
        self.started.set()
        try:
            await asyncio.shield(asyncio.wrap_future(self._opened))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


@register_tool("wait_at_gate")
class WaitAtGate(Echo):
    """Says what it is told, once the gate of the test is open."""

    gate = Gate()

    async def call(self, params: Any, **kwargs: Any) -> str:  # type: ignore[override]
        await type(self).gate.passed()
        return str(json.loads(params)["text"])


@register_tool("meet")
class Meet(BaseTool):
    """Three of its calls have to run at the same time for any of them to end."""

    description = "Waits for two others."

    def __init__(self) -> None:
        super().__init__()
        self._met = asyncio.Barrier(3)

    async def call(self, params: Any, **kwargs: Any) -> str:
        await self._met.wait()
        return "met"


@register_tool("tell_without_end")
class TellWithoutEnd(BaseTool):
    """Tells of its progress all the time, until the gate of the test is open."""

    description = "Never ends."

    async def call(self, params: Any, **kwargs: Any) -> str:
        passed = asyncio.create_task(WaitAtGate.gate.passed())
        while not passed.done():
            kwargs["context"].progress("on and on")
            await asyncio.wait({passed}, timeout=0.001)
        return "done"
