"""Messages -> the text that a model would go on with.

    messages -> Turn: the user's words, what has been said, the prompt's tools
             -> a call half done goes on | results are answered from | tools are called | the words come back

What can be seen of tools is the ✿ prompt, in the wording of Qwen-Agent 0.0.34 and of its older versions.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.demo.schema import Form, Json, as_dict
from proxy.demo.words import as_code, is_chinese, subjects, words

_FUNCTION, _ARGS, _RESULT, _RETURN = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"

#: The dialog that the project started from, as a real model answered it.
_DRAW_A_DOG = ("my_image_gen", "帮我画张小狗在草地上的图片")
_DOG_DRAWN = '{"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}'

#: The score to call a tool: a word of its description.
_ENOUGH = 2
#: The score to call one more: a word of its name.
_CLEARLY = 3

_HEADING = re.compile(r"^### .*\n\n([^\n:]+): ", re.MULTILINE)
_PARAMETERS = re.compile("输入参数：|Parameters: ")
_PARALLEL = re.compile("call N tools in parallel|并行调用N个工具")
_RESULTS = re.compile(rf"{_RESULT}: ?(.*?)\n?(?={_RESULT}|{_RETURN}|{_FUNCTION}|\Z)", re.DOTALL)
_BETWEEN = r"(\band\b|\bthen\b|[,;，；。]|再|和)"
_LAST_BETWEEN = re.compile(rf"{_BETWEEN}\s*$")


@dataclass(frozen=True, slots=True)
class _Tool:
    """`worth`: of a word when the user says it. `fenced`: wants a code block instead of JSON."""

    name: str
    worth: dict[str, int]
    schema: Json
    fenced: bool

    def score(self, asked: set[str]) -> int:
        return sum(self.worth.get(word, 0) for word in asked)


@dataclass(frozen=True, slots=True)
class _Turn:
    """`asked`: the user's words. `said`: what of the model's own turn the prompt holds already."""

    asked: str
    said: str
    tools: tuple[_Tool, ...]
    parallel: bool


def complete_chat(messages: Sequence[Json], continued: bool, wanted: Json) -> str:
    """The answer; `wanted` is the request's `response_format`, `continued` its `continue_final_message`."""
    turn = _read(messages, continued)
    text = (
        _guided(wanted, turn.asked)
        or _rest_of_call(turn)
        or _from_results(turn)
        or _new_calls(turn)
        or echo(turn.asked)
    )
    return text.encode(errors="replace").decode()  # a schema's escapes may spell half of a surrogate pair


def echo(text: str) -> str:
    """What is answered to a text that asks for no tool."""
    if is_chinese(text):
        return f"这是 Florette 的演示上游，背后没有模型。你说的是：{text}"
    return f"This is Florette's demo upstream: there is no model behind it. You said: {text}"


