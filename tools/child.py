"""A process that runs the calls of one synchronous tool, one after the other.

It is told on its standard input and answers on its standard output, in frames: four bytes of length, then JSON.

    <- {"name", "source", "options", "path", "memory_bytes"}               first: which tool
    -> {"ready": true}  |  {"bug": traceback}
    <- {"params", "context"}                                               then each call
    -> {"taken": true}, {"progress": text} ... then
       {"items"}  |  {"error", "kind", "retry_after_s"}  |  {"bug": traceback}

SIGTERM sets the call's `cancelled`; what does not heed it is killed. The end of the input is the end of the process,
and so is that of the server. What a tool prints goes to standard error, where the server's log goes, too.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO

from tools.attached import AttachedFile
from tools.base import BaseTool, ToolContext
from tools.context import MAX_PROGRESS_CHARS
from tools.errors import InvalidArguments, RetryableToolError, ToolError
from tools.items import as_items, to_json
from tools.registry import Source, find

_LENGTH_BYTES = 4

#: Linux's prctl(2): the signal that comes when the parent dies.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Answers calls until the input ends."""
    frames, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What tools print must not come between the frames.
    os.dup2(2, 1)
    told = _read(frames)
    if told is None:
        return
    _die_with_parent()
    _bound(told["memory_bytes"])
    cancelled = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: cancelled.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        tool = _loaded(told)
    except BaseException:  # noqa: BLE001 - whatever it is, the server has to know
        _write(answers, {"bug": traceback.format_exc()})
        return
    _write(answers, {"ready": True})
    while (call := _read(frames)) is not None:
        # Whoever does not hear this knows that the call was not begun, and can make it elsewhere.
        _write(answers, {"taken": True})
        _write(answers, _answer(tool, call, answers, cancelled))


def _loaded(told: dict[str, Any]) -> BaseTool:
    sys.path[:] = told["path"]
    tool = find(told["name"], Source(**told["source"]))(**told["options"])
    expanded = [each for each in tool.expands() or [tool] if each.name == told["name"]]
    return expanded[0]


def _answer(tool: BaseTool, call: dict[str, Any], answers: BinaryIO, cancelled: threading.Event) -> dict[str, Any]:
    context = _context(call["context"], cancelled, answers)
    try:
        output = tool.call(call["params"], context=context, lang=context.language)
        return {"items": to_json(as_items(output))}
    except RetryableToolError as error:
        return {"error": error.message, "kind": "retryable", "retry_after_s": error.retry_after_s}
    except InvalidArguments as error:
        return {"error": error.message, "kind": "invalid"}
    except ToolError as error:
        return {"error": error.message, "kind": "error"}
    except MemoryError:
        return {"error": "The tool ran out of memory.", "kind": "error"}
    except BaseException:  # noqa: BLE001 - a bug of the tool's is the server's to log
        return {"bug": traceback.format_exc()}


def _context(told: dict[str, Any], cancelled: threading.Event, answers: BinaryIO) -> ToolContext:
    files = tuple(AttachedFile(**{**file, "path": Path(file["path"])}) for file in told.pop("files"))
    workdir = Path(told.pop("workdir"))
    return ToolContext(
        **told,
        workdir=workdir,
        files=files,
        cancelled=cancelled,
        progress=lambda text: _write(answers, {"progress": str(text)[:MAX_PROGRESS_CHARS]}),
    )


def _read(frames: BinaryIO) -> dict[str, Any] | None:
    head = frames.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    told: dict[str, Any] = json.loads(frames.read(int.from_bytes(head, "big")))
    return told


def _write(answers: BinaryIO, told: dict[str, Any]) -> None:
    content = json.dumps(told).encode()
    answers.write(len(content).to_bytes(_LENGTH_BYTES, "big") + content)
    answers.flush()


def _bound(memory_bytes: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_bytes is not None:
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        bound = memory_bytes if most == resource.RLIM_INFINITY else min(memory_bytes, most)
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _die_with_parent() -> None:
    # A server that is killed cannot end its children; where there is no such call, an idle one still sees the end.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
