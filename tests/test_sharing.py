"""Workers that have sessions in common, with pretended kernels at a pretended gateway: who runs what, and who ends it.

Time is that of a loop which does not wait, so that an hour passes at once.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretend_kernels import (
    ANEW,
    DIED,
    IDLE_S,
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
from tools.kernels.kernel import Changes, Kernel
from tools.kernels.pool import Pool
from tools.kernels.register import Register
from tools.kernels.sessions import Sessions
from tools.kernels.sharing import Shared
from tools.outcomes import Outcome, Shown
from tools.sandbox.workdir import Changed
from tools.stores import StoreError, open_store


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """A loop whose time passes at once."""
    return "asyncio", {"loop_factory": PretendLoop}


class Handle:
    """A worker's way to a kernel at the gateway; what it does with one that it has closed is an error."""

    def __init__(self, kernel: Pretend, others: list["Handle"]) -> None:
        self.kernel = kernel
        self._others = others
        self._is_open = True
        self._is_at_rest = False
        self._use()

    def _use(self) -> None:
        # The others hear of it.
        for other in self._others:
            other._is_open &= not other._is_at_rest
        self._others.append(self)

    @property
    def id(self) -> str:
        return f"kernel-{self.kernel.number}"

    @property
    def executions(self) -> int:
        return 1

    @property
    def directory(self) -> str:
        return f"/mnt/{self.kernel.number}"

    @property
    def alive(self) -> bool:
        return self._is_open and self.kernel.alive

    async def execute(self, code: str, *, time_s: float) -> Outcome:
        assert self._is_open, "used behind its end"
        self._is_at_rest = False
        self._use()
        return await self.kernel.execute(code, time_s=time_s)

    async def settled(self) -> None:
        await self.kernel.settled()

    async def put(self, name: str, path: Path) -> None:
        await self.kernel.put(name, path)

    async def changes(self) -> Changes:
        return await self.kernel.changes()

    def read(self, file: Changed) -> AsyncGenerator[bytes, None]:
        return self.kernel.read(file)

    async def inherit(self, dead: Kernel) -> None:
        return

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def rest(self) -> None:
        self._is_at_rest = True

    async def let_go(self) -> None:
        self._is_open = False

    async def aclose(self) -> None:
        # One that was let go of is not its to end any more.
        if self._is_open:
            self._is_open = False
            await closed(self.kernel)


async def closed(kernel: Pretend) -> None:
    if not kernel.closing:
        await kernel.aclose()


class Gateway:
    """Begins kernels, and finds them; `is_down`: it cannot be reached."""

    def __init__(self) -> None:
        self.begun = Begin()
        self.attach_s = 0.001
        self.is_down = False
        self._handles: dict[int, list[Handle]] = defaultdict(list)

    @property
    def made(self) -> list[Pretend]:
        return self.begun.made

    async def begin(self) -> Handle:
        return self._handle(await self.begun())

    async def attach(self, kernel_id: str, directory: str, executions: int) -> Handle | None:
        await pass_s(self.attach_s)
        if self.is_down:
            raise RetryableToolError("The gateway cannot be reached.")
        kernel = self._kernel(kernel_id)
        assert directory == f"/mnt/{kernel.number}"
        return self._handle(kernel) if kernel.alive else None

    async def end(self, kernel_id: str) -> None:
        await closed(self._kernel(kernel_id))

    def _handle(self, kernel: Pretend) -> Handle:
        return Handle(kernel, self._handles[kernel.number])

    def _kernel(self, kernel_id: str) -> Pretend:
        return self.made[int(kernel_id.removeprefix("kernel-"))]


class Failing:
    """A store that can be made to fail."""

    def __init__(self) -> None:
        self.fails = False
        self._store = open_store("memory:", max_bytes=10**6, now=now_s)

    def __getattr__(self, name: str) -> Any:
        if self.fails:
            raise StoreError("Redis at somewhere:6379 cannot be used")
        return getattr(self._store, name)


