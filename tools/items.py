"""What a tool returns beside plain text: items of text, image or file, and details for programs.

Images and files come by a URL, or as bytes, which are then stored and get a link.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TextItem:
    """A piece of text."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageItem:
    """An image: at a `url`, or its bytes as `data`. `name` is its file name; what it shows is read off the bytes."""

    url: str | None = None
    data: bytes | None = None
    name: str = "image.png"


@dataclass(frozen=True, slots=True)
class FileItem:
    """A file: at a `url`, or its bytes as `data`."""

    name: str
    url: str | None = None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class Details:
    """What the caller's program is told of the call, and the model is not; JSON can hold it."""

    data: Mapping[str, Any]


ContentItem = TextItem | ImageItem | FileItem | Details

#: What a call may return: text, items, or anything that JSON can hold.
ToolOutput = str | ContentItem | Sequence[ContentItem] | Mapping[str, Any] | Sequence[Any] | int | float | bool | None


def as_items(output: ToolOutput) -> list[ContentItem]:
    """A call's output as items. TypeError for what neither is an item nor fits into JSON."""
    if isinstance(output, str):
        return [TextItem(output)]
    if isinstance(output, ContentItem):
        return [_checked(output)]
    if isinstance(output, list | tuple) and output and all(isinstance(item, ContentItem) for item in output):
        return [_checked(item) for item in output]
    return [TextItem(_as_json(output))]


def to_json(items: Sequence[ContentItem]) -> list[dict[str, Any]]:
    """The items as JSON has them; bytes in base64."""
    return [_written(item) for item in items]


def from_json(written: Sequence[Mapping[str, Any]]) -> list[ContentItem]:
    """The items that `to_json` wrote. KeyError, TypeError or ValueError for what is none."""
    return [_read(item) for item in written]


def _checked(item: ContentItem) -> ContentItem:
    # As JSON has them: numbers as keys are texts there, and tuples are lists.
    return Details(json.loads(_as_json(item.data))) if isinstance(item, Details) else item


def _as_json(output: Any) -> str:
    try:
        return json.dumps(output, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise TypeError(f"a tool returned what JSON cannot hold: {error}") from None


def _written(item: ContentItem) -> dict[str, Any]:
    if isinstance(item, TextItem):
        return {"text": item.text}
    if isinstance(item, Details):
        return {"details": dict(item.data)}
    data = None if item.data is None else base64.b64encode(item.data).decode()
    return {
        "kind": "image" if isinstance(item, ImageItem) else "file",
        "name": item.name,
        "url": item.url,
        "data": data,
    }


def _read(item: Mapping[str, Any]) -> ContentItem:
    if "text" in item:
        return TextItem(str(item["text"]))
    if "details" in item:
        return Details(dict(item["details"]))
    data = None if item["data"] is None else base64.b64decode(item["data"], validate=True)
    if item["kind"] == "image":
        return ImageItem(item["url"], data, item["name"])
    return FileItem(item["name"], item["url"], data)
