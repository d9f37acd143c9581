"""The bytes of an event stream, taken apart without smoothing anything over.

Source: WHATWG HTML, "Server-sent events". An SDK's reader drops what it does not know; here it is kept, since it
is what a check looks for.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

DONE = "[DONE]"


@dataclass(frozen=True, slots=True)
class Stream:
    """One event stream.

    `payloads` is each event's data. `chunks` are those that are JSON objects, and `unread` those that are neither
    that nor `[DONE]`. `strays` are lines that are neither data nor a comment, `unended` is an event behind which
    there is no blank line.
    """

    payloads: tuple[str, ...] = ()
    chunks: tuple[Json, ...] = ()
    unread: tuple[str, ...] = ()
    strays: tuple[str, ...] = ()
    unended: str = ""


def read_stream(text: str) -> Stream:
    """The stream that the text holds; any text is one."""
    *lines, last = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    payloads: list[str] = []
    data: list[str] = []
    strays: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif name:
            strays.append(line)
        elif not line and data:
            payloads.append("\n".join(data))
            data.clear()
    read = [(payload, read_object(payload)) for payload in payloads]
    chunks = tuple(chunk for _, chunk in read if chunk is not None)
    unread = tuple(payload for payload, chunk in read if chunk is None and payload != DONE)
    return Stream(tuple(payloads), chunks, unread, tuple(strays), "\n".join([*data, last]))


def read_object(text: str) -> Json | None:
    """The JSON object that the text is, if it is one."""
    try:
        value = read_json(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def read_json(text: str, parse_float: Callable[[str], float] = float) -> Any:
    """The JSON value that the text is; ValueError if a strict reader would take offence."""
    try:
        return json.loads(text, parse_constant=_no_constant, parse_float=parse_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
