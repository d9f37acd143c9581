"""Sessions with pretended kernels: whose kernel runs what, how long it lives, and what the model is told of it.

Time is that of a loop which does not wait, so that an hour passes at once.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keeping import Kept
from pretend_kernels import (
    ANEW,
    DIED,
    IDLE_S,
    KEPT,
    LIFE_S,
    LOST,
    Begin,
    Pretend,
    PretendLoop,
    attached,
    now_s,
    pass_s,
)
from tools.attached import AttachedFile
from tools.errors import RetryableToolError, ToolError
from tools.kernels.kernel import Kernel
from tools.kernels.pool import Pool
from tools.kernels.sessions import Sessions
from tools.outcomes import MadeFile, Outcome, Shown


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """A loop whose time passes at once."""
    return "asyncio", {"loop_factory": PretendLoop}


class Stage:
    """Sessions, and the kernels that are made for them."""

    def __init__(self, *, pool: type[Pool] = Pool, size: int = 0, begin: Begin | None = None, **limits: Any) -> None:
        self.begin = begin or Begin()
        self.asked = 0
        self.kept = Kept()
        self.pool = pool(self.begin, size)
        given = {"sessions": 16, "sessions_per_caller": 4, "session_idle_s": IDLE_S, "session_life_s": LIFE_S}
        self.sessions = Sessions(self.pool, **(given | {"wait_s": 10.0} | limits), clock=self._clock)

    def _clock(self) -> float:
        self.asked += 1
        return now_s()

    async def run(
        self,
        session: str | None = "s",
        code: str = "",
        *files: AttachedFile,
        caller: str = "me",
        time_s: float = 60.0,
        **more: Any,
    ) -> Outcome:
        return await self.sessions.run(
            code, caller=caller, session=session, files=files, time_s=time_s, keep=self.kept, **more
        )

    async def kernel(self, session: str | None = "s", code: str = "", *, caller: str = "me") -> Pretend:
        """The kernel that a cell ran in."""
        shown = (await self.run(session, code, caller=caller)).pieces[0]
        assert isinstance(shown, Shown)
        return self.begin.made[int(shown.text.removeprefix("kernel "))]


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """One with the usual limits; nothing of it is left."""
    made = Stage()
    yield made
    await made.sessions.aclose()
    assert all(kernel.gone for kernel in made.begin.made)


async def started(*work: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Tasks that have done what they can for now, one after the other."""
    tasks = []
    for one in work:
        tasks.append(asyncio.create_task(one))
        await pass_s()
    return tasks


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- whose kernel ------------------------------------------------------------------------------------------


async def test_cells_of_a_session_share_a_kernel_and_no_others_do(stage: Stage) -> None:
    first = await stage.kernel("s")
    assert await stage.kernel("s") is first
    others = [await stage.kernel("t"), await stage.kernel("s", caller="you"), await stage.kernel(None)]
    assert len({first, *others}) == 4


async def test_the_kernel_comes_from_the_pool_at_the_first_use() -> None:
    stage = Stage(size=1, begin=Begin(takes_s=5))
    stage.pool.start()
    await pass_s(10)
    before_s = now_s()
    kernel = await stage.kernel()
    assert (now_s(), kernel) == (before_s, stage.begin.made[0])
    await stage.sessions.aclose()


async def test_cells_of_one_session_queue_up_in_order_and_those_of_others_run_beside(stage: Stage) -> None:
    began_s = now_s()
    await asyncio.gather(stage.run("s", "take 5"), stage.run("s", "take 3"), stage.run("s"), stage.run("t", "take 7"))
    assert round(now_s() - began_s) == 8
    assert stage.begin.made[0].cells == ["take 5", "take 3", ""]


async def test_a_cell_gets_its_time(stage: Stage) -> None:
    assert (await stage.run("s", "take 5", time_s=6)).status == "ok"
    assert (await stage.run("s", "take 5", time_s=3)).status == "timeout"


async def test_without_a_session_the_kernel_ends_with_the_cell_whatever_happens(stage: Stage) -> None:
    assert (await stage.run(None)).status == "ok"
    assert (await stage.run(None, "die")).status == "died"
    (running,) = await started(stage.run(None, "take 50"))
    await cancelled(running)
    await pass_s()
    assert [kernel.gone for kernel in stage.begin.made] == [True] * 3


