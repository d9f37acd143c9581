"""What an answer says: each choice's text, calls and finish, put together as a client does it.

The clients' rules (openai 3.52): the pieces of a call belong together by `index`; text, names and arguments are
joined piece by piece; what is null is nothing. Anything at all can be folded: what has no sense in it says nothing.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxy.doctor.sse import Json

#: Where servers put a model's thinking.
_REASONING = ("reasoning_content", "reasoning")


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its caller gets it; what is missing is empty."""

    id: str
    name: str
    arguments: str

    def told(self) -> str:
        """In one line, for a person."""
        return f"{self.name}({self.arguments})"


@dataclass(frozen=True, slots=True)
class Said:
    """One choice. `legacy` if the call came as `function_call`."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    finish: str | None = None
    legacy: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether the token limit ended it."""
        return self.finish == "length"

    @property
    def whole_calls(self) -> tuple[Call, ...]:
        """The calls that must be complete: where the token limit ended the answer, the last need not be."""
        return self.calls[:-1] if self.is_cut else self.calls

    def told(self) -> str:
        """In one line, for a person."""
        text = [json.dumps(self.content, ensure_ascii=False)] if self.content or not self.calls else []
        return ", ".join([*text, *(call.told() for call in self.calls), f"finish_reason {self.finish}"])


@dataclass(slots=True)
class _Parts:
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, list[Json]] = field(default_factory=dict)
    finish: str | None = None
    legacy: bool = False

    def add(self, said: Json, entry: Json) -> None:
        """Goes on by a message or a delta, and by the choice that it stands in."""
        self.content.append(text_of(said.get("content")))
        self.reasoning.append(next((text for name in _REASONING if (text := text_of(said.get(name)))), ""))
        for number, call in enumerate(objects(said.get("tool_calls"))):
            self.calls.setdefault(_index(call.get("index"), number), []).append(call)
        if older := as_object(said.get("function_call")):
            self.legacy = True
            self.calls.setdefault(0, []).append({"function": older})
        self.finish = self.finish or text_of(entry.get("finish_reason")) or None

    def said(self) -> Said:
        calls = tuple(_call(self.calls[index]) for index in sorted(self.calls))
        return Said("".join(self.content), "".join(self.reasoning), calls, self.finish, self.legacy)


def fold_completion(whole: Json) -> list[Said]:
    """The choices of a chat.completion."""
    return _fold((entry, as_object(entry.get("message"))) for entry in objects(whole.get("choices")))


def fold_chunks(chunks: Sequence[Json]) -> list[Said]:
    """The choices of a stream of chat.completion.chunk."""
    return _fold((entry, as_object(entry.get("delta"))) for entry in entries(chunks))


def entries(chunks: Iterable[Json]) -> Iterator[Json]:
    """The choices of all chunks, one after the other."""
    return (entry for chunk in chunks for entry in objects(chunk.get("choices")))


def objects(value: Any) -> list[Json]:
    """The objects of a list; of anything else none."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def as_object(value: Any) -> Json:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """The value if it is text, else none."""
    return value if isinstance(value, str) else ""


def _fold(pairs: Iterable[tuple[Json, Json]]) -> list[Said]:
    parts: dict[int, _Parts] = {}
    for entry, said in pairs:
        parts.setdefault(_index(entry.get("index"), 0), _Parts()).add(said, entry)
    return [parts[index].said() for index in sorted(parts)]


def _call(pieces: Sequence[Json]) -> Call:
    functions = [as_object(piece.get("function")) for piece in pieces]
    call_id = next((text_of(piece.get("id")) for piece in pieces if piece.get("id")), "")
    name, arguments = ("".join(text_of(each.get(key)) for each in functions) for key in ("name", "arguments"))
    return Call(call_id, name, arguments)


def _index(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default
