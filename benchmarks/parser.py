"""What the parsers cost per character, from 1 k to 1 M characters, in pieces of 4 and whole.

Some texts are what models write, the rest is what a hostile one would.
"""

import time
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

from proxy.formats.base import Options, Parser, ToolUse
from proxy.formats.registry import FORMATS
from proxy.wire import Message, Tool

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 100_000)
PIECE = 4
PIECES, WHOLE = "pieces", "whole"

_CALL = "✿FUNCTION✿: get_weather\n✿ARGS✿: "
_CODE = "✿FUNCTION✿: code_interpreter\n✿ARGS✿:\n```py\n"

_TAGGED = '<tool_call>\n{"name": "get_weather", "arguments": '

_QWEN_TEXTS = {
    "arguments": (_CALL + '{"notes": "', 'rain and 西湖 umbrella, \\"wind\\"; '),
    "plain text": ("", "The weather in 杭州 is fine today.\n"),
    "code block": (_CODE, "for hour in range(24):\n    print(hour, '晴')\n"),
    "many calls": ("", _CALL + '{"city": "Paris"}\n'),
    "markers": ("", "✿FUNCTION✿"),
    "flowers": ("", "✿"),
    "angles": ("", "<"),
    "blanks": ("", " "),
    "quotes": (_CALL + '{"notes": "', '"'),
    "backslashes": (_CALL + '{"notes": "', "\\"),
    "brackets": (_CALL + '{"notes": ', "["),
    "fences": (_CODE, "```\n"),
}

_NOUS_TEXTS = {
    "arguments": (_TAGGED + '{"notes": "', 'rain and 西湖 umbrella, \\"wind\\"; '),
    "many calls": ("", _TAGGED + '{"city": "Paris"}}\n</tool_call>\n'),
    "markers": ("", "<tool_call>"),
    "open objects": ("", '<tool_call>{"name": "x"'),
    "arguments first": ("", '<tool_call>{"arguments": {"notes": "rain'),
    "lines": (_TAGGED + '{"notes": "', "\n</tool_cal"),
}

#: Format and name -> what the text begins with, and what it then repeats.
TEXTS = {
    **{("qwen", name): text for name, text in _QWEN_TEXTS.items()},
    **{("nous", name): text for name, text in _NOUS_TEXTS.items()},
}

_TOOLS = [
    Tool(
        name="get_weather",
        parameters={"properties": {name: {"type": "string"} for name in ("city", "notes")}},
    ),
    Tool(name="code_interpreter", parameters={"properties": {"code": {"type": "string"}}}),
]
_USE = ToolUse(_TOOLS)

#: Short texts are read again and again, until this many characters have been read.
_READ_AT_LEAST = 30_000
#: Size up to which a text is read three times over; a longer one takes long enough to even out.
_TRIED_AGAIN = 100_000
_TRIES = 3


@dataclass(frozen=True, slots=True)
class ParseCost:
    """Nanoseconds of CPU per character, for each size."""

    text: str
    cut: str
    ns_per_char: dict[int, float]

    @property
    def flatness(self) -> float:
        """The dearest size against the cheapest; whole, against the shortest, which bears the fixed costs."""
        cheapest = min(self.ns_per_char) if self.cut == WHOLE else min(self.ns_per_char, key=self._cost)
        return max(self.ns_per_char.values()) / self._cost(cheapest)

    def _cost(self, size: int) -> float:
        return self.ns_per_char[size]

    def as_json(self) -> dict[str, Any]:
        """The fields, and what follows from them."""
        costs = {str(size): round(cost, 1) for size, cost in self.ns_per_char.items()}
        return {"text": self.text, "cut": self.cut, "ns_per_char": costs, "flatness": round(self.flatness, 2)}


def measure(sizes: tuple[int, ...]) -> list[ParseCost]:
    """The cost of every text in both cuts."""
    return [
        ParseCost(" ".join(name), cut, {size: _cost(name, size, piece or size) for size in sizes})
        for name in TEXTS
        for cut, piece in ((PIECES, PIECE), (WHOLE, 0))
    ]


def _text(name: tuple[str, str], size: int) -> str:
    start, unit = TEXTS[name]
    return (start + unit * (size // len(unit) + 1))[:size]


def _cost(name: tuple[str, str], size: int, piece: int) -> float:
    text = _text(name, size)
    pieces = [text[at : at + piece] for at in range(0, len(text), piece)]
    rounds = max(1, _READ_AT_LEAST // len(text))
    tries = _TRIES if len(text) <= _TRIED_AGAIN else 1
    # The least of several: whatever else the machine does can only add.
    return min(_spent_ns(name[0], pieces, rounds) for _ in range(tries)) / rounds / len(text)


def _spent_ns(format_name: str, pieces: list[str], rounds: int) -> int:
    parsers = [_parser(format_name) for _ in repeat(None, rounds)]
    before_ns = time.process_time_ns()
    for parser in parsers:
        for piece in pieces:
            parser.feed(piece)
        parser.close()
    return time.process_time_ns() - before_ns


def _parser(format_name: str) -> Parser:
    spoken = FORMATS[format_name](Options())
    prompt = spoken.render([Message(role="user", content="Hi")], _USE)
    return spoken.parser(prompt, _USE, new_id=partial(str, "call_0"))
