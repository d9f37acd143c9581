"""What a terminal makes of a text: escape sequences do nothing but erase, and what is written over is gone."""

import re
from itertools import islice

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_CSI = r"(\x1b\[|\x9b)([0-?]*+)([ -/]*+)"
#: Operating system commands, device control strings and the like. A line end ends them, too: should one have been
#: begun by accident, no more than its line is lost.
_COMMAND = r"(\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\n\x07\x18\x1a\x1b\x80-\x9f]*+"
_OTHER = r"(\x1b[ -/]*+)"

#: No repetition gives back what it took: so this is linear. A sequence that breaks off is taken out as far as it goes.
_SEQUENCE = re.compile(
    rf"{_CSI}[@-~]?|{_COMMAND}[\x07\x18\x1a\x9c]?|{_OTHER}[0-~]?|[\x00-\x07\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x8f\x91-\x97\x99\x9a\x9c]+"
)
_UNFINISHED = re.compile(rf"(?:{_CSI}|{_COMMAND}|{_OTHER})\Z")

#: No text has it any more: it stands for "from here to the end of the line nothing is left".
_ERASE = "\x1b"
#: What progress bars use beside carriage returns. (A terminal would keep the column when it erases a whole line.)
_EFFECTS = {"\x1b[K": _ERASE, "\x1b[0K": _ERASE, "\x1b[2K": f"\r{_ERASE}"}


#: So many control characters of one text take effect; each costs 2 us, and no honest text has more. The others are
#: left out, at once.
_MOST_EFFECTS = 20_000
_NO_CONTROLS = {code: None for code in range(0xA0) if _CONTROL.fullmatch(chr(code)) and chr(code) != "\r"}


def _calmed(text: str) -> str:
    if len(text) <= _MOST_EFFECTS:
        return text
    after = next(islice(_CONTROL.finditer(text), _MOST_EFFECTS, None), None)
    if after is None:
        return text
    rest = text[after.start() :].translate(_NO_CONTROLS).replace("\r\n", "\n").replace("\r", "")
    return text[: after.start()] + rest


class Escapes:
    """Takes escape sequences and control characters out of a text that comes in parts."""

    def __init__(self) -> None:
        self._unfinished = ""

    def without(self, text: str) -> str:
        """The next part; it has line ends and tabs, and of the others those that `Screen` knows."""
        text = self._unfinished + _calmed(_SURROGATE.sub("\ufffd", text))
        self._unfinished = ""
        if not _CONTROL.search(text):
            return text
        if unfinished := _UNFINISHED.search(text):
            # Two characters of a parameter tell that it has no effect here: no more need be remembered.
            self._unfinished = "".join(group[:2] for group in unfinished.groups(""))
            text = text[: unfinished.start()]
        return _SEQUENCE.sub(lambda sequence: _EFFECTS.get(sequence[0], ""), text)


_MOVE = re.compile(r"([\r\x08\x1b])")

#: Of these every character takes as many bytes, so that one can be written in the place of another.
_CODEC = "utf-32-le"
_CHARACTER_BYTES = 4


class Screen:
    """Lines of which the last can be overwritten, each character taking one column."""

    def __init__(self) -> None:
        self._above: list[str] = []
        self._line = bytearray()
        self._at = 0

    def write(self, text: str) -> None:
        """Writes what `Escapes` left."""
        # What commands print has such line ends, and many of them.
        for part in _MOVE.split(text.replace("\r\n", "\n")):
            match part[:1]:
                case "":
                    pass
                case "\r":
                    self._at = 0
                case "\b":
                    self._at = max(0, self._at - len(part) * _CHARACTER_BYTES)
                case "\x1b":
                    del self._line[self._at :]
                case _:
                    self._put(part)

    def _put(self, text: str) -> None:
        over, line_end, below = text.partition("\n")
        written = over.encode(_CODEC)
        self._line[self._at : self._at + len(written)] = written
        self._at += len(written)
        if line_end:
            whole, last_end, last = below.rpartition("\n")
            self._above += [self._line.decode(_CODEC), line_end, whole, last_end]
            self._line = bytearray(last.encode(_CODEC))
            self._at = len(self._line)

    def text(self) -> str:
        """What is to be seen."""
        return "".join(self._above) + self._line.decode(_CODEC)


def plain(text: str) -> str:
    """The text without what a terminal would not show, and with U+FFFD for what is no character."""
    screen = Screen()
    screen.write(Escapes().without(text))
    return screen.text()