async def test_what_beginning_a_kernel_raises_is_raised_and_takes_no_place() -> None:
    stage = Stage(sessions=1, wait_s=0)
    for session in ("s", None, "s"):
        stage.begin.failures = 1
        with pytest.raises(ToolError, match="no bubblewrap"):
            await stage.run(session)
    assert (await stage.run("t")).notes == ()
    await stage.sessions.aclose()


# -- files -------------------------------------------------------------------------------------------------


async def test_attached_files_are_put_once_each(stage: Stage) -> None:
    a, b = attached("file-1", "a.csv"), attached("file-2", "b.csv")
    for files in ([a], [a, b], [a, b]):
        await stage.run("s", "", *files)
    assert stage.begin.made[0].puts == ["file-1", "file-2"]


async def test_a_later_file_of_the_same_name_replaces_the_earlier_which_does_not_come_back(stage: Stage) -> None:
    old, new = attached("file-1", "a.csv"), attached("file-2", "a.csv")
    await stage.run("s", "", old)
    for _ in range(2):
        await stage.run("s", "", old, new)
    assert stage.begin.made[0].files == {"a.csv": "file-2"}
    assert stage.begin.made[0].puts == ["file-1", "file-2"]


async def test_a_file_that_does_not_fit_is_told_and_the_cell_runs(stage: Stage) -> None:
    stage.begin.equip = lambda kernel: kernel.refuses.add("a.csv")
    for _ in range(2):
        outcome = await stage.run("s", "", attached("file-1", "a.csv"), attached("file-2", "b.csv"))
        assert outcome.status == "ok"
        assert outcome.notes == ("The attached file 'a.csv' is not there: It is too long.",)
    assert stage.begin.made[0].puts == ["file-2"]


@pytest.mark.parametrize("session", ["s", None])
@pytest.mark.parametrize(("more", "status"), [("", "ok"), ("; take 100", "timeout"), ("; die", "died")])
async def test_files_that_a_cell_made_are_in_its_outcome(
    stage: Stage, session: str | None, more: str, status: str
) -> None:
    outcome = await stage.run(session, f"write a.txt{more}")
    assert (outcome.status, outcome.files) == (status, (MadeFile("a.txt", 7, "https://files.example/a.txt"),))
    assert stage.kept.files == {"a.txt": b"written"}
    assert (await stage.run(session)).files == ()


async def test_files_that_cannot_be_kept_are_told_with_the_reason(stage: Stage) -> None:
    stage.begin.equip = lambda kernel: kernel.refuses.update(("a.txt", "b.txt"))
    outcome = await stage.run("s", "write a.txt; write b.txt; write c.txt")
    assert outcome.files == (
        MadeFile("a.txt", 7, None),
        MadeFile("b.txt", 7, None),
        MadeFile("c.txt", 7, "https://files.example/c.txt"),
    )
    assert outcome.notes == ("Not kept: 'a.txt', 'b.txt'. It is too long.",)


@pytest.mark.parametrize("step", ["take 1", "take 100"])
async def test_files_are_kept_as_long_as_the_outcome_comes_in_time(stage: Stage, step: str) -> None:
    # Each file takes a second, about; a cell that is stopped has had its time.
    stage.begin.equip = lambda kernel: setattr(kernel, "reading_s", 0.9)
    began_s = now_s()
    outcome = await stage.run("s", f"{step}; write a.txt; write b.txt; write c.txt", within_s=6.5)
    assert now_s() - began_s <= 6.5
    kept = [file.name for file in outcome.files if file.url]
    assert (len(kept) == 3) == (step == "take 1")
    assert outcome.notes == (() if step == "take 1" else ("Not kept: 'c.txt'. There was no time for it.",))


