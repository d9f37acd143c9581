"""The law of the stores: each answers as a dict would whose values have their time; and what is each one's own."""

import asyncio
import random
import sqlite3
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from redis.asyncio import Redis

from clock import Clock
from redis_server import redis_server
from tools.stores import Store, StoreError, checked_url, open_store

T = TypeVar("T")

#: More than a test may put.
ROOM = 10**6

#: Time passes in such steps: beside them the time that a test takes is nothing to Redis's own clock.
STEP_S = 1000

#: Gives an empty store, and the way to let seconds pass for it.
Begin = Callable[[], Coroutine[Any, Any, tuple[Store, Callable[[int], Awaitable[None]]]]]

#: With what means something in patterns, what is written in several bytes, and what ends texts elsewhere.
texts = st.text("aB/*?[]\\^-é字😀\x00\x7f", max_size=4)
keys = st.sampled_from(["a", "a/", "a/*", "é?"]) | texts.filter(bool)

#: Some come often, so that what is there is what is asked for.
values = st.sampled_from([b"", b"0", b"\x00\xff"]) | st.binary(max_size=20)

#: In steps; None: without an end.
ttls = st.none() | st.integers(-1, 3)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis of the session's own."""
    with redis_server() as url:
        yield url


@pytest.fixture(params=["memory", "sqlite", "redis"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of each of the stores."""
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory:",
        "sqlite": lambda: f"sqlite:///{tmp_path}/store.db",
        "redis": lambda: request.getfixturevalue("redis_url"),
    }
    return urls[request.param]()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """Each of the stores."""
    opened = open_store(store_url, max_bytes=ROOM)
    yield opened
    await opened.aclose()


@pytest.fixture
async def other(store: Store, store_url: str) -> AsyncIterator[Store]:
    """Another one with the same content, as another process has it; one in memory is itself all that have it."""
    opened = store if store_url == "memory:" else open_store(store_url, max_bytes=ROOM)
    yield opened
    await opened.aclose()


def seconds(steps: int | None) -> int | None:
    return None if steps is None else steps * STEP_S


class Law(RuleBasedStateMachine):
    """Does the same with a store and with a dict."""

    def __init__(self, begin: Begin) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store, self.passing = self.runner.run(begin())
        self.now = 0
        self.model: dict[str, tuple[bytes, float]] = {}

    def run(self, asked: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await asked

        return self.runner.run(awaited())

    def living(self) -> dict[str, bytes]:
        return {key: value for key, (value, ends) in self.model.items() if ends > self.now}

    def keep(self, key: str, value: bytes, ttl: int | None) -> None:
        self.model[key] = value, float("inf") if ttl is None else self.now + ttl

    @rule(key=keys, value=values, ttl=ttls)
    def put(self, key: str, value: bytes, ttl: int | None) -> None:
        self.run(self.store.put(key, value, ttl_s=seconds(ttl)))
        self.keep(key, value, ttl)

    @rule(key=keys, value=values, ttl=ttls)
    def add(self, key: str, value: bytes, ttl: int | None) -> None:
        added = self.run(self.store.add(key, value, ttl_s=seconds(ttl)))
        if key in self.living():
            assert not added
        else:
            self.keep(key, value, ttl)
            assert added == (key in self.living())

    @rule(key=keys, old=values, value=values, ttl=ttls)
    def replace(self, key: str, old: bytes, value: bytes, ttl: int | None) -> None:
        found = self.living().get(key) == old
        assert self.run(self.store.replace(key, old, value, ttl_s=seconds(ttl))) == found
        if found:
            self.keep(key, value, ttl)

    @rule(key=keys)
    def get(self, key: str) -> None:
        assert self.run(self.store.get(key)) == self.living().get(key)

    @rule(key=keys)
    def delete(self, key: str) -> None:
        assert self.run(self.store.delete(key)) == (key in self.living())
        self.model.pop(key, None)

    @rule(key=keys, only=values)
    def delete_only(self, key: str, only: bytes) -> None:
        found = self.living().get(key) == only
        assert self.run(self.store.delete(key, only=only)) == found
        if found:
            del self.model[key]

    @rule(prefix=texts, after=texts | keys, limit=st.integers(0, 5))
    def scan(self, prefix: str, after: str, limit: int) -> None:
        found = sorted(key for key in self.living() if key.startswith(prefix) and key > after)
        assert self.run(self.store.scan(prefix, after=after, limit=limit)) == found[:limit]

    @rule(steps=st.integers(1, 2))
    def time_passes(self, steps: int) -> None:
        self.run(self.passing(steps * STEP_S))
        self.now += steps

    def teardown(self) -> None:
        whole = self.run(self.store.scan("", limit=len(self.model) + 1))
        assert whole == sorted(self.living())
        assert {key: self.run(self.store.get(key)) for key in whole} == self.living()
        self.run(self.store.aclose())
        self.runner.close()


def law_for(begin: Begin) -> type[RuleBasedStateMachine]:
    class Bound(Law):
        def __init__(self) -> None:
            super().__init__(begin)

    return Bound


def with_clock(url: str) -> Begin:
    async def begin() -> tuple[Store, Callable[[int], Awaitable[None]]]:
        clock = Clock()

        async def passing(seconds: int) -> None:
            clock.pass_s(seconds)

        return open_store(url, max_bytes=ROOM, now=lambda: clock() / 1e9), passing

    return begin


def test_memory_answers_as_a_dict_would() -> None:
    run_state_machine_as_test(law_for(with_clock("memory:")), settings=settings(max_examples=50))


def test_sqlite_answers_as_a_dict_would(tmp_path: Path) -> None:
    numbers = count()

    async def begin() -> tuple[Store, Callable[[int], Awaitable[None]]]:
        return await with_clock(f"sqlite:///{tmp_path}/{next(numbers)}.db")()

    run_state_machine_as_test(law_for(begin), settings=settings(max_examples=50))


def test_redis_answers_as_a_dict_would(redis_url: str) -> None:
    async def passing(seconds: int) -> None:
        # Its clock cannot be set: all ends come so much nearer instead.
        async with Redis.from_url(redis_url) as redis:
            for key in await redis.keys():
                if (left_ms := await redis.pttl(key)) >= 0:
                    await redis.pexpire(key, left_ms - seconds * 1000)

    async def begin() -> tuple[Store, Callable[[int], Awaitable[None]]]:
        async with Redis.from_url(redis_url) as redis:
            await redis.flushdb()
        return open_store(redis_url, max_bytes=ROOM), passing

    run_state_machine_as_test(law_for(begin), settings=settings(max_examples=50))


# -- of all of them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "x" * 513, "half \ud83d of a pair"])
async def test_what_is_no_key_is_refused(store: Store, key: str) -> None:
    with pytest.raises(ValueError):
        await store.get(key)
    with pytest.raises(ValueError):
        await store.put(key, b"")
    with pytest.raises(ValueError):
        await store.delete(key)
    with pytest.raises(ValueError):
        await store.add(key, b"")
    with pytest.raises(ValueError):
        await store.replace(key, b"", b"")
    with pytest.raises(ValueError):
        await store.delete(key, only=b"")


async def test_keys_and_values_may_be_long(store: Store) -> None:
    key, value = "😀" * 512, bytes(range(256)) * 2000
    await store.put(key, value)
    assert await store.get(key) == value
    assert await store.scan("😀" * 511) == [key]


async def test_many_may_ask_at_the_same_time(store: Store) -> None:
    names = [f"same-time/{number:03}" for number in range(300)]
    await asyncio.gather(*(store.put(name, name.encode()) for name in names))
    assert await asyncio.gather(*map(store.get, names)) == [name.encode() for name in names]
    assert await store.scan("same-time/", limit=1000) == names
    assert await store.scan("same-time/", after=names[9], limit=3) == names[10:13]


async def test_of_those_who_add_at_the_same_time_over_two_stores_one_wins(store: Store, other: Store) -> None:
    for turn in range(20):
        key, names = f"won/{turn}", [b"%d" % number for number in range(10)]
        stores = [store, other] * 5
        won = await asyncio.gather(*(each.add(key, name) for each, name in zip(stores, names, strict=True)))
        assert sum(won) == 1
        assert await other.get(key) == names[won.index(True)]


async def test_of_those_who_replace_at_the_same_time_over_two_stores_nobody_is_lost(store: Store, other: Store) -> None:
    async def count(each: Store) -> None:
        for _ in range(10):
            while not await each.replace("count", found := await each.get("count") or b"", b"%d" % (int(found) + 1)):
                pass

    await store.put("count", b"0")
    await asyncio.gather(*map(count, [store, other] * 3))
    assert await store.get("count") == b"60"


async def test_who_stops_waiting_mixes_up_nobody_elses_answer(store: Store) -> None:
    chance = random.Random(4)  # noqa: S311 - no secret
    names = [f"cancelled/{number}" for number in range(20)]
    for name in names:
        await store.put(name, name.encode() * 1000)

    async def asked(name: str) -> None:
        assert await store.get(name) == name.encode() * 1000

    for _ in range(30):
        running = [asyncio.create_task(asked(name)) for name in names]
        for task in running:
            if chance.random() < 0.5:
                asyncio.get_running_loop().call_later(chance.random() / 500, task.cancel)
        for answer in await asyncio.gather(*running, return_exceptions=True):
            assert answer is None or isinstance(answer, asyncio.CancelledError)


# -- the bound of memory and SQLite ------------------------------------------------------------------------


@asynccontextmanager
async def bounded(max_bytes: int) -> AsyncIterator[tuple[list[Store], Clock]]:
    """Both, with a clock."""
    clock = Clock()
    with TemporaryDirectory() as directory:
        urls = ["memory:", f"sqlite:///{directory}/store.db"]
        stores = [open_store(url, max_bytes=max_bytes, now=lambda: clock() / 1e9) for url in urls]
        yield stores, clock
        for store in stores:
            await store.aclose()


#: A key with what is put there (a size), or None: it is read.
uses = st.tuples(st.sampled_from("abcdefgh"), st.none() | st.integers(0, 900))


@settings(max_examples=50)
@given(uses=st.lists(uses, max_size=40))
@example(uses=[("a", 800), ("b", 800), ("a", None), ("c", 800)])
async def test_what_was_used_last_stays_and_no_more_than_there_is_room_for(uses: list[tuple[str, int | None]]) -> None:
    max_bytes = 2500
    async with bounded(max_bytes) as (stores, clock):
        for store in stores:
            order: dict[str, int] = {}
            for key, size in uses:
                clock.pass_s(60)
                if size is not None:
                    await store.put(key, bytes(size))
                    order.pop(key, None)
                    order[key] = size
                elif await store.get(key) is not None:
                    order[key] = order.pop(key)
                held = await store.scan("")
                gone = list(order)[: len(order) - len(held)]
                assert set(held) == order.keys() - set(gone)
                assert size is None or key in held
                assert sum(order[name] for name in held) <= max_bytes
                # An entry takes some room of its own, but not very much.
                assert not gone or sum(order.values()) + 400 * len(order) > max_bytes
                order = {name: order[name] for name in order if name in held}


async def test_a_value_larger_than_the_store_pushes_out_nothing_but_the_older_value() -> None:
    async with bounded(1000) as (stores, _):
        for store in stores:
            await store.put("small", b"1")
            await store.put("large", b"2")
            await store.put("large", bytes(1000))
            assert await store.scan("") == ["small"]
            assert not await store.add("large", bytes(1000))
            assert await store.scan("") == ["small"]
            assert await store.replace("small", b"1", bytes(1000))
            assert await store.scan("") == []


async def test_what_has_ended_goes_before_what_was_not_used_for_long() -> None:
    async with bounded(1400) as (stores, clock):
        for store in stores:
            await store.put("old", bytes(300))
            clock.pass_s(60)
            await store.put("ended", bytes(300), ttl_s=60)
            clock.pass_s(60)
            await store.put("new", bytes(300))
            assert await store.scan("") == ["new", "old"]


async def test_a_value_that_is_put_again_has_the_time_of_the_last_to_the_moment() -> None:
    async with bounded(ROOM) as (stores, clock):
        for store in stores:
            await store.put("key", b"1", ttl_s=60)
            await store.put("key", b"2", ttl_s=120)
            clock.pass_s(60)
            assert await store.scan("") == ["key"]
            clock.pass_s(59)
            assert await store.get("key") == b"2"
            clock.pass_s(1)
            assert await store.get("key") is None
            assert not await store.delete("key")


@pytest.mark.parametrize("keys", [1, 100])
async def test_what_is_put_again_and_again_does_not_fill_the_memory(keys: int) -> None:
    store = open_store("memory:", max_bytes=ROOM)
    tracemalloc.start()
    try:
        for number in range(20_000):
            await store.put(f"key {number % keys}", b"value", ttl_s=3600)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 200_000


# -- SQLite ------------------------------------------------------------------------------------------------


async def test_a_file_outlives_its_store_and_two_stores_share_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    first = open_store(url, max_bytes=ROOM)
    await first.put("key", b"kept")
    second = open_store(url, max_bytes=ROOM)
    assert await second.get("key") == b"kept"
    await first.aclose()
    assert await second.delete("key")
    await second.aclose()


async def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from tools.stores import open_store

async def main(url, name):
    store = open_store(url, max_bytes=10**6)
    for number in range(50):
        await store.put(f"{name}/{number}", name.encode())
    await store.aclose()

asyncio.run(main(*sys.argv[1:]))
"""
    url = f"sqlite:///{tmp_path}/store.db"
    root = Path(__file__).parent.parent
    running = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, url, name, cwd=root) for name in "abc"
    ]
    assert [await process.wait() for process in running] == [0, 0, 0]
    store = open_store(url, max_bytes=ROOM)
    assert len(await store.scan("", limit=1000)) == 150
    await store.aclose()


