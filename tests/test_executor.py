"""Calls run as a library runs them: whatever a tool does, each call gets its result, and nothing is left behind."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeping import Kept
from misbehaving import PIXEL, Echo, Greet, Scripted, Watched
from tools.attached import AttachedFile
from tools.base import (
    TOOL_REGISTRY,
    BaseTool,
    Details,
    FileItem,
    ImageItem,
    RetryableToolError,
    TextItem,
    ToolContext,
    ToolError,
)
from tools.cache import ToolCache
from tools.executor import Call, Executor, Result, shortened
from tools.settings import ToolEntry, Wishes
from tools.stores import open_store
from tools.toolbox import Toolbox
from tools.workers import Workers

#: Long enough for any machine; what takes so long hangs.
PATIENCE_S = 30.0


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    """Processes of the test's own; none of them is left behind."""
    before = set(psutil.Process().children(recursive=True))
    made = Workers()
    yield made
    await made.aclose()
    assert set(psutil.Process().children(recursive=True)) <= before


def executor_of(workers: Workers, *tools: BaseTool | str, **more: Any) -> Executor:
    """One that has these tools; a name is that of a registered one."""
    made = [TOOL_REGISTRY[tool]() if isinstance(tool, str) else tool for tool in tools]
    return Executor(Toolbox.holding(*made), workers, **more)


def call(name: str, call_id: str = "call_1", /, **arguments: Any) -> Call:
    return Call(call_id, name, json.dumps(arguments))


async def result_of(executor: Executor, made: Call, context: ToolContext | None = None, **more: Any) -> Result:
    async with asyncio.timeout(PATIENCE_S):
        return await executor.execute(made, context or ToolContext(), **more)


