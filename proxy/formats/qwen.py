"""The ✿ format: OpenAI messages and tools -> Qwen-Agent's prompt; `qwen_parser` reads the answer.

    ✿FUNCTION✿: get_weather
    ✿ARGS✿: {"city": "Paris"}
    ✿RESULT✿: 21
    ✿RETURN✿: It is 21 degrees.

Source: Qwen-Agent 0.0.34, `qwen_fncall_prompt.py`, `base.py` and `simulate_response_completion_with_chat`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy.formats import grammar
from proxy.formats.base import Grammar, Options, Parser, Prompt, ToolUse
from proxy.formats.content import Language
from proxy.formats.fences import fenced
from proxy.formats.hygiene import Escapes, restoring
from proxy.formats.qwen_parser import CODE_TOOL, QwenParser, is_code_tool
from proxy.formats.qwen_templates import ARGS, FUNCTION, RESULT, RETURN, TEMPLATES
from proxy.formats.writing import Parts, Writer, language_of
from proxy.wire import FunctionCall, Message, Tool

_TAIL = f"\n{RETURN}: "

_MARKERS = Escapes((FUNCTION, ARGS, RESULT, RETURN))


@dataclass(frozen=True, slots=True)
class Qwen:
    """The ✿ format."""

    options: Options = field(default_factory=Options)

    def render(self, messages: Sequence[Message], use: ToolUse) -> Prompt:
        """The prompt; with choice none, or without tools, calls and results become user text."""
        writer = _Writer(self.options, language_of(self.options, messages), use)
        return writer.prompt(messages, _prefill(use), stop=(RESULT, RETURN))

    def parser(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> Parser:
        """A parser that knows the tools; where the model is offered none, one that hears no marker."""
        return restoring(QwenParser(prompt, use, new_id), prompt)

    def grammar(self, prompt: Prompt, use: ToolUse) -> Grammar:
        """What the answer may be: calls as the prompt asks for them, each with arguments of its schema."""
        begun = [_tag(tool, f"{FUNCTION}: {tool.model_name}".removeprefix(prompt.prefill)) for tool in use.callable]
        anew = [_tag(tool, f"{FUNCTION}: {tool.model_name}") for tool in use.tools]
        # Behind the colon that follows ✿RETURN✿ in the prompt.
        lead = ": " if prompt.after_results else ""
        return grammar.answer(use, begun, anew, trigger=FUNCTION, thinking=prompt.thinking, end=RESULT, lead=lead)


def _tag(tool: Tool, begin: str) -> Grammar:
    if is_code_tool(tool):
        return grammar.block(f"{begin}\n{ARGS}:")
    return grammar.call(f"{begin}\n{ARGS}: ", tool, end="\n")


def _prefill(use: ToolUse) -> str:
    # Qwen-Agent knows named choices only; a required call is begun in the same way, its name left open.
    if use.offered and use.choice.mode == "named":
        return f"{FUNCTION}: {use.callable[0].model_name}"
    return f"{FUNCTION}:" if use.offered and use.choice.mode == "required" else ""


class _Writer(Writer):
    """Calls and results with ✿ markers, all of a turn in one message."""

    def __init__(self, options: Options, language: Language, use: ToolUse) -> None:
        super().__init__(options, language, use, _MARKERS)
        self._templates = TEMPLATES[language]

    def spoken(self, text: str, calls: Sequence[FunctionCall]) -> None:
        """The text, and each call on lines of its own."""
        follows = self.role == "assistant"
        if not follows:
            self.begin("assistant")
        self.add(text)
        for number, call in enumerate(calls):
            self.add("\n" * (follows or number > 0) + self._call(call))

    def results(self, results: Sequence[Parts]) -> None:
        """Each result behind its marker, and the marker behind which the model goes on."""
        self.strip_end(_TAIL)
        for result in results:
            self.add(f"\n{RESULT}: ")
            self.add(result)
        self.add(_TAIL)

    def finish(self, prefill: str) -> tuple[bool, bool]:
        """Moves the current turn's calls and results into the last user message, unless they are to be continued.

        That is Qwen-Agent's way: a text model is trained to answer a user.
        """
        if self.role != "assistant":
            return False, False
        after_results = self.strip_end(": ", only_after=RETURN)
        if self._continues:
            return after_results, True
        turn = self.take_last()
        if self.role == "user":
            self.add("\n\n")
        else:
            self.begin("user")
        self.add(turn)
        return after_results, False

    def tools_text(self) -> str:
        """The tools, and how to call them."""
        tools = self._use.tools
        blocks = "\n\n".join(self.plain(self._tool_text(tool)) for tool in tools)
        names = ",".join(tool.model_name for tool in tools)
        command = self._templates.parallel if self._use.parallel else self._templates.single
        return self._templates.tools.format(tools=blocks) + "\n\n" + command.format(names=names)

    def _tool_text(self, tool: Tool) -> str:
        schema = json.dumps(tool.schema_for_model, ensure_ascii=False)
        texts = self._templates
        hint = tool.args_format
        if hint is None:
            hint = texts.code_arguments if is_code_tool(tool) else texts.json_arguments
        title = f"### {tool.name_for_human or tool.name}\n\n{tool.model_name}: {tool.description or ''} "
        return f"{title}{texts.parameters}{schema} {hint}".rstrip()

    def _call(self, call: FunctionCall) -> str:
        name = self.model_name(call)
        if name == CODE_TOOL and (call.name not in self._tools or is_code_tool(self._tools[call.name])):
            call = _with_block(call)
        arguments = self.arguments(call)
        return f"{FUNCTION}: {name}\n{ARGS}: " + ("\n" if arguments.startswith("```") else "") + arguments


def _with_block(call: FunctionCall) -> FunctionCall:
    # The caller got `{"code": ...}` for the block that the model wrote: the model gets its block back.
    try:
        given = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return call
    if not isinstance(given, dict) or list(given) != ["code"] or not isinstance(given["code"], str):
        return call
    return FunctionCall(name=call.name, arguments=fenced(given["code"], "py"))