class Worker:
    def __init__(self, name: str, store: Any, gateway: Gateway, **limits: Any) -> None:
        pool = Pool(gateway.begin, 0)
        register = Register(store, holder=name, ttl_s=LIFE_S)
        given = {"sessions": 16, "sessions_per_caller": 4, "session_idle_s": IDLE_S, "session_life_s": LIFE_S}
        self.sessions = Sessions(
            pool,
            **(given | {"wait_s": 10.0} | limits),
            sharing=Shared(register, gateway, pool, clock=now_s, now=lambda: now_s() + 10**9),
            clock=now_s,
        )

    async def run(self, code: str = "", *files: AttachedFile, session: str = "s", caller: str = "me") -> Outcome:
        return await self.sessions.run(code, caller=caller, session=session, files=files, time_s=60.0)

    async def kernel(self, code: str = "", session: str = "s") -> int:
        """The number of the kernel that the cell ran in; nothing out of the way is told."""
        outcome = await self.run(code, session=session)
        assert outcome.notes == ()
        return number_of(outcome)


def number_of(outcome: Outcome) -> int:
    shown = outcome.pieces[0]
    assert isinstance(shown, Shown)
    return int(shown.text.removeprefix("kernel "))


class Stage:
    """Two workers, the store that they share, and the gateway."""

    def __init__(self, **limits: Any) -> None:
        self.store = Failing()
        self.gateway = Gateway()
        self.one = Worker("one", self.store, self.gateway, **limits)
        self.other = Worker("other", self.store, self.gateway, **limits)

    @property
    def alive(self) -> list[int]:
        return [kernel.number for kernel in self.gateway.made if kernel.alive]

    async def run_unnoted(self) -> int:
        """The first worker runs a cell of which no note is taken; the number of its kernel."""
        running = asyncio.create_task(self.one.run("take 5"))
        await pass_s(1)
        self.store.fails = True
        number = number_of(await running)
        self.store.fails = False
        # What could not be given back is free when its time is over.
        await pass_s(31)
        return number

    async def aclose(self) -> None:
        await self.one.sessions.aclose()
        await self.other.sessions.aclose()


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    """One with the usual limits; nothing of it is left."""
    made = Stage()
    yield made
    await made.aclose()
    assert made.alive == []


# -- whose turn --------------------------------------------------------------------------------------------


async def test_a_session_goes_on_whichever_worker_runs_its_cell(stage: Stage) -> None:
    assert [await worker.kernel() for worker in (stage.one, stage.other, stage.other, stage.one)] == [0] * 4
    assert await stage.other.kernel(session="t") == await stage.one.kernel(session="t") == 1


async def test_cells_of_one_session_run_one_at_a_time_over_all_workers(stage: Stage) -> None:
    began_s = now_s()
    outcomes = await asyncio.gather(stage.one.run("take 5"), stage.other.run("take 3"), stage.one.run("take 1"))
    assert {number_of(outcome) for outcome in outcomes} == {0}
    assert 9 <= now_s() - began_s < 11


async def test_who_waits_too_long_is_told_that_the_session_is_in_use(stage: Stage) -> None:
    running = asyncio.create_task(stage.one.run("take 30"))
    await pass_s()
    with pytest.raises(RetryableToolError, match=r"^The session is in use: another cell of it is still running\.$"):
        await stage.other.run()
    assert (await running).status == "ok"


async def test_who_comes_next_waits_until_a_cell_that_was_cancelled_has_ended(stage: Stage) -> None:
    stage.gateway.begun.equip = lambda kernel: setattr(kernel, "settles_s", 3.0)
    running = asyncio.create_task(stage.one.run("take 30"))
    await pass_s(1)
    running.cancel()
    cancelled_s = now_s()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert now_s() - cancelled_s < 0.1, "who leaves waits for nothing"
    assert number_of(await stage.other.run()) == 0
    assert now_s() - cancelled_s >= 3.0


async def test_attached_files_are_put_once_whichever_worker_runs_the_cell(stage: Stage) -> None:
    a, b = attached("file-1", "a.csv"), attached("file-2", "b.csv")
    for worker, files in ((stage.one, [a]), (stage.other, [a, b]), (stage.one, [a, b])):
        assert (await worker.run("", *files)).notes == ()
    assert stage.gateway.made[0].puts == ["file-1", "file-2"]


# -- its end -----------------------------------------------------------------------------------------------


async def test_who_used_a_session_last_ends_it_when_it_is_idle_and_nobody_else_does(stage: Stage) -> None:
    await stage.one.kernel()
    await pass_s(600)
    await stage.other.kernel()
    await pass_s(IDLE_S - 300)
    assert await stage.other.kernel() == 0, "it is over for the first only"
    await pass_s(IDLE_S + 1)
    assert stage.alive == []
    for worker in (stage.one, stage.other):
        assert (await worker.run()).notes == ((ANEW,) if worker is stage.one else ())
    assert stage.alive == [1]


