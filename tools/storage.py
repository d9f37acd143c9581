"""The tool `storage`: texts under keys such as `notes/today`, for each caller its own.

Source: the operations of Qwen-Agent's `qwen_agent/tools/storage.py` (put, get, delete, scan). There a key is a path on
the disk; here it is a name in a store, and no way out of it.
"""

import asyncio
import difflib
import hashlib
import logging
import unicodedata
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from tools.base import BaseTool, RetryableToolError, ToolContext, ToolError, ToolOptions, register_tool
from tools.parameters import Parameters
from tools.stores import Store, StoreError, checked_url, open_store

logger = logging.getLogger(__name__)

#: Long enough for any path that a model thinks of; with the caller's prefix it stays below the limit of a store's keys.
_MAX_KEY = 200

#: So many keys are told at once: a model that needs more asks for the next ones.
_PAGE = 100

#: So many similar keys are told when one is missing.
_SIMILAR = 3

#: Control characters, halves of surrogate pairs, and the separators of lines and paragraphs.
_NOT_IN_A_KEY = ("Cc", "Cs", "Zl", "Zp")

_PARAMETERS: Parameters = {
    "type": "object",
    "properties": {
        "operation": {
            "type": "string",
            "enum": ["put", "get", "delete", "scan"],
            "description": "What to do.",
        },
        "key": {
            "type": "string",
            "description": "The key, for example 'notes/today'. For 'scan': what the keys begin with, for example"
            " 'notes/'; leave it out to list all keys.",
        },
        "value": {"type": "string", "description": "The text to store; for 'put' only."},
        "after": {
            "type": "string",
            "description": "For 'scan' only: list the keys behind this one, to go on with a long list.",
        },
    },
    "required": ["operation"],
    "additionalProperties": False,
}


class StorageOptions(ToolOptions):
    """Where the texts are kept, and how many."""

    url: Annotated[str, AfterValidator(checked_url)] = Field(
        "memory:",
        description="'memory:' (lost when the server ends), 'sqlite:///path.db' (stays), or 'redis://host:port/0'"
        " (stays, and is shared by several servers).",
    )
    max_bytes: int = Field(
        256 * 1024**2,
        gt=0,
        description="So much is held for all callers together, in memory or SQLite; what was not used for the longest"
        " goes first.",
    )
    max_value_bytes: int = Field(100_000, gt=0, description="The longest text, in bytes of UTF-8.")
    max_keys: int = Field(1_000, gt=0, description="So many keys may each caller have.")


@register_tool("storage")
class Storage(BaseTool):
    """Puts, gets, deletes and lists texts. Callers cannot name each other's keys; without a caller's name all share."""

    description = (
        "Stores texts under keys, so that they can be read again later, in other conversations, too. Keys are like"
        " paths, for example 'notes/today'. Operations: 'put' stores 'value' under 'key' (replacing what is there),"
        " 'get' reads it, 'delete' removes it, and 'scan' lists the keys that begin with 'key'."
    )
    parameters = _PARAMETERS
    timeout_s = 15.0
    Options = StorageOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._store: Store | None = None
        self._opening = asyncio.Lock()
        # Two new keys at the same time could each be the last one that may be.
        self._counting = asyncio.Lock()

    async def call(self, params: Any, **kwargs: Any) -> str | dict[str, Any]:
        """See BaseTool."""
        arguments = self.validate_parameters(params)
        context: ToolContext = kwargs.get("context") or ToolContext()
        operations: dict[str, Callable[[_Shelf, dict[str, Any]], Awaitable[str | dict[str, Any]]]] = {
            "put": self._put,
            "get": _get,
            "delete": _delete,
            "scan": _scan,
        }
        try:
            shelf = _Shelf(await self._opened(), context.caller)
            return await operations[arguments["operation"]](shelf, arguments)
        except StoreError as error:
            logger.warning("the tool storage does not work: %s", error)
            raise RetryableToolError("The storage does not work at the moment.") from None

    async def aclose(self) -> None:
        """See BaseTool."""
        if self._store:
            await self._store.aclose()

    async def _opened(self) -> Store:
        # At the first call, so that who only lists the tools makes no file.
        async with self._opening:
            if self._store is None:
                opening = partial(open_store, self.options.url, max_bytes=self.options.max_bytes)
                self._store = await asyncio.to_thread(opening)
            return self._store

    async def _put(self, shelf: "_Shelf", arguments: dict[str, Any]) -> str:
        key = _key(arguments)
        if "value" not in arguments:
            raise ToolError("The parameter 'value' is missing: 'put' needs the text to store.")
        value = arguments["value"].encode("utf-8", "replace")
        if len(value) > self.options.max_value_bytes:
            raise ToolError(
                f"The value has {len(value):,} bytes and may have {self.options.max_value_bytes:,} at most;"
                " store a shorter text, or several under different keys."
            )
        async with self._counting:
            is_new = await shelf.get(key) is None
            if is_new and len(await shelf.keys("", limit=self.options.max_keys)) >= self.options.max_keys:
                raise ToolError(
                    f"There are {self.options.max_keys:,} keys, and there cannot be more; delete some first."
                )
            await shelf.put(key, value)
        return f"Stored {len(value):,} bytes under {key!r}{'' if is_new else ', in place of what was there'}."


