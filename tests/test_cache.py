"""Results of calls: kept for equal calls, made once for those at the same time, and never in the way of a call."""

import asyncio
import base64
import gc
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clock import Clock
from serving import PATIENCE_S
from tools.cache import CacheScope, ToolCache
from tools.errors import RetryableToolError, ToolError
from tools.items import ContentItem, Details, FileItem, ImageItem, TextItem
from tools.stores import Store, StoreError, open_store

ITEMS: list[ContentItem] = [TextItem("It is sunny.")]

#: With halves of surrogate pairs, too.
any_text = st.text(st.characters(exclude_categories=()), max_size=20)
items = st.lists(
    st.one_of(
        st.builds(TextItem, any_text),
        st.builds(ImageItem, st.none() | any_text, st.none() | st.binary(max_size=20), any_text),
        st.builds(FileItem, any_text, st.none() | any_text, st.none() | st.binary(max_size=20)),
    ),
    max_size=4,
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=6,
)
scopes = st.builds(CacheScope, st.none() | any_text, st.lists(any_text, max_size=2).map(tuple))
#: All that a result depends on.
calls = st.tuples(any_text, any_text, any_text, st.dictionaries(any_text, json_values, max_size=3), scopes)


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    """One in memory; whoever uses it leaves no task behind."""
    opened = open_store("memory:", max_bytes=10**8)
    yield opened
    await opened.aclose()
    assert [task for task in asyncio.all_tasks() if "ToolCache" in repr(task)] == []


async def turns(count: int = 10) -> None:
    """Lets all others go on until they wait for something."""
    for _ in range(count):
        await asyncio.sleep(0)


async def unwanted() -> list[ContentItem]:
    """What is not to be made."""
    raise AssertionError("the result was there")


async def made() -> list[ContentItem]:
    return ITEMS


class Making:
    """A `make` that ends when it is told how."""

    def __init__(self) -> None:
        self.runs: list[asyncio.Future[list[ContentItem]]] = []
        self.running = 0
        self.peak = 0
        self.cancelled = 0

    async def __call__(self) -> list[ContentItem]:
        self.runs.append(asyncio.get_running_loop().create_future())
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            return await self.runs[-1]
        except asyncio.CancelledError:
            self.cancelled += 1
            # To end may take some time, too.
            await turns(3)
            raise
        finally:
            self.running -= 1

    def end(self, how: BaseException | list[ContentItem]) -> None:
        """Ends the last run, unless it has ended."""
        if self.runs and not self.runs[-1].done():
            if isinstance(how, BaseException):
                self.runs[-1].set_exception(how)
            else:
                self.runs[-1].set_result(how)


# -- keys --------------------------------------------------------------------------------------------------


def canonical(call: tuple[Any, ...]) -> str:
    *rest, scope = call
    return json.dumps([*rest, scope.tenant, scope.file_hashes], sort_keys=True)


@given(one=calls, other=calls)
def test_calls_have_the_same_key_if_all_that_they_depend_on_is_the_same(one: Any, other: Any) -> None:
    cache = ToolCache(open_store("memory:", max_bytes=1))
    assert (cache.key(*one) == cache.key(*other)) == (canonical(one) == canonical(other))


