"""The store of files, as a library: what may be kept, by whom it is seen, and that nothing else is left on the disk."""

import asyncio
import hashlib
import os
import re
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tools.file_index import FileIndex
from tools.file_names import MAX_NAME_BYTES, plain_name
from tools.file_root import FileRoot
from tools.files import FileError, FileStore, FileTooLarge, NoSuchFile, QuotaExceeded, StoredFile
from tools.incoming_file import IncomingFile
from tools.sniffing import image_type

ROOT = Path(__file__).parent.parent

HOUR_S, DAY_S = 3600, 86_400


class Calendar:
    """Seconds since 1970 that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.5

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(root: Path | None, **settings: Any) -> AsyncIterator[FileStore]:
    """A store that is closed in the end."""
    store = FileStore(root, **{"max_file_bytes": 1000, "quota_bytes": 10_000, "ttl_s": None} | settings)
    try:
        yield store
    finally:
        await store.aclose()


@contextmanager
def directory() -> Iterator[Path]:
    """A new one for each example of a property."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def blobs(root: Path) -> list[str]:
    """The names of all files on the disk but the database's."""
    return sorted(path.name for path in root.rglob("*") if path.is_file() and not path.name.startswith("files.db"))


async def is_as_if_nothing_came(store: FileStore, root: Path, quota_bytes: int = 10_000) -> None:
    """No row, no blob, and all of the quota free."""
    assert await store.list("ada") == ([], False)
    assert blobs(root) == []
    for _ in range(quota_bytes // 1000):
        await store.create("ada", "x", "p", b"x" * 1000)
    with pytest.raises(QuotaExceeded):
        await store.create("ada", "x", "p", b"x")


# -- what goes in comes out --------------------------------------------------------------------------------


@given(content=st.lists(st.binary(max_size=30), max_size=5), whole=st.booleans())
@settings(max_examples=30)
async def test_a_file_comes_out_as_it_went_in(content: list[bytes], whole: bool) -> None:
    data = b"".join(content)
    calendar = Calendar()
    with directory() as root:
        async with opened(root, now=calendar, ttl_s=60, new_id=lambda: "0" * 24) as store:
            file = await store.create("ada", "notes.txt", "user_data", data if whole else pieces(*content))
            created = 1_700_000_000
            digest = hashlib.sha256(data).hexdigest()
            assert file == StoredFile(
                "file-" + "0" * 24, "ada", "notes.txt", "user_data", len(data), created, created + 60, digest
            )
            assert await store.get("ada", file.id) == file
            assert (await store.path("ada", file.id)).read_bytes() == data
            assert await store.list("ada") == ([file], False)
            assert blobs(root) == [file.id]


async def test_ids_are_random(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        ids = {(await store.create("ada", "x", "p", b"x")).id for _ in range(20)}
    assert len(ids) == 20
    assert all(re.fullmatch(r"file-[0-9a-f]{24}", file_id) for file_id in ids)


async def test_only_the_user_of_the_server_can_read_what_is_kept(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(tmp_path / "a" / "store") as store:
            await store.create("ada", "x", "p", b"x")
            modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a" / "store").rglob("*")}
            modes[tmp_path / "a" / "store"] = stat.S_IMODE((tmp_path / "a" / "store").stat().st_mode)
    finally:
        os.umask(before)
    assert len(modes) >= 4
    assert modes == {path: 0o700 if path.is_dir() else 0o600 for path in modes | {tmp_path / "a" / "store": 0}}


async def test_who_is_reading_a_file_reads_on_after_it_was_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await store.create("ada", "x", "p", b"content")
        with (await store.path("ada", file.id)).open("rb") as reading:
            await store.delete("ada", file.id)
            assert blobs(tmp_path) == []
            assert reading.read() == b"content"


# -- names -------------------------------------------------------------------------------------------------

NAMES = [
    ("notes.txt", "notes.txt"),
    ("../../etc/passwd", "passwd"),
    ("/etc/passwd", "passwd"),
    ("C:\\Users\\ada\\a.txt", "a.txt"),
    ("..\\..\\a.txt", "a.txt"),
    ("a/", "a"),
    ("a/..", "a"),
    ("..", "file"),
    (".", "file"),
    ("", "file"),
    ("///", "file"),
    (" \t ", "file"),
    ("\0", "file"),
    ("a\0b\r\nX-Evil: 1.txt", "abX-Evil: 1.txt"),
    ("..\0/..\0/a", "a"),
    ("\ud800a", "a"),
    ("cv\u202egpj.exe", "cvgpj.exe"),
    ("a\u2028b", "ab"),
    (" a .txt ", "a .txt"),
    (".bashrc", ".bashrc"),
    ("文件.txt", "文件.txt"),
    ("x" * 300, "x" * 255),
    ("x" * 300 + ".csv", "x" * 251 + ".csv"),
    ("文" * 100 + ".csv", "文" * 83 + ".csv"),
    ("x." + "y" * 300, "x." + "y" * 253),
    ("." * 300 + "a" * 20, "file"),
    ("file-0123456789abcdef01234567.part", "file-0123456789abcdef01234567.part"),
    ("files.db", "files.db"),
]


@pytest.mark.parametrize(("given_name", "kept"), NAMES)
async def test_of_a_name_its_last_segment_is_kept_and_it_names_nothing_on_the_disk(
    tmp_path: Path, given_name: str, kept: str
) -> None:
    async with opened(tmp_path / "root") as store:
        file = await store.create("ada", given_name, "p", b"x")
        assert file.name == kept
        assert (await store.get("ada", file.id)).name == kept
        assert blobs(tmp_path) == [file.id]


any_names = st.one_of(
    st.text(st.characters(codec=None), max_size=40),
    st.text("/\\. \0\u202ea文", max_size=20),
    st.text("./ab文 ", min_size=200, max_size=600),
)


@given(any_names)
@example("a" * 254 + " .")
def test_no_name_is_harmful_whatever_came(name: str) -> None:
    kept = plain_name(name)
    assert 0 < len(kept.encode()) <= MAX_NAME_BYTES
    assert not {"/", "\\"} & set(kept)
    assert set(kept) - {".", " "}
    assert kept == kept.strip()
    assert not [char for char in kept if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    assert plain_name(kept) == kept


# -- how much may be kept ----------------------------------------------------------------------------------


async def test_a_file_has_at_most_so_many_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path, max_file_bytes=1000) as store:
        assert (await store.create("ada", "x", "p", b"x" * 1000)).size_bytes == 1000
        for data in (b"x" * 1001, pieces(b"x" * 1000, b"x")):
            with pytest.raises(FileTooLarge, match="1,000 bytes") as refused:
                await store.create("ada", "x", "p", data)
            assert refused.value.message.endswith(".")
        assert len(blobs(tmp_path)) == 1


async def test_nothing_is_read_of_a_file_once_it_is_too_large(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for count in range(100):
            assert count < 11
            yield b"x" * 100

    async with opened(tmp_path, max_file_bytes=1000) as store:
        with pytest.raises(FileTooLarge):
            await store.create("ada", "x", "p", endless())
        await is_as_if_nothing_came(store, tmp_path)


async def test_an_owner_keeps_at_most_so_many_bytes(tmp_path: Path) -> None:
    calendar = Calendar()
    async with opened(tmp_path, quota_bytes=2500, now=calendar, ttl_s=60) as store:
        first = await store.create("ada", "x", "p", b"x" * 1000)
        await store.create("ada", "x", "p", b"x" * 1000)
        with pytest.raises(QuotaExceeded, match=r"2,000 bytes .* 2,500") as refused:
            await store.create("ada", "x", "p", b"x" * 501)
        assert refused.value.message.endswith(".")
        await store.create("ada", "x", "p", b"x" * 500)
        await store.create("bob", "x", "p", b"x" * 1000)
        with pytest.raises(QuotaExceeded):
            await store.create("ada", "x", "p", b"x")
        await store.delete("ada", first.id)
        await store.create("ada", "x", "p", b"x" * 1000)
        calendar.now += 60
        await store.create("ada", "x", "p", b"x" * 1000)


async def test_an_owner_keeps_at_most_so_many_files(tmp_path: Path) -> None:
    """Else empty ones would cost nothing."""
    async with opened(tmp_path, max_files=2) as store:
        first = await store.create("ada", "x", "p", b"")
        await store.create("ada", "x", "p", b"")
        await store.create("bob", "x", "p", b"")
        with pytest.raises(QuotaExceeded, match="2 files"):
            await store.create("ada", "x", "p", b"")
        await store.delete("ada", first.id)
        await store.create("ada", "x", "p", b"")
        assert len(blobs(tmp_path)) == 3


async def test_what_is_still_coming_counts_in_every_process(tmp_path: Path) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 600
        begun.set()
        await go_on.wait()
        yield b"x" * 300

    async with (
        opened(tmp_path, quota_bytes=1000) as store,
        opened(tmp_path, quota_bytes=1000) as other,
        anyio.create_task_group() as group,
    ):
        group.start_soon(store.create, "ada", "slow", "p", slow())
        await begun.wait()
        assert await other.list("ada") == ([], False)
        with pytest.raises(QuotaExceeded, match=r"600 bytes"):
            await other.create("ada", "x", "p", b"x" * 401)
        await other.create("bob", "x", "p", b"x" * 401)
        await other.create("ada", "x", "p", b"x" * 100)
        go_on.set()
    assert sorted(map(len, [path.read_bytes() for path in (tmp_path / "blobs").iterdir()])) == [100, 401, 900]


@given(sizes=st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=4), min_size=2, max_size=12))
@settings(max_examples=20)
async def test_many_at_once_never_keep_more_than_the_quota(sizes: list[list[int]]) -> None:
    refused = 0

    async def create(store: FileStore, wanted: list[int]) -> None:
        nonlocal refused
        try:
            await store.create("ada", "x", "p", pieces(*(b"x" * size for size in wanted)))
        except QuotaExceeded:
            refused += 1

    with directory() as root:
        async with (
            opened(root, quota_bytes=1000, max_file_bytes=10_000) as store,
            opened(root, quota_bytes=1000, max_file_bytes=10_000) as other,
        ):
            async with anyio.create_task_group() as group:
                for number, wanted in enumerate(sizes):
                    group.start_soon(create, (store, other)[number % 2], wanted)
            files, _ = await other.list("ada")
            assert len(files) + refused == len(sizes)
            kept = sum(file.size_bytes for file in files)
            assert kept <= 1000
            assert refused == 0 or sum(map(sum, sizes)) > 1000
            assert sum(path.stat().st_size for path in (root / "blobs").iterdir()) == kept
            if kept < 1000:
                await store.create("ada", "x", "p", b"x" * (1000 - kept))


SEVERAL = """
import asyncio, sys
from pathlib import Path
from tools.files import FileStore, QuotaExceeded

async def main() -> None:
    store = FileStore(Path(sys.argv[1]), max_file_bytes=1000, quota_bytes=2000, ttl_s=None)
    kept = 0
    for _ in range(20):
        try:
            await store.create("ada", "x", "p", b"x" * 70)
            kept += 1
        except QuotaExceeded:
            pass
    await store.aclose()
    print(kept)

asyncio.run(main())
"""


def test_processes_that_share_a_root_share_the_quota(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SEVERAL, str(tmp_path)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    kept = [int(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum(kept) == len(blobs(tmp_path)) == 2000 // 70


# -- what did not come to its end --------------------------------------------------------------------------


async def test_content_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def fails() -> AsyncIterator[bytes]:
        yield b"x" * 500
        raise ZeroDivisionError

    async with opened(tmp_path) as store:
        with pytest.raises(ZeroDivisionError):
            await store.create("ada", "x", "p", fails())
        await is_as_if_nothing_came(store, tmp_path)


async def test_a_disk_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async def vanishes() -> AsyncIterator[bytes]:
        yield b"x" * 500
        (tmp_path / "blobs").rename(tmp_path / "elsewhere")

    async with opened(tmp_path) as store:
        with pytest.raises(OSError, match="No such file or directory"):
            await store.create("ada", "x", "p", vanishes())
        for path in (tmp_path / "elsewhere").iterdir():
            path.unlink()
        (tmp_path / "elsewhere").rename(tmp_path / "blobs")
        await is_as_if_nothing_came(store, tmp_path)


async def test_who_leaves_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    async def leaves() -> AsyncIterator[bytes]:
        yield b"x" * 500
        stopping.cancel()
        await anyio.sleep_forever()

    async with opened(tmp_path) as store:
        with anyio.CancelScope() as stopping:
            await store.create("ada", "x", "p", leaves())
        assert stopping.cancelled_caught
        await is_as_if_nothing_came(store, tmp_path)


@settings(max_examples=50)
@given(steps=st.integers(0, 40), size=st.sampled_from([0, 1, 3]))
async def test_a_task_that_is_cancelled_anywhere_leaves_all_or_nothing(steps: int, size: int) -> None:
    """By asyncio's own cancel, which waits for no thread."""
    with directory() as root:
        async with opened(root) as store:
            task = asyncio.create_task(store.create("ada", "x", "p", pieces(*[b"x" * 300] * size)))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                file = await task
                await store.delete("ada", file.id)
            await is_as_if_nothing_came(store, root)


STEPS: dict[str, Callable[[IncomingFile], object]] = {
    "begin": IncomingFile.begin,
    "add": lambda incoming: incoming.add(b"x"),
    "finish": IncomingFile.finish,
}


@pytest.mark.parametrize("done", [[], ["begin"], ["begin", "add"], ["begin", "add", "finish"]])
def test_whatever_comes_late_after_it_was_abandoned_does_nothing(tmp_path: Path, done: list[str]) -> None:
    """A thread may have been left alone just before its turn."""
    root = FileRoot(tmp_path, quota_bytes=1000, max_files=10)
    file = StoredFile("file-0", "ada", "x", "p", 0, 0, None, "")
    incoming = IncomingFile(file, root, 1000, time.time)
    for step in done:
        STEPS[step](incoming)
    incoming.abandon()
    for late in STEPS.values():
        late(incoming)
    incoming.abandon()
    assert root.index.living() == set()
    assert blobs(tmp_path) == []
    root.close()


def test_what_filled_the_disk_goes_though_the_index_cannot_write(tmp_path: Path) -> None:
    class Full(FileIndex):
        """On a disk where there is no room."""

        def forget(self, file_id: str) -> None:
            raise sqlite3.OperationalError("database or disk is full")

    root = FileRoot(tmp_path, quota_bytes=1000, max_files=10)
    root.index.close()
    root.index = Full(tmp_path / "files.db", quota_bytes=1000, max_files=10)
    incoming = IncomingFile(StoredFile("file-0", "ada", "x", "p", 0, 0, None, ""), root, 1000, time.time)
    incoming.begin()
    incoming.add(b"x")
    with pytest.raises(sqlite3.OperationalError):
        incoming.abandon()
    assert blobs(tmp_path) == []
    root.close()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_however_often_a_task_is_cancelled_nothing_is_left_of_its_file(times: int) -> None:
    with directory() as root:
        async with opened(root) as store:
            begun, never = asyncio.Event(), asyncio.Event()

            async def content() -> AsyncIterator[bytes]:
                yield b"x"
                begun.set()
                await never.wait()

            task = asyncio.create_task(store.create("ada", "x", "p", content()))
            await begun.wait()
            for _ in range(times):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            await is_as_if_nothing_came(store, root)


# -- who sees it -------------------------------------------------------------------------------------------


async def refusals(store: FileStore, owner: str, file_id: str) -> set[str]:
    """What each way to a file that is not to be seen answers."""
    said = set()
    for way in (
        store.get(owner, file_id),
        store.path(owner, file_id),
        store.delete(owner, file_id),
    ):
        with pytest.raises(NoSuchFile) as refused:
            await way
        said.add(refused.value.message.replace(file_id, "ID"))
    return said


async def test_unknown_expired_deleted_and_anothers_files_are_the_same(tmp_path: Path) -> None:
    calendar = Calendar()
    async with opened(tmp_path, now=calendar) as store:
        bobs = await store.create("bob", "x", "p", b"x")
        deleted = await store.create("ada", "x", "p", b"x")
        expired = await store.create("ada", "x", "p", b"x", expires_after_s=60)
        await store.delete("ada", deleted.id)
        calendar.now += 59.4
        assert await store.get("ada", expired.id) == expired
        calendar.now += 0.1
        for file_id in (bobs.id, deleted.id, expired.id, "file-" + "0" * 24, "../files.db"):
            assert await refusals(store, "ada", file_id) == {"No such file: ID."}
        assert await store.list("ada") == ([], False)
        assert await store.get("bob", bobs.id) == bobs


async def test_a_file_whose_bytes_were_taken_away_is_not_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await store.create("ada", "x", "p", b"x")
        (await store.path("ada", file.id)).unlink()
        with pytest.raises(NoSuchFile):
            await store.path("ada", file.id)
        await store.delete("ada", file.id)


@pytest.mark.parametrize(
    ("ttl_s", "wanted_s", "kept_s"), [(None, None, None), (60, None, 60), (None, 50, 50), (60, 50, 50), (60, 70, 60)]
)
async def test_a_file_is_kept_as_long_as_both_want_it(
    tmp_path: Path, ttl_s: int | None, wanted_s: int | None, kept_s: int | None
) -> None:
    async with opened(tmp_path, ttl_s=ttl_s) as store:
        file = await store.create("ada", "x", "p", b"x", expires_after_s=wanted_s)
    assert file.expires_at == (file.created_at + kept_s if kept_s else None)


async def test_stores_on_the_same_root_see_each_others_files(tmp_path: Path) -> None:
    async with opened(tmp_path) as store, opened(tmp_path) as other:
        file = await store.create("ada", "x", "p", b"x")
        assert await other.get("ada", file.id) == file
        assert await other.signed(file.id, await store.sign(file.id)) == file
        assert (await other.path("ada", file.id)).read_bytes() == b"x"
        await other.delete("ada", file.id)
        with pytest.raises(NoSuchFile):
            await store.get("ada", file.id)


async def test_files_outlive_the_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        file = await store.create("ada", "x", "p", b"x")
        signature = await store.sign(file.id)
    async with opened(tmp_path) as store:
        assert await store.signed(file.id, signature) == file


# -- lists -------------------------------------------------------------------------------------------------

purposes = st.sampled_from(["user_data", "vision"])


@given(
    created=st.lists(st.tuples(st.sampled_from(["ada", "bob"]), purposes), max_size=12),
    purpose=st.none() | purposes,
    limit=st.integers(1, 5),
    newest_first=st.booleans(),
    deletes=st.booleans(),
)
@settings(max_examples=40)
async def test_pages_hold_each_file_once_and_in_order(
    created: list[tuple[str, str]], purpose: str | None, limit: int, newest_first: bool, deletes: bool
) -> None:
    """Also if each is deleted before the next page is asked for."""
    with directory() as root:
        async with opened(root) as store:
            files = [await store.create(owner, "x", purpose, b"x") for owner, purpose in created]
            wanted = [file for file in files if file.owner == "ada" and purpose in (None, file.purpose)]
            seen: list[StoredFile] = []
            has_more = True
            while has_more:
                after = seen[-1].id if seen else None
                page, has_more = await store.list(
                    "ada", purpose=purpose, after=after, limit=limit, newest_first=newest_first
                )
                assert len(page) == limit if has_more else len(page) <= limit
                seen += page
                if deletes:
                    for file in page:
                        await store.delete("ada", file.id)
            assert seen == (wanted[::-1] if newest_first else wanted)


async def test_a_list_begins_behind_no_file_of_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        bobs = await store.create("bob", "x", "p", b"x")
        for after in (bobs.id, "file-" + "0" * 24):
            with pytest.raises(NoSuchFile):
                await store.list("ada", after=after)


# -- links -------------------------------------------------------------------------------------------------


@given(signature=st.text(max_size=30))
@example("é" * 22)
@settings(max_examples=30)
async def test_a_link_leads_to_its_file_and_no_other_text_does(signature: str) -> None:
    with directory() as root, directory() as elsewhere:
        async with opened(root) as store, opened(elsewhere) as foreign:
            file, other = [await store.create("ada", "x", "p", b"x") for _ in range(2)]
            right = await store.sign(file.id)
            assert re.fullmatch(r"[A-Za-z0-9_-]{22}", right)
            assert await store.signed(file.id, right) == file
            wrong = [signature, right[:-1], right + "=", right.swapcase(), await store.sign(other.id)]
            for text in [*wrong, await foreign.sign(file.id), "\ud800"]:
                with pytest.raises(NoSuchFile):
                    await store.signed(file.id, text)


async def test_a_link_ends_with_its_file(tmp_path: Path) -> None:
    calendar = Calendar()
    async with opened(tmp_path, now=calendar, ttl_s=60) as store:
        file, other = [await store.create("ada", "x", "p", b"x") for _ in range(2)]
        await store.delete("ada", file.id)
        for gone in (file, other):
            calendar.now += 60
            with pytest.raises(NoSuchFile):
                await store.signed(gone.id, await store.sign(gone.id))


# -- what is swept away ------------------------------------------------------------------------------------


async def test_a_sweep_takes_what_has_expired_and_what_belongs_to_no_file(tmp_path: Path) -> None:
    calendar = Calendar()
    async with opened(tmp_path, now=calendar) as store:
        kept = await store.create("ada", "x", "p", b"x")
        await store.create("ada", "x", "p", b"x", expires_after_s=60)
        for orphan in ("file-" + "0" * 24, "file-" + "1" * 24 + ".part"):
            (tmp_path / "blobs" / orphan).write_bytes(b"x")
        await store.sweep()
        assert len(blobs(tmp_path)) == 2
        calendar.now += 60
        await store.sweep()
        assert blobs(tmp_path) == [kept.id]


async def test_opening_and_creating_sweep_too(tmp_path: Path) -> None:
    calendar = Calendar()
    orphan = tmp_path / "blobs" / ("file-" + "0" * 24)
    async with opened(tmp_path, now=calendar):
        pass
    async with opened(tmp_path, now=calendar) as store:
        for passed_s, remains in ((0, False), (599, True), (1, False)):
            calendar.now += passed_s
            orphan.parent.mkdir(exist_ok=True)
            orphan.touch()
            await store.create("ada", "x", "p", b"x")
            assert orphan.exists() == remains


@pytest.mark.parametrize(("pause_s", "is_given_up"), [(HOUR_S - 1, False), (HOUR_S + 1, True)])
async def test_what_is_coming_is_swept_away_only_if_nothing_came_for_an_hour(
    tmp_path: Path, pause_s: int, is_given_up: bool
) -> None:
    calendar = Calendar()

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"x" * 100
            calendar.now += pause_s
            await other.sweep()

    async with opened(tmp_path, now=calendar) as store, opened(tmp_path, now=calendar) as other:
        if is_given_up:
            with pytest.raises(FileError, match="stood still"):
                await store.create("ada", "x", "p", slow())
            await is_as_if_nothing_came(other, tmp_path)
        else:
            assert (await store.create("ada", "x", "p", slow())).size_bytes == 300


async def test_a_file_that_was_given_up_before_its_last_piece_is_not_shown(tmp_path: Path) -> None:
    calendar = Calendar()

    async def too_slow() -> AsyncIterator[bytes]:
        yield b"x" * 100
        calendar.now += HOUR_S + 1
        await other.sweep()

    async with opened(tmp_path, now=calendar) as store, opened(tmp_path, now=calendar) as other:
        with pytest.raises(FileError, match="stood still"):
            await store.create("ada", "x", "p", too_slow())
        await is_as_if_nothing_came(other, tmp_path)


async def test_where_a_file_stood_in_a_list_is_forgotten_after_a_day(tmp_path: Path) -> None:
    calendar = Calendar()
    async with opened(tmp_path, now=calendar) as store:
        first, second = [await store.create("ada", "x", "p", b"x") for _ in range(2)]
        await store.delete("ada", second.id)
        calendar.now += DAY_S
        await store.sweep()
        assert await store.list("ada", after=second.id) == ([first], False)
        calendar.now += 1
        await store.sweep()
        with pytest.raises(NoSuchFile):
            await store.list("ada", after=second.id)


# -- a directory of its own --------------------------------------------------------------------------------


async def test_without_a_root_the_files_last_as_long_as_the_store() -> None:
    async with opened(None) as store:
        await store.sweep()
        file = await store.create("ada", "x", "p", b"x")
        await store.sweep()
        path = await store.path("ada", file.id)
        assert path.read_bytes() == b"x"
        assert stat.S_IMODE(path.parents[1].stat().st_mode) == 0o700
    assert not path.parents[1].exists()


async def test_a_closed_store_is_closed_for_good(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await store.list("ada")
    await store.aclose()


# -- images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begins", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"\x89PNG\n\x1a\n", None),
        (b"GIF88a", None),
        (b" GIF89a", None),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", None),
        (b"<!doctype html>", None),
        (b"BM", None),
        (b"", None),
    ],
)
def test_an_image_is_known_by_its_first_bytes(begins: bytes, kind: str | None) -> None:
    assert image_type(begins) == kind
    assert image_type(begins + bytes(100)) == kind
