"""One turn of an answer whose tools run here: its events -> those for the caller, and the calls that are ours.

The caller's calls pass, with indexes of their own; ours are taken out. However many turns there are, the caller sees
one answer: one start, texts that go on, one finish, which `agent` writes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxy.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Event,
    Extras,
    Text,
    TurnEnd,
    TurnStart,
    Usage,
)


@dataclass(slots=True)
class MadeCall:
    """A call of the model's. `ours`: it is run here. `whole`: it is complete."""

    id: str
    name: str
    ours: bool
    whole: bool = False
    written: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """The JSON text, as far as it came."""
        return "".join(self.written)

    def told(self) -> dict[str, Any]:
        """The call as a message has it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Before:
    """What the caller was told in the turns before: the calls made, and whether a text stands there unfinished."""

    first: bool = True
    text: bool = False


class Round:
    """Reads one turn. `is_ours` tells whose a call of that name is."""

    def __init__(self, before: Before, is_ours: Callable[[str], bool]) -> None:
        self._before = before
        self._is_ours = is_ours
        self._indexes: list[int] = []
        self._text: list[str] = []
        self.calls: list[MadeCall] = []
        self.finish = "stop"
        self.fields: Mapping[str, Any] = {}
        self.usage: Mapping[str, Any] | None = None

    @property
    def ours(self) -> list[MadeCall]:
        """The whole calls that are run here."""
        return [call for call in self.calls if call.ours and call.whole]

    @property
    def handed_back(self) -> list[MadeCall]:
        """The calls that are the caller's to run."""
        return [call for call in self.calls if not call.ours]

    @property
    def text(self) -> str:
        """What the model said beside its calls."""
        return "".join(self._text)

    def then(self) -> Before:
        """What the next turn goes on from."""
        return Before(first=False, text=self._before.text if not self._text else not self.text.endswith("\n"))

    def read(self, said: Sequence[tuple[int, Event]]) -> tuple[list[tuple[int, Event]], list[MadeCall]]:
        """What the caller is told of it, and the calls of ours that it completes."""
        passed: list[tuple[int, Event]] = []
        complete: list[MadeCall] = []
        for choice, event in said:
            match event:
                case TurnStart():
                    if self._before.first:
                        passed.append((choice, event))
                case Text(text):
                    if text and not self._text and self._before.text:
                        # Two turns' words are two paragraphs.
                        passed.append((choice, Text("\n\n")))
                    self._text.append(text)
                    passed.append((choice, event))
                case CallStart() | CallArguments() | CallEnd():
                    passed += [(choice, told) for told in self._call(event, complete)]
                case Extras(fields, head):
                    # Log probabilities would tell the words of calls that are not the caller's to see.
                    kept = {name: value for name, value in fields.items() if name != "logprobs"}
                    passed.append((choice, Extras(kept, head if self._before.first else {})))
                case TurnEnd(finish, fields):
                    self.finish, self.fields = finish, fields
                case Usage(usage):
                    self.usage = usage
                case _:
                    passed.append((choice, event))
        return passed, complete

    def message(self) -> dict[str, Any]:
        """The turn as the assistant's message; a call that was cut off is not in it."""
        calls = [call.told() for call in self.calls if call.whole]
        content = self.text if self.text or not calls else None
        return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}

    def _call(self, event: CallStart | CallArguments | CallEnd, complete: list[MadeCall]) -> list[Event]:
        if isinstance(event, CallStart):
            self._indexes.append(len(self.handed_back))
            self.calls.append(MadeCall(event.id, event.name, self._is_ours(event.name)))
        call = self.calls[event.index]
        if isinstance(event, CallArguments):
            call.written.append(event.text)
        elif isinstance(event, CallEnd):
            call.whole = not event.truncated
            if call.ours and call.whole:
                complete.append(call)
        return [] if call.ours else [replace(event, index=self._indexes[event.index])]