@pytest.mark.parametrize(
    "other",
    [
        ("search", "1", "digest", {"q": "x", "n": 1}, CacheScope("ada", ("f",))),
        ("weather", "2", "digest", {"q": "x", "n": 1}, CacheScope("ada", ("f",))),
        ("weather", "1", "others", {"q": "x", "n": 1}, CacheScope("ada", ("f",))),
        ("weather", "1", "digest", {"q": "y", "n": 1}, CacheScope("ada", ("f",))),
        ("weather", "1", "digest", {"q": "x", "n": True}, CacheScope("ada", ("f",))),
        ("weather", "1", "digest", {"q": "x", "n": "1"}, CacheScope("ada", ("f",))),
        ("weather", "1", "digest", {"q": "x", "n": 1}, CacheScope("bob", ("f",))),
        ("weather", "1", "digest", {"q": "x", "n": 1}, CacheScope(None, ("f",))),
        ("weather", "1", "digest", {"q": "x", "n": 1}, CacheScope("ada", ("g",))),
        ("weather", "1", "digest", {"q": "x", "n": 1}, CacheScope("ada", ("f", "f"))),
    ],
)
def test_each_thing_that_a_result_depends_on_gives_another_key(other: Any) -> None:
    cache = ToolCache(open_store("memory:", max_bytes=1))
    key = cache.key("weather", "1", "digest", {"n": 1, "q": "x"}, CacheScope("ada", ("f",)))
    assert key == cache.key("weather", "1", "digest", {"q": "x", "n": 1}, CacheScope("ada", ("f",)))
    assert key != cache.key(*other)


def test_arguments_that_json_cannot_hold_have_no_key() -> None:
    cache = ToolCache(open_store("memory:", max_bytes=1))
    with pytest.raises(ValueError):
        cache.key("weather", "1", "", {"x": float("nan")}, CacheScope())


# -- keeping -----------------------------------------------------------------------------------------------


@given(result=items)
async def test_a_result_comes_back_as_it_was(result: list[ContentItem]) -> None:
    store = open_store("memory:", max_bytes=10**6)
    await ToolCache(store).put("results/1", result, 60)
    assert await ToolCache(store).get("results/1") == result


async def test_a_result_is_made_once_for_all_who_share_the_store(store: Store) -> None:
    assert await ToolCache(store).through("results/1", 60, made) == (ITEMS, False)
    assert await ToolCache(store).through("results/1", 60, unwanted) == (ITEMS, True)
    assert await ToolCache(store).through("results/2", 60, made) == (ITEMS, False)


async def test_who_changes_a_result_changes_nobody_elses(store: Store) -> None:
    cache, making = ToolCache(store), Making()
    waiting = [asyncio.create_task(cache.through("results/1", 60, making)) for _ in range(2)]
    await turns()
    making.end(list(ITEMS))
    [mine, _], [theirs, _] = await asyncio.gather(*waiting)
    mine.clear()
    assert theirs == ITEMS


async def test_a_result_is_good_until_its_time_is_over() -> None:
    clock = Clock()
    cache = ToolCache(open_store("memory:", max_bytes=10**6, now=lambda: clock() / 1e9))
    await cache.through("results/1", 60, made)
    clock.pass_s(59)
    assert await cache.get("results/1") == ITEMS
    clock.pass_s(1)
    assert await cache.get("results/1") is None


@pytest.mark.parametrize(
    "item",
    [
        TextItem("x" * 1_000_000),
        ImageItem(data=bytes(1_000_000)),
        FileItem("page.html", url="x" * 1_000_000),
        Details({"x": "x" * 999_991}),
    ],
    ids=["text", "data", "url", "details"],
)
async def test_a_result_of_more_than_a_megabyte_is_not_kept(store: Store, item: ContentItem) -> None:
    cache = ToolCache(store)
    await cache.put("results/1", [item], 60)
    assert await cache.get("results/1") == [item]
    await cache.put("results/2", [item, TextItem("!")], 60)
    assert await cache.get("results/2") is None


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"\xff",
        b"no JSON",
        b"5",
        b"[5]",
        b'["text"]',
        b'{"text": "x"}',
        b"[{}]",
        b'[{"kind": "image", "name": "x"}]',
        b'[{"kind": "image", "name": "x", "url": null, "data": "no base64"}]',
        b"[" * 100_000,
    ],
)
async def test_what_cannot_be_read_is_made_anew(store: Store, kept: bytes) -> None:
    await store.put("results/1", kept)
    cache = ToolCache(store)
    assert await cache.through("results/1", 60, made) == (ITEMS, False)
    assert await cache.get("results/1") == ITEMS


