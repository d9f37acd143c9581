"""What every format offers: conversation and tools in -> prompt; the model's text in -> events.

Sans-IO: no clock, no network; ids come from the caller.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from proxy.events import ParserEvent
from proxy.wire import Choice, Message, Tool

Schema = Mapping[str, Any]

#: What an answer may be, as a structural tag of xgrammar's.
Grammar = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator chooses of how prompts are written.

    `default_system` stands in for a missing system message (empty: none); `language` is that of the templates
    (`auto`: Chinese if a system or user message has a Chinese character); `vision` keeps images for a model
    that sees, which a text model is only told of; `thinking_begun`: the chat template ends in <think>.
    `history`: the current turn's calls and results stand in the last user message (`merge`) or in a message of the
    assistant's that is to be continued. `control_tokens`: whose `<|im_start|>` and the like become plain text.
    """

    default_system: str = "You are a helpful assistant."
    language: Literal["auto", "zh", "en"] = "auto"
    vision: bool = False
    thinking_begun: bool = False
    history: Literal["merge", "continue"] = "merge"
    control_tokens: Literal["results", "all", "none"] = "results"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request lets the model do: its tools, what it demands, and whether several calls may be made.

    `answer` is the JSON schema that an answer without calls has to fit, if any. `forbidden` are the names of tools that
    the caller has, but does not allow.
    """

    tools: Sequence[Tool]
    choice: Choice = Choice()  # noqa: RUF009 - frozen
    parallel: bool = True
    answer: Schema | None = None
    forbidden: frozenset[str] = frozenset()

    @property
    def offered(self) -> bool:
        """True if the model is told of the tools, and may call them."""
        return bool(self.tools) and self.choice.mode != "none"

    @property
    def single(self) -> bool:
        """True if one call is all that is wanted; what names one tool asks for one call."""
        return not self.parallel or self.choice.mode == "named"

    @property
    def callable(self) -> list[Tool]:
        """The tools that the first call may be of."""
        return [tool for tool in self.tools if self.choice.mode != "named" or tool.name == self.choice.name]

    @property
    def demands(self) -> bool:
        """True if an answer without a call is none."""
        return self.choice.mode in ("required", "named")

    @property
    def bounded(self) -> bool:
        """True if a grammar leaves the model no text of its own: then it can say nothing wrong."""
        return self.demands or self.answer is not None


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the upstream is sent.

    `messages` need nothing but a plain chat template; `stop` are the format's own stop strings. `prefill` is text
    that stands at the end of the prompt as if the model had begun with it. `after_results` is true if the prompt
    ends in tool results, so that the answer may start with what is left of the marker that ends them. `continued`:
    the last message is the assistant's own, and not over. `escaped`: the caller's text held markers, which were made
    harmless by a joiner behind their first character; behind any of these it is to be taken out of the answer.
    `thinking`: the model is in the middle of its thoughts when it begins. `special`: markers may be special tokens,
    which a server leaves out of an answer unless it is told not to.
    """

    messages: list[dict[str, Any]]
    stop: tuple[str, ...] = ()
    prefill: str = ""
    after_results: bool = False
    continued: bool = False
    escaped: str = ""
    thinking: bool = False
    special: bool = False


class Parser(Protocol):
    """Reads one choice of an answer. Whatever it is fed, it never raises."""

    def feed(self, text: str) -> list[ParserEvent]:
        """The events that `text` completes; what cannot be part of a marker leaves at once."""
        ...

    def think(self, text: str) -> list[ParserEvent]:
        """The events of text of which the upstream says that it is the model's thinking: no call stands in there."""
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

    def render(self, messages: Sequence[Message], use: ToolUse) -> Prompt:
        """The prompt for a conversation, with the tools that the choice leaves to the model."""
        ...

    def parser(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> Parser:
        """A fresh parser for one choice of the answer to `prompt`; `new_id` gives each call its id."""
        ...

    def grammar(self, prompt: Prompt, use: ToolUse) -> Grammar:
        """What the answer to `prompt` may be."""
        ...