async def test_its_life_is_counted_from_its_beginning_whichever_worker_that_was(stage: Stage) -> None:
    limit_s = now_s() + LIFE_S
    turns = [stage.one, stage.other]
    while now_s() < limit_s - 1000:
        assert await turns[0].kernel() == 0
        turns.reverse()
        await pass_s(1000)
    await pass_s(limit_s - now_s())
    outcome = await turns[0].run()
    assert (number_of(outcome), outcome.notes) == (1, (ANEW,))
    assert not stage.gateway.made[0].alive


async def test_a_worker_that_ends_takes_its_own_sessions_with_it_and_leaves_the_others(stage: Stage) -> None:
    await stage.one.kernel(session="s")
    await stage.one.kernel(session="t")
    await stage.other.kernel(session="t")
    await stage.one.sessions.aclose()
    assert stage.alive == [1]
    assert await stage.other.kernel(session="t") == 1
    assert (await stage.other.run(session="s")).notes == (ANEW,)


async def test_a_worker_that_ends_in_the_midst_of_a_cell_ends_its_kernel(stage: Stage) -> None:
    await stage.other.kernel()
    running = asyncio.create_task(stage.one.run("take 30"))
    await pass_s(1)
    await stage.one.sessions.aclose()
    assert (await running).status == "died"
    assert stage.alive == []
    assert (await stage.other.run()).notes == (ANEW,)


async def test_a_worker_that_ends_before_it_has_found_the_kernel_runs_nothing_in_it(stage: Stage) -> None:
    await stage.other.kernel()
    stage.gateway.attach_s = 5.0
    running = asyncio.create_task(stage.one.run("take 30"))
    await pass_s(1)
    began_s = now_s()
    await stage.one.sessions.aclose()
    with pytest.raises(ToolError, match="the server is being stopped"):
        await running
    assert now_s() - began_s < 10
    assert stage.alive == []


async def test_a_worker_that_ends_while_a_cancelled_cell_is_stopped_waits_for_that(stage: Stage) -> None:
    stage.gateway.begun.equip = lambda kernel: setattr(kernel, "settles_s", 3.0)
    running = asyncio.create_task(stage.one.run("take 30"))
    await pass_s(1)
    running.cancel()
    await asyncio.wait({running})
    await stage.one.sessions.aclose()
    assert stage.alive == []


async def test_the_kernel_of_a_worker_that_was_killed_is_gone_on_with(stage: Stage) -> None:
    killed = Worker("killed", stage.store, stage.gateway)
    await killed.run("write a.txt")
    assert await stage.other.kernel() == 0


async def test_a_session_that_needs_room_ends_no_kernel_that_another_worker_has_now() -> None:
    stage = Stage(sessions_per_caller=1)
    await stage.one.kernel(session="s")
    await stage.other.kernel(session="s")
    await stage.one.kernel(session="t")
    await pass_s()
    assert await stage.other.kernel(session="s") == 0
    await stage.aclose()
    assert stage.alive == []


# -- what goes wrong ---------------------------------------------------------------------------------------


async def test_a_death_is_told_by_who_ran_the_cell_and_its_loss_by_who_runs_the_next(stage: Stage) -> None:
    assert (await stage.one.run("die")).notes == (DIED,)
    assert (await stage.other.run()).notes == (ANEW,)
    assert (await stage.other.run("die")).notes == (DIED,)
    assert (await stage.other.run()).notes == (LOST,)
    assert await stage.one.kernel() == 2


async def test_a_death_between_two_cells_is_told_with_the_second(stage: Stage) -> None:
    await stage.one.kernel()
    stage.gateway.made[0].die()
    assert (await stage.other.run()).notes == (ANEW,)
    assert (await stage.one.run()).notes == ()


async def test_a_gateway_that_cannot_be_reached_costs_the_cell_only(stage: Stage) -> None:
    await stage.one.kernel()
    stage.gateway.is_down = True
    with pytest.raises(RetryableToolError, match="The gateway cannot be reached"):
        await stage.other.run()
    stage.gateway.is_down = False
    assert await stage.other.kernel() == 0


async def test_without_the_store_no_session_is_taken_for_a_new_one(stage: Stage) -> None:
    await stage.one.kernel()
    stage.store.fails = True
    for worker in (stage.one, stage.other):
        with pytest.raises(RetryableToolError, match="cannot be looked up at the moment"):
            await worker.run()
    stage.store.fails = False
    assert await stage.other.kernel() == 0


