"""What every format offers: conversation and tools in -> prompt; the model's text in -> events.

Sans-IO: no clock, no network; ids come from the caller.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.events import ParserEvent
from proxy.wire import Choice, Message, Tool


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the upstream is sent.

    `messages` need nothing but a plain chat template; `stop` are the format's own stop strings. `prefill` is text
    that stands at the end of the prompt as if the model had begun with it. `after_results` is true if the prompt
    ends in tool results, so that the answer may start with what is left of the marker that ends them.
    """

    messages: list[dict[str, Any]]
    stop: tuple[str, ...] = ()
    prefill: str = ""
    after_results: bool = False


class Parser(Protocol):
    """Reads one choice of an answer. Whatever it is fed, it never raises."""

    def feed(self, text: str) -> list[ParserEvent]:
        """The events that `text` completes; what cannot be part of a marker leaves at once."""
        ...

    @property
    def midway(self) -> bool:
        """True if the text so far ends where a marker would not count: inside thinking, or a string of a call."""
        ...

    def close(self, *, truncated: bool = False) -> list[ParserEvent]:
        """The events that the end completes. `truncated`: the model was cut off; nothing is added to an open call."""
        ...


class Format(Protocol):
    """One way to tell a model of its tools."""

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], choice: Choice, parallel: bool) -> Prompt:
        """The prompt for a conversation, with the tools that the choice leaves to the model."""
        ...

    def parser(
        self, prompt: Prompt, tools: Sequence[Tool], choice: Choice, parallel: bool, new_id: Callable[[], str]
    ) -> Parser:
        """A fresh parser for one choice of the answer to `prompt`; `new_id` gives each call its id."""
        ...
