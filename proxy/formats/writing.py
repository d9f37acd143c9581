"""How a conversation is written down, as far as it is the same in every format.

A format's writer goes through the steps of the conversation; messages are lists of parts until the end. What is
not the model's own is made harmless on the way (`hygiene`).

Source: Qwen-Agent 0.0.34 (Apache-2.0, see NOTICE), `base_fncall_prompt.py` and `base.py`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from typing import Any, Literal

from proxy.formats.base import Options, Prompt, ToolUse
from proxy.formats.content import Content, Language, as_parts, as_text, is_chinese, join_parts, with_note
from proxy.formats.history import NO_RESULT, Results, Said, Spoken, Step, steps
from proxy.formats.hygiene import CONTROL_TOKENS, Escapes
from proxy.wire import FunctionCall, Message, Tool

Parts = str | list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What is told of calls and results where the model sees no tools; and of the answer that is asked for."""

    called: str
    returned: str
    answer: str


_TEXTS = {
    "en": _Texts(
        called='\n\nThe tool "{name}" was called with these arguments: \n{arguments}',
        returned="\n\nThe tool has returned the following result: \n{result}",
        answer="# Answer\n\nWhen you call no tool, answer with JSON alone, fitting this JSON schema:\n{schema}",
    ),
    "zh": _Texts(
        called='\n\n工具"{name}"被调用时使用了以下参数：\n{arguments}',
        returned="\n\n该工具返回了以下结果：\n{result}",
        answer="# 回答\n\n不调用工具时，只用符合以下JSON Schema的JSON作答：\n{schema}",
    ),
}


def language_of(options: Options, messages: Sequence[Message]) -> Language:
    """The language to tell the model of its tools in."""
    if options.language != "auto":
        return options.language
    asked = (message.content for message in messages if message.role in ("system", "developer", "user"))
    return "zh" if any(map(is_chinese, asked)) else "en"