class _Shelf:
    """The part of the store that is one caller's; no key of another's begins with its hash."""

    def __init__(self, store: Store, caller: str) -> None:
        self._store = store
        self._prefix = f"storage/{hashlib.sha256(caller.encode('utf-8', 'surrogatepass')).hexdigest()}/"

    async def get(self, key: str) -> bytes | None:
        return await self._store.get(self._prefix + key)

    async def put(self, key: str, value: bytes) -> None:
        await self._store.put(self._prefix + key, value)

    async def delete(self, key: str) -> bool:
        return await self._store.delete(self._prefix + key)

    async def keys(self, beginning: str, *, after: str = "", limit: int) -> list[str]:
        found = await self._store.scan(self._prefix + beginning, after=self._prefix + after, limit=limit)
        return [key.removeprefix(self._prefix) for key in found]


async def _get(shelf: _Shelf, arguments: dict[str, Any]) -> str:
    key = _key(arguments)
    value = await shelf.get(key)
    if value is None:
        raise await _missing(shelf, key)
    return value.decode()


async def _delete(shelf: _Shelf, arguments: dict[str, Any]) -> str:
    key = _key(arguments)
    if not await shelf.delete(key):
        raise await _missing(shelf, key)
    return f"Deleted {key!r}."


async def _scan(shelf: _Shelf, arguments: dict[str, Any]) -> dict[str, Any]:
    beginning, after = _text(arguments, "key"), _text(arguments, "after")
    keys = await shelf.keys(beginning, after=after, limit=_PAGE + 1)
    if len(keys) <= _PAGE:
        return {"keys": keys}
    page = keys[:_PAGE]
    return {"keys": page, "note": f"There are more: scan again with 'after' set to {page[-1]!r}."}


async def _missing(shelf: _Shelf, key: str) -> ToolError:
    # One page of keys, and in a thread: to compare long ones may take a third of a second, for a thousand three.
    keys = await shelf.keys("", limit=_PAGE)
    similar = await asyncio.to_thread(difflib.get_close_matches, key, keys, _SIMILAR)
    names = ", ".join(map(repr, similar))
    return ToolError(f"There is no key {key!r}.{f' There are similar ones: {names}.' if similar else ''}")


def _key(arguments: dict[str, Any]) -> str:
    key = _text(arguments, "key")
    if not key:
        raise ToolError("The parameter 'key' is missing: write for example 'notes/today'.")
    if any(segment in ("", ".", "..") for segment in key.split("/")):
        raise ToolError(
            f"{key!r} cannot be a key: it must not begin or end with '/', nor have '//', '.' or '..' in it;"
            " write for example 'notes/today'."
        )
    return key


def _text(arguments: dict[str, Any], name: str) -> str:
    # One form of writing, so that what looks the same is the same.
    text = unicodedata.normalize("NFC", arguments.get(name, ""))
    if len(text) > _MAX_KEY:
        raise ToolError(f"The parameter {name!r} is too long: a key has {_MAX_KEY} characters at most.")
    if any(unicodedata.category(character) in _NOT_IN_A_KEY for character in text):
        raise ToolError(
            f"The parameter {name!r} has a line break or another control character in it; write it without."
        )
    return text