def text_of(message: Json) -> str:
    """A message's text; content parts are joined by line ends, as vLLM joins them."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(part["text"] for part in map(as_dict, parts) if isinstance(part.get("text"), str))


def _read(messages: Sequence[Json], continued: bool) -> _Turn:
    system = "\n".join(text_of(m) for m in messages if m.get("role") in ("system", "developer"))
    tools = tuple(_tools(system)) if _FUNCTION in system else ()
    user = next((text_of(m) for m in reversed(messages) if m.get("role") == "user"), "")
    asked, marker, calls = user.partition(_FUNCTION) if tools else (user, "", "")
    prefix = text_of(messages[-1]) if continued and messages[-1].get("role") == "assistant" else ""
    return _Turn(asked.strip(), marker + calls + prefix, tools, _PARALLEL.search(system) is not None)


def _tools(system: str) -> Iterator[_Tool]:
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


def _schema(parameters: object) -> Json:
    if isinstance(parameters, list):  # Qwen-Agent's older form
        listed = [p for p in parameters if isinstance(p, dict) and isinstance(p.get("name"), str)]
        properties = {p["name"]: {**p, "required": None} for p in listed}
        return {"properties": properties, "required": [p["name"] for p in listed if p.get("required")]}
    return as_dict(parameters)


def _tool(name: str, about: str, schema: Json, input_format: str) -> _Tool:
    fields = as_dict(schema.get("properties")).items()
    details = " ".join(f"{field} {as_dict(each).get('description', '')}" for field, each in fields)
    worth = {word: worth for worth, text in ((1, details), (2, about), (3, name)) for word in words(text)}
    fenced = "triple backticks" in input_format or "Markdown代码块" in input_format
    return _Tool(name, worth, schema, fenced)


def _guided(wanted: Json, asked: str) -> str | None:
    """What guided decoding would force out, whatever else the prompt asks for."""
    if wanted.get("type") == "json_schema":
        schema = as_dict(as_dict(wanted.get("json_schema")).get("schema"))
        return json.dumps(Form(schema, asked, subjects(asked)).value(), ensure_ascii=False)
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": echo(asked)}, ensure_ascii=False)
    return None


def _rest_of_call(turn: _Turn) -> str:
    """What completes the call that the prompt stops in; nothing if it stops elsewhere."""
    if _FUNCTION not in turn.said:
        return ""
    begun = turn.said[turn.said.rindex(_FUNCTION) :]
    asked = words(turn.asked)
    likeliest_first = sorted(turn.tools, key=lambda tool: tool.score(asked), reverse=True)
    for calls in (_planned(turn), *(_calls(tool, turn.asked, turn) for tool in likeliest_first)):
        rest = calls.removeprefix(begun)
        whole_name = rest.startswith("\n") or "\n" in begun or begun.rstrip(": ") == _FUNCTION
        if calls.startswith(begun) and whole_name:
            return rest + _RESULT
    return ""


def _from_results(turn: _Turn) -> str:
    results = _RESULTS.findall(turn.said)
    lead = {"": ": ", ":": " "}.get(turn.said.rpartition(_RETURN)[2], "")
    return lead + _answer(results, is_chinese(turn.asked)) if results else ""


def _answer(results: Sequence[str], chinese: bool) -> str:
    images = {result: url for result in results if (url := _image(result))}
    nothing = "空的" if chinese else "empty"
    plain = [result.strip().removesuffix(".") or nothing for result in results if result not in images]
    drawn = "已为您画出{0}。![{0}]({1})" if chinese else "I have drawn {0}. ![{0}]({1})"
    said = [drawn.format(url.rsplit("/", 1)[-1], url) for url in images.values()]
    verb = "s are" if len(plain) > 1 else " is"
    found = f"结果是{'、'.join(plain)}。" if chinese else f"The result{verb} {' and '.join(plain)}."
    return ("" if chinese else " ").join([found, *said] if plain else said)


def _image(result: str) -> str | None:
    try:
        url = as_dict(json.loads(result)).get("image_url")
    except (ValueError, RecursionError):
        return None
    return url if isinstance(url, str) else None


def _new_calls(turn: _Turn) -> str:
    """Calls, and the beginning of an invented result: a model goes on until a stop string ends it."""
    calls = _planned(turn)
    return calls and calls + _RESULT


def _planned(turn: _Turn) -> str:
    """The calls that the user's words ask for, often none; several tools only where the prompt allows it."""
    left, chosen = words(turn.asked), list[_Tool]()
    while turn.tools and (turn.parallel or not chosen):
        best = max(turn.tools, key=lambda tool: tool.score(left))
        if best.score(left) < (_CLEARLY if chosen else _ENOUGH):
            break
        chosen.append(best)
        left -= best.worth.keys()
    parts = _parts(turn.asked, chosen) if len(chosen) > 1 else {}
    return "".join(_calls(tool, parts.get(tool.name, turn.asked), turn) for tool in chosen)


def _parts(text: str, tools: Sequence[_Tool]) -> dict[str, str]:
    """Each tool's clauses: from one with its words to the next with another's."""
    parts, owner = dict[str, str](), tools[0]
    for clause in re.split(_BETWEEN, text):
        said = words(clause)
        best = max(tools, key=lambda tool: tool.score(said))
        owner = best if best.score(said) >= _ENOUGH else owner
        parts[owner.name] = parts.get(owner.name, "") + clause
    return {name: _LAST_BETWEEN.sub("", part).strip() for name, part in parts.items()}


def _calls(tool: _Tool, part: str, turn: _Turn) -> str:
    """One call, or one for each of several things where prompt and tool allow that."""
    if tool.fenced:
        given = [f"\n```py\n{as_code(part)}\n```"]
    elif (tool.name, part) == _DRAW_A_DOG:
        given = [_DOG_DRAWN]
    else:
        given = _arguments(tool.schema, part, subjects(part) or subjects(turn.asked), turn.parallel)
    return "".join(f"{_FUNCTION}: {tool.name}\n{_ARGS}: {arguments}\n" for arguments in given)


def _arguments(schema: Json, part: str, about: list[str], parallel: bool) -> list[str]:
    one_each = about and parallel and Form(schema, "", []).takes_one()
    groups = [[subject] for subject in about] if one_each else [about]
    return [Form(schema, part, group).arguments() for group in groups]