class Writer(ABC):
    """Writes the steps of a conversation one behind the other; a format adds how calls and results look.

    `markers` are the format's own; where the model is offered no tools they mean nothing, and stay. `escaped` are the
    leads behind which joiners were put so far: see `Prompt.escaped`.
    """

    def __init__(self, options: Options, language: Language, use: ToolUse, markers: Escapes) -> None:
        self._options = options
        self._language: Language = language
        self._texts = _TEXTS[language]
        self._use = use
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in use.tools}
        self._callers, self._strangers = _escapes(markers, options.control_tokens, offered=use.offered)
        self._written: list[tuple[str, list[dict[str, Any]]]] = []
        self.escaped = ""

    def prompt(self, messages: Sequence[Message], prefill: str, stop: tuple[str, ...] = ()) -> Prompt:
        """The whole prompt, ending in `prefill`; `stop` are the format's own, for where it offers tools."""
        for step in steps(messages):
            self.step(step)
        if self._continues and self.role == "assistant" and not join_parts(self._written[-1][1]):
            # There is nothing in it to go on with, and not every template takes an empty message for an open one.
            self.take_last()
        if prefill:
            if self.role == "assistant":
                self.add("\n")
            else:
                self.begin("assistant")
            self.add(prefill)
        after_results, continued = self.finish(prefill)
        self.add_system()
        # A template that opens <think> does so at the beginning of an answer.
        thinking = self._options.thinking_begun and not continued
        stop = stop if self._use.offered else ()
        return Prompt(self.messages(), stop, prefill, after_results, continued, self.escaped, thinking)

    # -- steps ---------------------------------------------------------------------------------------------

    @property
    def _continues(self) -> bool:
        return self._use.offered and self._options.history == "continue"

    def step(self, step: Step) -> None:
        """Goes on by a step: as the format writes it, or as user text for a model that is not to see calls."""
        (self.write if self._use.offered else self.fold)(step)

    def write(self, step: Step) -> None:
        """Goes on by a step, calls and results with their markers."""
        match step:
            case Said(role, content):
                self.begin(role)
                self.add(self._said(role, content, note=True))
            case Spoken(content, calls):
                self.spoken(self._foreign(as_text(content)), calls)
            case Results(contents):
                self.results([self.seen(content) for content in contents])
            case _:
                self._tell_earlier(self._returned(step.content))

    @abstractmethod
    def spoken(self, text: str, calls: Sequence[FunctionCall]) -> None:
        """Writes what the assistant said, and the calls that it made."""

    @abstractmethod
    def results(self, results: Sequence[Parts]) -> None:
        """Writes the results of all the calls just made."""

    @abstractmethod
    def tools_text(self) -> str:
        """The tools, and how to call them."""

    def finish(self, prefill: str) -> tuple[bool, bool]:
        """Ends the current turn; gives whether it ends in results, and in a message for the model to go on with."""
        return False, self.role == "assistant" and (self._continues or bool(prefill))

    def fold(self, step: Step) -> None:
        """Goes on by a step, calls and results as user text."""
        match step:
            case Said(role, content):
                if role == self.role == "user":
                    # Qwen-Agent: keeps the model's mind on the second of two user messages.
                    self.begin("assistant")
                    self.add("...")
                self.begin(role)
                self.add(self._said(role, content, note=False))
            case Spoken(content, ()):
                self.begin("assistant")
                self.add(self._foreign(as_text(content)))
            case Spoken(_, calls):
                for call in calls:
                    called = self._texts.called.format(name=self.model_name(call), arguments=self.arguments(call))
                    self._tell(called)
            case Results(contents):
                for content in contents:
                    self._tell(self._returned(content))
            case _:
                self._tell(self._returned(step.content))

    def add_system(self) -> None:
        """Puts the tools behind the system message; leading system messages become one."""
        texts: list[str] = []
        while self._written and self._written[0][0] == "system":
            texts.append(as_text(self._written.pop(0)[1]))
        default = self._options.default_system
        if not texts and default and all(role != "system" for role, _ in self._written):
            texts = [default]
        if self._use.offered:
            texts.append(self.tools_text())
            if self._use.answer is not None:
                schema = json.dumps(self._use.answer, ensure_ascii=False)
                texts.append(self._texts.answer.format(schema=self.plain(schema)))
        if texts:
            self._written.insert(0, ("system", [_text("\n\n".join(texts))]))

    def messages(self) -> list[dict[str, Any]]:
        """The messages in OpenAI's form; an empty assistant message has no content, as Qwen-Agent sends it."""
        written = []
        for role, parts in self._written:
            content = join_parts(parts)
            written.append(
                {"role": role} if role == "assistant" and not content else {"role": role, "content": content}
            )
        return written

    # -- what steps are written with -----------------------------------------------------------------------

    @property
    def role(self) -> str | None:
        """Whose message is being written."""
        return self._written[-1][0] if self._written else None

    def begin(self, role: str) -> None:
        """Begins a message."""
        self._written.append((role, []))

    def add(self, content: Parts) -> None:
        """Goes on with the message."""
        self._written[-1][1].extend([_text(content)] if isinstance(content, str) else content)

    def take_last(self) -> list[dict[str, Any]]:
        """Takes the last message back, and gives its parts."""
        return self._written.pop()[1]

    def strip_end(self, tail: str, only_after: str = "") -> bool:
        """Takes `tail` off the end of the message; True if it stood there, behind `only_after`."""
        parts = self._written[-1][1]
        if not parts or parts[-1]["type"] != "text" or not parts[-1]["text"].endswith(only_after + tail):
            return False
        parts[-1] = _text(parts[-1]["text"].removesuffix(tail))
        return True

    def model_name(self, call: FunctionCall) -> str:
        """The name that the model knows the tool by; one that nobody declared may be anything: it is made harmless."""
        return self._tools[call.name].model_name if call.name in self._tools else self._foreign(call.name)

    def arguments(self, call: FunctionCall) -> str:
        """The arguments as they stand in the history, harmless."""
        return self._foreign(call.arguments)

    def seen(self, content: Content) -> Parts:
        """A result as the model sees it."""
        if not self._options.vision:
            return self._foreign(as_text(content))
        return self._each_text(as_parts(content, self._language, note=False), self._foreign)

    # -- what is not the model's own -----------------------------------------------------------------------

    def _said(self, role: str, content: Content, *, note: bool) -> Parts:
        # The system message is the operator's word: whoever writes markers there means them.
        harmless = self.plain if role != "system" else str
        if self._options.vision:
            return self._each_text(as_parts(content, self._language, note=note), harmless)
        return harmless(with_note(content, self._language))

    def _each_text(self, content: Parts, harmless: Callable[[str], str]) -> Parts:
        if isinstance(content, str):
            return harmless(content)
        return [_text(harmless(part["text"])) if part["type"] == "text" else part for part in content]

    def plain(self, text: str) -> str:
        """The caller's own text, with no marker in it."""
        return self._escaped(text, self._callers)

    def _foreign(self, text: str) -> str:
        # What a stranger may have written: a result, and the model's own words and calls, which may quote one.
        return self._escaped(text, self._strangers)

    def _escaped(self, text: str, escapes: Escapes) -> str:
        harmless = escapes.escape(text)
        if len(harmless) > len(text):
            self.escaped = escapes.leads
        return harmless

    # -- what the model is told as the user's words --------------------------------------------------------

    def _returned(self, content: Content) -> str:
        result = NO_RESULT if content == [] else self._foreign(as_text(content))
        return self._texts.returned.format(result=result)

    def _tell(self, text: str) -> None:
        if self.role != "user":
            self.begin("user")
        self.add(text)

    def _tell_earlier(self, text: str) -> None:
        # Behind the user's last words, so that a turn which is still open stays the last.
        for role, parts in reversed(self._written):
            if role == "user":
                parts.append(_text(text))
                return
        systems = sum(1 for _ in takewhile(lambda written: written[0] == "system", self._written))
        self._written.insert(systems, ("user", [_text(text)]))


@cache
def _escapes(
    markers: Escapes, control_tokens: Literal["results", "all", "none"], *, offered: bool
) -> tuple[Escapes, Escapes]:
    # What to take out of the caller's own text, and of what strangers may have written.
    known = markers.patterns if offered else ()
    strangers = Escapes((*known, *(CONTROL_TOKENS if control_tokens != "none" else ())))
    callers = strangers if control_tokens == "all" else Escapes(known, strangers.leads)
    return callers, strangers


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}
