"""Snippets run as a library runs them, each in a sandbox of its own. Over HTTP: `test_code_interpreter`."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tools.attached import AttachedFile
from tools.base import ToolContext
from tools.executor import Call, Executor, Result
from tools.kernel_settings import KernelSettings
from tools.kernels.service import open_kernels
from tools.outcomes import Kernels
from tools.python_executor import PythonExecutor
from tools.toolbox import Toolbox
from tools.workers import Workers


@pytest.fixture(scope="module")
async def kernels() -> AsyncIterator[Kernels]:
    """Two that are ready: here each call uses up one."""
    opened = open_kernels(KernelSettings(pool=2, wait_s=60))
    if reason := opened.unavailable():
        pytest.skip(f"NO SANDBOXES HERE, so that nothing of real kernels is tested: {reason}")
    await opened.start()
    yield opened
    await opened.aclose()


@pytest.fixture
async def executor() -> AsyncIterator[Executor]:
    workers = Workers()
    yield Executor(Toolbox.holding(PythonExecutor()), workers)
    await workers.aclose()


def call(code: Any) -> Call:
    return Call("call_1", "python_executor", json.dumps({"code": code}))


async def test_a_snippet_is_run_and_nothing_of_it_is_kept(executor: Executor, kernels: Kernels) -> None:
    context = ToolContext(session_id="one", caller="ada", kernels=kernels)
    made = await executor.execute(call("x = 6\nopen('kept.txt', 'w').close()\nprint('made'); x * 7"), context)
    assert (made.status, made.text.split("\nFiles:")[0].rstrip()) == (
        "ok",
        "stdout:\n\n```\nmade\n```\n\nexecute_result:\n\n```\n42\n```",
    )
    asked = await executor.execute(call("os.listdir(), 'x' in globals()"), context)
    assert asked.text == "execute_result:\n\n```\n([], False)\n```"


async def test_snippets_of_one_turn_do_not_see_each_other(executor: Executor, kernels: Kernels) -> None:
    """By what they write they would: they run side by side."""
    context = ToolContext(session_id="one", caller="ada", kernels=kernels)
    code = "import time\nopen(f'mine-{np.random.rand()}', 'w').close()\ntime.sleep(0.1)\nlen(os.listdir())"
    results = await executor.run([call(code)] * 2, context)
    assert ["execute_result:\n\n```\n1\n```" in result.text for result in results] == [True, True]


async def test_a_snippet_reads_the_conversations_files(executor: Executor, kernels: Kernels, tmp_path: Path) -> None:
    path = tmp_path / "n.txt"
    path.write_bytes(b"41")
    file = AttachedFile("file-1", "n.txt", 2, hashlib.sha256(b"41").hexdigest(), path)
    context = ToolContext(caller="ada", kernels=kernels, files=(file,))
    assert "\n42\n" in (await executor.execute(call("int(open('n.txt').read()) + 1"), context)).text


async def test_a_snippet_that_fails_says_where(executor: Executor, kernels: Kernels) -> None:
    result: Result = await executor.execute(call("```python\nn = 0\n1 / n\n```"), ToolContext(kernels=kernels))
    assert result.status == "ok", "the tool did what it was asked to do"
    assert result.text.startswith("error:\n\n```\nTraceback (most recent call last)")
    assert "----> 2 1 / n" in result.text
    assert result.text.endswith("ZeroDivisionError: division by zero\n```")
    assert result.details
    assert result.details["status"] == "error"


async def test_when_the_caller_leaves_the_snippet_ends(executor: Executor, kernels: Kernels) -> None:
    """Its place is free again: there is no other, or the next call would wait for ever."""
    context = ToolContext(caller="leaving", kernels=kernels)
    running = [asyncio.create_task(executor.execute(call("while True: pass"), context)) for _ in range(4)]
    done, _ = await asyncio.wait(running, timeout=1)
    assert not done
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    async with asyncio.timeout(60):
        assert "\n2\n" in (await executor.execute(call("1 + 1"), context)).text


async def test_without_kernels_the_model_is_told_so(executor: Executor) -> None:
    result = await executor.execute(call("1"), ToolContext())
    assert (result.status, result.text) == ("error", "Error: No code can be run here.")
