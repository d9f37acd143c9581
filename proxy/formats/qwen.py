"""The ✿ format: OpenAI messages and tools -> Qwen-Agent's prompt; `qwen_parser` reads the answer.

    ✿FUNCTION✿: get_weather
    ✿ARGS✿: {"city": "Paris"}
    ✿RESULT✿: 21
    ✿RETURN✿: It is 21 degrees.

Source: Qwen-Agent 0.0.34, `qwen_fncall_prompt.py`, `base.py` and `simulate_response_completion_with_chat`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from proxy.formats.base import Parser, Prompt
from proxy.formats.content import Content, Language, as_parts, as_text, is_chinese, join_parts, with_note
from proxy.formats.fences import fenced
from proxy.formats.history import NO_RESULT, Results, Said, Spoken, Step, steps
from proxy.formats.parsing import CallParser
from proxy.formats.qwen_parser import CODE_TOOL, QwenParser, is_code_tool
from proxy.formats.qwen_templates import ARGS, FUNCTION, RESULT, RETURN, TEMPLATES, Templates
from proxy.wire import Choice, FunctionCall, Message, Tool

_TAIL = f"\n{RETURN}: "


@dataclass(frozen=True, slots=True)
class Qwen:
    """The ✿ format.

    `default_system` stands in for a missing system message (empty: none); `language` is that of the templates
    (`auto`: Chinese if a system or user message has a Chinese character); `vision` keeps images for a model
    that sees, which a text model is only told of; `thinking_begun`: the chat template ends in <think>.
    """

    default_system: str = "You are a helpful assistant."
    language: Literal["auto", "zh", "en"] = "auto"
    vision: bool = False
    thinking_begun: bool = False

    def render(self, messages: Sequence[Message], tools: Sequence[Tool], choice: Choice, parallel: bool) -> Prompt:
        """The prompt; with choice none, or without tools, calls and results become user text."""
        language = self._language(messages)
        listening = bool(tools) and choice.mode != "none"
        writer = _Writer(TEMPLATES[language], language, self.vision, {tool.name: tool for tool in tools})
        for step in steps(messages):
            (writer.write if listening else writer.fold)(step)
        prefill = _prefill(choice, tools) if listening else ""
        after_results = writer.finish(prefill)
        writer.add_system(self.default_system, tools if listening else (), parallel)
        stop = (RESULT, RETURN) if listening else ()
        return Prompt(writer.messages(), stop, prefill, after_results)

    def parser(
        self, prompt: Prompt, tools: Sequence[Tool], choice: Choice, parallel: bool, new_id: Callable[[], str]
    ) -> Parser:
        """A parser that knows the tools; where the prompt has none, one that hears no marker."""
        if not prompt.stop:
            return CallParser({}, new_id, thinking=self.thinking_begun)
        # What names one tool asks for one call.
        single = not parallel or choice.mode == "named"
        return QwenParser(prompt, tools, new_id, single=single, thinking=self.thinking_begun)

    def _language(self, messages: Sequence[Message]) -> Language:
        if self.language != "auto":
            return self.language
        asked = (message.content for message in messages if message.role in ("system", "developer", "user"))
        return "zh" if any(map(is_chinese, asked)) else "en"


def _prefill(choice: Choice, tools: Sequence[Tool]) -> str:
    # Qwen-Agent knows named choices only; a required call is begun in the same way, its name left open.
    if choice.mode == "named":
        return f"{FUNCTION}: " + next(tool.model_name for tool in tools if tool.name == choice.name)
    return f"{FUNCTION}:" if choice.mode == "required" else ""


# -- render ------------------------------------------------------------------------------------------------


class _Writer:
    """Writes the steps of a conversation one behind the other; messages are lists of parts until the end."""

    def __init__(self, texts: Templates, language: Language, vision: bool, tools: Mapping[str, Tool]) -> None:
        self._texts = texts
        self._language = language
        self._vision = vision
        self._tools = tools
        self._written: list[tuple[str, list[dict[str, Any]]]] = []

    def write(self, step: Step) -> None:
        """Goes on by a step, calls and results with their markers."""
        match step:
            case Said(role, content):
                self._begin(role)
                self._add(self._said(content, note=True))
            case Spoken(content, calls):
                follows = self._role == "assistant"
                if not follows:
                    self._begin("assistant")
                self._add(as_text(content))
                for number, call in enumerate(calls):
                    self._add("\n" * (follows or number > 0) + self._call(call))
            case Results(contents):
                self._strip_end(_TAIL)
                for content in contents:
                    self._add(f"\n{RESULT}: ")
                    self._add(self._seen(content))
                self._add(_TAIL)
            case _:
                self._tell_earlier(self._returned(step.content))

    def fold(self, step: Step) -> None:
        """Goes on by a step, calls and results as user text: for a model that is not to see the markers."""
        match step:
            case Said("user", content):
                if self._role == "user":
                    # Qwen-Agent: keeps the model's mind on the second of two user messages.
                    self._begin("assistant")
                    self._add("...")
                self._begin("user")
                self._add(self._said(content, note=False))
            case Said(role, content):
                self._begin(role)
                self._add(self._said(content, note=False))
            case Spoken(content, ()):
                self._begin("assistant")
                self._add(as_text(content))
            case Spoken(_, calls):
                for call in calls:
                    name = self._model_name(call)
                    self._tell(self._texts.called.format(name=name, arguments=call.arguments))
            case Results(contents):
                for content in contents:
                    self._tell(self._returned(content))
            case _:
                self._tell(self._returned(step.content))

    def finish(self, prefill: str) -> bool:
        """Moves the current turn's calls and results, and the prefill, into the last user message.

        True if the prompt now ends in results. A text model is trained to answer a user; Qwen-Agent does the same.
        """
        if prefill:
            if self._role == "assistant":
                self._add("\n")
            else:
                self._begin("assistant")
            self._add(prefill)
        if self._role != "assistant":
            return False
        after_results = self._strip_end(": ", only_after=RETURN)
        _, turn = self._written.pop()
        if self._role == "user":
            self._add("\n\n")
        else:
            self._begin("user")
        self._written[-1][1].extend(turn)
        return after_results

    def add_system(self, default: str, tools: Sequence[Tool], parallel: bool) -> None:
        """Puts the tools behind the system message; leading system messages become one."""
        texts: list[str] = []
        while self._written and self._written[0][0] == "system":
            texts.append(as_text(self._written.pop(0)[1]))
        if not texts and default and all(role != "system" for role, _ in self._written):
            texts = [default]
        if tools:
            texts.append(self._tools_text(tools, parallel))
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

    @property
    def _role(self) -> str | None:
        return self._written[-1][0] if self._written else None

    def _begin(self, role: str) -> None:
        self._written.append((role, []))

    def _add(self, content: str | list[dict[str, Any]]) -> None:
        self._written[-1][1].extend([_text(content)] if isinstance(content, str) else content)

    def _tell(self, text: str) -> None:
        if self._role != "user":
            self._begin("user")
        self._add(text)

    def _tell_earlier(self, text: str) -> None:
        # Behind the user's last words, so that a turn which is still open stays the last.
        for role, parts in reversed(self._written):
            if role == "user":
                parts.append(_text(text))
                return
        systems = sum(1 for _ in takewhile(lambda written: written[0] == "system", self._written))
        self._written.insert(systems, ("user", [_text(text)]))

    def _strip_end(self, tail: str, only_after: str = "") -> bool:
        parts = self._written[-1][1]
        if not parts or parts[-1]["type"] != "text" or not parts[-1]["text"].endswith(only_after + tail):
            return False
        parts[-1] = _text(parts[-1]["text"].removesuffix(tail))
        return True

    def _said(self, content: Content, *, note: bool) -> str | list[dict[str, Any]]:
        if self._vision:
            return as_parts(content, self._language, note=note)
        return with_note(content, self._language)

    def _seen(self, content: Content) -> str | list[dict[str, Any]]:
        return as_parts(content, self._language, note=False) if self._vision else as_text(content)

    def _returned(self, content: Content) -> str:
        return self._texts.returned.format(result=NO_RESULT if content == [] else as_text(content))

    def _model_name(self, call: FunctionCall) -> str:
        return self._tools[call.name].model_name if call.name in self._tools else call.name

    def _call(self, call: FunctionCall) -> str:
        arguments = call.arguments
        name = self._model_name(call)
        if name == CODE_TOOL and (call.name not in self._tools or is_code_tool(self._tools[call.name])):
            arguments = _code_in(arguments)
        return f"{FUNCTION}: {name}\n{ARGS}: " + ("\n" if arguments.startswith("```") else "") + arguments

    def _tools_text(self, tools: Sequence[Tool], parallel: bool) -> str:
        blocks = "\n\n".join(self._tool_text(tool) for tool in tools)
        names = ",".join(tool.model_name for tool in tools)
        command = self._texts.parallel if parallel else self._texts.single
        return self._texts.tools.format(tools=blocks) + "\n\n" + command.format(names=names)

    def _tool_text(self, tool: Tool) -> str:
        schema = json.dumps(tool.schema_for_model, ensure_ascii=False)
        written = self._texts.code_arguments if is_code_tool(tool) else self._texts.json_arguments
        hint = written if tool.args_format is None else tool.args_format
        title = f"### {tool.name_for_human or tool.name}\n\n{tool.model_name}: {tool.description or ''} "
        return f"{title}{self._texts.parameters}{schema} {hint}".rstrip()


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _code_in(arguments: str) -> str:
    # The caller got `{"code": ...}` for the block that the model wrote: the model gets its block back.
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(given, dict) or list(given) != ["code"] or not isinstance(given["code"], str):
        return arguments
    return fenced(given["code"], "py")
