"""Any text that came as a file's name -> a name that harms nobody: one segment, which is shown as it is."""

import re
import unicodedata

#: The most that Linux's file systems take, so that whoever downloads the file can keep its name.
MAX_NAME_BYTES = 255

#: A longer ending is none that tells what the file is.
_MAX_ENDING_BYTES = 16

_NAMELESS = "file"

_SEPARATOR = re.compile(r"[/\\]")

#: Controls, lone surrogates, and what ends a line.
_UNSHOWN = frozenset(("Cc", "Cs", "Zl", "Zp"))

#: What turns the direction of text: `gpj.exe` could be shown as `exe.jpg`.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain_name(given: str) -> str:
    r"""The last segment of a path, without what is not shown, in at most 255 bytes; its ending is kept.

    >>> plain_name("../../etc/passwd"), plain_name("C:\\tmp\\a\0b.txt"), plain_name("..")
    ('passwd', 'ab.txt', 'file')
    """
    shown = "".join(char for char in given if unicodedata.category(char) not in _UNSHOWN and char not in _TURNING)
    segments = [segment.strip() for segment in _SEPARATOR.split(shown) if _is_name(segment)]
    name = _cut(segments[-1]) if segments else ""
    return name if _is_name(name) else _NAMELESS


def _is_name(segment: str) -> bool:
    return any(char != "." and not char.isspace() for char in segment)


def _cut(name: str) -> str:
    encoded = name.encode()
    if len(encoded) <= MAX_NAME_BYTES:
        return name
    _, _, ending = encoded.rpartition(b".")
    tail = b"." + ending if len(ending) < _MAX_ENDING_BYTES else b""
    return (encoded[: MAX_NAME_BYTES - len(tail)].decode(errors="ignore") + tail.decode()).strip()
