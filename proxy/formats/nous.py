"""The nous format: OpenAI messages and tools -> Qwen-Agent's prompt; `nous_parser` reads the answer.

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Paris"}}
    </tool_call>

    <tool_response>
    21
    </tool_response>

Source: Qwen-Agent 0.0.34 (Apache-2.0, see NOTICE), `nous_fncall_prompt.py`; the form that Qwen 2.5 and 3 were trained
on, and Hermes before them. It is English whatever the conversation's language.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from proxy.formats import grammar
from proxy.formats.base import Grammar, Options, Parser, Prompt, ToolUse
from proxy.formats.content import Language
from proxy.formats.hygiene import Escapes, restoring
from proxy.formats.nous_parser import CALL, END_CALL, RESPONSE, NousParser
from proxy.formats.writing import Parts, Writer, language_of
from proxy.wire import FunctionCall, Message, Tool

_END_RESPONSE = "</tool_response>"

_MARKERS = Escapes((CALL, END_CALL, RESPONSE, _END_RESPONSE, "<tools>", "</tools>"))

_TOOLS = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True, slots=True)
class Nous:
    """The `<tool_call>` format."""

    options: Options = field(default_factory=Options)

    def render(self, messages: Sequence[Message], use: ToolUse) -> Prompt:
        """The prompt; with choice none, or without tools, calls and results become user text."""
        writer = _Writer(self.options, language_of(self.options, messages), use)
        # In some models (Hermes) the tags are special tokens.
        return replace(writer.prompt(messages, _prefill(use)), special=use.offered)

    def parser(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> Parser:
        """A parser that knows the tools; where the model is offered none, one that hears no marker."""
        return restoring(NousParser(prompt, use, new_id), prompt)

    def grammar(self, prompt: Prompt, use: ToolUse) -> Grammar:
        """What the answer may be: calls as the prompt asks for them, each with arguments of its schema."""
        begun = [_tag(tool, _beginning(tool).removeprefix(prompt.prefill)) for tool in use.callable]
        anew = [_tag(tool, _beginning(tool)) for tool in use.tools]
        return grammar.answer(use, begun, anew, trigger=CALL, between="\n", thinking=prompt.thinking)


def _tag(tool: Tool, begin: str) -> Grammar:
    return grammar.call(begin, tool, end=f"}}\n{END_CALL}")


def _beginning(tool: Tool) -> str:
    return f'{CALL}\n{{"name": {_json(tool.model_name)}, "arguments": '


def _prefill(use: ToolUse) -> str:
    # Qwen-Agent has neither. What ends in a blank tears a token in two: ` {"` is one, and so is ` "`.
    if use.offered and use.choice.mode == "named":
        return _beginning(use.callable[0]).rstrip()
    return f'{CALL}\n{{"name":' if use.offered and use.choice.mode == "required" else ""


class _Writer(Writer):
    """Calls in assistant messages, their results in user messages."""

    def __init__(self, options: Options, language: Language, use: ToolUse) -> None:
        super().__init__(options, language, use, _MARKERS)

    def spoken(self, text: str, calls: Sequence[FunctionCall]) -> None:
        """The text with the first call right behind it, the others on lines of their own."""
        if self.role == "assistant":
            self.add("\n")
        else:
            self.begin("assistant")
        self.add(text + "\n".join(map(self._call, calls)))

    def results(self, results: Sequence[Parts]) -> None:
        """All results in one message."""
        self.begin("user")
        for number, result in enumerate(results):
            self.add("\n" * (number > 0) + f"{RESPONSE}\n")
            self.add(result)
            self.add(f"\n{_END_RESPONSE}")

    def tools_text(self) -> str:
        """The tools, one on each line, and how to call them."""
        return _TOOLS.format(tools="\n".join(self.plain(_json(_signature(tool))) for tool in self._use.tools))

    def _call(self, call: FunctionCall) -> str:
        name = self._tools[call.name].model_name if call.name in self._tools else call.name
        written = f'{{"name": {_json(name)}, "arguments": {_rewritten(call.arguments)}}}'
        return f"{CALL}\n{self._foreign(written)}\n{END_CALL}"


def _signature(tool: Tool) -> dict[str, object]:
    about = {"name": tool.model_name, "description": tool.description, "parameters": tool.schema_for_model}
    function = {key: value for key, value in about.items() if value is not None}
    return {"type": "function", "function": function}


def _rewritten(arguments: str) -> str:
    # What is no JSON stands there as a string, as it does with Qwen-Agent; and so does what could not be sent.
    try:
        written = _json(json.loads(arguments or "{}"))
        written.encode()
    except (ValueError, RecursionError):
        return _json(arguments)
    return written


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