async def test_nobody_else_can_read_the_file(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/made/store.db", max_bytes=ROOM)
    await store.put("key", b"value")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "made").iterdir()}
    assert modes == {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600}
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o700
    await store.aclose()


def damaged(path: Path) -> None:
    """A store's file whose second half was written over."""

    async def fill() -> None:
        store = open_store(f"sqlite:///{path}", max_bytes=ROOM)
        for number in range(200):
            await store.put(f"key {number}", bytes(2000))
        await store.aclose()

    asyncio.run(fill())
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"\xaa" * (len(content) // 2))


def of_another(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE entries (id INTEGER)")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda path: path.write_bytes(b"no database at all " * 100), "file is not a database"),
        (damaged, "is damaged, move it away"),
        (of_another, "is that of another program"),
        (Path.mkdir, "cannot be opened"),
    ],
    ids=["another file", "damaged", "another's", "a directory"],
)
def test_a_file_that_is_no_store_is_told_when_it_is_opened(
    tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    path = tmp_path / "store.db"
    spoil(path)
    with pytest.raises(StoreError, match=told) as refused:
        open_store(f"sqlite:///{path}", max_bytes=ROOM)
    assert str(path) in str(refused.value)


def test_only_the_last_directory_is_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file or directory"):
        open_store(f"sqlite:///{tmp_path}/a/mistyped/store.db", max_bytes=ROOM)


async def test_a_file_that_breaks_later_is_an_error_of_the_store(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/store.db", max_bytes=ROOM)
    with closing(sqlite3.connect(tmp_path / "store.db")) as db:
        db.execute("DROP TABLE entries")
    for asked in (
        *(store.get("key"), store.put("key", b""), store.delete("key"), store.scan("")),
        *(store.add("key", b""), store.replace("key", b"", b""), store.delete("key", only=b"")),
    ):
        with pytest.raises(StoreError, match="no such table"):
            await asked
    await store.aclose()


# -- Redis -------------------------------------------------------------------------------------------------


async def test_what_others_keep_in_the_same_redis_is_not_ours(redis_url: str) -> None:
    store = open_store(redis_url, max_bytes=ROOM)
    async with Redis.from_url(redis_url) as redis:
        await redis.flushdb()
        await redis.set("others", b"1")
        await store.put("ours", b"2", ttl_s=1.5)
        assert await store.scan("") == ["ours"]
        assert await store.get("others") is None
        assert sorted(await redis.keys()) == [b"florette:ours", b"others"]
        assert 0 < await redis.pttl("florette:ours") <= 1500
        assert await store.replace("ours", b"2", b"3", ttl_s=2.5)
        assert 1500 < await redis.pttl("florette:ours") <= 2500
        assert await store.replace("ours", b"3", b"4")
        assert await redis.pttl("florette:ours") == -1
        assert await store.add("added", b"5", ttl_s=1.5)
        assert 0 < await redis.pttl("florette:added") <= 1500
    await store.aclose()


async def test_a_connection_that_was_closed_is_opened_again(redis_url: str) -> None:
    store = open_store(redis_url, max_bytes=ROOM)
    await store.put("reopened", b"1")
    async with Redis.from_url(redis_url) as redis:
        await redis.client_kill_filter(_type="normal", skipme=True)
    assert await store.get("reopened") == b"1"
    await store.aclose()


async def test_a_redis_that_cannot_be_reached_is_an_error_of_the_store(nowhere: str) -> None:
    store = open_store(nowhere.replace("http://", "redis://:secret@"), max_bytes=ROOM)
    for asked in (
        *(store.get("key"), store.put("key", b""), store.put("key", b"", ttl_s=0), store.scan("")),
        *(store.add("key", b""), store.replace("key", b"", b""), store.delete("key", only=b"")),
    ):
        with pytest.raises(StoreError, match=r"Redis at 127\.0\.0\.1:\d+ cannot be used") as failed:
            await asked
        assert "secret" not in str(failed.value)
    await store.aclose()


async def test_a_password_that_redis_repeats_is_not_told() -> None:
    """As Redis does where AUTH has another name."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            writer.write(b"-ERR unknown command, with args beginning with: 'top secret'\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = open_store(f"redis://:top%20secret@127.0.0.1:{port}", max_bytes=ROOM)
        with pytest.raises(StoreError, match=r"beginning with: '\*\*\*'"):
            await store.get("key")
        await store.aclose()


# -- URLs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "memory",
        "sqlite:///",
        "sqlite://secret/store.db",
        "/var/lib/store.db",
        "http://:secret@localhost",
        "redis:secret@localhost",
        "redis://:secret#1@localhost:6379",
        "redis://localhost:secret",
        "redis://localhost?secret=1",
        "redis://localhost?socket_timeout=secret",
    ],
)
def test_what_is_no_url_of_a_store_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL") as refused:
        open_store(url, max_bytes=ROOM)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    ["memory:", "sqlite:///cache.db", "sqlite:////no/such/cache.db", "redis://host", "rediss://host/1", "unix:///x"],
)
def test_a_url_is_checked_without_opening_anything(url: str) -> None:
    assert checked_url(url) == url
