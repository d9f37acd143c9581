"""Answers as no model writes them, many and quickly: calls in a format, broken at random; and what is to hold of each.

The laws are properties elsewhere, with examples that hypothesis looks for; here numbers do the looking.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from cutting import cut_text
from dialects import Dialect
from parsing import Answer, fold
from proxy.events import CallEnd, ParserEvent, Runaway
from proxy.formats.base import Prompt, ToolUse
from proxy.wire import Choice, Message, Tool

Json = dict[str, Any]

#: After so many answers other tools are declared; a new schema costs as much as hundreds of answers.
SAME_TOOLS = 500

#: Every so manyth answer is read once more, cut elsewhere, and has to give the same.
CUT_AGAIN = 8

NAMES = ("get", "get_weather", "code_interpreter", "天气查询")
KEYS = ("a", "city", "code", "query", "城市", "n-1")
TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")
STRINGS = (
    "",
    "x",
    "Rome",
    "5",
    "true",
    "null",
    "[1]",
    '{"a": 1}',
    "北京 🌸",
    'say "hi"',
    "it's",
    "a\\b",
    "l1\nl2",
    "✿ARGS✿",
    "</b>",
)
NUMBERS = (0, 1, -1, 2**70, 1.5, -0.0, 1e400, 12345678901234567890)
SIGNS = (
    *"{}[]\",:'\\/#`*<> \n\t✿",
    *("\r\n", "\x00", "\\u00", "\\ud83d", "//", "/*", "*/", "```", "</think>", "<think>"),
)
PROSE = ("", "", "Hello. ", "好的。\n", "<think>Hm.</think>\n", "```json\n", "1. ", "\n\n", "✿ ", "<b>")
SEPARATORS = ((",", ":"), (", ", ": "), (" ,\n", " : "))


@dataclass(frozen=True)
class Failure:
    """An answer of which something does not hold; `pieces` are how it was fed."""

    dialect: str
    pieces: Sequence[str]
    complaint: str


class Fuzzer:
    """Makes answers in one format and has them read; the same for the same seed."""

    def __init__(self, dialect: Dialect, seed: int) -> None:
        self._dialect = dialect
        self._chance = random.Random(seed)  # noqa: S311 - no secret depends on it
        self._declare()

    def run(self, answers: int) -> tuple[int, list[Failure]]:
        """How many calls there were in so many answers, and what did not hold."""
        calls = 0
        failures: list[Failure] = []
        for number in range(answers):
            if number % SAME_TOOLS == 0:
                self._declare()
            text = self._answer()
            pieces = self._cut(text)
            truncated = self._chance.random() < 0.2
            try:
                answer = self._read(pieces, truncated=truncated)
                calls += len(answer.calls)
                if number % CUT_AGAIN == 0:
                    assert self._read(self._cut(text), truncated=truncated) == answer, "cut elsewhere it is another"
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told with the text that led to it
                failures.append(Failure(str(self._dialect), pieces, f"{type(error).__name__}: {error}"))
        return calls, failures

    def _read(self, pieces: Sequence[str], *, truncated: bool) -> Answer:
        numbers = count()
        parser = self._dialect.format.parser(self._prompt, self._use, lambda: f"call_{next(numbers)}")
        events: list[ParserEvent] = [event for piece in pieces for event in parser.feed(piece)]
        events += parser.close(truncated=truncated)
        if events and isinstance(events[-1], Runaway):
            events[-1] = CallEnd(sum(isinstance(event, CallEnd) for event in events), truncated=True)
        answer = fold(events)
        for name, arguments in answer.calls[:-1] if answer.truncated else answer.calls:
            assert isinstance(json.loads(arguments), dict), f"the arguments of {name} are {arguments!r}"
        return answer

    # -- what the model is told ----------------------------------------------------------------------------

    def _declare(self) -> None:
        self._names = self._chance.sample(NAMES, self._chance.randrange(1, len(NAMES) + 1))
        tools = [Tool(name=name, parameters=self._parameters()) for name in self._names]
        choice = self._chance.choice([*[Choice()] * 4, Choice("required"), Choice("named", self._names[0])])
        self._use = ToolUse(tools, choice, parallel=self._chance.random() < 0.8)
        history = [Message(role="user", content="x")]
        if self._chance.random() < 0.5:
            # A marker of the caller's, so that joiners are taken out of the answer.
            history.append(Message(role="tool", content=self._dialect.call("get", "{}")))
        self._prompt: Prompt = self._dialect.format.render(history, self._use)

    def _parameters(self) -> Any:
        keys = self._chance.sample(KEYS, self._chance.randrange(len(KEYS)))
        required = keys[: self._chance.randrange(len(keys) + 1)]
        match self._chance.randrange(8):
            case 0:
                return None
            case 1:
                return [{"name": key, "required": key in required, **self._schema(0)} for key in keys]
            case _:
                return {"type": "object", "properties": {key: self._schema(2) for key in keys}, "required": required}

    def _schema(self, depth: int) -> Json:
        match self._chance.randrange(9 if depth else 5):
            case 0:
                return {}
            case 1:
                return {"type": self._chance.sample(TYPES, 2)}
            case 2:
                return {"enum": self._chance.sample([*STRINGS, 1, None, True], 3)}
            case 5:
                return {"type": "array", "items": self._schema(depth - 1)}
            case 6:
                properties = {key: self._schema(depth - 1) for key in self._chance.sample(KEYS, 2)}
                return {"type": "object", "properties": properties, "additionalProperties": self._schema(0)}
            case 7:
                return {"anyOf": [self._schema(depth - 1), self._schema(depth - 1)]}
            case _:
                return {"type": self._chance.choice(TYPES)}

    # -- what the model says -------------------------------------------------------------------------------

    def _answer(self) -> str:
        said = [self._chance.choice(PROSE)]
        for _ in range(self._chance.choice((0, 1, 1, 1, 2, 3))):
            name = self._chance.choice(self._names if self._chance.random() < 0.9 else (*NAMES, "nope"))
            said += [self._dialect.call(name, self._arguments()), self._chance.choice(("", "\n", *PROSE))]
        text = "".join(said)
        for _ in range(self._chance.choice((0, 0, 1, 1, 2, 5))):
            text = self._broken(text)
        return text

    def _arguments(self) -> str:
        value = {self._chance.choice(KEYS): self._value(2) for _ in range(self._chance.randrange(4))}
        match self._chance.randrange(12):
            case 0:
                return repr(value)
            case 1:
                return json.dumps(json.dumps(value))
            case 2:
                return f"```json\n{json.dumps(value)}\n```"
            case 3:
                return f"```py\n{self._chance.choice(STRINGS)}\nprint(1)\n```"
            case 4:
                return self._chance.choice((*STRINGS, "null", "None", "[1, 2]", "21", ""))
            case _:
                ascii_only = self._chance.random() < 0.3
                return json.dumps(value, ensure_ascii=ascii_only, separators=self._chance.choice(SEPARATORS))

    def _value(self, depth: int) -> Any:
        match self._chance.randrange(7 if depth else 5):
            case 0:
                return self._chance.choice((True, False, None))
            case 1:
                return self._chance.choice(NUMBERS)
            case 5:
                return [self._value(depth - 1) for _ in range(self._chance.randrange(3))]
            case 6:
                return {self._chance.choice(KEYS): self._value(depth - 1) for _ in range(self._chance.randrange(3))}
            case _:
                return self._chance.choice(STRINGS)

    def _broken(self, text: str) -> str:
        start = self._chance.randrange(len(text) + 1)
        end = min(len(text), start + self._chance.randrange(1, 6))
        match self._chance.randrange(5):
            case 0:
                return text[:start] + text[end:]
            case 1:
                return text[:end] + text[start:]
            case 2:
                return text[:start]
            case 3:
                inside = self._chance.choice(self._dialect.pieces)
            case _:
                inside = self._chance.choice(SIGNS)
        return text[:start] + inside + text[start:]

    def _cut(self, text: str) -> list[str]:
        match self._chance.randrange(6):
            case 0:
                return [text]
            case 1:
                return list(text)
            case 2:
                return cut_text(text, self._chance.randrange(2, 9))
            case _:
                return cut_text(text, sorted(self._chance.randrange(len(text) + 1) for _ in range(6)))
