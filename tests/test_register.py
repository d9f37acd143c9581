"""The register of sessions: what one worker notes the others know, and one at a time has its turn.

Time is that of a loop which does not wait, so that an hour passes at once. For the threads of SQLite it would not wait
either: there the loop is the usual one.
"""

import asyncio
import dataclasses
import itertools
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clock import Clock
from pretend_kernels import PretendLoop, now_s, pass_s
from serving import PATIENCE_S
from tools.errors import RetryableToolError
from tools.kernels.register import Entry, Register
from tools.stores import Store, StoreError, open_store

T = TypeVar("T")

#: Longer than a test takes.
TTL_S = 10_000.0

ENTRY = Entry("kernel-1", "/mnt/data", "one", 1000.0, 2000.5, ("file-1", "file-2"), 3)

#: With halves of surrogate pairs, too.
any_text = st.text(st.characters(exclude_categories=()), max_size=8)
times = st.floats(allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """A loop whose time passes at once."""
    return "asyncio", {"loop_factory": PretendLoop}


class Link:
    """A worker's way to the store: how long an answer takes, what is not asked for, and which answers are lost."""

    def __init__(self, store: Store) -> None:
        self.takes_s = 0.0
        self.is_down = False
        #: Done, and then told to have failed.
        self.loses: set[str] = set()
        self._store = store

    async def _ask(self, method: str, ask: Callable[[], Awaitable[T]]) -> T:
        # Who is cancelled on the way there has asked for nothing; on the way back it is done.
        await asyncio.sleep(self.takes_s / 2)
        if self.is_down:
            raise StoreError("Redis at somewhere:6379 cannot be used")
        said = await ask()
        await asyncio.sleep(self.takes_s / 2)
        if method in self.loses:
            raise StoreError("Redis at somewhere:6379 cannot be used")
        return said

    async def get(self, key: str) -> bytes | None:
        return await self._ask("get", lambda: self._store.get(key))

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        await self._ask("put", lambda: self._store.put(key, value, ttl_s=ttl_s))

    async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
        return await self._ask("add", lambda: self._store.add(key, value, ttl_s=ttl_s))

    async def replace(self, key: str, old: bytes, value: bytes, *, ttl_s: float | None = None) -> bool:
        return await self._ask("replace", lambda: self._store.replace(key, old, value, ttl_s=ttl_s))

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        return await self._ask("delete", lambda: self._store.delete(key, only=only))

    async def scan(self, prefix: str, *, after: str = "", limit: int = 100) -> list[str]:
        return await self._ask("scan", lambda: self._store.scan(prefix, after=after, limit=limit))

    async def aclose(self) -> None:
        await self._store.aclose()


class Workers:
    """Several workers with one store."""

    def __init__(self, count: int = 2) -> None:
        self.store = open_store("memory:", max_bytes=10**6, now=now_s)
        self.links = [Link(self.store) for _ in range(count)]
        self.registers = [
            Register(link, holder=f"worker {number}", ttl_s=TTL_S) for number, link in enumerate(self.links)
        ]

    async def hold(self, worker: int, takes_s: float, *, within_s: float = TTL_S, session: str = "s") -> float:
        """Has a turn that takes so long; when it came."""
        async with self.registers[worker].turn("me", session, now_s() + within_s):
            came_s = now_s()
            await asyncio.sleep(takes_s)
        return came_s

    async def is_free(self) -> bool:
        """Nobody has a turn, and no task is left that could give one back."""
        others = [task for task in asyncio.all_tasks() - {asyncio.current_task()} if "TestRunner" not in repr(task)]
        return not others and await self.store.scan("kernel-turn/") == []


@pytest.fixture
def workers() -> Workers:
    return Workers()


async def begun(*work: Coroutine[Any, Any, T]) -> list[asyncio.Task[T]]:
    """Tasks that have done what they can for now, one after the other."""
    tasks = []
    for one in work:
        tasks.append(asyncio.create_task(one))
        await pass_s()
    return tasks


async def noted(register: Register, caller: str = "me", session: str = "s") -> Entry | None:
    """What the worker knows of a session that is free."""
    async with register.turn(caller, session, now_s()) as turn:
        return turn.entry


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- turns -------------------------------------------------------------------------------------------------


async def test_who_comes_second_has_the_turn_soon_after_the_first(workers: Workers) -> None:
    first, second = await begun(workers.hold(0, 5), workers.hold(1, 0))
    assert await first + 5 <= await second <= await first + 5.25
    assert await workers.is_free()


async def test_sessions_have_their_turns_beside_each_other(workers: Workers) -> None:
    at_s = now_s()
    turns = await asyncio.gather(*(workers.hold(0, 5, session=session) for session in "abc"))
    assert turns == [at_s] * 3


async def test_who_waits_in_vain_is_told_at_its_time_and_takes_nothing_from_the_holder(workers: Workers) -> None:
    (first,) = await begun(workers.hold(0, 50))
    at_s = now_s()
    with pytest.raises(RetryableToolError, match=r"^The session is in use: another cell of it is still running\.$"):
        await workers.hold(1, 0, within_s=10)
    assert now_s() == pytest.approx(at_s + 10)
    with pytest.raises(RetryableToolError):
        await workers.hold(1, 0, within_s=0)
    await first
    assert await workers.is_free()


async def test_who_will_not_wait_has_a_turn_that_is_free(workers: Workers) -> None:
    workers.links[0].takes_s = 0.5
    assert await workers.hold(0, 0, within_s=0)


async def test_a_turn_may_take_as_long_as_it_likes(workers: Workers) -> None:
    first, second = await begun(workers.hold(0, 500), workers.hold(1, 0))
    assert await second >= await first + 500


async def test_a_body_that_raises_gives_the_turn_back(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        async with workers.registers[0].turn("me", "s", now_s()):
            raise ZeroDivisionError
    assert await workers.is_free()


#: When a worker comes, how long its turn takes, how long it waits for it, and when it is cancelled.
visits = st.tuples(
    st.integers(0, 2), st.sampled_from([0, 1, 3, 40]), st.sampled_from([0, 2, 60]), st.sampled_from([0.0, 1.15, 3, 99])
)


@given(visits=st.lists(visits, max_size=6), takes_s=st.lists(st.sampled_from([0, 0.1, 0.7]), min_size=3, max_size=3))
@example(visits=[(0, 3, 60, 99)] * 3, takes_s=[0.1] * 3)
def test_one_has_its_turn_at_a_time_whoever_is_cancelled_and_nothing_noted_is_lost(
    visits: list[tuple[int, float, float, float]], takes_s: list[float]
) -> None:
    async def play() -> None:
        workers = Workers(3)
        inside = noted = 0
        for link, each_s in zip(workers.links, takes_s, strict=True):
            link.takes_s = each_s

        async def visit(number: int, comes_s: float, holds_s: float, waits_s: float) -> None:
            nonlocal inside, noted
            await asyncio.sleep(comes_s)
            register = workers.registers[number % 3]
            async with register.turn("me", "s", now_s() + waits_s) as turn:
                inside += 1
                assert inside == 1
                try:
                    assert turn.entry is None if not noted else turn.entry and turn.entry.used_at == noted
                    await asyncio.sleep(holds_s)
                    noting = asyncio.create_task(turn.note(dataclasses.replace(ENTRY, used_at=float(noted + 1))))
                    noted += 1
                    try:
                        await asyncio.shield(noting)
                    except asyncio.CancelledError:
                        await noting
                        raise
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(visit(number, *each[:3])) for number, each in enumerate(visits)]
        for task, (*_, leaves_s) in zip(tasks, visits, strict=True):
            asyncio.get_running_loop().call_later(leaves_s, task.cancel)
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            assert ended is None or isinstance(ended, RetryableToolError | asyncio.CancelledError)
        assert await workers.is_free()

    with asyncio.Runner(loop_factory=PretendLoop) as runner:
        runner.run(play())


# -- who leaves, or dies -----------------------------------------------------------------------------------


async def test_who_is_cancelled_in_its_turn_gives_it_back_at_once(workers: Workers) -> None:
    first, second = await begun(workers.hold(0, 500), workers.hold(1, 0))
    at_s = now_s()
    await cancelled(first)
    assert await second <= at_s + 0.25


async def test_who_is_cancelled_while_it_waits_leaves_the_turn_to_its_holder(workers: Workers) -> None:
    first, second = await begun(workers.hold(0, 50), workers.hold(1, 0))
    await cancelled(second)
    with pytest.raises(RetryableToolError):
        await workers.hold(1, 0, within_s=40)
    await first


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_whenever_and_however_often_one_is_cancelled_the_turn_is_free_afterwards(times: int) -> None:
    for tenths in range(60):
        workers = Workers()
        # To come, to look, and to give back: each is a way there and a way back.
        workers.links[0].takes_s = 1.0
        (task,) = await begun(workers.hold(0, 1))
        await pass_s(tenths / 10)
        for _ in range(times):
            task.cancel()
            await pass_s(0.2)
        await asyncio.wait({task})
        assert await workers.is_free()


async def test_who_is_cancelled_while_it_gives_the_turn_back_is_cancelled_when_it_has(workers: Workers) -> None:
    (task,) = await begun(workers.hold(0, 1))
    workers.links[0].takes_s = 2.0
    await pass_s(2)
    at_s = now_s()
    await cancelled(task)
    assert at_s + 0.5 < now_s() < at_s + 1.5
    assert await workers.is_free()


async def test_the_turn_of_one_that_has_died_ends_by_itself(workers: Workers) -> None:
    (first,) = await begun(workers.hold(0, 500))
    await pass_s(25)
    # From where the others are, it has.
    workers.links[0].is_down = True
    died_s = now_s()
    assert died_s + 10 < await workers.hold(1, 0) <= died_s + 30.25
    await cancelled(first)


# -- a store that fails ------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", ["all", "add", "get"])
async def test_a_session_that_cannot_be_looked_up_is_not_used_and_its_turn_not_kept(
    workers: Workers, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    workers.links[0].is_down = lost == "all"
    workers.links[0].loses = {lost}
    with pytest.raises(RetryableToolError, match=r"^The session cannot be looked up at the moment\.$"):
        await workers.hold(0, 0)
    assert [record.message for record in caplog.records] == [
        "a kernel session is not looked up: Redis at somewhere:6379 cannot be used"
    ]
    assert await workers.is_free()


async def test_who_was_told_no_and_has_the_turn_all_the_same_uses_it(workers: Workers) -> None:
    """As when Redis was asked once more, since its first answer was lost."""

    class Twice(Link):
        async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
            await super().add(key, value, ttl_s=ttl_s)
            return await super().add(key, value, ttl_s=ttl_s)

    register, at_s = Register(Twice(workers.store), holder="twice", ttl_s=TTL_S), now_s()
    async with register.turn("me", "s", at_s + 60):
        assert now_s() == at_s
    assert await workers.is_free()


async def test_a_store_that_fails_within_a_turn_ends_it_not(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    async with workers.registers[0].turn("me", "s", now_s()) as turn:
        workers.links[0].is_down = True
        assert not await turn.note(ENTRY)
        await pass_s(25)
    said = ": Redis at somewhere:6379 cannot be used"
    assert [record.message for record in caplog.records] == [
        f"a kernel session is not noted, and other workers may begin another{said}",
        f"the turn at a kernel session is not renewed, and may be lost{said}",
        f"the turn at a kernel session is given back in 30 s only{said}",
    ]
    await pass_s(30)
    assert await workers.is_free()


async def test_one_renewal_may_fail(workers: Workers, caplog: pytest.LogCaptureFixture) -> None:
    first, second = await begun(workers.hold(0, 100), workers.hold(1, 0))
    await pass_s(5)
    workers.links[0].is_down = True
    await pass_s(10)
    workers.links[0].is_down = False
    assert await second >= await first + 100
    assert len(caplog.records) == 1


async def test_a_turn_that_was_lost_goes_on_and_takes_nothing_from_the_next(
    workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = await begun(workers.hold(0, 60), workers.hold(1, 60))
    workers.links[0].is_down = True
    await pass_s(35)
    workers.links[0].is_down = False
    assert await first + 29 < await second < await first + 31
    assert caplog.messages == [
        "the turn at a kernel session is not renewed, and may be lost: Redis at somewhere:6379 cannot be used",
        "the turn at a kernel session is lost: another worker has taken it meanwhile",
    ]
    await second
    assert await workers.is_free()


async def test_who_has_lost_its_turn_leaves_the_next_one_its_own(workers: Workers) -> None:
    first, second = await begun(workers.hold(0, 40), workers.hold(1, 100))
    workers.links[0].is_down = True
    await pass_s(38)
    workers.links[0].is_down = False
    await first
    with pytest.raises(RetryableToolError):
        await workers.hold(0, 0, within_s=30)
    await second
    assert await workers.is_free()


async def test_a_turn_that_the_store_has_forgotten_is_had_again(workers: Workers) -> None:
    (first,) = await begun(workers.hold(0, 100))
    (key,) = await workers.store.scan("kernel-turn/")
    await workers.store.delete(key)
    await pass_s(11)
    with pytest.raises(RetryableToolError):
        await workers.hold(1, 0, within_s=60)
    await first
    assert await workers.is_free()


# -- what is noted -----------------------------------------------------------------------------------------

entries = st.builds(
    Entry, any_text, any_text, any_text, times, times, st.lists(any_text, max_size=3).map(tuple), st.integers(0, 2**50)
)


@given(entry=entries, caller=any_text, session=any_text)
@example(entry=dataclasses.replace(ENTRY, put=("\ud83d",)), caller="\ude00", session="")
def test_what_one_worker_notes_all_know(entry: Entry, caller: str, session: str) -> None:
    async def play() -> None:
        one, other = Workers().registers
        async with one.turn(caller, session, now_s()) as turn:
            assert turn.entry is None
            await turn.note(entry)
        assert await noted(other, caller, session) == await noted(one, caller, session) == entry

    with asyncio.Runner(loop_factory=PretendLoop) as runner:
        runner.run(play())


async def test_no_two_sessions_are_the_same_however_they_are_named(workers: Workers) -> None:
    parts = ["", "a", "/", "a/", '"', '", "', "\\", "\\ud83d", "\ud83d", "?", "\U0001f600", "\ud83d\ude00"]
    register, _ = workers.registers
    names = list(itertools.product(parts, parts))
    for number, (caller, session) in enumerate(names):
        async with register.turn(caller, session, now_s()) as turn:
            assert turn.entry is None
            await turn.note(dataclasses.replace(ENTRY, kernel_id=str(number)))
    for number, (caller, session) in enumerate(names):
        found = await noted(register, caller, session)
        assert found and found.kernel_id == str(number)


async def test_a_session_is_forgotten_when_it_was_not_noted_for_its_time(workers: Workers) -> None:
    one, other = workers.registers
    for _ in range(2):
        async with one.turn("me", "s", now_s()) as turn:
            await turn.note(ENTRY)
        await pass_s(TTL_S - 1)
        assert await noted(other) == ENTRY
    await pass_s(1)
    assert await noted(other) is None


async def found(kept: bytes) -> Entry | None:
    """What is read where this is kept."""
    workers = Workers()
    async with workers.registers[0].turn("me", "s", now_s()) as turn:
        await turn.note(ENTRY)
    (key,) = await workers.store.scan("kernel-session/")
    await workers.store.put(key, kept)
    return await noted(workers.registers[1])


AS_IT_IS: dict[str, Any] = {**dataclasses.asdict(ENTRY), "born_at": 1000}


async def test_what_a_later_version_adds_is_not_in_the_way() -> None:
    assert await found(json.dumps({**AS_IT_IS, "more": 1}).encode()) == ENTRY


@pytest.mark.parametrize(
    "kept",
    [
        *(b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000, b"{}"),
        *(
            json.dumps({**AS_IT_IS, name: wrong}).encode()
            for name, wrong in (
                *(
                    ("kernel_id", 1),
                    ("directory", None),
                    ("holder", None),
                    ("put", "file-1"),
                    ("put", [1]),
                    ("put", {}),
                ),
                *(("born_at", "1"), ("born_at", True), ("used_at", float("nan")), ("used_at", float("inf"))),
                *(("used_at", 10**400), ("born_at", None)),
            )
        ),
        *(
            json.dumps({key: value for key, value in AS_IT_IS.items() if key != missing}).encode()
            for missing in AS_IT_IS
        ),
    ],
)
async def test_what_is_damaged_is_none(kept: bytes) -> None:
    assert await found(kept) is None


# -- SQLite ------------------------------------------------------------------------------------------------


def test_workers_with_one_file_have_their_turns_one_at_a_time(tmp_path: Path) -> None:
    async def play() -> None:
        stores = [open_store(f"sqlite:///{tmp_path}/store.db", max_bytes=10**6) for _ in range(2)]
        registers = [Register(store, holder=f"worker {number}", ttl_s=60) for number, store in enumerate(stores)]
        inside = 0

        async def visit(register: Register) -> None:
            nonlocal inside
            async with register.turn("me", "s", now_s() + PATIENCE_S) as turn:
                inside += 1
                assert inside == 1
                used_at = turn.entry.used_at if turn.entry else 0.0
                await turn.note(dataclasses.replace(ENTRY, holder=register.holder, used_at=used_at + 1))
                assert inside == 1
                inside -= 1

        await asyncio.gather(*map(visit, registers * 5))
        entry = await noted(registers[0])
        assert entry and entry.used_at == 10
        assert await stores[0].scan("kernel-turn/") == []
        for store in stores:
            await store.aclose()

    asyncio.run(play())


def test_a_turn_in_a_file_outlives_its_worker_for_its_time_only(tmp_path: Path) -> None:
    clock = Clock()

    def opened() -> Store:
        return open_store(f"sqlite:///{tmp_path}/store.db", max_bytes=10**6, now=lambda: clock() / 1e9)

    async def die() -> None:
        link = Link(opened())
        async with Register(link, holder="dead", ttl_s=60).turn("me", "s", now_s()):
            # As a process that is killed, it gives nothing back.
            link.is_down = True
        await link.aclose()

    async def play() -> None:
        await die()
        store = opened()
        register = Register(store, holder="alive", ttl_s=60)
        clock.pass_s(29)
        with pytest.raises(RetryableToolError):
            async with register.turn("me", "s", now_s()):
                pass
        clock.pass_s(1)
        async with register.turn("me", "s", now_s()):
            pass
        await store.aclose()

    asyncio.run(play())
