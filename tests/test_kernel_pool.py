"""A pool of pretended kernels: ready before they are needed, given once, and none is left behind."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretend_kernels import Begin, Pretend, PretendLoop, now_s, pass_s
from tools.errors import ToolError
from tools.kernels.kernel import Kernel
from tools.kernels.pool import Pool


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """A loop whose time passes at once."""
    return "asyncio", {"loop_factory": PretendLoop}


@asynccontextmanager
async def filled(begin: Begin, size: int) -> AsyncIterator[Pool]:
    """A pool that had time to be filled; nothing of it is left."""
    pool = Pool(begin, size)
    pool.start()
    await pass_s(size * begin.takes_s + 1)
    yield pool
    await pool.aclose()
    assert all(kernel.gone for kernel in begin.made)


# -- taking ------------------------------------------------------------------------------------------------


async def test_kernels_wait_paused_and_run_when_they_are_taken() -> None:
    begin = Begin(takes_s=5)
    async with filled(begin, 2) as pool:
        assert [kernel.is_paused for kernel in begin.made] == [True, True]
        before_s = now_s()
        kernel = await pool.take()
        assert now_s() == before_s
        assert (kernel, begin.made[0].is_paused) == (begin.made[0], False)


async def test_to_start_does_not_wait_for_kernels() -> None:
    begin = Begin(takes_s=5)
    pool = Pool(begin, 1)
    before_s = now_s()
    pool.start()
    assert (now_s(), begin.made) == (before_s, [])
    await pool.aclose()


@pytest.mark.parametrize("size", [0, 2])
async def test_one_that_was_not_started_begins_what_is_taken_and_nothing_else(size: int) -> None:
    begin = Begin()
    pool = Pool(begin, size)
    assert await pool.take() is begin.made[0]
    assert not begin.made[0].is_paused
    await pass_s(100)
    assert len(begin.made) == 1
    await pool.aclose()


async def test_what_was_taken_is_replaced_one_at_a_time() -> None:
    begin = Begin(takes_s=1)
    async with filled(begin, 3) as pool:
        for _ in range(3):
            await pool.take()
        began_s = now_s()
        await pass_s(10)
        assert [round(at_s - began_s) for at_s in begin.begun_s[3:]] == [0, 1, 2]


async def test_the_first_who_finds_none_gets_the_one_that_is_being_begun_and_the_next_a_new_one() -> None:
    begin = Begin(takes_s=4)
    pool = Pool(begin, 1)
    pool.start()
    await pass_s(3)
    began_s = now_s()

    async def waited_s() -> int:
        await pool.take()
        return round(now_s() - began_s)

    assert list(await asyncio.gather(waited_s(), waited_s())) == [1, 4]
    assert len(set(begin.made)) == 2
    await pool.aclose()


async def test_none_is_begun_for_later_while_somebody_waits_for_one() -> None:
    begin = Begin(takes_s=4)
    pool = Pool(begin, 2)
    pool.start()
    await asyncio.gather(pool.take(), pool.take(), pool.take())
    await pass_s(20)
    assert [round(at_s - begin.begun_s[0]) for at_s in begin.begun_s] == [0, 0, 0, 4, 8]
    await pool.aclose()


async def test_one_that_died_while_it_was_ready_is_ended_and_replaced() -> None:
    begin = Begin()
    async with filled(begin, 2) as pool:
        begin.made[0].die()
        assert await pool.take() is begin.made[1]
        await pass_s(1)
        assert begin.made[0].gone
        assert [kernel.is_paused for kernel in begin.made[2:]] == [True, True]


# -- failures ----------------------------------------------------------------------------------------------


async def test_what_beginning_raises_the_taker_gets_and_the_next_may_have_more_luck() -> None:
    begin = Begin()
    begin.failures = 1
    pool = Pool(begin, 0)
    with pytest.raises(ToolError, match="no bubblewrap"):
        await pool.take()
    assert await pool.take() is begin.made[0]
    await pool.aclose()


async def test_the_pauses_between_failures_grow_to_a_minute_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    begin = Begin()
    begin.failures = 9
    async with filled(begin, 1):
        await pass_s(1000)
        pauses = [round(later - at) for at, later in zip(begin.begun_s, begin.begun_s[1:], strict=False)]
        assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert caplog.text.count("There is no bubblewrap here.") == 9
        assert begin.made[0].is_paused


async def test_a_kernel_that_could_be_begun_ends_the_pause_after_failures() -> None:
    begin = Begin()
    begin.failures = 5
    async with filled(begin, 1) as pool:
        await pass_s(20)
        begin.failures = 0
        await pool.take()
        await pass_s(0.1)
        assert [kernel.is_paused for kernel in begin.made] == [False, True]


async def test_one_that_cannot_be_ended_is_logged_and_holds_up_none(caplog: pytest.LogCaptureFixture) -> None:
    class Clinging(Pretend):
        async def aclose(self) -> None:
            await super().aclose()
            raise OSError("it clings")

    async def begin() -> Kernel:
        return Clinging(0)

    pool = Pool(begin, 0)
    kernel = await pool.take()
    await asyncio.wait({pool.end(kernel)})
    assert "it clings" in caplog.text
    await pool.aclose()


# -- who leaves, and the end -------------------------------------------------------------------------------


async def test_what_nobody_waits_for_any_more_goes_to_the_pool() -> None:
    begin = Begin(takes_s=4)
    pool = Pool(begin, 1)
    pool.start()
    taker = asyncio.create_task(pool.take())
    await pass_s(1)
    taker.cancel()
    await pass_s(10)
    assert [kernel.is_paused for kernel in begin.made] == [True]
    assert await pool.take() is begin.made[0]
    await pool.aclose()


@pytest.mark.parametrize("is_stubborn", [False, True])
async def test_what_nobody_waits_for_and_the_pool_has_no_room_for_is_ended(is_stubborn: bool) -> None:
    begin = Begin(takes_s=4)
    begin.is_stubborn = is_stubborn
    pool = Pool(begin, 0)
    taker = asyncio.create_task(pool.take())
    await pass_s(1)
    taker.cancel()
    await pass_s(1)
    assert begin.cancelled == 1
    assert [kernel.gone for kernel in begin.made] == [True] * is_stubborn
    # The next one does not get what is being given up.
    assert await pool.take() is begin.made[-1]
    await pool.aclose()


async def test_an_end_is_an_end_once() -> None:
    begin = Begin(close_s=3)
    pool = Pool(begin, 0)
    kernel = await pool.take()
    before_s = now_s()
    await asyncio.wait({pool.end(kernel), pool.end(kernel)})
    assert now_s() - before_s >= 3
    assert begin.made[0].gone
    assert pool.end(kernel).done()
    await pool.aclose()


@pytest.mark.parametrize("is_stubborn", [False, True])
async def test_a_closed_pool_has_ended_all_and_gives_none(is_stubborn: bool) -> None:
    begin = Begin(takes_s=4, close_s=2)
    async with filled(begin, 2) as pool:
        await pool.take()
        await pass_s(1)
        begin.is_stubborn = is_stubborn
        waiting = [asyncio.create_task(pool.take()) for _ in range(3)]
        await pass_s(1)
        await pool.aclose()
        assert all(kernel.gone for kernel in begin.made)
        assert begin.at_once == 0
        assert begin.cancelled > 0
        for taker in waiting[1:]:
            with pytest.raises(ToolError, match="being stopped"):
                await taker
        with pytest.raises(ToolError, match="being stopped"):
            await pool.take()
        begun = len(begin.begun_s)
        await pass_s(1000)
        assert len(begin.begun_s) == begun


# -- any order of things -----------------------------------------------------------------------------------

TAKERS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 3.0]),  # after the one before
        st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0, 2.0])),  # leaves after
        st.booleans(),  # a kernel that is ready dies before
    ),
    max_size=12,
)


@given(takers=TAKERS, size=st.integers(0, 3), takes_s=st.sampled_from([0.0, 1.0, 2.5]), failures=st.integers(0, 3))
def test_each_kernel_is_given_once_and_all_are_ended(
    takers: list[tuple[float, float | None, bool]], size: int, takes_s: float, failures: int
) -> None:
    begin = Begin(takes_s=takes_s, close_s=0.5)
    begin.failures = failures
    given_out: list[Kernel] = []

    async def take(pool: Pool, patience_s: float | None) -> None:
        try:
            async with asyncio.timeout(patience_s):
                kernel = await pool.take()
            given_out.append(kernel)
            assert isinstance(kernel, Pretend)
            assert not kernel.is_paused
        except (TimeoutError, ToolError):
            pass

    async def play() -> None:
        pool = Pool(begin, size)
        pool.start()
        async with asyncio.TaskGroup() as group:
            for after_s, patience_s, dies in takers:
                await pass_s(after_s)
                for kernel in begin.alive[-1:] if dies else ():
                    kernel.die()
                group.create_task(take(pool, patience_s))
        await pass_s(200)
        ready = [kernel for kernel in begin.made if not kernel.closing and kernel not in given_out]
        assert len(ready) == size
        assert all(kernel.is_paused for kernel in ready)
        await pool.aclose()

    logging.disable()
    try:
        with asyncio.Runner(loop_factory=PretendLoop) as runner:
            runner.run(play())
    finally:
        logging.disable(logging.NOTSET)
    assert len(set(given_out)) == len(given_out)
    assert all(kernel.gone for kernel in begin.made)
