"""Calls -> results: side by side, each within its time, and whatever happens, a result.

    call -> known? -> arguments valid? -> cached? -> a free place -> run, again if it says so -> cut to size -> result

Asynchronous tools run in the loop and are cancelled at their deadline; synchronous ones run in processes of their own,
which are killed. Nothing a tool does is an exception here: it becomes a result that tells the model, in one sentence.
"""

import asyncio
import json
import logging
import random
import re
import secrets
import tempfile
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from tools.base import BaseTool, ToolContext
from tools.cache import CacheScope, ToolCache
from tools.errors import InvalidArguments, RetryableToolError, ToolError
from tools.items import ContentItem, Details, FileItem, ImageItem, TextItem, as_items
from tools.outcomes import Keep
from tools.settings import Settings, Wishes
from tools.toolbox import Equipped, Toolbox
from tools.workers import ToolBug, Workers

logger = logging.getLogger(__name__)

#: How a call ended. `invalid`: the arguments; `error`: the tool said so; `timeout`; `bug`: the tool is broken.
Status = Literal["ok", "invalid", "unknown", "error", "timeout", "bug"]

#: The wait before the first new try; it doubles, and half of it is by chance, so that callers do not come in step.
_BACKOFF_S = 0.2

#: So long an asynchronous tool may take to end when it is cancelled; then it is left alone, and the log says so.
_GRACE_S = 0.5

#: Of an output that is too long, so much is shown of its beginning; the end often holds the sum, or the error.
_HEAD_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class Call:
    """A call to run: `arguments` is the JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a call: `text` is what the model is to read.

    `details` are for the caller's program, of calls that have any; `links` in them tells by name the URLs of the call's
    images and files.
    """

    call: Call
    status: Status
    text: str
    duration_s: float = 0.0
    cached: bool = False
    details: Mapping[str, Any] | None = None


def unknown(call: Call, names: Iterable[str]) -> Result:
    """The result of a call of a tool that is none of these."""
    known = ", ".join(names) or "none"
    return Result(call, "unknown", f"Error: there is no tool named {call.name!r}. The tools are: {known}.")


class _Late(Exception):
    """The call's time is over."""


