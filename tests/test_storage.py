"""The tool `storage`, called as a model calls it: what it keeps, what it refuses, and that nobody reads another's."""

import asyncio
import json
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.base import InvalidArguments, RetryableToolError, ToolContext, ToolError
from tools.registry import get_tool

Storage = get_tool("storage")

any_text = st.text(st.characters(exclude_categories=()), max_size=12)
#: What could be a way out of one's own keys.
paths = st.lists(st.sampled_from(["a", "b", "notes", ".", "..", "", "\x00", "*", "storage"]), max_size=5).map("/".join)


@asynccontextmanager
async def storage(**options: Any) -> AsyncIterator[Any]:
    """One with these options: `await ask("ada", operation="get", key="x")`."""
    async with aclosing(Storage(**options)) as tool:

        async def ask(caller: str, **arguments: Any) -> Any:
            return await tool.call(json.dumps(arguments), context=ToolContext(caller=caller), lang="en")

        yield ask


async def test_it_puts_gets_scans_and_deletes() -> None:
    async with storage() as ask:
        assert await ask("ada", operation="put", key="notes/today", value="Rain.") == (
            "Stored 5 bytes under 'notes/today'."
        )
        assert await ask("ada", operation="put", key="notes/today", value="太阳") == (
            "Stored 6 bytes under 'notes/today', in place of what was there."
        )
        assert await ask("ada", operation="get", key="notes/today") == "太阳"
        assert await ask("ada", operation="scan") == {"keys": ["notes/today"]}
        assert await ask("ada", operation="delete", key="notes/today") == "Deleted 'notes/today'."
        assert await ask("ada", operation="scan") == {"keys": []}


async def test_it_works_without_a_context() -> None:
    tool = Storage()
    assert tool.is_async
    await tool.call({"operation": "put", "key": "k", "value": ""})
    assert await tool.call({"operation": "get", "key": "k"}, context=ToolContext()) == ""
    await tool.aclose()


async def test_one_that_was_never_called_has_nothing_to_close(tmp_path: Path) -> None:
    await Storage(url=f"sqlite:///{tmp_path}/storage.db").aclose()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - Path's own way is refused in what is async


async def test_callers_do_not_see_each_others_keys() -> None:
    async with storage() as ask:
        await ask("ada", operation="put", key="secret", value="adas")
        await ask("bob", operation="put", key="secret", value="bobs")
        assert await ask("ada", operation="get", key="secret") == "adas"
        await ask("bob", operation="delete", key="secret")
        assert await ask("ada", operation="scan") == {"keys": ["secret"]}
        assert await ask("bob", operation="scan") == {"keys": []}


@given(
    operation=st.sampled_from(["get", "put", "delete", "scan"]),
    caller=st.sampled_from(["ada/a", "", "ad", "ada/", "*", "\ud83d"]) | any_text,
    key=paths | any_text,
    after=paths | any_text,
)
async def test_whatever_is_asked_it_answers_and_nothing_of_another_caller_is_read_or_changed(
    operation: str, caller: str, key: str, after: str
) -> None:
    async with storage() as ask:
        await ask("ada", operation="put", key="a/b", value="adas")
        try:
            said = await ask(f"not ada: {caller}", operation=operation, key=key, value="mine", after=after)
        except ToolError as error:
            said = error.message
            assert said.endswith(".")
        assert "adas" not in str(said)
        assert said == {"keys": []} or operation != "scan" or isinstance(said, str)
        assert await ask("ada", operation="get", key="a/b") == "adas"
        assert await ask("ada", operation="scan") == {"keys": ["a/b"]}


@given(key=paths | any_text)
async def test_a_key_that_is_taken_is_found_again_under_its_own_name(key: str) -> None:
    async with storage() as ask:
        try:
            await ask("ada", operation="put", key=key, value="x")
        except ToolError:
            return
        [name] = (await ask("ada", operation="scan"))["keys"]
        assert await ask("ada", operation="get", key=name) == "x"
        assert await ask("ada", operation="get", key=key) == "x"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("", "The parameter 'key' is missing"),
        ("/etc/passwd", "must not begin or end with '/'"),
        ("notes/", "must not begin or end with '/'"),
        ("a//b", "nor have '//'"),
        ("../../etc/passwd", "'..'"),
        ("a/../b", "'..'"),
        ("./a", "'.'"),
        ("a\nb", "a line break or another control character"),
        ("a\u2028b", "a line break or another control character"),
        ("a\x00b", "a line break or another control character"),
        ("a\ud83d", "a line break or another control character"),
        ("x" * 201, "200 characters at most"),
    ],
)
@pytest.mark.parametrize("operation", ["put", "get", "delete"])
async def test_a_key_that_is_none_is_told(operation: str, key: str, told: str) -> None:
    async with storage() as ask:
        with pytest.raises(ToolError) as refused:
            await ask("ada", operation=operation, key=key, value="x")
        assert told in refused.value.message


@pytest.mark.parametrize("key", ["x" * 200, "...", "a/.b/..c", "日记/今天", "with blanks", "*[?]\\"])
async def test_what_only_looks_strange_is_a_key(key: str) -> None:
    async with storage() as ask:
        await ask("ada", operation="put", key=key, value="x")
        assert await ask("ada", operation="scan") == {"keys": [key]}


async def test_what_looks_the_same_is_the_same_key() -> None:
    async with storage() as ask:
        await ask("ada", operation="put", key="caf\u00e9", value="x")
        assert await ask("ada", operation="get", key="cafe\u0301") == "x"
        assert await ask("ada", operation="scan", key="cafe\u0301") == {"keys": ["caf\u00e9"]}


