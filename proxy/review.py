"""What one choice says is looked at before the caller sees it: let through, held back, or found to be a mistake.

    a demanded call     text is held back until it comes; no call, or another tool's, is a mistake
    a forbidden call    of a tool that the caller has, but does not allow: a mistake
    a demanded answer   text is held back until its end; what does not fit the schema is a mistake
    a call              of no tool, or with arguments that break a strict tool's schema: a mistake, if repairs are on

A Mistake says what to tell the model so that it tries again. Behind the last try a demand that is not met is an
error; a call goes out as it is: whoever runs the tools tells the model what is wrong with it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proxy.errors import AnswerNotMet, ChoiceNotMet, FloretteError, RunawayArguments
from proxy.events import CallArguments, CallEnd, CallStart, ParserEvent, Runaway, Text
from proxy.formats.base import ToolUse
from proxy.formats.grammar import enforces
from proxy.strings import StringEscapes
from proxy.validation import fault_in
from proxy.wire import FunctionCall, Message, Tool, ToolCall

#: A demand that is not met is stated to the model once more: one that did not obey twice will not.
_DEMAND_TRIES = 1

_FENCE = "```"
_OPENING = re.compile(r"```(?:json)?[ \t]*\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mistake:
    """What the model is to be told behind the conversation, before it answers again."""

    told: Sequence[Message]


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    written: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.written)

    @property
    def meaning(self) -> tuple[str, str]:
        return self.name, _canonical(self.arguments)


class Review:
    """Looks at what one choice says. `repairs`: how often a call that is wrong may be asked for again.

    `trusted`: the upstream was made to comply, so that arguments and answers need no second look, as far as a grammar
    can hold a model to their schemas. `mistake` is set once the model has to be asked again, `failed` once that is no
    use; nothing is let through then until `again`.
    """

    def __init__(self, use: ToolUse, *, repairs: int, trusted: bool) -> None:
        self._use = use
        vouched = trusted and enforces(use.answer)
        self._answer = None if vouched else use.answer
        # The grammar of an answer lets control characters into its strings.
        self._escapes = StringEscapes() if vouched and use.answer is not None else None
        self._callable = frozenset(tool.name for tool in use.callable)
        self._tools: Mapping[str, Tool] = {tool.name: tool for tool in use.tools} if repairs else {}
        self._trusted = trusted
        self._repairs_left = repairs
        self._tries_left = _DEMAND_TRIES
        self._holds_text = use.demands or self._answer is not None
        self._text: list[str] = []
        self._said: list[str] = []
        self._calls: list[_Call] = []
        self._held: _Call | None = None
        self._kept_id: str | None = None
        self._asked_again = False
        self._before = 0
        self._made: set[tuple[str, str]] = set()
        self.truncated = False
        self.mistake: Mistake | None = None
        self.failed: FloretteError | None = None

    @property
    def over(self) -> bool:
        """True if nothing that the model goes on to say is wanted."""
        return self.mistake is not None or self.failed is not None

    @property
    def holds(self) -> bool:
        """True if what was said last may yet turn out to be a mistake, of which the caller is to see nothing."""
        return self.over or self._held is not None or (self._holds_text and len(self._calls) == self._before)

    @property
    def calls(self) -> int:
        """How many whole calls were let through."""
        return len(self._calls) - self.truncated

    def again(self) -> None:
        """The model is asked again: what it says now goes on behind what was let through."""
        self.mistake = None
        self._asked_again = self._holds_text = True
        self._before = len(self._calls)
        self._made = {call.meaning for call in self._calls} if self._tools else set()
        self._text.clear()

    def pass_on(self, events: Sequence[ParserEvent]) -> list[ParserEvent]:
        """What of the events the caller may see now."""
        passed: list[ParserEvent] = []
        for event in events:
            if self.over:
                break
            match event:
                case CallArguments() if not self._tools:
                    passed.append(event)
                case CallArguments(_, text):
                    passed += self._go_on(text)
                case Text(text) if self._holds_text:
                    self._text.append(text)
                case Text(text) if self._escapes:
                    passed.append(Text(self._escapes.feed(text)))
                case CallStart(_, call_id, name):
                    passed += self._start(call_id, name)
                case CallEnd():
                    passed += self._end(event)
                case Runaway(reason):
                    self.failed = RunawayArguments(reason)
                case _:
                    if self._tools and isinstance(event, Text):
                        self._said.append(event.text)
                    passed.append(event)
        return passed

    def close(self, finish: str) -> list[ParserEvent]:
        """The end of what the model said, with the upstream's reason: the text that was held back for it."""
        if self.over:
            return []
        text = "".join(self._text)
        self._text.clear()
        if finish != "length" and not self._calls:
            if self._use.demands:
                self._find_unmet(text)
                return []
            if self._answer is not None:
                return self._checked(text, self._answer)
        return [Text(text)] if text and not self._calls else []

    # -- calls ---------------------------------------------------------------------------------------------

    def _start(self, call_id: str, name: str) -> list[ParserEvent]:
        if name not in self._callable and (self._use.demands or name in self._use.forbidden):
            self._find_unmet("".join(self._text))
            return []
        call = _Call(call_id, name)
        if self._is_held(name):
            self._held = call
            return []
        return self._let_through(call)

    def _is_held(self, name: str) -> bool:
        if not self._tools:
            return False
        strict = name not in self._tools or self._is_checked(self._tools[name])
        # Asked again, a model may repeat the calls that were right.
        return strict or self._asked_again

    def _go_on(self, text: str) -> list[ParserEvent]:
        (self._held or self._calls[-1]).written.append(text)
        return [] if self._held else [CallArguments(len(self._calls) - 1, text)]

    def _end(self, end: CallEnd) -> list[ParserEvent]:
        call, self._held = self._held, None
        passed: list[ParserEvent] = []
        if call:
            if self._made and call.meaning in self._made:
                return []
            if not end.truncated and self._repairs_left and (fault := self._fault_in(call)):
                self._repairs_left -= 1
                self._kept_id = self._kept_id or call.id
                self.mistake = Mistake(self._correction(call, fault))
                return []
            passed = [*self._let_through(call), CallArguments(len(self._calls) - 1, call.arguments)]
        self.truncated = end.truncated
        return [*passed, CallEnd(len(self._calls) - 1, end.repairs, end.truncated)]

    def _let_through(self, call: _Call) -> list[ParserEvent]:
        text = "".join(self._text) if not self._calls and not self._asked_again else ""
        self._text.clear()
        call.id, self._kept_id = self._kept_id or call.id, None
        self._calls.append(call)
        self._said.append(text)
        start = CallStart(len(self._calls) - 1, call.id, call.name)
        return [Text(text), start] if text else [start]

    def _fault_in(self, call: _Call) -> str | None:
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(tool.model_name for tool in self._tools.values())
            return f"there is no tool named {call.name!r}; the tools are {known}"
        return fault_in(call.arguments, tool.json_schema) if self._is_checked(tool) else None

    def _is_checked(self, tool: Tool) -> bool:
        return tool.strict is True and not (self._trusted and enforces(tool.json_schema))

    # -- mistakes ------------------------------------------------------------------------------------------

    def _correction(self, wrong: _Call, fault: str) -> list[Message]:
        calls = [*self._calls, wrong]
        results = ["This call is accepted; do not repeat it." for _ in self._calls]
        results.append(f"Error: {fault}. Make this call again, corrected, and behind it those that were to follow.")
        told = [ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in calls]
        return [
            Message(role="assistant", content="".join(self._said), tool_calls=told),
            *(
                Message(role="tool", tool_call_id=call.id, content=result)
                for call, result in zip(calls, results, strict=True)
            ),
        ]

    def _find_unmet(self, text: str) -> None:
        may = " or ".join(tool.model_name for tool in self._use.callable)
        if not self._use.demands:
            error = ChoiceNotMet("The model called a tool that tool_choice does not allow; ask again.")
            self._find(text, f"You may call no other tool now than {may}. Answer again.", error)
            return
        name = self._use.choice.name
        error = ChoiceNotMet(
            f"The model did not call {repr(name) if name else 'a tool'}, although tool_choice demands it; "
            "ask again or word the request clearer."
        )
        self._find(text, f"You have to call {may} now. Answer with the call, and nothing else.", error)

    def _checked(self, text: str, schema: Mapping[str, object]) -> list[ParserEvent]:
        answer = StringEscapes().feed(_unfenced(text))
        fault = fault_in(answer, schema)
        if fault is None:
            return [Text(answer)]
        error = AnswerNotMet(f"The model's answer does not fit the schema of response_format: {fault}.")
        self._find(text, f"This does not fit the JSON schema: {fault}. Answer again, with JSON alone.", error)
        return []

    def _find(self, said: str, instruction: str, error: FloretteError) -> None:
        if not self._tries_left:
            self.failed = error
            return
        self._tries_left -= 1
        spoken = [Message(role="assistant", content=said)] if said.strip() else []
        self.mistake = Mistake([*spoken, Message(role="user", content=instruction)])


def _unfenced(text: str) -> str:
    # Without the Markdown fence that many a model puts around JSON.
    stripped = text.strip()
    opening = _OPENING.match(stripped)
    return stripped[opening.end() : -len(_FENCE)].strip() if opening and stripped.endswith(_FENCE) else text


def _canonical(arguments: str) -> str:
    # The same JSON in the same words.
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments
