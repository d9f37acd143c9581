"""A format that is not Florette's own, in one class: what it takes to add one (see `docs/format-nous.md`).

@call get_weather {"city": "Paris"}
@result 21
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy.formats import grammar
from proxy.formats.arguments import ObjectReader
from proxy.formats.base import Grammar, Options, Parser, Prompt, ToolUse
from proxy.formats.hygiene import Escapes, restoring
from proxy.formats.parsing import CallParser
from proxy.formats.schemas import view_of
from proxy.formats.writing import Parts, Writer, language_of
from proxy.wire import FunctionCall, Message

CALL, RESULT = "@call", "@result"

_MARKERS = Escapes((CALL, RESULT))
#: A name of 64 characters, and blanks.
_HEADER = re.compile(r"([^{\n]{0,80})([{\n])")


@dataclass(frozen=True, slots=True)
class At:
    """Calls and results on lines that begin with an `@`."""

    options: Options = field(default_factory=Options)

    class _Writer(Writer):
        def spoken(self, text: str, calls: Sequence[FunctionCall]) -> None:
            self.begin("assistant")
            self.add(text)
            for call in calls:
                self.add(f"\n{CALL} {self.model_name(call)} {self.arguments(call)}\n")

        def results(self, results: Sequence[Parts]) -> None:
            self.begin("user")
            for result in results:
                self.add(f"{RESULT} ")
                self.add(result)

        def tools_text(self) -> str:
            names = ", ".join(tool.model_name for tool in self._use.tools)
            return f"Write {CALL}, one of {names}, and its arguments as JSON."

    class _Parser(CallParser):
        def __init__(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> None:
            super().__init__({CALL: self._at_call, RESULT: lambda _: self._halt()}, prompt, use, new_id)

        def _at_call(self, raw: str) -> None:
            self._raw, self._state = [raw], self._header

        def _header(self) -> bool:
            header = _HEADER.match(self._text, self._at)
            if header is None and not self._closing and len(self._text) - self._at <= 80:
                return False
            self._tool = self._tools.get(header.group(1).strip()) if header else None
            if header is None or self._tool is None:
                self._reject()
                return True
            self._at = header.start(2)
            if header.group(2) == "{":
                self._begin_call(self._tool.name, ObjectReader("@", view_of(self._tool.json_schema)))
            else:
                self._empty_call(self._tool.name)
            return True

    def render(self, messages: Sequence[Message], use: ToolUse) -> Prompt:
        writer = self._Writer(self.options, language_of(self.options, messages), use, _MARKERS)
        return writer.prompt(messages, prefill="", stop=(RESULT,))

    def parser(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> Parser:
        return restoring(self._Parser(prompt, use, new_id), prompt)

    def grammar(self, prompt: Prompt, use: ToolUse) -> Grammar:
        tags = [grammar.call(f"{CALL} {tool.model_name} ", tool, end="\n") for tool in use.tools]
        return grammar.answer(use, tags, tags, trigger=CALL, thinking=prompt.thinking)