@pytest.mark.parametrize("operation", ["get", "delete"])
async def test_a_missing_key_is_told_with_those_like_it(operation: str) -> None:
    async with storage() as ask:
        await ask("ada", operation="put", key="notes/today", value="x")
        await ask("ada", operation="put", key="budget", value="x")
        with pytest.raises(ToolError) as missing:
            await ask("ada", operation=operation, key="notes/Today")
        assert missing.value.message == "There is no key 'notes/Today'. There are similar ones: 'notes/today'."
        with pytest.raises(ToolError) as missing:
            await ask("ada", operation=operation, key="xyz")
        assert missing.value.message == "There is no key 'xyz'."


async def test_a_long_list_comes_in_pages() -> None:
    names = [f"log/{number:03}" for number in range(250)]
    async with storage() as ask:
        await ask("ada", operation="put", key="a", value="x")
        for name in names:
            await ask("ada", operation="put", key=name, value="x")
        first = await ask("ada", operation="scan", key="log/")
        assert first == {"keys": names[:100], "note": "There are more: scan again with 'after' set to 'log/099'."}
        second = await ask("ada", operation="scan", key="log/", after="log/099")
        assert second["keys"] == names[100:200]
        assert await ask("ada", operation="scan", key="log/", after="log/199") == {"keys": names[200:]}
        exactly = await ask("ada", operation="scan", key="log/0")
        assert exactly == {"keys": names[:100]}


async def test_a_value_may_be_so_long_and_no_longer() -> None:
    async with storage(max_value_bytes=6) as ask:
        await ask("ada", operation="put", key="k", value="太阳")
        with pytest.raises(ToolError, match="The value has 7 bytes and may have 6 at most"):
            await ask("ada", operation="put", key="k", value="太阳!")
        assert await ask("ada", operation="get", key="k") == "太阳"


async def test_a_caller_has_so_many_keys_and_no_more_however_many_come_at_once(tmp_path: Path) -> None:
    async with storage(url=f"sqlite:///{tmp_path}/storage.db", max_keys=3) as ask:
        asked = [ask("ada", operation="put", key=str(number), value="x") for number in range(10)]
        said = await asyncio.gather(*asked, return_exceptions=True)
        refused = [error for error in said if not isinstance(error, str)]
        assert [str(error) for error in refused] == [
            "There are 3 keys, and there cannot be more; delete some first."
        ] * 7
        [first, *_] = kept = (await ask("ada", operation="scan"))["keys"]
        assert len(kept) == 3
        await ask("ada", operation="put", key=first, value="y")
        await ask("bob", operation="put", key="another's", value="x")
        await ask("ada", operation="delete", key=first)
        await ask("ada", operation="put", key="another", value="x")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"operation": "put", "key": "k"}, "'value' is missing"),
        ({"operation": "get"}, "'key' is missing"),
        ({}, "'operation' is a required property"),
        ({"operation": "list"}, "'list' is not one of"),
        ({"operation": "put", "key": "k", "value": {"a": 1}}, "is not of type 'string'"),
        ({"operation": "get", "path": "k"}, "'path' was unexpected"),
    ],
)
async def test_what_is_missing_or_wrong_is_told(arguments: dict[str, Any], told: str) -> None:
    async with storage() as ask:
        with pytest.raises(ToolError) as refused:
            await ask("ada", **arguments)
        assert told in refused.value.message


async def test_arguments_that_do_not_fit_the_schema_are_invalid() -> None:
    async with storage() as ask:
        with pytest.raises(InvalidArguments):
            await ask("ada", operation="list")


async def test_what_is_in_a_file_is_there_the_next_time(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/storage.db"
    async with storage(url=url) as ask:
        await ask("ada", operation="put", key="notes/today", value="Rain.")
    async with storage(url=url) as ask:
        assert await ask("ada", operation="get", key="notes/today") == "Rain."
    # Closed, or there would be its log beside it.
    assert os.listdir(tmp_path) == ["storage.db"]  # noqa: PTH208


async def test_a_store_that_cannot_be_opened_may_be_tried_again_and_is_told_to_the_log_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "storage.db"
    path.write_bytes(b"no database " * 100)
    async with storage(url=f"sqlite:///{path}") as ask:
        with caplog.at_level(logging.WARNING), pytest.raises(RetryableToolError) as failed:
            await ask("ada", operation="scan")
        assert failed.value.message == "The storage does not work at the moment."
        assert str(path) in caplog.text
        path.unlink()
        assert await ask("ada", operation="scan") == {"keys": []}


async def test_a_store_that_fails_later_is_told_in_one_sentence(tmp_path: Path) -> None:
    async with storage(url=f"sqlite:///{tmp_path}/storage.db") as ask:
        await ask("ada", operation="scan")
        with closing(sqlite3.connect(tmp_path / "storage.db")) as db:
            db.execute("DROP TABLE entries")
        with pytest.raises(RetryableToolError, match=r"^The storage does not work at the moment\.$"):
            await ask("ada", operation="get", key="k")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"url": "http://:secret@host"}, "'url': Value error, a store's URL is 'memory:'"),
        ({"url": "redis://:secret@host:port"}, "'url': Value error, the URL of Redis"),
        ({"max_keys": 0}, "'max_keys': "),
        ({"root": "/srv"}, "'root': there is no such option"),
    ],
)
def test_wrong_options_are_told_without_the_password(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as refused:
        Storage(**options)
    assert told in str(refused.value)
    assert "secret" not in str(refused.value)


def test_nothing_of_it_is_cached_and_its_schema_tells_of_all_parameters() -> None:
    tool = Storage()
    assert not tool.cacheable
    assert tool.private
    properties = tool.function["parameters"]["properties"]
    assert list(properties) == ["operation", "key", "value", "after"]
    assert all(rule["description"] for rule in properties.values())
