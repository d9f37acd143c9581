"""Bytes of a text/event-stream <-> the payloads of its `data:` lines.

Source: WHATWG HTML, "Server-sent events": lines end with LF, CR or CRLF and with nothing else, so bytes are
split, never decoded text (`str.splitlines` also cuts at U+2028 and U+0085, which stand in JSON unescaped).
"""

from typing import Any

import orjson

from proxy.errors import UpstreamBroken

DONE = b"[DONE]"

#: Keeps a connection awake, and is nothing to whoever reads the events.
COMMENT = b": waiting\n\n"

#: One event may be this long: a whole answer of 128 k tokens with its log probabilities is under 16 MiB.
MAX_EVENT_BYTES = 32 * 1024 * 1024


class Decoder:
    """Splits a byte stream into payloads, however it is cut.

    `feed` gives the payloads of the events that its bytes complete; comments and other fields are skipped.
    UpstreamBroken is raised for an event longer than `max_event_bytes`.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._held: list[bytes] = []
        self._data: list[bytes] = []
        self._held_bytes = 0
        self._skip_lf = False

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`; several `data:` lines of one event are joined with LF."""
        if self._skip_lf or b"\r" in data:
            data = self._with_lf_only(data)
        lines = data.split(b"\n")
        last = lines.pop()
        if lines and self._held:
            lines[0] = b"".join([*self._held, lines[0]])
            self._held.clear()
        payloads: list[bytes] = []
        for line in lines:
            if not line:
                self._end_event(payloads)
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line.startswith(b" ", 5) else line[5:])
        if last or self._data:
            self._hold(last)
        return payloads

    def _with_lf_only(self, data: bytes) -> bytes:
        # A CRLF may be cut between two reads.
        if self._skip_lf and data:
            data = data.removeprefix(b"\n")
            self._skip_lf = False
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _end_event(self, payloads: list[bytes]) -> None:
        if self._data:
            payloads.append(b"\n".join(self._data))
            self._data.clear()
        self._held_bytes = 0

    def _hold(self, last: bytes) -> None:
        self._held.append(last)
        self._held_bytes += len(last)
        if self._held_bytes + sum(map(len, self._data)) > self._max_event_bytes:
            raise UpstreamBroken("The upstream sent one event that is too long to be an answer.")

    def close(self) -> list[bytes]:
        """The payload of a last event whose blank line is missing, as some servers end with it."""
        return self.feed(b"\n\n")


def encode(payload: Any) -> bytes:
    """One event that carries `payload` as JSON."""
    return b"data: " + to_json(payload) + b"\n\n"


def to_json(payload: Any) -> bytes:
    """The payload as JSON. UpstreamBroken if some field of the upstream's in it cannot be written."""
    try:
        return orjson.dumps(payload)
    except orjson.JSONEncodeError:
        raise UpstreamBroken("The upstream sent a field that cannot be passed on; it is nested too deeply.") from None


def encode_done() -> bytes:
    """The event that ends a complete stream."""
    return b"data: " + DONE + b"\n\n"
