"""The conversation as OpenAI's callers send it -> the steps that every format can write down.

A result belongs to a call by its id, not by its place. Callers trim histories, mix orders and lose results, so:
a result is put behind the call it answers, a call whose neighbours have results and which has none gets
`NO_RESULT`, and a result that answers no call stays where it is as an Orphan.
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from proxy.formats.content import Content
from proxy.wire import FunctionCall, Message

#: Qwen-Agent's words for a tool that gave nothing.
NO_RESULT = "No result."


@dataclass(frozen=True, slots=True)
class Said:
    """A system or user message (`developer` is `system`)."""

    role: str
    content: Content


@dataclass(frozen=True, slots=True)
class Spoken:
    """An assistant message: its text, then its calls."""

    content: Content
    calls: tuple[FunctionCall, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """The results of all calls just made, in the order of the calls."""

    contents: tuple[Content, ...]


@dataclass(frozen=True, slots=True)
class Orphan:
    """A result of a call that the history does not hold."""

    content: Content


Step = Said | Spoken | Results | Orphan


@dataclass(slots=True)
class _Call:
    call: FunctionCall
    results: list[Content] = field(default_factory=list)


def steps(messages: Sequence[Message]) -> list[Step]:
    """The conversation in order, each call followed by its result."""
    calls, orphans = _match(messages)
    return list(_steps(messages, calls, orphans))


def _match(messages: Sequence[Message]) -> tuple[dict[int, list[_Call]], set[int]]:
    # Position of an assistant message -> its calls with their results; positions of results without a call.
    calls: dict[int, list[_Call]] = {}
    orphans: set[int] = set()
    by_id: dict[str, _Call] = {}
    recent = _Waiting()
    for position, message in enumerate(messages):
        if message.role == "assistant":
            calls[position] = [_Call(call.function) for call in message.calls]
            # Some servers number calls afresh in every turn: the newest call of an id is meant.
            by_id |= {call.id: made for call, made in zip(message.calls, calls[position], strict=True) if call.id}
            recent.add(calls[position])
        elif message.role in ("tool", "function"):
            answered = by_id.get(message.tool_call_id) if message.tool_call_id else recent.take(message.name)
            if answered is None:
                orphans.add(position)
            else:
                answered.results.append(message.content)
        else:
            recent = _Waiting()
    return calls, orphans


class _Waiting:
    """The calls of the turn without a result, for the older form, which has no ids."""

    def __init__(self) -> None:
        self._all: deque[_Call] = deque()
        self._named: dict[str, deque[_Call]] = defaultdict(deque)

    def add(self, calls: Sequence[_Call]) -> None:
        for call in calls:
            self._all.append(call)
            self._named[call.call.name].append(call)

    def take(self, name: str | None) -> _Call | None:
        """The first call of that name, or else the first at all."""
        return self._first(self._named[name or ""]) or self._first(self._all)

    def _first(self, calls: deque[_Call]) -> _Call | None:
        while calls and calls[0].results:
            calls.popleft()
        return calls[0] if calls else None


def _steps(messages: Sequence[Message], calls: dict[int, list[_Call]], orphans: set[int]) -> Iterator[Step]:
    made: list[_Call] = []
    for position, message in enumerate(messages):
        if message.role != "assistant":
            yield from _results(made)
            made = []
        match message.role:
            case "assistant":
                made += calls[position]
                yield Spoken(message.content, tuple(call.call for call in calls[position]))
            case "tool" | "function":
                if position in orphans:
                    yield Orphan(message.content)
            case "developer":
                yield Said("system", message.content)
            case role:
                yield Said(role, message.content)
    yield from _results(made)


def _results(made: list[_Call]) -> Iterator[Results]:
    if any(call.results for call in made):
        yield Results(tuple(_one(call.results) for call in made))


def _one(results: list[Content]) -> Content:
    if not results:
        return NO_RESULT
    # A second result for the same call is a correction: the caller's last word counts.
    return results[-1]