class Executor:
    """Runs the calls of a toolbox. `concurrency`: so many run at the same time, over all tools.

    The seams: `clock` gives seconds that only go forward, `sleep` waits, `chance` gives a number in [0, 1), `new_id`
    the references of bugs.
    """

    def __init__(
        self,
        toolbox: Toolbox,
        workers: Workers,
        cache: ToolCache | None = None,
        *,
        concurrency: int = 64,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
        new_id: Callable[[], str] = lambda: secrets.token_hex(4),
    ) -> None:
        self.toolbox = toolbox
        self._workers = workers
        self._cache = cache
        self._clock = clock
        self._sleep = sleep
        self._chance = chance
        self._new_id = new_id
        self._places = asyncio.Semaphore(concurrency)
        self._places_of: WeakKeyDictionary[BaseTool, asyncio.Semaphore] = WeakKeyDictionary()

    async def close(self, tools: Iterable[BaseTool]) -> None:
        """Closes these tools, which are not called any more."""
        for tool in tools:
            await self._workers.forget(tool)
            try:
                await tool.aclose()
            except Exception:
                logger.exception("the tool %s cannot be closed", tool.name)

    async def run(self, calls: Sequence[Call], context: ToolContext) -> list[Result]:
        """The results of the calls, which run side by side, in the order of the calls."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.execute(call, context)) for call in calls]
        return [task.result() for task in tasks]

    async def execute(self, call: Call, context: ToolContext, *, wishes: Wishes | None = None) -> Result:
        """The result of one call. Raises nothing but cancellation.

        What of it is too long, or no text, is stored by the context's `keep`.
        """
        began = self._clock()
        equipped = self.toolbox.tools.get(call.name)
        if equipped is None:
            return unknown(call, self.toolbox.tools)
        settings = (wishes or Wishes()).tightened(equipped.settings)
        status: Status = "ok"
        cached, details = False, None
        try:
            arguments = equipped.tool.validate_parameters(call.arguments)
            items, cached = await self._cached(call, equipped, settings, arguments, context)
            text, links = await _as_text(items, call, settings.max_output_chars, context.keep)
            details = _details(items, links)
        except InvalidArguments as error:
            status, text = "invalid", f"Error: {error.message}"
        except RetryableToolError as error:
            status, text = "error", f"Error: {error.message} You may try again."
        except ToolError as error:
            status, text = "error", f"Error: {error.message}"
        except _Late:
            status, text = "timeout", f"Error: the tool took longer than {settings.timeout_s:g} s and was stopped."
        except Exception as error:  # noqa: BLE001 - whatever a tool raises, the model is told, and the loop goes on
            status, text = "bug", self._bug(call, error)
        return Result(call, status, text, self._clock() - began, cached, details)

    def _bug(self, call: Call, error: Exception) -> str:
        reference = self._new_id()
        told = str(error) if isinstance(error, ToolBug) else None
        logger.error(
            "the tool %s has a bug (reference %s)\n%s", call.name, reference, told or "", exc_info=told is None
        )
        return f"Error: the tool failed because of a bug (reference {reference}). Do without it."

    async def _cached(
        self, call: Call, equipped: Equipped, settings: Settings, arguments: dict[str, object], context: ToolContext
    ) -> tuple[list[ContentItem], bool]:
        tool = equipped.tool
        if self._cache is None or not (tool.cacheable and settings.cache_enabled):
            return await self._tried(call, equipped, settings, context), False
        scope = _scope(context) if tool.private else CacheScope()
        version = f"{tool.version} {context.language}"
        key = self._cache.key(tool.name, version, equipped.digest, arguments, scope)
        # Others may wait for it, too: it runs by the tool's own settings, and each waits as long as it wants to.
        made = self._cache.through(key, settings.cache_ttl_s, lambda: self._shared(call, equipped, context))
        try:
            async with asyncio.timeout(settings.timeout_s if settings != equipped.settings else None) as limit:
                return await made
        except TimeoutError:
            if limit.expired():
                raise _Late from None
            # The tool's own, which is a bug of its.
            raise

    async def _shared(self, call: Call, equipped: Equipped, context: ToolContext) -> list[ContentItem]:
        # Whoever asked first may leave, and its directory goes with it.
        with tempfile.TemporaryDirectory(prefix="florette-") as own:
            return await self._tried(call, equipped, equipped.settings, replace(context, workdir=Path(own)))

    async def _tried(
        self, call: Call, equipped: Equipped, settings: Settings, context: ToolContext
    ) -> list[ContentItem]:
        # All tries together within the time; the wait for a free place does not count.
        tool = equipped.tool
        of_tool = self._places_of.setdefault(tool, asyncio.Semaphore(settings.max_concurrency))
        async with of_tool, self._places:
            deadline = self._clock() + settings.timeout_s
            for attempt in range(settings.max_retries + 1):
                try:
                    return await self._once(call, equipped, context, deadline)
                except RetryableToolError as error:
                    wait_s = max(error.retry_after_s, _BACKOFF_S * 2**attempt * (0.5 + self._chance() / 2))
                    if attempt == settings.max_retries or self._clock() + wait_s >= deadline:
                        raise
                    await self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    async def _once(self, call: Call, equipped: Equipped, context: ToolContext, deadline: float) -> list[ContentItem]:
        tool = equipped.tool
        cancelled = threading.Event()
        egress = context.egress.allowing(origins) if (origins := tool.origins()) else context.egress
        own = replace(context, deadline=deadline, cancelled=cancelled, egress=egress)
        if tool.is_async:
            running = asyncio.create_task(_called(tool, call, own))
        else:
            running = asyncio.create_task(self._workers.run(tool, equipped.entry.options, call.arguments, own))
        try:
            done, _ = await asyncio.wait({running}, timeout=deadline - self._clock())
            if not done:
                raise _Late
            return running.result()
        finally:
            cancelled.set()
            if not running.done():
                await _ended(running, tool.name)


def _scope(context: ToolContext) -> CacheScope:
    # The name, too: by it a model tells which file it means.
    return CacheScope(context.caller, tuple(f"{file.id} {file.name} {file.sha256}" for file in context.files))


async def _called(tool: BaseTool, call: Call, context: ToolContext) -> list[ContentItem]:
    return as_items(await tool.call(call.arguments, context=context, lang=context.language))


async def _ended(running: asyncio.Task[list[ContentItem]], name: str) -> None:
    # A tool that catches its cancellation holds up nobody.
    running.cancel()
    # What it raises instead is told to nobody any more, and no fault.
    running.add_done_callback(lambda task: task.cancelled() or task.exception())
    await asyncio.wait({running}, timeout=_GRACE_S)
    if not running.done():
        logger.error("the tool %s goes on although it was cancelled; it must let CancelledError pass", name)


# -- results -----------------------------------------------------------------------------------------------


async def _as_text(items: Sequence[ContentItem], call: Call, longest: int, keep: Keep) -> tuple[str, dict[str, str]]:
    # The text for the model, and where the items were kept, by name.
    links: dict[str, str] = {}
    text = _sent("\n".join([await _told(item, keep, links) for item in items if not isinstance(item, Details)]))
    if len(text) <= longest:
        return text, links
    try:
        where = f"the whole text is in {await keep(f'{call.name}-output.txt', text.encode())}"
    except ToolError as error:
        where = f"the whole text could not be kept: {error.message}"
    return shortened(text, longest, where), links


#: What would end the name of a link, or begin another.
_MARKUP = re.compile(r"[\[\]()\\<>\s]")


def _escaped(found: re.Match[str]) -> str:
    return " " if found[0].isspace() else f"\\{found[0]}"


async def _told(item: TextItem | ImageItem | FileItem, keep: Keep, links: dict[str, str]) -> str:
    if isinstance(item, TextItem):
        return item.text
    url = item.url
    if item.data is not None:
        try:
            url = await keep(item.name, item.data)
        except ToolError as error:
            # What failed on its way holds the bytes, until somebody looks for what nobody uses any more.
            traceback.clear_frames(error.__traceback__)
            return f"({item.name} could not be kept: {error.message})"
    if url is not None:
        # Pictures come first, and have no other place; files of the same name tell their own.
        links.setdefault(item.name, url)
    return f"{'!' if isinstance(item, ImageItem) else ''}[{_MARKUP.sub(_escaped, item.name)}]({url})"


def _details(items: Sequence[ContentItem], links: dict[str, str]) -> Mapping[str, Any] | None:
    told = [item.data for item in items if isinstance(item, Details)]
    if not told:
        return None
    joined = {name: value for data in told for name, value in data.items()} | ({"links": links} if links else {})
    sent: dict[str, Any] = json.loads(_sent(json.dumps(joined, ensure_ascii=False)))
    return sent


def _sent(text: str) -> str:
    # Half of a surrogate pair is no character, and cannot be sent.
    return text.encode("utf-8", "replace").decode()


def shortened(text: str, longest: int, where: str) -> str:
    """The beginning and the end of a text, at most `longest` characters of it, and `where` the whole is."""
    head = int(longest * _HEAD_SHARE)
    tail = longest - head
    left_out = len(text) - longest
    note = f"[... {left_out:,} characters are left out here; {where} ...]"
    return f"{text[:head]}\n{note}\n{text[len(text) - tail :]}"
