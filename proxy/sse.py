"""Bytes of a text/event-stream <-> the payloads of its `data:` lines.

Source: WHATWG HTML, "Server-sent events": lines end with LF, CR or CRLF and with nothing else, so bytes are
split, never decoded text (`str.splitlines` also cuts at U+2028 and U+0085, which stand in JSON unescaped).
"""

from typing import Any

import orjson

from proxy.errors import UpstreamBroken

DONE = b"[DONE]"

#: One event may be this long: a whole answer of 128 k tokens with its log probabilities is under 16 MiB.
MAX_EVENT_BYTES = 32 * 1024 * 1024


class Decoder:
    """Splits a byte stream into payloads, however it is cut.

    `feed` gives the payloads of the events that its bytes complete; comments and other fields are skipped.
    UpstreamBroken is raised for an event longer than `max_event_bytes`.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._held_bytes = 0
        self._skip_lf = False

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`; several `data:` lines of one event are joined with LF."""
        if self._skip_lf and data:
            data = data.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, newline, rest = data.partition(b"\n")
        self._hold(head)
        if not newline:
            return []
        lines = (b"".join(self._line) + newline + rest).split(b"\n")
        self._line = [lines.pop()]
        return self._payloads(lines)

    def _hold(self, piece: bytes) -> None:
        self._line.append(piece)
        self._held_bytes += len(piece)
        if self._held_bytes > self._max_event_bytes:
            raise UpstreamBroken("The upstream sent one event that is too long to be an answer.")

    def _payloads(self, lines: list[bytes]) -> list[bytes]:
        payloads = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                payloads.append(b"\n".join(self._data))
                self._data = []
        self._held_bytes = len(self._line[0]) + sum(map(len, self._data))
        return payloads

    def close(self) -> list[bytes]:
        """The payload of a last event whose blank line is missing, as some servers end with it."""
        return self.feed(b"\n\n")


def to_json(payload: Any) -> bytes:
    """The payload as JSON. UpstreamBroken if some field of the upstream's in it cannot be written."""
    try:
        return orjson.dumps(payload)
    except orjson.JSONEncodeError:
        raise UpstreamBroken("The upstream sent a field that cannot be passed on; it is nested too deeply.") from None


def encode(payload: Any) -> bytes:
    """One event that carries `payload` as JSON."""
    return b"data: " + to_json(payload) + b"\n\n"


def encode_done() -> bytes:
    """The event that ends a complete stream."""
    return b"data: " + DONE + b"\n\n"
