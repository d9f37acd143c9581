"""A code block, or bare text, that a model wrote as a tool's input -> `{"code": "..."}`, escaped as it comes.

A block opens with a line of three or more backticks and ends at the last line of as many that can end it: blocks
inside it (opened with a language, ```` ```bash ````) are part of the code, and so is a bare fence if another bare
fence follows before a marker, the end, or the next opened block. Until that is known, what follows is held back.

Source: the qwen prompt ("Enclose the code within triple backticks"), Qwen-Agent's `extract_code` and its rule
that the last closing fence counts; CommonMark for what a fence is.
"""

import json
import re

from proxy.formats.markers import scanner_for
from proxy.formats.qwen_templates import ARGS, FUNCTION, RESULT, RETURN

_LEAD = FUNCTION[0]

#: The first line of a block: its fence and what it says of the language; shorter than `MAX_FENCE_LINE`.
OPENING = re.compile(rf"(`{{3,64}})[^`\n{_LEAD}]{{0,100}}\n")
#: What may still become one.
OPENING_SO_FAR = re.compile(rf"`{{1,2}}|`{{3,64}}[^`\n{_LEAD}]{{0,100}}")

#: A longer line that starts with backticks is no fence.
MAX_FENCE_LINE = 200

#: What ends a block or a text; a flower that is none of them is a flower.
_MARKERS = scanner_for(FUNCTION, ARGS, RESULT, RETURN)


def fenced(code: str, language: str) -> str:
    """The code as a block that `BlockReader` reads back to the same code."""
    inner = [len(run) for run in re.findall(r"^[ \t]*(`{3,})", code, re.MULTILINE)]
    fence = "`" * (max(inner, default=2) + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


class BlockReader:
    """Reads one code block, from behind its opening line on; a marker at the start of a line ends it unclosed.

    `feed` gives the JSON text that can be passed on, and, once the block is over, what follows it.
    """

    def __init__(self, key: str, fence: str) -> None:
        self.repairs = 0
        self.runaway = False
        self._out = [f'{{{json.dumps(key, ensure_ascii=False)}: "']
        self._fence = fence
        self._line = ""
        self._decided = False
        self._newline = ""
        self._depth = 0
        self._after: list[str] | None = None
        self._over = False

    @property
    def midway(self) -> bool:
        """True if the text so far ends inside a line of the code."""
        return self._decided and self._after is None

    @property
    def over(self) -> bool:
        """True if the last line so far can be the fence that ends the block."""
        return self._after is not None or (self._line.strip() == self._fence and not self._depth)

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text to pass on, and the text behind the block (None while it is open)."""
        pieces = text.split("\n")
        for number, piece in enumerate(pieces):
            if number:
                self._end_line()
            rest = piece if self._over else self._add(piece)
            if rest is not None:
                return self._take() + '"}', "\n".join([rest, *pieces[number + 1 :]])
        return self._take(), None

    def close(self) -> str:
        """The JSON text that completes the block at the end of the answer."""
        if self._line:
            self._end_line()
        self.repairs += self._after is None
        return self._take() + '"}'

    def _take(self) -> str:
        out = "".join(self._out)
        self._out.clear()
        return out

    def _add(self, piece: str) -> str | None:
        # A piece of the current line. Gives what follows the block if this piece shows that it is over.
        if self._after is not None and (begun := piece.find(_LEAD)) >= 0:
            return piece[begun:]
        self._line += piece
        start = self._line.lstrip()
        if not self._decided and _MARKERS.match(start, 0):
            return start
        maybe_fence = start.startswith(self._fence) or self._fence.startswith(start)
        maybe_marker = _MARKERS.partial(start, 0) == 0
        if self._decided or not (maybe_fence or maybe_marker) or len(self._line) > MAX_FENCE_LINE:
            self._decided = True
            self._pass_line()
        return None

    def _pass_line(self) -> None:
        text = self._newline + self._line
        self._newline = self._line = ""
        if self._after is None:
            self._out.append(_escaped(text))
        else:
            self._after.append(text)

    def _end_line(self) -> None:
        line = self._line.strip()
        if not self._decided and line.startswith(self._fence):
            self._end_fence_line(bare=not line.strip("`"))
        else:
            self._pass_line()
        self._newline, self._line, self._decided = "\n", "", False

    def _end_fence_line(self, *, bare: bool) -> None:
        if self._depth or not bare:
            self._over = self._after is not None and not self._depth
            self._depth += -1 if bare else 1
            self._pass_line()
            return
        # A bare fence: the block's end, unless another one shows that this one was part of the code.
        if self._after is not None:
            self._out.append(_escaped("".join(self._after)))
        self._after = []
        self._pass_line()


class BareReader:
    """Reads bare text up to a marker; blanks at its end are dropped."""

    midway = over = runaway = False

    def __init__(self, key: str) -> None:
        self.repairs = 1
        self._begin = f'{{{json.dumps(key, ensure_ascii=False)}: "'
        self._held = ""
        self._blanks: list[str] = []

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text to pass on, and the text from the marker on (None while there is none)."""
        text = self._held + text
        marker = _MARKERS.find(text, 0)
        stop = marker.start if marker else _MARKERS.partial(text, 0)
        out, rest = self._pass_on(text[:stop]), text[stop:]
        if marker:
            return out + '"}', rest
        self._held = rest
        return out, None

    def close(self) -> str:
        """The JSON text that completes it."""
        return self._pass_on(self._held) + '"}'

    def _pass_on(self, text: str) -> str:
        out, self._begin = self._begin, ""
        solid = text.rstrip()
        if solid:
            out += _escaped("".join(self._blanks) + solid)
            self._blanks = []
        self._blanks.append(text[len(solid) :])
        return out
