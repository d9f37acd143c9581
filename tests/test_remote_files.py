"""Whatever a kernel answers when it is asked for its files, nothing comes of it but files, or none.

The other side is the text that kernels run, here run by us; that a real kernel runs it is in test_kernel_gateway.py.
"""

import base64
import json
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.errors import ToolError
from tools.kernels.remote_files import CHUNK_BYTES, WHERE, RemoteFiles
from tools.sandbox.workdir import Changed

T = TypeVar("T")

Ask = Callable[[str], Awaitable[str]]


async def _evaluated(expression: str) -> str:
    return str(eval(expression, {}))  # noqa: S307 - as a kernel does


def _answering(*answers: str) -> Ask:
    left = list(answers)

    async def ask(_: str) -> str:
        if not left:
            raise ToolError("The kernel does not answer.")
        return left.pop(0)

    return ask


def _files(directory: Path, **limits: Any) -> RemoteFiles:
    files = RemoteFiles(_evaluated, **{"max_files": 20, "max_bytes": 8 << 20, **limits})
    files.found(_ok(str(directory).encode()))
    return files


def _ok(data: bytes) -> str:
    return "ok:" + base64.b64encode(data).decode()


async def _news(files: RemoteFiles) -> dict[str, bytes]:
    return {file.name: b"".join([piece async for piece in files.read(file)]) for file in await files.changes()}


async def test_the_place_where_a_kernel_works_is_asked_of_it() -> None:
    assert await _evaluated(WHERE) == _ok(str(Path.cwd()).encode())


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
async def test_what_is_put_there_is_there_whole_and_no_news(tmp_path: Path, size_bytes: int) -> None:
    there, source = tmp_path / "there", tmp_path / "source"
    there.mkdir()
    source.write_bytes(bytes(index % 251 for index in range(size_bytes)))
    files = _files(there)
    await files.put("sub/it's \u6587\u4ef6.bin", source)
    assert (there / "sub" / "it's \u6587\u4ef6.bin").read_bytes() == source.read_bytes()
    assert [path.name for path in (there / "sub").iterdir()] == ["it's \u6587\u4ef6.bin"]
    assert await files.changes() == []


async def test_each_change_is_told_once(tmp_path: Path) -> None:
    files = _files(tmp_path)
    (tmp_path / "a").write_bytes(b"first")
    assert await _news(files) == {"a": b"first"}
    assert await files.changes() == []
    (tmp_path / "a").write_bytes(b"second")
    (tmp_path / "b").write_bytes(b"")
    assert await _news(files) == {"a": b"second", "b": b""}


async def test_as_many_files_are_told_as_may_be(tmp_path: Path) -> None:
    files = _files(tmp_path, max_files=2, max_bytes=3)
    for name in "cab":
        (tmp_path / name).write_bytes(name.encode() * (3 + (name == "b")))
    first, second = await files.changes()
    assert (first, second) == (Changed("a", "a", 3), Changed("b", "b", 4))
    assert [piece async for piece in files.read(first)] == [b"aaa"]
    with pytest.raises(ToolError, match=r"^It is longer than 3 bytes\.$"):
        await anext(files.read(second))
    assert files.left_out == 1


async def test_a_long_file_is_read_in_pieces_and_one_that_shrinks_to_its_end(tmp_path: Path) -> None:
    files = _files(tmp_path)
    content = os.urandom(2 * CHUNK_BYTES + 1)
    (tmp_path / "a").write_bytes(content)
    [file] = await files.changes()
    assert list(map(len, [piece async for piece in files.read(file)])) == [CHUNK_BYTES, CHUNK_BYTES, 1]
    reading = files.read(file)
    assert await anext(reading) == content[:CHUNK_BYTES]
    os.truncate(tmp_path / "a", CHUNK_BYTES + 10)
    assert b"".join([piece async for piece in reading]) == content[CHUNK_BYTES : CHUNK_BYTES + 10]


