"""What came back: the body, unpacked within bounds, and how its text, its JSON and its status are read."""

import codecs
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from tools.destinations import Origin
from tools.errors import RetryableToolError, ToolError

#: zlib's wbits for gzip: its largest window, 15, and 16 for gzip's own header.
_GZIP = 16 + 15

#: Statuses of servers that are busy or away for a moment.
_PASSING = frozenset({429, 502, 503, 504})

#: Codecs of Python's that no website is in: their time grows with the square of the text, or they read escapes.
_NO_CHARSETS = frozenset({"idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})

_CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:-]+)""", re.ASCII | re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,60}/[\w.+-]{1,60}", re.ASCII)


@dataclass(frozen=True)
class Fetched:
    """An answer. `url` is the last one of the redirects; header names are lower-case."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def text(self) -> str:
        """The body as text, by the charset that the server names, else as UTF-8; what does not fit becomes U+FFFD."""
        named = _CHARSET.search(self.headers.get("content-type", ""))
        charset = named.group(1) if named else "utf-8"
        try:
            text = self.body.decode("utf-8" if codecs.lookup(charset).name in _NO_CHARSETS else charset, "replace")
        except LookupError:  # which is also raised for codecs that are for no text
            text = self.body.decode("utf-8", "replace")
        return text.removeprefix("\ufeff")

    def json(self) -> Any:
        """The body as JSON. ToolError if it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise ToolError(f"{self._origin} did not answer with JSON.") from None

    def raise_for_status(self) -> None:
        """RetryableToolError for 429, 502, 503 and 504, and ToolError for any other status that is no success."""
        if 200 <= self.status < 300:
            return
        said = f"{self._origin} answered with the status {_named(self.status)}."
        if self.status in _PASSING:
            raise RetryableToolError(said, retry_after_s=_retry_after_s(self.headers))
        raise ToolError(said)

    def check_type(self, types: Sequence[str]) -> None:
        """ToolError if the body is of none of `types`; one that ends with a slash stands for all that begin so."""
        media_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if types and not any(
            media_type == each or (each.endswith("/") and media_type.startswith(each)) for each in types
        ):
            said = media_type if _MEDIA_TYPE.fullmatch(media_type) else "something of an unknown type"
            raise ToolError(f"{self._origin} sent {said}; only these are read: {', '.join(types)}.")

    @property
    def _origin(self) -> Origin:
        return Origin.of(httpx.URL(self.url))


class Body:
    """A body on its way in, of at most `max_bytes`, as it was sent and as it is unpacked.

    ToolError for one that is longer, and for one that is packed in another way than gzip, or badly.
    """

    def __init__(self, origin: Origin, encoding: str, max_bytes: int) -> None:
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise ToolError(f"{origin} sent what it was not asked for: a body that is not packed with gzip.")
        self._origin = origin
        self._max_bytes = max_bytes
        self._gzip = zlib.decompressobj(_GZIP) if "gzip" in encoding else None
        self._body = bytearray()
        self._received_bytes = 0

    def feed(self, data: bytes) -> None:
        """Takes a piece, as it was sent."""
        self._received_bytes += len(data)
        self._body += self._unpacked(data) if self._gzip else data
        if max(self._received_bytes, len(self._body)) > self._max_bytes:
            raise ToolError(f"{self._origin} sent more than the {self._max_bytes:,} bytes that are read.")

    def close(self) -> bytes:
        """The whole."""
        if self._gzip and self._received_bytes and not self._gzip.eof:
            raise self._broken()
        return bytes(self._body)

    def _unpacked(self, data: bytes) -> bytes:
        assert self._gzip is not None
        try:
            # Never 0, which zlib takes for no bound.
            return self._gzip.decompress(data, self._max_bytes + 1 - len(self._body))
        except zlib.error:
            raise self._broken() from None

    def _broken(self) -> ToolError:
        return ToolError(f"{self._origin} sent a body that cannot be unpacked.")


def _named(status: int) -> str:
    try:
        return f"{status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return str(status)


def _retry_after_s(headers: Mapping[str, str]) -> float:
    # It may be a date, too, which would need a clock that agrees with the server's. More digits than these are years.
    said = headers.get("retry-after", "")
    return float(said) if re.fullmatch(r"[0-9]{1,6}", said) else 0.0
