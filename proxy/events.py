"""What a turn can say: the values that pass from the parser to whoever writes the answer.

    for each choice:    TurnStart (Reasoning | Text | CallStart CallArguments* CallEnd | Extras)* Halt? Dropped? TurnEnd
    once, at the end:   Dialog? Session? Usage

Where tools run here, an answer takes several turns, which are told as one; beside it, in no choice's order:
ToolStart ToolProgress* ToolEnd for each call that is run, and Waiting while nothing else is said.

Calls never interleave: CallEnd of one comes before CallStart of the next, and indexes count up from 0. Runaway stands
in the place of a CallEnd, and of all that would follow it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: For estimates, where nobody told a count: what most texts in English have. Chinese has fewer, JSON more.
CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class TurnStart:
    """The upstream has begun to answer. `head` holds the answer's top-level fields (`id`, `model`, ...)."""

    head: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the model's thinking."""

    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer's content."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. `name` is whole and final."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A piece of the JSON text of the call's arguments."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is complete, or `truncated`: then its arguments are a prefix and the finish is `length`.

    `repairs` counts the places where the model's text was not JSON and had to be mended.
    """

    index: int
    repairs: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Halt:
    """Nothing that follows is wanted: the upstream may be dropped."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many characters around the calls (prose behind them) were not passed on, blanks not counted."""

    characters: int


@dataclass(frozen=True, slots=True)
class Runaway:
    """The model went on and on inside a call's arguments, which stay open; nothing follows. `reason` is a sentence."""

    reason: str


@dataclass(frozen=True, slots=True)
class Extras:
    """Fields of an upstream chunk that travel as they are: of the choice (`logprobs`), and of the answer's head."""

    fields: Mapping[str, Any]
    head: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """A choice is finished. `fields` are further fields of the finish chunk's choice (`stop_reason`)."""

    finish_reason: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """The upstream's token counts; they belong to no choice."""

    usage: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolStart:
    """A call is run here. `arguments` is the JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """What the tool says of its progress."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class ToolEnd:
    """The call has a result: `text` is what the model reads, `status` is `ok` or what went wrong.

    `details` are what the tool tells the caller's program beside it.
    """

    id: str
    name: str
    status: str
    text: str
    duration_s: float
    cached: bool = False
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Nothing has been said for a while; whoever waits is to know that the answer goes on."""


@dataclass(frozen=True, slots=True)
class Dialog:
    """All that was said for this answer, as OpenAI's messages: calls that were run here, their results, the answer."""

    messages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Session:
    """The conversation whose state tools have kept here: whoever names it goes on with it."""

    id: str


#: What a parser gives: everything that can be read off the text alone.
ParserEvent = Reasoning | Text | CallStart | CallArguments | CallEnd | Halt | Dropped | Runaway

#: What is told of tools that run here.
ToolEvent = ToolStart | ToolProgress | ToolEnd

Event = TurnStart | ParserEvent | Extras | TurnEnd | Usage | ToolEvent | Waiting | Dialog | Session