async def test_directories_into_which_nobody_looked_are_named(tmp_path: Path) -> None:
    files = _files(tmp_path)
    tmp_path.joinpath("a", *["d"] * 20).mkdir(parents=True)
    assert (await files.changes(), files.unread) == ([], ["a" + "/d" * 15])
    (tmp_path / "a").rename(tmp_path / ".hidden")
    assert (await files.changes(), files.unread) == ([], [])


async def test_of_more_names_than_are_looked_at_that_is_told(tmp_path: Path) -> None:
    files = _files(tmp_path)
    for number in range(10_001):
        (tmp_path / f"{number}").touch()
    assert (len(await files.changes()), files.unread) == (20, ["."])


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../x", "a//x", ".", "a\0b"])
async def test_a_name_that_leads_elsewhere_is_not_even_asked_for(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").write_bytes(b"x")
    asked: list[str] = []

    async def ask(expression: str) -> str:
        asked.append(expression)
        return "ok:"

    with pytest.raises(ToolError, match="no name that a file in the working directory can have"):
        await RemoteFiles(ask, max_files=1, max_bytes=1).put(name, tmp_path / "source")
    assert asked == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("error:28", "no room left in the working directory for 'a'"),
        ("error:27", "larger than a file may be there"),
        ("error:13", "cannot be put there: Permission denied"),
        ("error:x", "cannot be put there"),
        ("error:" + "9" * 5000, "cannot be put there"),
    ],
)
async def test_what_does_not_fit_is_told(tmp_path: Path, answer: str, said: str) -> None:
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(ToolError, match=said):
        await RemoteFiles(_answering(answer), max_files=1, max_bytes=1).put("a", tmp_path / "source")


async def test_a_directory_in_the_way_is_told(tmp_path: Path) -> None:
    files = _files(tmp_path)
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ToolError, match="'a' cannot be put there: "):
        await files.put("a", tmp_path / "source")
    assert set(os.listdir(tmp_path)) == {"a", "source"}  # noqa: PTH208


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
_entries = st.lists(
    st.tuples(
        st.text(max_size=12)
        | st.sampled_from(["../x", "/etc/passwd", "a/./b", ".x", "a\0", "a\n", "\udcff", "__pycache__/c"]),
        *[st.integers(min_value=-1, max_value=1 << 70)] * 4,
    ).map(list),
    max_size=6,
)


_answers = st.one_of(
    st.text(max_size=30),
    st.binary(max_size=60).map(_ok),
    _json.map(lambda told: _ok(json.dumps(told).encode())),
    st.tuples(_json | _entries, _json).map(
        lambda told: _ok(json.dumps(dict(zip(("files", "unread"), told, strict=True))).encode())
    ),
    st.just(_ok(b"[" * 100_000)),
)


@given(st.lists(_answers, max_size=8), st.integers(0, 5), st.integers(0, 1000))
def test_no_answer_raises_or_leads_elsewhere(answers: list[str], max_files: int, max_bytes: int) -> None:
    files = RemoteFiles(_answering(*answers), max_files=max_files, max_bytes=max_bytes)
    for made in (_run_to_its_end(files.changes()), _run_to_its_end(files.changes())):
        assert len(made) <= max_files
        assert not [path for path in files.unread if not path.encode() or "\n" in path or "\0" in path]
        for file in made:
            assert not {"", ".", "..", "__pycache__"} & set(file.name.split("/"))
            assert "\0" not in file.name and "\n" not in file.name
            assert file.name.encode()
            assert len(_run_to_its_end(_read(files, file))) <= min(file.size_bytes, max_bytes)


async def _read(files: RemoteFiles, file: Changed) -> bytes:
    try:
        return b"".join([piece async for piece in files.read(file)])
    except ToolError:
        return b""


def _run_to_its_end(coroutine: Coroutine[Any, Any, T]) -> T:
    # It waits for nothing but these answers, which are there.
    try:
        coroutine.send(None)
    except StopIteration as done:
        made: T = done.value
        return made
    raise AssertionError("it waits")