async def test_what_is_kept_is_json(store: Store) -> None:
    await ToolCache(store).put("results/1", [TextItem("☀"), ImageItem(data=b"PNG")], 60)
    text, image = json.loads(await store.get("results/1") or b"")
    assert text == {"text": "☀"}
    assert base64.b64decode(image["data"]) == b"PNG"


class Broken:
    """A store that fails while it is told to, and counts how often it is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fails = True
        self.asked = 0

    def _ask(self) -> None:
        self.asked += 1
        if self.fails:
            raise StoreError("Redis at somewhere:6379 cannot be used")

    async def get(self, key: str) -> bytes | None:
        self._ask()
        return await self._store.get(key)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        self._ask()
        await self._store.put(key, value, ttl_s=ttl_s)

    async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
        raise NotImplementedError

    async def replace(self, key: str, old: bytes, value: bytes, *, ttl_s: float | None = None) -> bool:
        raise NotImplementedError

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        raise NotImplementedError

    async def scan(self, prefix: str, *, after: str = "", limit: int = 100) -> list[str]:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


async def test_a_store_that_fails_is_left_alone_for_a_while_and_told_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    clock, broken = Clock(), Broken(store)
    cache = ToolCache(broken, clock=lambda: clock() / 1e9)
    for _ in range(5):
        assert await cache.through("results/1", 60, made) == (ITEMS, False)
    assert broken.asked == 1
    assert [record.message for record in caplog.records] == [
        "results of tools are not cached for the next 10 s: Redis at somewhere:6379 cannot be used"
    ]
    broken.fails = False
    clock.pass_s(10)
    assert await cache.through("results/1", 60, made) == (ITEMS, False)
    assert await cache.through("results/1", 60, unwanted) == (ITEMS, True)
    broken.fails = True
    assert await cache.through("results/1", 60, made) == (ITEMS, False)
    assert len(caplog.records) == 2


async def test_calls_that_waited_for_a_failing_store_together_tell_it_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Event()

    class Slow(Broken):
        async def get(self, key: str) -> bytes | None:
            await asked.wait()
            return await super().get(key)

    cache = ToolCache(Slow(store))
    with caplog.at_level(logging.WARNING):
        waiting = [asyncio.create_task(cache.through(f"results/{number}", 60, made)) for number in range(5)]
        await turns()
        asked.set()
        assert await asyncio.gather(*waiting) == [(ITEMS, False)] * 5
    assert len(caplog.records) == 1


# -- at the same time --------------------------------------------------------------------------------------


async def test_equal_calls_at_the_same_time_are_made_once(store: Store) -> None:
    cache, making = ToolCache(store), Making()
    waiting = [asyncio.create_task(cache.through("results/1", 60, making)) for _ in range(5)]
    await turns()
    making.end(ITEMS)
    assert await asyncio.gather(*waiting) == [(ITEMS, False)] * 5
    assert len(making.runs) == 1


@pytest.mark.parametrize("error", [ToolError("no"), RetryableToolError("later"), KeyError("a bug")])
async def test_an_error_reaches_all_who_wait_and_is_not_kept(store: Store, error: Exception) -> None:
    cache, making = ToolCache(store), Making()
    waiting = [asyncio.create_task(cache.through("results/1", 60, making)) for _ in range(3)]
    await turns()
    making.end(error)
    assert await asyncio.gather(*waiting, return_exceptions=True) == [error] * 3
    assert await cache.through("results/1", 60, made) == (ITEMS, False)


@pytest.mark.parametrize("leaving", [[0], [1], [0, 1], [1, 2]])
async def test_who_leaves_takes_the_result_from_nobody(store: Store, leaving: list[int]) -> None:
    cache, making = ToolCache(store), Making()
    waiting = [asyncio.create_task(cache.through("results/1", 60, making)) for _ in range(3)]
    await turns()
    for number in leaving:
        waiting[number].cancel()
    await turns()
    assert [task.cancelled() for task in waiting] == [number in leaving for number in range(3)]
    making.end(ITEMS)
    assert [await task for task in waiting if not task.cancelled()] == [(ITEMS, False)] * (3 - len(leaving))
    assert await cache.get("results/1") == ITEMS


async def test_when_all_have_left_the_run_has_ended(store: Store) -> None:
    cache, making = ToolCache(store), Making()
    waiting = [asyncio.create_task(cache.through("results/1", 60, making)) for _ in range(3)]
    await turns()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert all(task.cancelled() for task in waiting)
    assert (making.cancelled, making.running) == (1, 0)
    assert await cache.get("results/1") is None


async def test_who_comes_while_a_run_is_being_cancelled_waits_for_its_end_and_makes_another(store: Store) -> None:
    cache, making = ToolCache(store), Making()
    first = asyncio.create_task(cache.through("results/1", 60, making))
    await turns()
    first.cancel()
    await turns(2)
    assert (making.cancelled, making.running) == (1, 1)
    second = asyncio.create_task(cache.through("results/1", 60, making))
    await turns()
    making.end(ITEMS)
    assert await second == (ITEMS, False)
    assert (len(making.runs), making.peak) == (2, 1)


async def test_an_error_that_comes_out_of_a_cancelled_run_is_nobodys(store: Store) -> None:
    complaints: list[Mapping[str, Any]] = []

    async def stubborn() -> list[ContentItem]:
        try:
            await asyncio.Event().wait()
        finally:
            raise ToolError("I was not done.")
        raise AssertionError

    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        waiting = asyncio.create_task(ToolCache(store).through("results/1", 60, stubborn))
        await turns()
        waiting.cancel()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        del waiting
        # An error that nobody read is told of when its task is forgotten.
        gc.collect()
    finally:
        loop.set_exception_handler(before)
    assert complaints == []


#: What happens, in turn: calls begin and are cancelled, their runs end well or badly, and the loop goes on.
events = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 1)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("result"), st.integers(0, 1)),
        st.tuples(st.just("error"), st.integers(0, 1)),
        st.tuples(st.just("turns"), st.integers(1, 4)),
    ),
    max_size=60,
)


@settings(max_examples=300)
@given(events=events, ttl_s=st.sampled_from([0.0, 60.0]))
async def test_whatever_happens_one_run_at_a_time_and_an_answer_for_each_who_stays(
    events: list[tuple[str, int]], ttl_s: float
) -> None:
    cache = ToolCache(open_store("memory:", max_bytes=10**6))
    makings = [Making(), Making()]
    callers: list[asyncio.Task[tuple[list[ContentItem], bool]]] = []
    left: set[int] = set()
    ends: dict[str, Callable[[int], None]] = {
        "result": lambda which: makings[which].end([TextItem(str(which))]),
        "error": lambda which: makings[which].end(ToolError(str(which))),
    }
    of: list[int] = []
    before = asyncio.all_tasks()

    for event, number in events:
        if event == "call":
            callers.append(asyncio.create_task(cache.through(f"results/{number}", ttl_s, makings[number])))
            of.append(number)
        elif event == "cancel":
            if number < len(callers) and callers[number].cancel():
                left.add(number)
        elif event == "turns":
            await turns(number)
        else:
            ends[event](number)

    async with asyncio.timeout(PATIENCE_S):
        while not all(caller.done() for caller in callers):
            for which in (0, 1):
                ends["result"](which)
            await turns(1)
    # A run that was left may still be at its end when who left it was cancelled twice.
    await turns()
    assert asyncio.all_tasks() == before
    assert all(making.peak <= 1 and making.running == 0 for making in makings)
    for number, caller in enumerate(callers):
        assert caller.cancelled() == (number in left)
        if not caller.cancelled():
            error = caller.exception()
            said = str(error) if error else caller.result()[0]
            assert said in (str(of[number]), [TextItem(str(of[number]))])