async def test_files_that_cannot_be_read_cost_no_more_than_the_files(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    await stage.run("s")
    stage.begin.made[0].files_are_unreadable = True
    outcome = await stage.run("s", "write a.txt")
    assert (outcome.status, outcome.files) == ("ok", ())
    assert outcome.notes == ("The files that the cell made cannot be read.",)
    assert "no such directory" in caplog.text


# -- death -------------------------------------------------------------------------------------------------


async def test_a_death_is_told_and_then_what_is_lost_with_it(stage: Stage) -> None:
    assert (await stage.run("s", "note; write a.txt")).notes == ("as it was",)
    assert (await stage.run("s", "note; die")).notes == ("as it was", DIED)
    assert (await stage.run("s", "note")).notes == (KEPT, "as it was")
    assert (await stage.run("s", "note")).notes == ("as it was",)
    await pass_s()
    assert stage.begin.made[0].gone
    assert stage.begin.made[1].files == {"a.txt": "written"}


async def test_a_death_between_two_cells_is_told_with_the_second(stage: Stage) -> None:
    (await stage.kernel("s")).die()
    assert (await stage.run("s")).notes == (KEPT,)
    await pass_s(100)
    stage.begin.made[1].die()
    assert (await stage.run("s")).notes == (KEPT,)


@pytest.mark.parametrize(("is_lost", "puts"), [(False, []), (True, ["file-1"])])
async def test_attached_files_are_put_again_only_if_they_are_lost(stage: Stage, is_lost: bool, puts: list[str]) -> None:
    await stage.run("s", "", attached("file-1", "a.csv"))
    stage.begin.made[0].files_go_with_it = is_lost
    stage.begin.made[0].die()
    outcome = await stage.run("s", "", attached("file-1", "a.csv"))
    assert outcome.notes == (LOST if is_lost else KEPT,)
    assert stage.begin.made[1].puts == puts
    assert stage.begin.made[1].files == {"a.csv": "file-1"}


async def test_files_that_cannot_be_taken_over_are_lost(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    await stage.run("s", "die")
    stage.begin.equip = lambda kernel: setattr(kernel, "fails_to_inherit", True)
    assert (await stage.run("s")).notes == (LOST,)
    assert "no such directory" in caplog.text


async def test_what_was_lost_is_told_even_if_a_cancelled_cell_came_between(stage: Stage) -> None:
    await stage.run("s", "die")
    (running,) = await started(stage.run("s", "take 50"))
    await cancelled(running)
    assert (await stage.run("s")).notes == (KEPT,)


async def test_files_that_were_lost_before_a_cancelled_cell_stay_lost(stage: Stage) -> None:
    stage.begin.equip = lambda kernel: setattr(kernel, "files_go_with_it", kernel.number == 0)
    await stage.run("s", "die")
    (running,) = await started(stage.run("s", "take 50"))
    await cancelled(running)
    stage.begin.made[1].die()
    assert (await stage.run("s")).notes == (LOST,)


async def test_files_survive_a_restart_that_failed_or_was_cancelled(stage: Stage) -> None:
    await stage.run("s", "write a.txt; die")
    stage.begin.failures = 1
    with pytest.raises(ToolError, match="no bubblewrap"):
        await stage.run("s")
    stage.begin.equip = lambda kernel: setattr(kernel, "inherit_s", 5)
    (restarting,) = await started(stage.run("s"))
    await cancelled(restarting)
    await pass_s()
    assert stage.begin.made[1].gone
    assert (await stage.run("s")).notes == (KEPT,)
    assert stage.begin.made[2].files == {"a.txt": "written"}


# -- the ends of sessions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("idle_s", "has_ended"), [(IDLE_S - 1, False), (IDLE_S + 1, True)])
async def test_a_session_ends_after_being_idle_and_its_next_cell_is_told(
    stage: Stage, idle_s: float, has_ended: bool
) -> None:
    first = await stage.kernel("s", "write a.txt")
    await pass_s(idle_s)
    assert first.gone == has_ended
    outcome = await stage.run("s", "", attached("file-1", "a.csv"))
    assert outcome.notes == ((ANEW,) if has_ended else ())
    assert (await stage.run("s")).notes == ()
    assert stage.begin.made[-1].files == ({"a.csv": "file-1"} | ({} if has_ended else {"a.txt": "written"}))


async def test_a_session_ends_after_its_life_however_busy_it_is(stage: Stage) -> None:
    ends_s = now_s() + LIFE_S
    first = await stage.kernel("s")
    while now_s() < ends_s - 1000:
        await pass_s(1000)
        assert (await stage.run("s")).notes == ()
    await pass_s(ends_s - now_s() - 1)
    assert not first.gone
    await pass_s(2)
    assert first.gone
    assert (await stage.run("s")).notes == (ANEW,)


async def test_a_cell_that_runs_is_not_ended_with_the_life_of_its_session_and_the_next_starts_anew() -> None:
    stage = Stage(session_life_s=30, begin=Begin(close_s=2))
    running, queued = await started(stage.run("s", "take 50"), stage.run("s"))
    assert (await running).status == "ok"
    assert (await queued).notes == (ANEW,)
    assert [kernel.cells for kernel in stage.begin.made] == [["take 50"], [""]]
    # The old one had gone before.
    assert stage.begin.begun_s[1] - stage.begin.begun_s[0] >= 52
    await stage.sessions.aclose()


async def test_a_session_that_grew_old_while_its_cell_ran_is_swept_at_once_though_others_are_not_due() -> None:
    stage = Stage(session_life_s=100, session_idle_s=1000)
    (running,) = await started(stage.run("old", "take 90", time_s=1000))
    await pass_s(89)
    await stage.run("young")
    await running
    await pass_s(12)
    assert [kernel.gone for kernel in stage.begin.made] == [True, False]
    await stage.sessions.aclose()


async def test_a_session_whose_time_is_over_is_not_used_though_nobody_has_swept_yet() -> None:
    begin = Begin()
    passed_s = 0.0
    sessions = Sessions(
        Pool(begin, 0),
        sessions=16,
        sessions_per_caller=4,
        session_idle_s=IDLE_S,
        session_life_s=LIFE_S,
        wait_s=10,
        clock=lambda: passed_s,
    )
    for late_s, notes in ((0.0, ()), (IDLE_S, (ANEW,)), (2 * IDLE_S - 1, ())):
        passed_s = late_s
        assert (await sessions.run("", caller="me", session="s", time_s=60)).notes == notes
    passed_s += IDLE_S
    assert [kernel.closing for kernel in begin.made] == [True, False]
    sessions.sweep()
    await pass_s()
    assert [kernel.gone for kernel in begin.made] == [True, True]
    await sessions.aclose()


async def test_a_session_that_never_was_has_nothing_to_tell(stage: Stage) -> None:
    (waiting,) = await started(stage.run("s", "take 50"))
    await cancelled(waiting)
    assert (await stage.run("t")).notes == ()
    await stage.run("ended")
    await pass_s(IDLE_S + 1)
    assert (await stage.run("ended", caller="you")).notes == ()
    assert (await stage.run("ended")).notes == (ANEW,)


async def test_an_end_is_told_even_if_the_first_try_to_start_anew_fails(stage: Stage) -> None:
    await stage.run("s")
    await pass_s(IDLE_S + 1)
    stage.begin.failures = 1
    with pytest.raises(ToolError, match="no bubblewrap"):
        await stage.run("s")
    assert (await stage.run("s")).notes == (ANEW,)


async def test_ten_thousand_ended_sessions_are_remembered_and_the_oldest_is_forgotten() -> None:
    stage = Stage(sessions_per_caller=1)
    for number in range(10_000):
        await stage.run(str(number))
    for session, notes in (("0", (ANEW,)), ("new", ()), ("newer", ()), ("0", (ANEW,)), ("1", ())):
        assert (await stage.run(session)).notes == notes
    await stage.sessions.aclose()


async def test_sweeping_asks_for_the_time_no_more_often_than_something_is_due(stage: Stage) -> None:
    await asyncio.gather(*(stage.run(f"{number}", caller=f"{number}") for number in range(5)))
    asked = stage.asked
    await pass_s(IDLE_S - 10)
    assert stage.asked == asked
    await pass_s(10_000)
    assert all(kernel.gone for kernel in stage.begin.made)
    assert stage.asked < asked + 50


async def test_who_waited_in_vain_makes_nobody_look_for_places_any_more() -> None:
    stage = Stage(sessions=1)
    await stage.run("s", caller="you")
    with pytest.raises(RetryableToolError):
        await stage.run("s")
    await pass_s(100)
    await stage.run("s", caller="you")
    asked = stage.asked
    await pass_s(IDLE_S - 200)
    assert stage.asked == asked
    await stage.sessions.aclose()


# -- pausing -----------------------------------------------------------------------------------------------


async def test_a_kernel_is_paused_half_a_second_after_its_last_cell_and_runs_again_for_the_next(stage: Stage) -> None:
    kernel = await stage.kernel("s")
    await pass_s(0.4)
    await stage.run("s", "take 5")
    await pass_s(0.4)
    assert not kernel.is_paused
    await pass_s(0.2)
    assert kernel.is_paused
    assert await stage.kernel("s") is kernel
    assert not kernel.is_paused


async def test_one_that_died_is_not_paused_and_one_that_was_paused_is_ended(stage: Stage) -> None:
    dead, paused = await stage.kernel("s", "die"), await stage.kernel("t")
    await pass_s(1)
    assert (dead.is_paused, paused.is_paused) == (False, True)


# -- room --------------------------------------------------------------------------------------------------


async def test_at_the_callers_limit_its_least_recently_used_session_goes() -> None:
    stage = Stage(sessions_per_caller=2)
    for session in ("a", "b", "a", "c"):
        await stage.run(session)
    assert [kernel.gone or kernel.closing for kernel in stage.begin.made] == [False, True, False]
    assert (await stage.run("a")).notes == ()
    assert (await stage.run("b")).notes == (ANEW,)
    await stage.sessions.aclose()


async def test_sessions_of_others_stay_when_a_caller_is_at_its_limit() -> None:
    stage = Stage(sessions_per_caller=1)
    await stage.run("s", caller="you")
    await pass_s(100)
    await stage.run("a")
    await stage.run("b")
    assert (await stage.run("s", caller="you")).notes == ()
    await stage.sessions.aclose()


async def test_nobody_gets_more_than_its_own_places_however_idle_those_of_others_are() -> None:
    stage = Stage(sessions=2, sessions_per_caller=1, wait_s=0)
    await stage.run("s", caller="you")
    await pass_s(100)
    await started(stage.run("a", "take 50"))
    with pytest.raises(RetryableToolError):
        await stage.run("b")
    assert (await stage.run("s", caller="you")).notes == ()
    await stage.sessions.aclose()


async def test_cells_without_sessions_have_places_of_their_own_and_no_more_than_those() -> None:
    stage = Stage(sessions_per_caller=1, wait_s=0)
    await stage.run("s")
    await started(stage.run(None, "take 50"))
    with pytest.raises(RetryableToolError):
        await stage.run(None)
    assert (await stage.run("s")).notes == ()
    await stage.run(None, caller="you")
    await stage.sessions.aclose()


async def test_a_session_that_runs_a_cell_is_not_ended_for_another() -> None:
    stage = Stage(sessions_per_caller=2)
    running, _ = await started(stage.run("a", "take 50"), stage.run("b"))
    await stage.run("c")
    assert (await running).status == "ok"
    assert [kernel.closing for kernel in stage.begin.made] == [False, True, False]
    await stage.sessions.aclose()


async def test_when_all_places_are_taken_the_callers_own_session_goes_first() -> None:
    stage = Stage(sessions=2)
    await stage.run("s", caller="you")
    await pass_s(100)
    await stage.run("s")
    await stage.run("t")
    assert [kernel.closing for kernel in stage.begin.made] == [False, True, False]
    await stage.sessions.aclose()


@pytest.mark.parametrize("session", ["s", None])
async def test_then_the_least_recently_used_one_of_others_that_nobody_used_for_a_minute(session: str | None) -> None:
    stage = Stage(sessions=3)
    for caller in ("a", "b", "c"):
        await stage.run("s", caller=caller)
    await stage.run("s", caller="a")
    await pass_s(61)
    await stage.run("s", caller="c")
    await stage.run(session)
    assert [kernel.closing for kernel in stage.begin.made[:3]] == [False, True, False]
    await stage.sessions.aclose()


async def test_who_waits_gets_the_place_of_another_once_that_was_idle_for_a_minute() -> None:
    stage = Stage(sessions=1, wait_s=100)
    await stage.run("s", caller="you")
    used_s = now_s()
    await pass_s(20)
    assert (await stage.run("s")).status == "ok"
    assert round(now_s() - used_s) == 60
    (waiting,) = await started(stage.run("s", "take 50", caller="you"))
    await waiting
    (waiting,) = await started(stage.run("s"))
    used_s = now_s()
    await waiting
    assert round(now_s() - used_s) == 60
    await stage.sessions.aclose()


async def test_who_finds_no_place_waits_for_one_and_is_told_when_it_was_in_vain() -> None:
    stage = Stage(sessions=2, wait_s=10)
    running = await started(stage.run(None, "take 8"), stage.run("s", "take 50", caller="you"))
    assert (await stage.run("s")).status == "ok"
    assert running[0].done()
    stage = Stage(sessions=1, wait_s=10)
    await started(stage.run("s", "take 50", caller="you"))
    for session in ("s", None):
        began_s = now_s()
        with pytest.raises(RetryableToolError, match="All kernels are in use: there are 1, and 4 for one caller"):
            await stage.run(session)
        assert round(now_s() - began_s) == 10
    await stage.sessions.aclose()


async def test_a_turn_that_comes_with_the_end_of_the_wait_is_taken() -> None:
    stage = Stage(sessions=1, wait_s=40)
    await stage.run("s", caller="you")
    await pass_s(20)
    began_s = now_s()
    assert (await stage.run("s")).status == "ok"
    assert now_s() == began_s + 40
    await stage.sessions.aclose()


async def test_nobody_waits_who_is_not_to_wait() -> None:
    stage = Stage(sessions=1, wait_s=0)
    await stage.run("s")
    began_s = now_s()
    with pytest.raises(RetryableToolError, match="All kernels are in use"):
        await stage.run("s", caller="you")
    assert now_s() == began_s
    await stage.sessions.aclose()


async def test_all_cells_of_one_session_wait_no_longer_than_the_first() -> None:
    stage = Stage(sessions=1)
    await started(stage.run(None, "take 50"))
    began_s = now_s()
    waiting = await asyncio.gather(*(stage.run("s") for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in waiting] == [RetryableToolError] * 3
    assert round(now_s() - began_s) == 10
    await stage.sessions.aclose()


async def test_places_are_given_in_the_order_of_asking() -> None:
    stage = Stage(sessions=1, wait_s=100)
    order: list[str] = []

    async def run(caller: str) -> None:
        await stage.run(None, "take 1", caller=caller)
        order.append(caller)

    await asyncio.gather(*await started(*(run(caller) for caller in "abcde")))
    assert order == list("abcde")
    await stage.sessions.aclose()


async def test_who_waits_for_one_of_its_own_places_holds_up_nobody_else() -> None:
    stage = Stage(sessions=3, sessions_per_caller=1, wait_s=100)
    running, waiting = await started(stage.run("a", "take 50"), stage.run("b"))
    assert (await stage.run("s", caller="you")).status == "ok"
    assert (await stage.run(None)).status == "ok"
    assert not (running.done() or waiting.done())
    assert (await waiting).status == "ok"
    await stage.sessions.aclose()


async def test_a_place_is_used_again_only_after_its_kernel_has_gone() -> None:
    stage = Stage(sessions=2, sessions_per_caller=1, begin=Begin(close_s=5))
    began_s = now_s()
    await stage.run("a")
    await stage.run("b")
    assert round(now_s() - began_s) == 5
    await stage.run(None)
    await stage.run(None)
    assert round(now_s() - began_s) == 10
    await stage.sessions.aclose()


# -- who leaves --------------------------------------------------------------------------------------------


async def test_a_cancelled_cell_is_ended_and_its_session_goes_on(stage: Stage) -> None:
    running, queued, leaving = await started(stage.run("s", "take 50"), stage.run("s"), stage.run("s"))
    await cancelled(leaving)
    await cancelled(running)
    assert (await queued).status == "ok"
    assert (await stage.run("s")).notes == ()
    assert [(kernel.cancelled, len(kernel.cells)) for kernel in stage.begin.made] == [(1, 3)]


async def test_who_leaves_while_a_kernel_is_begun_or_a_place_awaited_leaves_nothing() -> None:
    stage = Stage(sessions=1, begin=Begin(takes_s=5, close_s=5), wait_s=100)
    for session in ("s", None):
        (beginning,) = await started(stage.run(session))
        (waiting,) = await started(stage.run(session, caller="you"))
        await cancelled(waiting)
        await cancelled(beginning)
        assert stage.begin.made == []
    assert (await stage.run(None)).notes == ()
    (late,) = await started(stage.run("s"))
    assert not stage.begin.made[0].gone
    await cancelled(late)
    assert (await stage.run("s", caller="you")).notes == ()
    await stage.sessions.aclose()


@pytest.mark.parametrize("session", ["s", None])
@pytest.mark.parametrize("is_before", [True, False])
async def test_who_leaves_in_the_moment_of_its_turn_leaves_the_place_to_the_next(
    session: str | None, is_before: bool
) -> None:
    stage = Stage(sessions=1, wait_s=100)
    running, first, second = await started(
        stage.run(None, "take 50"), stage.run(session, caller="a"), stage.run(session, caller="b")
    )
    running.cancel()
    if is_before:
        first.cancel()
    else:
        running.add_done_callback(lambda _: first.cancel())
    await asyncio.wait({first})
    assert first.cancelled()
    assert (await second).status == "ok"
    await stage.sessions.aclose()


# -- the end -----------------------------------------------------------------------------------------------


async def test_closed_sessions_have_ended_all_and_refuse_more() -> None:
    stage = Stage(sessions=4, size=2, begin=Begin(takes_s=1, close_s=2), wait_s=1000)
    stage.pool.start()
    await pass_s(10)
    await stage.run("idle")
    running, queued, alone = await started(stage.run("s", "take 50"), stage.run("s"), stage.run(None, "take 50"))
    await pass_s(1)
    (beginning,) = await started(stage.run("t"))
    (waiting,) = await started(stage.run("s", caller="you"))
    await stage.sessions.aclose()
    assert all(kernel.gone for kernel in stage.begin.made)
    assert stage.begin.at_once == 0
    assert [(await running).status, (await alone).status] == ["died", "died"]
    for refused in (queued, beginning, waiting, *await started(stage.run("idle"), stage.run(None))):
        with pytest.raises(ToolError, match="being stopped"):
            await refused
    await stage.sessions.aclose()
    begun = len(stage.begin.begun_s)
    await pass_s(2 * LIFE_S)
    assert len(stage.begin.begun_s) == begun


async def test_no_cell_begins_while_all_is_being_ended() -> None:
    stage = Stage(sessions=1, begin=Begin(close_s=20))
    running, queued = await started(stage.run("s", "take 5"), stage.run("s", "take 7"))
    (closing,) = await started(stage.sessions.aclose())
    began_s = now_s()
    with pytest.raises(ToolError, match="being stopped"):
        await stage.run(None)
    assert now_s() == began_s
    await closing
    assert (await running).status == "ok"
    with pytest.raises(ToolError, match="being stopped"):
        await queued
    assert stage.begin.made[0].cells == ["take 5"]


async def test_who_leaves_in_the_moment_of_the_end_does_not_disturb_it() -> None:
    stage = Stage(sessions=1)
    _, leaving, waiting = await started(stage.run("s", "take 50"), stage.run(None), stage.run(None))
    leaving.cancel()
    await stage.sessions.aclose()
    assert leaving.cancelled()
    with pytest.raises(ToolError, match="being stopped"):
        await waiting


async def test_a_restart_in_the_middle_of_the_end_leaves_nothing() -> None:
    stage = Stage()
    await stage.run("s", "die")
    stage.begin.equip = lambda kernel: setattr(kernel, "inherit_s", 5)
    (restarting,) = await started(stage.run("s"))
    await stage.sessions.aclose()
    assert restarting.done()
    assert all(kernel.gone for kernel in stage.begin.made)
    assert (await restarting).status == "died"


# -- any order of things -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """A cell that somebody runs, `after_s` the one before; and leaves `leaves_s` after, if it is not done by then."""

    caller: str
    session: str | None
    code: str
    after_s: float
    leaves_s: float | None
    files: tuple[AttachedFile, ...]


FILES = [attached("file-1", "a.csv"), attached("file-2", "b.csv"), attached("file-3", "a.csv")]
VISITS = st.builds(
    Visit,
    caller=st.sampled_from("ab"),
    session=st.sampled_from(["s", "t", "u", None]),
    code=st.sampled_from(["", "take 1", "take 5", "take 100", "die", "write x; take 2; die"]),
    after_s=st.sampled_from([0.0, 0.0, 0.3, 2.0, 59.0, 130.0]),
    leaves_s=st.sampled_from([None, None, None, 0.0, 0.5, 1.0, 4.0]),
    files=st.lists(st.sampled_from(FILES), unique=True, max_size=2).map(tuple),
)


class Watched(Pool):
    """A pool that knows which kernels are with sessions, and watches that there are never more than may be."""

    limit = 0
    limit_per_caller = 0

    def __init__(self, begin: Begin, size: int) -> None:
        super().__init__(begin, size)
        self.taken: list[Pretend] = []

    async def take(self) -> Kernel:
        self.check()
        kernel = await super().take()
        assert isinstance(kernel, Pretend)
        assert kernel not in self.taken
        self.taken.append(kernel)
        self.check()
        return kernel

    def check(self) -> None:
        """No kernel is shared, and there are no more than may be; one that died is no kernel any more."""
        here = [kernel for kernel in self.taken if kernel.alive]
        assert len(here) <= self.limit
        whose = [{cell.partition(";")[0] for cell in kernel.cells} for kernel in here]
        assert all(len(users) <= 1 for users in whose)
        callers = Counter(user.split()[1] for user in set().union(*whose) if user.split()[2] in "stu")
        assert all(count <= self.limit_per_caller for count in callers.values())


@dataclass
class Told:
    """What the model knows of a session: the kernel that ran its last cell, and whether it tried any cell before."""

    kernel: int | None = None
    tried: bool = False


@given(
    visits=st.lists(VISITS, max_size=14),
    sessions=st.integers(1, 4),
    per_caller=st.integers(1, 3),
    size=st.integers(0, 2),
    close_s=st.sampled_from([0.0, 0.7]),
    takes_s=st.sampled_from([0.0, 0.8]),
    closes_early=st.booleans(),
)
def test_whoever_comes_and_goes_the_laws_hold(
    visits: list[Visit],
    sessions: int,
    per_caller: int,
    size: int,
    close_s: float,
    takes_s: float,
    closes_early: bool,
) -> None:
    """Nothing is shared, nothing is too much, nothing is left, and nothing is lost without a word."""

    class Limited(Watched):
        limit = sessions
        limit_per_caller = per_caller

    async def play() -> None:
        stage = Stage(
            pool=Limited,
            size=size,
            begin=Begin(close_s=close_s, takes_s=takes_s),
            sessions=sessions,
            sessions_per_caller=per_caller,
            session_idle_s=100,
            session_life_s=200,
        )
        stage.pool.start()
        told: dict[tuple[str, str], Told] = defaultdict(Told)

        def check(visit: Visit, outcome: Outcome, is_first: bool) -> None:
            shown = outcome.pieces[0]
            assert isinstance(shown, Shown)
            kernel = stage.begin.made[int(shown.text.removeprefix("kernel "))]
            assert {file.name for file in visit.files} <= kernel.files.keys()
            lost = [note for note in outcome.notes if note in (KEPT, LOST, ANEW)]
            if visit.session is None or is_first:
                assert lost == []
            else:
                history = told[visit.caller, visit.session]
                assert history.kernel is None or bool(lost) == (kernel.number != history.kernel)
            if visit.session is not None:
                told[visit.caller, visit.session].kernel = kernel.number

        async def come(visit: Visit, number: int) -> None:
            is_first = False
            if visit.session is not None:
                history = told[visit.caller, visit.session]
                is_first, history.tried = not history.tried, True
            try:
                async with asyncio.timeout(visit.leaves_s):
                    whose = f"for {visit.caller} {visit.session or number}; "
                    outcome = await stage.run(visit.session, whose + visit.code, *visit.files, caller=visit.caller)
                check(visit, outcome, is_first)
            except (TimeoutError, ToolError):
                pass

        async with asyncio.TaskGroup() as group:
            for number, visit in enumerate(visits):
                await pass_s(visit.after_s)
                group.create_task(come(visit, number))
            if closes_early:
                await pass_s(1)
                await stage.sessions.aclose()
                assert all(kernel.gone for kernel in stage.begin.made)
        await pass_s(61)
        if not closes_early:
            # All have left, and nobody is thinking any more: there is room for anybody.
            assert (await stage.run("last", caller="c")).status == "ok"
        await stage.sessions.aclose()
        assert all(kernel.gone for kernel in stage.begin.made)

    with asyncio.Runner(loop_factory=PretendLoop) as runner:
        runner.run(play())


async def test_of_files_that_are_too_many_the_model_is_told(stage: Stage) -> None:
    outcome = await stage.run("s", "; ".join(f"write {name}" for name in "abcde"))
    assert [file.name for file in outcome.files] == ["a", "b", "c"]
    assert outcome.notes == ("2 more files are in the working directory, and are not kept: they are too many.",)


async def test_files_that_could_not_be_taken_over_are_named_and_attached_ones_are_not_put_again(stage: Stage) -> None:
    given = attached("file-1", "given.csv")
    await stage.run("s", "write a; write b; die", given)
    stage.begin.equip = lambda kernel: kernel.refuses.add("b")
    outcome = await stage.run("s", "", given)
    assert outcome.notes == (KEPT, "Of the files these are lost, too: 'b'.")
    assert stage.begin.made[-1].puts == []
    assert (await stage.run("s")).notes == ()


async def test_a_cell_that_waited_has_the_time_that_is_left(stage: Stage) -> None:
    first, second = await started(
        stage.run("s", "take 5"),
        stage.sessions.run("take 50", caller="me", session="s", time_s=60.0, within_s=16.0),
    )
    await first
    began = now_s()
    assert (await second).status == "timeout"
    # To be there in time, it is stopped four seconds before. It looks at the time once a second.
    assert 7.0 <= now_s() - began <= 8.5
