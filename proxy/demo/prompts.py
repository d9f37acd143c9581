"""Messages -> the turn that a model finds itself in: the user's words, the tools, what was called and what came of it.

What can be seen of tools is one of two prompts of Qwen-Agent's: ✿, in the wording of 0.0.34 and of older versions, and
`<tool_call>`. In the first a turn's calls and results stand behind the user's words, in the second in messages of
their own.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.demo.schema import Json, as_dict
from proxy.demo.words import words

_FUNCTION, _ARGS, _RESULT, _RETURN = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"
_CALL, _END_CALL, _RESPONSE, _END_RESPONSE = "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"

_HEADING = re.compile(r"^### .*\n\n([^\n:]+): ", re.MULTILINE)
_PARAMETERS = re.compile("输入参数：|Parameters: ")
_WANTED_FORM = re.compile(r"answer with JSON alone[^\n]*:\n|只用符合以下JSON Schema的JSON作答：\n")
_PARALLEL = re.compile("call N tools in parallel|并行调用N个工具")
_RESULTS = re.compile(rf"{_RESULT}: ?(.*?)\n?(?={_RESULT}|{_RETURN}|{_FUNCTION}|\Z)", re.DOTALL)
_TOOLS = re.compile(r"^<tools>\n(.*?)\n</tools>$", re.DOTALL | re.MULTILINE)
_RESPONSES = re.compile(rf"{_RESPONSE}\n(.*?)\n{_END_RESPONSE}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Tool:
    """`worth`: of a word when the user says it. `fenced`: wants a code block instead of JSON."""

    name: str
    worth: dict[str, int]
    schema: Json
    fenced: bool

    def score(self, asked: set[str]) -> int:
        """What these words are worth."""
        return sum(self.worth.get(word, 0) for word in asked)


@dataclass(frozen=True, slots=True)
class Turn:
    """`asked`: the user's words. `begun`: the last call that the prompt holds of the model's own turn.

    `lead`: what an answer from the `results` begins with. `form`: the schema that the prompt wants the answer to fit,
    or an empty one. `tagged`: calls are written between tags.
    """

    asked: str
    begun: str
    results: tuple[str, ...]
    lead: str
    tools: tuple[Tool, ...]
    parallel: bool
    form: Json
    tagged: bool

    @property
    def is_named(self) -> bool:
        """True if what is begun is no more than a marker, or has a whole name."""
        return "\n" in self.begun or self.begun.rstrip(": ") == _FUNCTION

    def call(self, name: str, arguments: str) -> str:
        """A call as the prompt asks for it, with the line's end."""
        if self.tagged:
            return (
                f'{_CALL}\n{{"name": {json.dumps(name, ensure_ascii=False)}, "arguments": {arguments}}}\n{_END_CALL}\n'
            )
        return f"{_FUNCTION}: {name}\n{_ARGS}: {arguments}\n"

    def ended(self, calls: str) -> str:
        """The calls, and the beginning of an invented result: where a stop string ends it, a model goes on so far."""
        return calls.removesuffix("\n") if self.tagged else calls + _RESULT


def read_turn(messages: Sequence[Json], continued: bool) -> Turn:
    """The turn; `continued`: the last message is the model's own, and goes on."""
    system = "\n".join(text_of(m) for m in messages if m.get("role") in ("system", "developer"))
    said = text_of(messages[-1]) if continued and messages[-1].get("role") == "assistant" else ""
    users = [text_of(m) for m in messages if m.get("role") == "user"]
    if _FUNCTION not in system and (listed := _TOOLS.search(system)):
        return _tagged_turn(users, said, tuple(_listed_tools(listed.group(1))), _wanted_form(system))
    tools = tuple(_tools(system)) if _FUNCTION in system else ()
    user = users[-1] if users else ""
    asked, marker, calls = user.partition(_FUNCTION) if tools else (user, "", "")
    said = marker + calls + said
    begun = _FUNCTION + said.rpartition(_FUNCTION)[2] if _FUNCTION in said else ""
    lead = {"": ": ", ":": " "}.get(said.rpartition(_RETURN)[2], "")
    parallel = _PARALLEL.search(system) is not None
    results = tuple(_RESULTS.findall(said))
    return Turn(asked.strip(), begun, results, lead, tools, parallel, _wanted_form(system), tagged=False)


def _tagged_turn(users: Sequence[str], said: str, tools: tuple[Tool, ...], form: Json) -> Turn:
    asked = next((text for text in reversed(users) if not text.startswith(_RESPONSE)), "")
    results = tuple(_RESPONSES.findall(users[-1])) if users and users[-1].startswith(_RESPONSE) else ()
    begun = _CALL + said.rpartition(_CALL)[2] if _CALL in said else ""
    return Turn(asked.strip(), begun, results, "", tools, True, form, tagged=True)


def text_of(message: Json) -> str:
    """A message's text; content parts are joined by line ends, as vLLM joins them."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(part["text"] for part in map(as_dict, parts) if isinstance(part.get("text"), str))


def _wanted_form(system: str) -> Json:
    for mark in _WANTED_FORM.finditer(system):
        try:
            return as_dict(json.JSONDecoder().raw_decode(system, mark.end())[0])
        except (ValueError, RecursionError):
            continue
    return {}


def _tools(system: str) -> Iterator[Tool]:
    _, *parts = _HEADING.split(system)
    for name, rest in zip(parts[::2], parts[1::2], strict=True):
        block = rest.partition("\n\n## ")[0]
        for mark in _PARAMETERS.finditer(block):
            try:
                parameters, end = json.JSONDecoder().raw_decode(block, mark.end())
            except (ValueError, RecursionError):
                continue
            yield _tool(name, block[: mark.start()], _schema(parameters), block[end:])
            break


def _listed_tools(lines: str) -> Iterator[Tool]:
    for line in lines.split("\n"):
        try:
            function = as_dict(as_dict(json.loads(line)).get("function"))
        except (ValueError, RecursionError):
            continue
        name, about = str(function.get("name")), str(function.get("description", ""))
        yield _tool(name, about, _schema(function.get("parameters")), "")


def _schema(parameters: object) -> Json:
    if isinstance(parameters, list):  # Qwen-Agent's older form
        listed = [p for p in parameters if isinstance(p, dict) and isinstance(p.get("name"), str)]
        properties = {p["name"]: {**p, "required": None} for p in listed}
        return {"properties": properties, "required": [p["name"] for p in listed if p.get("required")]}
    return as_dict(parameters)


def _tool(name: str, about: str, schema: Json, input_format: str) -> Tool:
    fields = as_dict(schema.get("properties")).items()
    details = " ".join(f"{field} {as_dict(each).get('description', '')}" for field, each in fields)
    worth = {word: worth for worth, text in ((1, details), (2, about), (3, name)) for word in words(text)}
    fenced = "triple backticks" in input_format or "Markdown代码块" in input_format
    return Tool(name, worth, schema, fenced)