@pytest.mark.parametrize("is_known", [True, False])
async def test_what_cannot_be_noted_stays_where_it_is(stage: Stage, is_known: bool) -> None:
    if is_known:
        await stage.one.kernel()
    assert await stage.run_unnoted() == 0
    assert await stage.one.kernel() == 0
    assert await stage.other.kernel() == 0


async def test_where_others_have_begun_anew_meanwhile_theirs_is_gone_on_with(stage: Stage) -> None:
    await stage.run_unnoted()
    assert await stage.other.kernel() == 1
    assert await stage.one.kernel() == 1
    await pass_s()
    assert stage.alive == [1]


@pytest.mark.parametrize("ends", ["idle", "closed"])
async def test_what_could_not_be_noted_is_left_to_others_who_went_on_with_it(stage: Stage, ends: str) -> None:
    await stage.one.kernel()
    await stage.run_unnoted()
    assert await stage.other.kernel() == 0
    if ends == "closed":
        await stage.one.sessions.aclose()
    else:
        await pass_s(IDLE_S - 500)
        assert await stage.other.kernel() == 0
        await pass_s(600)
    assert await stage.other.kernel() == 0


async def test_a_session_that_is_taken_up_again_while_its_end_waits_goes_on(stage: Stage) -> None:
    await stage.one.kernel()
    await pass_s(IDLE_S - 0.3)
    assert number_of(await stage.other.run("take 0.6")) == 0
    assert await stage.one.kernel() == 0
    await pass_s(3)
    assert await stage.other.kernel() == 0


async def test_who_waits_for_a_place_keeps_nobody_from_ending_the_session() -> None:
    stage = Stage(sessions=1)
    await stage.one.kernel(session="s")
    await pass_s(IDLE_S - 5)
    running = asyncio.create_task(stage.other.run("take 30", session="t"))
    await pass_s(1)
    with pytest.raises(RetryableToolError, match="All kernels are in use"):
        await stage.other.run(session="s")
    await running
    assert stage.alive == [1]
    await stage.aclose()


async def test_who_had_a_session_last_goes_on_with_it_though_the_store_has_forgotten_it(stage: Stage) -> None:
    await stage.one.kernel()
    for key in await stage.store.scan("kernel-session/"):
        await stage.store.delete(key)
    assert await stage.one.kernel() == 0
    assert await stage.other.kernel() == 0


# -- whatever they do --------------------------------------------------------------------------------------

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("run"),
            st.integers(0, 1),
            st.sampled_from("st"),
            st.sampled_from(["", "take 2", "take 20", "die", "take 3; die"]),
        ),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("pass"), st.sampled_from([0.001, 1.0, 15.0, 700.0, IDLE_S + 1])),
        st.tuples(st.just("lose"), st.integers(0, 3)),
    ),
    max_size=25,
)


@settings(max_examples=150)
@given(steps)
def test_no_session_forks_or_forgets_in_silence_and_nothing_is_left(plan: list[tuple[Any, ...]]) -> None:
    async def play() -> None:
        stage = Stage()
        running: list[asyncio.Task[None]] = []
        last: dict[str, int] = {}

        async def run(worker: Worker, session: str, code: str) -> None:
            try:
                outcome = await worker.run(code, session=session)
            except RetryableToolError:
                return
            number = number_of(outcome)
            is_told = bool({ANEW, LOST} & set(outcome.notes))
            # One that was cancelled has run, perhaps, and been told of what was lost; and nobody has heard it.
            assert number == last.get(session, number) or is_told or session in unheard, (session, last, outcome)
            last[session] = number
            unheard.discard(session)

        unheard: set[str] = set()
        for verb, *how in plan:
            if verb == "run":
                number, session, code = how
                task = asyncio.create_task(run((stage.one, stage.other)[number], session, code), name=session)
                running.append(task)
                await pass_s()
            elif verb == "leave" and running:
                task = running.pop(how[0] % len(running))
                if not task.done():
                    unheard.add(task.get_name())
                    task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.result()
            elif verb == "pass":
                await pass_s(how[0])
            elif verb == "lose" and stage.gateway.made:
                stage.gateway.made[how[0] % len(stage.gateway.made)].die()
        await asyncio.gather(*running)
        await stage.aclose()
        assert stage.alive == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=PretendLoop) as runner:
        runner.run(play())