class Progress:
    """What calls tell of their progress, in a queue."""

    def __init__(self) -> None:
        self._told: asyncio.Queue[str] = asyncio.Queue()
        self.context = ToolContext(progress=self._told.put_nowait)

    async def next(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            return await self._told.get()


# -- results -----------------------------------------------------------------------------------------------


async def test_a_synchronous_tool_answers_from_a_process_of_its_own(workers: Workers) -> None:
    executor = executor_of(workers, "process_id", Echo())
    assert (await result_of(executor, call("echo", text="你好"))).text == "你好"
    pid = int((await result_of(executor, call("process_id"))).text)
    assert pid != psutil.Process().pid
    assert psutil.pid_exists(pid)


async def test_a_process_is_used_again(workers: Workers) -> None:
    executor = executor_of(workers, "process_id")
    assert len({(await result_of(executor, call("process_id"))).text for _ in range(3)}) == 1


async def test_a_process_is_never_used_for_another_tool(workers: Workers) -> None:
    """A tool that is made anew may get the place in memory of one that has gone."""
    for _ in range(3):
        assert (await result_of(executor_of(workers, "process_id"), call("process_id"))).text.isdigit()
        assert (await result_of(executor_of(workers, Echo()), call("echo", text="mine"))).text == "mine"


async def test_a_tool_that_has_gone_leaves_no_process(workers: Workers) -> None:
    executor = executor_of(workers, "process_id")
    pid = int((await result_of(executor, call("process_id"))).text)
    await executor.close([executor.toolbox.tools["process_id"].tool])
    assert not psutil.pid_exists(pid)


async def test_results_come_in_the_order_of_the_calls(workers: Workers) -> None:
    last_first = [asyncio.Event() for _ in range(3)]

    async def wait_for_the_next(context: ToolContext) -> str:
        n = len(tool.calls) - 1
        if n + 1 < len(last_first):
            await last_first[n + 1].wait()
        last_first[n].set()
        return f"{n}"

    tool = Scripted(wait_for_the_next)
    calls = [call("scripted", f"call_{n}", n=n) for n in range(3)]
    results = await executor_of(workers, tool).run(calls, ToolContext())
    assert [(result.call.id, result.text) for result in results] == [("call_0", "0"), ("call_1", "1"), ("call_2", "2")]


@pytest.mark.parametrize(
    ("returned", "text"),
    [("text", "text"), ({"a": "ü"}, '{"a": "ü"}'), ([1, 2], "[1, 2]"), (None, "null"), (3, "3"), ([], "[]")],
)
async def test_what_json_can_hold_is_told_as_json(workers: Workers, returned: Any, text: str) -> None:
    assert (await result_of(executor_of(workers, Scripted(returned)), call("scripted"))).text == text


async def test_what_json_cannot_hold_is_a_bug_of_the_tools(workers: Workers) -> None:
    assert (await result_of(executor_of(workers, Scripted({1, 2})), call("scripted"))).status == "bug"


async def test_images_and_files_are_kept_and_told_as_links(workers: Workers) -> None:
    kept = Kept()
    result = await result_of(executor_of(workers, "draw"), call("draw", shape="line"), ToolContext(keep=kept))
    assert result.text == (
        "a line\n![line.png](https://files.example/line.png)\n[notes.txt](https://files.example/notes.txt)"
    )
    assert kept.files == {"line.png": PIXEL, "notes.txt": b"a dot"}


async def test_details_are_for_programs_and_tell_where_items_are(workers: Workers) -> None:
    async def keep(name: str, _: bytes | AsyncIterator[bytes]) -> str:
        if name == "big.bin":
            raise ToolError("There is no room for more files.")
        return f"http://here/{name}"

    kept = [ImageItem(data=PIXEL, name="a.png"), FileItem("big.bin", data=b"x"), FileItem("c.txt", url="http://c")]
    said = [TextItem("text"), Details({"files": ["a.png"], "lone": "\ud800"}), *kept, Details({"status": "ok"})]
    result = await result_of(executor_of(workers, Scripted(said)), call("scripted"), ToolContext(keep=keep))
    assert result.text.splitlines() == [
        "text",
        "![a.png](http://here/a.png)",
        "(big.bin could not be kept: There is no room for more files.)",
        "[c.txt](http://c)",
    ]
    assert result.details == {
        "files": ["a.png"],
        "lone": "?",
        "status": "ok",
        "links": {"a.png": "http://here/a.png", "c.txt": "http://c"},
    }


async def test_where_a_picture_and_a_file_have_one_name_the_picture_has_the_link(workers: Workers) -> None:
    kept = [ImageItem("http://a", name="a.png"), FileItem("a.png", "http://b"), Details({})]
    result = await result_of(executor_of(workers, Scripted(kept)), call("scripted"))
    assert result.details == {"links": {"a.png": "http://a"}}


@pytest.mark.parametrize(
    ("said", "details"),
    [
        (TextItem("a"), None),
        (FileItem("a.txt", data=b"a"), None),
        (Details({}), {}),
        (Details({"links": "none"}), {"links": "none"}),
        (ToolError("Closed."), None),
    ],
    ids=str,
)
async def test_there_are_details_where_the_tool_gives_some(workers: Workers, said: Any, details: Any) -> None:
    assert (await result_of(executor_of(workers, Scripted(said)), call("scripted"))).details == details


async def test_details_come_out_of_a_process_and_out_of_the_cache(workers: Workers) -> None:
    made = executor_of(workers, "explain", cache=ToolCache(open_store("memory:", max_bytes=10**6)))
    results = [await result_of(made, call("explain", text="so")) for _ in range(2)]
    assert [(result.text, result.details, result.cached) for result in results] == [
        ("so", {"characters": 2}, False),
        ("so", {"characters": 2}, True),
    ]


async def test_what_is_no_character_does_not_reach_the_model(workers: Workers) -> None:
    assert (await result_of(executor_of(workers, Scripted("a\ud800b")), call("scripted"))).text == "a?b"


async def test_what_cannot_be_kept_is_told_to_the_model(workers: Workers) -> None:
    async def full(_: str, __: bytes | AsyncIterator[bytes]) -> str:
        raise ToolError("There is no room for more files.")

    drawn = await result_of(executor_of(workers, "draw"), call("draw"), ToolContext(keep=full))
    assert drawn.status == "ok", drawn
    assert drawn.text.startswith("a dot\n")
    assert drawn.text.count("There is no room for more files.") == 2
    flooded = await result_of(executor_of(workers, "flood"), call("flood", characters=50_000), ToolContext(keep=full))
    assert flooded.status == "ok", flooded
    assert "There is no room for more files." in flooded.text


async def test_a_long_output_keeps_its_ends_and_the_whole_is_a_file(workers: Workers) -> None:
    kept = Kept()
    said = "begin" + "x" * 50_000 + "end"
    result = await result_of(executor_of(workers, Scripted(said)), call("scripted"), ToolContext(keep=kept))
    assert result.text.startswith("begin")
    assert result.text.endswith("end")
    assert (
        "30,008 characters are left out here; the whole text is in https://files.example/scripted-output.txt"
        in result.text
    )
    assert kept.files == {"scripted-output.txt": said.encode()}


@given(text=st.text(min_size=2), longest=st.integers(1, 50))
def test_a_shortened_text_has_as_many_characters_of_the_text_as_it_may(text: str, longest: int) -> None:
    longest = min(longest, len(text) - 1)
    head, _, rest = shortened(text, longest, "u").partition("\n[... ")
    tail = rest.partition(" ...]\n")[2]
    assert len(head) + len(tail) == longest
    assert text.startswith(head)
    assert text.endswith(tail)


# -- failures ----------------------------------------------------------------------------------------------


async def test_an_unknown_tool_is_told_with_those_that_there_are(workers: Workers) -> None:
    result = await result_of(executor_of(workers, Echo(), "draw"), call("paint"))
    assert (result.status, result.text) == (
        "unknown",
        "Error: there is no tool named 'paint'. The tools are: echo, draw.",
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("{}", "'text' is a required property"),
        ('{"text": 5}', "at 'text': 5 is not of type 'string'"),
        ("{", "not valid JSON"),
        ("[1]", "must be one JSON object"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
async def test_wrong_arguments_are_told_so_that_a_model_can_mend_them(
    workers: Workers, arguments: str, said: str
) -> None:
    result = await result_of(executor_of(workers, Echo()), Call("call_1", "echo", arguments))
    assert result.status == "invalid"
    assert said in result.text


async def test_a_final_error_is_told_and_not_tried_again(workers: Workers) -> None:
    tool = Scripted(ToolError("The shop is closed."))
    result = await result_of(executor_of(workers, tool), call("scripted"))
    assert (result.status, result.text) == ("error", "Error: The shop is closed.")
    assert len(tool.calls) == 1


async def test_what_may_be_tried_again_is_tried_again(workers: Workers) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    busy = RetryableToolError("The line is busy.")
    tool = Scripted(busy, RetryableToolError("Slowly.", retry_after_s=7), "connected")
    executor = executor_of(workers, tool, sleep=sleep, chance=lambda: 1.0)
    assert (await result_of(executor, call("scripted"))).text == "connected"
    assert waits == [0.2, 7]


async def test_the_last_try_is_told_to_the_model_which_may_try_again(workers: Workers) -> None:
    tool = Scripted(RetryableToolError("The line is busy."))
    result = await result_of(
        executor_of(workers, tool, sleep=lambda _: asyncio.sleep(0)), call("scripted"), wishes=Wishes(max_retries=1)
    )
    assert (result.status, result.text) == ("error", "Error: The line is busy. You may try again.")
    assert len(tool.calls) == 2


async def test_nobody_waits_for_a_new_try_beyond_the_deadline(workers: Workers) -> None:
    tool = Scripted(RetryableToolError("Come next year.", retry_after_s=1e6))
    assert (await result_of(executor_of(workers, tool), call("scripted"))).status == "error"
    assert len(tool.calls) == 1


@pytest.mark.parametrize("how", ["final", "again", "bug"])
async def test_errors_of_a_process_are_as_those_of_the_loop(
    workers: Workers, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    executor = executor_of(workers, "fail", sleep=lambda _: asyncio.sleep(0), new_id=lambda: "ref1")
    told = {
        "final": ("error", "Error: The shop is closed."),
        "again": ("error", "Error: The line is busy. You may try again."),
        "bug": ("bug", "Error: the tool failed because of a bug (reference ref1). Do without it."),
    }
    result = await result_of(executor, call("fail", how=how))
    assert (result.status, result.text) == told[how]
    assert ("secret /path/to/nowhere" in caplog.text) == (how == "bug")


async def test_a_bug_is_logged_with_its_traceback_and_the_model_sees_a_sentence(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    tool = Scripted(ValueError("secret /path/to/nowhere"))
    result = await result_of(executor_of(workers, tool, new_id=lambda: "ref1"), call("scripted"))
    assert result.text == "Error: the tool failed because of a bug (reference ref1). Do without it."
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "ref1" in record.getMessage()
    assert record.exc_info


async def test_a_process_that_ends_in_the_middle_is_an_error_and_the_next_call_gets_another(workers: Workers) -> None:
    executor = executor_of(workers, "crash", Echo())
    result = await result_of(executor, call("crash"))
    assert (result.status, result.text) == ("error", "Error: The tool's process ended in the middle of the call.")
    assert (await result_of(executor, call("crash"))).status == "error"
    assert (await result_of(executor, call("echo", text="still here"))).text == "still here"


async def test_memory_has_an_end(workers: Workers) -> None:
    result = await result_of(executor_of(workers, "swell"), call("swell"))
    assert (result.status, result.text) == ("error", "Error: The tool ran out of memory.")


async def test_what_a_tool_prints_is_not_its_answer(workers: Workers) -> None:
    assert (await result_of(executor_of(workers, "print_much"), call("print_much"))).text == "the answer"


async def test_a_tool_that_its_process_cannot_find_is_a_bug_that_the_log_explains(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    class Local(Echo):
        name = "local"

    assert (await result_of(executor_of(workers, Local()), call("local", text="x"))).status == "bug"
    assert "does not register 'local'" in caplog.text


# -- time --------------------------------------------------------------------------------------------------


async def test_a_synchronous_tool_is_killed_at_its_deadline(workers: Workers) -> None:
    progress = Progress()
    result = await result_of(executor_of(workers, "hang"), call("hang"), progress.context, wishes=Wishes(timeout_s=3))
    assert (result.status, result.text) == ("timeout", "Error: the tool took longer than 3 s and was stopped.")
    await workers.aclose()
    assert not psutil.pid_exists(int(await progress.next()))


async def test_an_asynchronous_tool_is_cancelled_at_its_deadline(workers: Workers) -> None:
    tool = Watched(1)
    result = await result_of(executor_of(workers, tool), call("watched", n=1), wishes=Wishes(timeout_s=0.01))
    assert result.status == "timeout"
    assert (tool.running, tool.cancelled) == (0, 1)


async def test_a_tool_that_ignores_its_cancellation_holds_up_nobody(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    release = asyncio.Event()

    async def stubborn(context: ToolContext) -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    result = await result_of(executor_of(workers, Scripted(stubborn)), call("scripted"), wishes=Wishes(timeout_s=0.01))
    assert result.status == "timeout"
    assert "goes on although it was cancelled" in caplog.text
    release.set()


async def test_who_cancels_a_call_cancels_the_tool(workers: Workers, tmp_path: Path) -> None:
    ended, progress = tmp_path / "ended", Progress()
    executor = executor_of(workers, "heed", "hang")
    calls = (call("heed", ended=str(ended)), call("hang"))
    tasks = [asyncio.create_task(executor.execute(made, progress.context)) for made in calls]
    pids = [int(await progress.next()) for _ in calls]
    for task in tasks:
        task.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    await workers.aclose()
    assert ended.exists()
    assert not any(map(psutil.pid_exists, pids))


async def test_what_a_tool_has_started_ends_with_it(workers: Workers) -> None:
    progress = Progress()
    made = call("start_another")
    result = await result_of(executor_of(workers, "start_another"), made, progress.context, wishes=Wishes(timeout_s=3))
    assert result.status == "timeout"
    await workers.aclose()
    grandchild = int(await progress.next())
    # Nobody is its parent any more: whoever reaps it may not have come yet.
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


async def test_a_process_that_died_while_it_was_idle_costs_no_call(workers: Workers) -> None:
    executor = executor_of(workers, "process_id")
    first = psutil.Process(int((await result_of(executor, call("process_id"))).text))
    first.kill()
    await asyncio.to_thread(first.wait, PATIENCE_S)
    second = await result_of(executor, call("process_id"))
    assert (second.status, second.text != f"{first.pid}") == ("ok", True)


async def test_a_file_that_changed_does_not_change_a_tool_that_is_in_use(workers: Workers, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    source = (
        'from tools.base import register_tool\n@register_tool()\ndef my_own() -> str:\n    """Says."""\n    return "{}"'
    )
    await asyncio.to_thread(file.write_text, source.format("before"), "utf-8")
    executor = Executor(Toolbox.of([ToolEntry(file=file)]), workers)
    await asyncio.to_thread(file.write_text, "this is no Python", "utf-8")
    try:
        assert (await result_of(executor, call("my_own"))).text == "before"
    finally:
        del TOOL_REGISTRY["my_own"]


@pytest.mark.parametrize(("of_tool", "over_all"), [(2, 64), (100, 3)])
async def test_no_more_calls_run_than_may_of_a_tool_and_over_all(workers: Workers, of_tool: int, over_all: int) -> None:
    most = min(of_tool, over_all)
    tool = Watched(of_tool, full_at=most)
    executor = executor_of(workers, tool, concurrency=over_all)
    running = asyncio.create_task(executor.run([call("watched", f"c{n}", n=n) for n in range(7)], ToolContext()))
    await tool.full.wait()
    tool.release.set()
    results = await running
    assert (tool.peak, [result.text for result in results]) == (most, [f"{n}" for n in range(7)])


async def test_the_wait_for_a_free_place_is_not_the_calls_own_time(workers: Workers) -> None:
    tool = Watched(1)
    executor = executor_of(workers, tool)
    first = asyncio.create_task(executor.execute(call("watched", n=1), ToolContext()))
    await tool.full.wait()
    second = asyncio.create_task(
        executor.execute(call("watched", n=2), ToolContext(), wishes=Wishes(timeout_s=PATIENCE_S))
    )
    await asyncio.sleep(0)
    assert not second.done()
    tool.release.set()
    assert [(await first).text, (await second).text] == ["1", "2"]


# -- what a tool is told -----------------------------------------------------------------------------------


async def test_a_process_is_told_of_the_call_and_sees_the_environment_that_it_may(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    file.write_text("its content", encoding="utf-8")
    workdir = tmp_path / "work"
    workdir.mkdir()
    context = ToolContext("s1", "ada", workdir, (AttachedFile("file-1", "a.txt", 11, "00", file),), "zh")
    workers = Workers({"PATH": "/usr/bin"})
    try:
        told = json.loads((await result_of(executor_of(workers, "surroundings"), call("surroundings"), context)).text)
    finally:
        await workers.aclose()
    environment = set(told.pop("environment"))
    # Python sets LC_CTYPE by itself where nobody chose a locale.
    assert environment <= {"PATH", "LC_CTYPE"}
    assert told == {
        "session_id": "s1",
        "caller": "ada",
        "language": "zh",
        "files": {"a.txt": "its content"},
        "workdir_is_empty": True,
        "has_time_left": True,
    }


async def test_progress_is_told_as_it_comes(workers: Workers) -> None:
    told: list[str] = []
    context = ToolContext(progress=told.append)
    assert (
        await result_of(executor_of(workers, "tell_progress"), call("tell_progress", steps=3), context)
    ).text == "done"
    assert told == ["step 1", "step 2", "step 3"]


async def test_a_tools_options_reach_its_process(workers: Workers) -> None:
    made = executor_of(workers, Greet(greeting="Hello"))
    assert (await result_of(made, call("greet", text="Ada"))).text == "Hello, Ada!"
    configured = Executor(Toolbox.of([ToolEntry.model_validate({"name": "greet", "greeting": "Moin"})]), workers)
    assert (await result_of(configured, call("greet", text="Ada"))).text == "Moin, Ada!"


# -- the cache ---------------------------------------------------------------------------------------------


class Cacheable(Scripted):
    """A tool whose results may be kept."""

    cacheable = True
    private = False


def cached(workers: Workers, tool: BaseTool) -> Executor:
    return executor_of(workers, tool, cache=ToolCache(open_store("memory:", max_bytes=10**6)))


async def test_equal_calls_of_a_cacheable_tool_are_made_once(workers: Workers) -> None:
    tool = Cacheable("first", "second")
    executor = cached(workers, tool)
    first = await result_of(executor, call("scripted", n=1))
    second = await result_of(executor, Call("call_2", "scripted", '{ "n":1 }'), ToolContext(caller="somebody else"))
    assert [(first.text, first.cached), (second.text, second.cached)] == [("first", False), ("first", True)]
    assert (await result_of(executor, call("scripted", n=2))).text == "second"


async def test_equal_calls_at_the_same_time_are_made_once(workers: Workers) -> None:
    class Slow(Watched):
        cacheable = True

    tool = Slow(9, full_at=1)
    executor = cached(workers, tool)
    running = asyncio.create_task(executor.run([call("watched", f"c{n}", n=1) for n in range(5)], ToolContext()))
    await tool.full.wait()
    tool.release.set()
    assert [result.text for result in await running] == ["1"] * 5
    assert tool.peak == 1


async def test_equal_calls_of_other_tools_are_all_made(workers: Workers) -> None:
    tool = Scripted("one", "two")
    executor = cached(workers, tool)
    results = await executor.run([call("scripted", "a"), call("scripted", "b")], ToolContext())
    assert [result.text for result in results] == ["one", "two"]


async def test_a_tool_that_loses_patience_by_itself_has_a_bug_cached_or_not(workers: Workers) -> None:
    for executor in (cached(workers, Cacheable(TimeoutError())), executor_of(workers, Scripted(TimeoutError()))):
        assert (await result_of(executor, call("scripted"))).status == "bug"


async def test_errors_are_not_kept(workers: Workers) -> None:
    executor = cached(workers, Cacheable(ToolError("No."), "yes"))
    assert [(await result_of(executor, call("scripted"))).text for _ in range(2)] == ["Error: No.", "yes"]


async def test_a_request_can_do_without_the_cache(workers: Workers) -> None:
    executor = cached(workers, Cacheable("one", "two"))
    wishes = Wishes(cache_enabled=False)
    assert [(await result_of(executor, call("scripted"), wishes=wishes)).text for _ in range(2)] == ["one", "two"]


async def test_what_was_said_in_one_language_is_not_told_in_another(workers: Workers) -> None:
    async def speak(context: ToolContext) -> str:
        return context.language

    executor = cached(workers, Cacheable(speak))
    told = [(await result_of(executor, call("scripted"), ToolContext(language=one))).text for one in ("zh", "en")]
    assert told == ["zh", "en"]


async def test_who_is_impatient_or_leaves_takes_nothing_from_others(workers: Workers) -> None:
    class Slow(Watched):
        cacheable, private = True, False

    tool = Slow(9, full_at=1)
    executor = cached(workers, tool)
    hasty = asyncio.create_task(executor.execute(call("watched", n=1), ToolContext(), wishes=Wishes(timeout_s=0.01)))
    leaves = asyncio.create_task(executor.execute(call("watched", n=1), ToolContext()))
    patient = asyncio.create_task(executor.execute(call("watched", n=1), ToolContext()))
    await tool.full.wait()
    assert (await hasty).status == "timeout"
    leaves.cancel()
    tool.release.set()
    assert ((await patient).text, tool.peak) == ("1", 1)


@pytest.mark.parametrize(
    "other",
    [
        ToolContext(caller="bob"),
        ToolContext(caller="ada", files=(AttachedFile("file-1", "a.txt", 1, "another hash", Path()),)),
        ToolContext(caller="ada", files=(AttachedFile("file-1", "b.txt", 1, "a hash", Path()),)),
    ],
    ids=["another caller", "another file", "another name"],
)
async def test_what_is_private_depends_on_who_asks_and_on_the_files(workers: Workers, other: ToolContext) -> None:
    class Private(Cacheable):
        private = True

    executor = cached(workers, Private("adas", "another"))
    ada = ToolContext(caller="ada", files=(AttachedFile("file-1", "a.txt", 1, "a hash", Path()),))
    assert (await result_of(executor, call("scripted"), ada)).text == "adas"
    assert (await result_of(executor, call("scripted"), other)).text == "another"
    assert (await result_of(executor, call("scripted"), ada)).text == "adas"


class NamesBadly(BaseTool):
    """Gives a file whose name is Markdown."""

    name = "names_badly"
    description = "Gives a file."

    async def call(self, params: Any, **kwargs: Any) -> FileItem:
        return FileItem("a](http://evil)[b\n.txt", url="http://good")


async def test_a_files_name_cannot_end_its_link(workers: Workers) -> None:
    executor = Executor(Toolbox.holding(NamesBadly()), workers)
    result = await executor.execute(Call("c", "names_badly", "{}"), ToolContext())
    assert result.text == r"[a\]\(http://evil\)\[b .txt](http://good)"
