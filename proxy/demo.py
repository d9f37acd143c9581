"""The demo upstream: a plain chat server in vLLM's wire shape with no model and no GPU behind it.

It knows nothing of tools, as a vLLM without a tool parser does, and reads the ✿ prompt as a model would: it
picks a tool by the user's words, fills its arguments from the schema, and answers from the results. The same
request always gets the same answer, but for `id` and `created`. Shapes and error texts are vLLM 0.32.0's, as
seen on the wire. It shares no code with what it is there to try out.

Reading order: the prompt, the reply, the arguments, the wire.
"""

import itertools
import json
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]

FINGERPRINT = "florette-demo-no-model"
MAX_MODEL_LEN = 131_072  # a prompt token is one character here: room for many tools and a long history
MAX_STOPS = 4  # vLLM's own default
TOKEN_LENGTHS = (2, 4, 3)  # shorter than any marker, and in step with none
LONGEST = 1000  # the most characters, items and values that a schema is given, however many it demands
GOES_ON = {"logprobs": None, "finish_reason": None}
FUNCTION, ARGS, RESULT, RETURN = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"
# The dialog that the project started from, as a real model answered it.
DRAW_A_DOG = "帮我画张小狗在草地上的图片"
DOG_DRAWN = '{"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}'
COMMON_WORDS = """
an the is are was be it in on of at to for and or with by as if this that what when where which who how do
does can like will you your me my we us please tell get give use used using tool given current all any one
帮我 请问 什么 怎么 么样 一下 我的 给我 可以 如何 这个 一个 告诉 用户 返回 工具 使用 需要
"""
COMMON = frozenset(COMMON_WORDS.split())
GLOSS = {  # what people say -> what tools are called
    **dict.fromkeys(("天气", "气温", "下雨", "forecast", "temperature"), "weather"),
    **dict.fromkeys(("画", "图片", "draw", "picture"), "image"),
    **dict.fromkeys(("时间", "几点"), "time"),
    **{"搜索": "search", "计算": "calculate", "compute": "calculate", "代码": "code"},
}
ENOUGH = 2  # score to call a tool: a word of its description
CLEARLY = 3  # score to call a second one: a word of its name
WHOLE = {"prompt", "query", "question", "text", "message", "content", "input"}  # these take all that was said
FORMATS = {
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "date-time": "2025-01-01T00:00:00Z",
    "email": "demo@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "127.0.0.1",
}

HAN = "[\u4e00-\u9fff]"
NAME = r"[A-ZÀ-Þ][\w'-]*(?: [A-ZÀ-Þ][\w'-]*)*(?:, [A-Z]{2}\b)?"
NAMES = re.compile(rf"\b(?:in|for|at|to|from|of|about|near) ({NAME}(?:(?:, and |, | and | & ){NAME})*)")
POLITE = re.compile("请问|请|帮我|查询|查一?下|查|告诉我|今天|明天|现在|再")
PLACES = re.compile("([\u4e00-\u9fff、]{2,20}?)的?(?:天气|气温|时间|几点|下雨)")
QUOTED = re.compile(r"[\"“「《]([^\"”」》]{1,200})[\"”」》]|(?<!\w)'([^']{1,200})'(?!\w)")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.])-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
TERM = r"\({0,9}(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?![0-9])\){0,9}"
SUM = re.compile(rf"(?<![A-Za-z0-9_.-]){TERM}(?: ?[-+*/%] ?{TERM})+")
CLAUSES = re.compile(r"(\band\b|\bthen\b|[,;，；。]|再|和)")
HEADING = re.compile(r"^### .*\n\n([^\n:]+): ", re.MULTILINE)
PARAMETERS = re.compile("输入参数：|Parameters: ")
RESULTS = re.compile(rf"{RESULT}: ?(.*?)\n?(?={RESULT}|{RETURN}|{FUNCTION}|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Tool:
    """`words`: word -> its worth when the user says it. `fenced`: wants a code block instead of JSON."""

    name: str
    words: dict[str, int]
    schema: Json
    fenced: bool


@dataclass(frozen=True)
class Turn:
    """`asked`: the user's words. `said`: what of the model's own turn the prompt holds already."""

    asked: str
    said: str
    tools: tuple[Tool, ...]
    parallel: bool


def _read(messages: Sequence[Json], continued: bool) -> Turn:
    system = "\n".join(_text(m) for m in messages if m.get("role") in ("system", "developer"))
    tools = tuple(_tools(system)) if FUNCTION in system else ()
    user = next((_text(m) for m in reversed(messages) if m.get("role") == "user"), "")
    asked, marker, calls = user.partition(FUNCTION) if tools else (user, "", "")
    prefix = _text(messages[-1]) if continued and messages[-1].get("role") == "assistant" else ""
    parallel = "call N tools in parallel" in system or "并行调用N个工具" in system
    return Turn(asked.strip(), marker + calls + prefix, tools, parallel)


def _text(message: Json) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    return "\n".join(part["text"] for part in map(_dict, parts) if isinstance(part.get("text"), str))


def _tools(system: str) -> Iterator[Tool]:
    heads = list(HEADING.finditer(system))
    ends = [*(head.start() for head in heads[1:]), len(system)]
    for head, end in zip(heads, ends, strict=False):
        block = system[head.end() : end].partition("\n\n## ")[0]
        for mark in PARAMETERS.finditer(block):
            try:
                parameters, stop = json.JSONDecoder().raw_decode(block, mark.end())
            except (ValueError, RecursionError):
                continue
            yield _tool(head[1], block[: mark.start()], parameters, block[stop:])
            break


def _tool(name: str, about: str, parameters: object, shape: str) -> Tool:
    if isinstance(parameters, list):  # Qwen-Agent's older form
        listed = [p for p in parameters if isinstance(p, dict) and isinstance(p.get("name"), str)]
        properties = {p["name"]: {**p, "required": None} for p in listed}
        parameters = {"properties": properties, "required": [p["name"] for p in listed if p.get("required")]}
    schema = _dict(parameters)
    fields = _dict(schema.get("properties")).items()
    details = " ".join(f"{field} {_dict(each).get('description', '')}" for field, each in fields)
    words = {word: worth for worth, text in ((1, details), (2, about), (3, name)) for word in _words(text)}
    return Tool(name, words, schema, "triple backticks" in shape or "Markdown代码块" in shape)


def _words(text: str) -> set[str]:
    """English words, Chinese pairs of characters, and what either means as a word of a tool's name."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", text).lower()
    english = {word.removesuffix("s") for word in re.findall(r"[a-z]{2,}", spaced) if word not in COMMON}
    runs = re.findall(f"{HAN}+", text)
    chinese = {run[i : i + 2] for run in runs for i in range(len(run) - 1)} - COMMON
    meant = {GLOSS[key] for key in GLOSS if (key in text if re.match(HAN, key) else key in english)}
    return english | chinese | meant | ({"calculate", "code", "math"} if _sum(text) else set())


def _reply(turn: Turn) -> str:
    """What goes on from where the prompt stops: a call that stands there half done, an answer, or calls."""
    planned = _plan(turn)
    started = turn.said[turn.said.rfind(FUNCTION) :] if FUNCTION in turn.said else ""
    ranked = sorted(turn.tools, key=lambda tool: -_score(tool, _words(turn.asked)))
    for calls in (planned, *(_calls(tool, turn.asked, turn) for tool in ranked)) if started else ():
        rest = calls.removeprefix(started)
        whole_name = rest.startswith("\n") or "\n" in started or started.rstrip(": ") == FUNCTION
        if calls.startswith(started) and whole_name:
            return rest + RESULT
    if results := RESULTS.findall(turn.said):
        lead = ": " if turn.said.endswith(RETURN) else " " if turn.said.endswith(f"{RETURN}:") else ""
        return lead + _answer(results, re.search(HAN, turn.asked) is not None)
    return planned + RESULT if planned else _plain(turn.asked)


def _score(tool: Tool, asked: set[str]) -> int:
    return sum(tool.words.get(word, 0) for word in asked)


def _plan(turn: Turn) -> str:
    """The calls that the user's words ask for, often none; several tools only where the prompt allows it."""
    left, chosen = _words(turn.asked), list[Tool]()
    while turn.tools and (turn.parallel or not chosen):
        best = max(turn.tools, key=lambda tool: _score(tool, left))
        if _score(best, left) < (CLEARLY if chosen else ENOUGH):
            break
        chosen.append(best)
        left -= best.words.keys()
    parts = _parts(turn.asked, chosen) if len(chosen) > 1 else {}
    return "".join(_calls(tool, parts.get(tool.name, turn.asked), turn) for tool in chosen)


def _parts(text: str, tools: Sequence[Tool]) -> dict[str, str]:
    """Each tool's clauses: from one with its words to the next with another's."""
    parts, owner = dict[str, str](), tools[0]
    for clause in CLAUSES.split(text):
        words = _words(clause)
        best = max(tools, key=lambda tool: _score(tool, words))
        owner = best if _score(best, words) >= ENOUGH else owner
        parts[owner.name] = parts.get(owner.name, "") + clause
    return {name: re.sub(rf"{CLAUSES.pattern}\s*$", "", part).strip() for name, part in parts.items()}


def _calls(tool: Tool, part: str, turn: Turn) -> str:
    """One call, or one for each of several things where prompt and tool allow that."""
    subjects = _subjects(part) or _subjects(turn.asked)
    one_each = turn.parallel and _Form(tool.schema, "", []).takes_one()
    groups = [[subject] for subject in subjects] if subjects and one_each else [subjects]
    given = [_Form(tool.schema, part, group).json() for group in groups]
    if tool.fenced:
        given = [f"\n```py\n{_code(part)}\n```"]
    elif (tool.name, part) == ("my_image_gen", DRAW_A_DOG):
        given = [DOG_DRAWN]
    return "".join(f"{FUNCTION}: {tool.name}\n{ARGS}: {arguments}\n" for arguments in given)


def _subjects(text: str) -> list[str]:
    """What the text is about: quoted words, else names after `in`, `for` ..., else Chinese places."""
    quoted = [double or single for double, single in QUOTED.findall(text)]
    names = [name for group in NAMES.findall(text) for name in re.findall(NAME, group)]
    places = [re.split("[和与、]", group) for group in PLACES.findall(POLITE.sub("", text))]
    return quoted or names or [place for group in places for place in group if place]


def _sum(text: str) -> str:
    """The first arithmetic in the text, as Python, or nothing."""
    sums = SUM.findall(text.translate({ord("×"): "*", ord("÷"): "/"}))
    return next((found for found in sums if found.count("(") == found.count(")")), "")


def _code(text: str) -> str:
    return f"print({_sum(text) or json.dumps(text, ensure_ascii=False)})"


def _plain(text: str) -> str:
    if re.search(HAN, text):
        return f"这是 Florette 的演示上游，背后没有模型。你说的是：{text}"
    return f"This is Florette's demo upstream: there is no model behind it. You said: {text}"


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
        url = _dict(json.loads(result)).get("image_url")
    except (ValueError, RecursionError):
        return None
    return url if isinstance(url, str) else None


def _formatted(wanted: Json, asked: str) -> str | None:
    """What guided decoding would force out, whatever else the prompt asks for."""
    if wanted.get("type") == "json_schema":
        schema = _dict(_dict(wanted.get("json_schema")).get("schema"))
        return json.dumps(_Form(schema, asked, _subjects(asked)).fill(schema), ensure_ascii=False)
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": _plain(asked)}, ensure_ascii=False)
    return None


class _Form:
    """Fills a JSON schema from the user's words. Names and numbers in them are used up in order."""

    def __init__(self, root: Json, text: str, subjects: Sequence[str]) -> None:
        self.root, self.text, self.subjects = root, text, deque(subjects)
        self.numbers = deque(float(n) if "." in n else int(n) for n in NUMBER.findall(text))
        self.steps = itertools.count()

    def json(self) -> str:
        return json.dumps(_dict(self.fill({**self.root, "type": "object"})), ensure_ascii=False)

    def takes_one(self) -> bool:
        """Whether one free string is all that is required: then several things are several calls."""
        flat = self.resolve(self.root)
        properties, needed = _dict(flat.get("properties")), _list(flat.get("required"))
        fields = [self.resolve(properties.get(str(name))) for name in needed]
        free = [
            _kind(field) == "string" for field in fields if not field.keys() & {"enum", "const", "format"}
        ]
        return len(needed) == 1 and free == [True]

    def resolve(self, schema: object) -> Json:
        """The schema with $ref and allOf worked in, and the first of anyOf or oneOf that is not null."""
        flat = dict(_dict(schema))
        for _ in range(16):  # a longer chain of references refers to itself
            branches = _list(flat.pop("allOf", None))
            if isinstance(path := flat.pop("$ref", None), str):
                branches.append(self._at(path))
            either = _list(flat.pop("anyOf", None)) or _list(flat.pop("oneOf", None))
            branches += [branch for branch in either if _dict(branch).get("type") != "null"][:1]
            for branch in map(_dict, branches):
                fields = {**_dict(flat.get("properties")), **_dict(branch.get("properties"))}
                needed = [*_list(flat.get("required")), *_list(branch.get("required"))]
                flat |= branch | ({"properties": fields, "required": needed} if fields else {})
        return flat

    def _at(self, path: str) -> Json:
        found = self.root
        for step in path.strip("#/").split("/") if path.strip("#/") else ():
            found = _dict(found.get(step.replace("~1", "/").replace("~0", "~")))
        return found

    def fill(self, schema: object, name: str = "", depth: int = 0) -> Any:
        """A value for the schema; depth and size are bounded, since a schema may demand itself for ever."""
        flat = self.resolve(schema)
        if "const" in flat or depth > 12 or next(self.steps) > LONGEST:
            return flat.get("const")
        if values := _list(flat.get("enum")):
            return next(filter(self._mentions, values), values[0])
        match _kind(flat):
            case "object":
                return self._object(flat, depth)
            case "array":
                return self._array(flat, name, depth)
            case "integer" | "number" as kind:
                return self._number(flat, 1 if kind == "integer" else 0.001)
            case "boolean" | "null" as kind:
                return kind == "boolean" or None
        return self._string(flat, name)

    def _mentions(self, value: object) -> bool:
        word = re.escape(str(value).lower())
        return re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", self.text.lower()) is not None

    def _object(self, schema: Json, depth: int) -> Json:
        properties = _dict(schema.get("properties"))
        needed = [str(name) for name in _list(schema.get("required"))]
        asked = [name for name in properties if not depth and self._asks(name, properties[name])]
        names = [*(name for name in properties if name in needed or name in asked), *needed]
        return {name: self.fill(properties.get(name), name, depth + 1) for name in dict.fromkeys(names)}

    def _asks(self, name: str, schema: object) -> bool:
        enum = _list(self.resolve(schema).get("enum"))
        return bool(_words(name) & _words(self.text)) or any(map(self._mentions, enum))

    def _array(self, schema: Json, name: str, depth: int) -> list[Any]:
        items, least = self.resolve(schema.get("items")), _size(schema.get("minItems"), 1)
        if enum := sorted(_list(items.get("enum")), key=lambda value: not self._mentions(value)):
            return enum[: max(least, sum(map(self._mentions, enum)))]
        waiting = {"string": len(self.subjects), "integer": len(self.numbers), "number": len(self.numbers)}
        count = max(least, waiting.get(_kind(items), 0))
        count = min(count, _size(schema.get("maxItems"), LONGEST))
        return [self.fill(items, name, depth + 1) for _ in range(count)]

    def _number(self, schema: Json, step: float) -> float:
        low = max(_finite(schema.get("minimum"), -inf), _finite(schema.get("exclusiveMinimum"), -inf) + step)
        high = min(_finite(schema.get("maximum"), inf), _finite(schema.get("exclusiveMaximum"), inf) - step)
        said = self.numbers.popleft() if self.numbers else _finite(schema.get("default"), 1)
        value, unit = max(low, min(said, high)), _finite(schema.get("multipleOf"), 0)
        value = ceil(value / unit) * unit if unit > 1e-6 else value  # a smaller unit would overflow
        return ceil(value) if step == 1 else value

    def _string(self, schema: Json, name: str) -> str:
        if name == "code" or name.startswith("expr"):
            return _code(self.text) if name == "code" else _sum(self.text) or self.text
        if known := FORMATS.get(str(schema.get("format"))):
            return known
        whole = not self.subjects or (name in WHOLE and not QUOTED.search(self.text))
        value = self.text if whole else self.subjects[0]
        if not whole and len(self.subjects) > 1:
            self.subjects.popleft()
        longest = _size(schema.get("maxLength"), len(value) + LONGEST)
        return value.ljust(_size(schema.get("minLength"), 0), ".")[:longest]


def _kind(schema: Json) -> str:
    types = schema.get("type")
    kinds = [kind for kind in (types if isinstance(types, list) else [types]) if isinstance(kind, str)]
    guess = "object" if "properties" in schema else "array" if "items" in schema else "string"
    return next((kind for kind in kinds if kind != "null"), kinds[0] if kinds else guess)


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return list(value) if isinstance(value, list) else []


def _finite(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return default
    return value if abs(value) < 1e15 else default  # beyond it floats skip integers; and neither inf nor NaN


def _size(value: object, default: int) -> int:
    return int(max(0, min(_finite(value, default), max(default, LONGEST))))


class Refused(Exception):
    """What vLLM answers with 400."""

    def __init__(self, message: str, param: str | None = None, kind: str = "BadRequestError") -> None:
        super().__init__({"message": message, "type": kind, "param": param, "code": 400})


def _invalid(kind: str, where: str, message: str) -> Refused:
    text = f"1 validation error:\n  {{'type': {kind!r}, 'loc': {where!r}, 'msg': {message!r}}}"
    return Refused(text, where, "Bad Request")


def _refuse_if(found: object, message: str, param: str | None = None) -> None:
    if found:
        raise Refused(f"{message} (parameter={param})" if param else message, param)


def _messages(body: Json) -> list[Json]:
    """The messages of a chat request that a plain vLLM would take. Raises Refused, in vLLM's words."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _invalid("list_type", "body.messages", "Input should be a valid list")
    for i, message in enumerate(messages):
        empty = type(None) if message.get("role") == "assistant" else str
        if not isinstance(message.get("content", ""), (str, list, empty)):
            raise _invalid("string_type", f"body.messages.{i}.content", "Input should be a valid string")
    _refuse_if(not messages, "Cannot apply chat template to an empty conversation.")
    _refuse_tools(body.get("tools"), body.get("tool_choice", "auto" if body.get("tools") else None))
    both = body.get("continue_final_message") and body.get("add_generation_prompt", True)
    _refuse_if(both, "continue_final_message and add_generation_prompt are not compatible.")
    return messages


def _refuse_tools(tools: object, choice: object) -> None:
    _refuse_if(tools == [], "`tools` must not be an empty array.", "tools")
    if choice in (None, "none"):
        return
    _refuse_if(not tools, "When using `tool_choice`, `tools` must be set.", "tool_choice")
    parser = "--tool-call-parser to be set"
    _refuse_if(choice == "auto", f'"auto" tool choice requires --enable-auto-tool-choice and {parser}')
    name = _dict(_dict(choice).get("function")).get("name")
    called = f'function "{name}"' if name else f'"{choice}"'
    raise Refused(f"tool_choice={called} requires {parser}")


@dataclass(frozen=True)
class Sampling:
    """`limit` counts tokens. `top`: how many alternatives to list beside each token; None is no logprobs."""

    n: int
    limit: int
    stop: list[str]
    keep_stop: bool
    top: int | None


def _sampling(body: Json, limit: int, prompt: str) -> Sampling:
    """How to generate after the prompt; at most `limit` tokens unless the body says. Raises Refused."""
    stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop):
        raise _invalid("string_type", "body.stop", "Input should be a valid string")
    if len(stop) > MAX_STOPS:
        raise _invalid("too_long", "body.stop", f"List should have at most {MAX_STOPS} items")
    key = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    n, limit, top = _integer(body, "n", 1), _integer(body, key, limit), _integer(body, "top_logprobs", 0)
    length = f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains"
    _refuse_if("" in stop, "stop cannot contain an empty string.")
    _refuse_if(n < 1, f"n must be at least 1, got {n}.")
    _refuse_if(limit < 1, f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    _refuse_if(len(prompt) > MAX_MODEL_LEN, f"{length} {len(prompt)} input tokens.", "input_tokens")
    stray = body.get("stream_options") and not body.get("stream")
    _refuse_if(stray, "Stream options can only be defined when `stream=True`.", "stream_options")
    shown = min(max(top, 0), 20) if body.get("logprobs") else None
    return Sampling(n, limit, stop, bool(body.get("include_stop_str_in_output")), shown)


def _integer(body: Json, key: str, default: int) -> int:
    try:
        return default if body.get(key) is None else int(body[key])
    except (TypeError, ValueError, OverflowError):
        raise _invalid("int_parsing", f"body.{key}", "Input should be a valid integer") from None


@dataclass(frozen=True)
class Step:
    """One token on its way out. `text` lags behind while it may be the beginning of a stop string."""

    text: str
    logprob: Json | None
    end: Json


def _generate(text: str, asked: Sampling) -> list[Step]:
    """The text token by token, never none; the last step says why it ended."""
    tokens = _tokens(text)[: asked.limit]
    written = "".join(tokens)
    ends = [(written.find(stop) + len(stop), stop) for stop in asked.stop if stop in written]
    end, stop = min(ends, key=lambda each: each[0], default=(len(written), None))
    kept = written[: end - (0 if asked.keep_stop else len(stop or ""))]
    reaches = list(itertools.accumulate(map(len, tokens)))
    if stop is not None:
        reaches = reaches[: 1 + next(i for i, reach in enumerate(reaches) if reach >= end)]
    held = 0 if asked.keep_stop else max((len(each) - 1 for each in asked.stop), default=0)
    sent = [0, *(max(0, min(reach - held, len(kept))) for reach in reaches[:-1]), len(kept)]
    why = {"finish_reason": "length" if stop is None and tokens[-1] else "stop", "stop_reason": stop}
    spans = zip(itertools.pairwise(sent), tokens, strict=False)  # tokens behind a stop string are not said
    steps = [Step(kept[a:b], _logprob(token, asked.top), {}) for (a, b), token in spans]
    return [*steps[:-1], replace(steps[-1], end=why)]


def _tokens(text: str) -> list[str]:
    """The text in small pieces, and an empty one that stands for the end of the sequence."""
    ends = itertools.accumulate(itertools.cycle(TOKEN_LENGTHS), initial=0)
    starts = [*itertools.takewhile(lambda end: end < len(text), ends), len(text)]
    return [*(text[a:b] for a, b in itertools.pairwise(starts)), ""]


def _logprob(token: str, top: int | None) -> Json | None:
    if top is None:
        return None
    sure = -0.01 - sum(token.encode()) % 89 / 100
    ranked = [(token, sure), *((f"{token}{i}", sure - i) for i in range(1, top))]
    entries = [{"token": each, "logprob": value, "bytes": list(each.encode())} for each, value in ranked]
    return {**entries[0], "top_logprobs": entries[:top]}


def create_demo() -> Starlette:
    """The ASGI app. It keeps no state but a counter for ids, answers at once, and asks for no key."""
    posts = {"/v1/chat/completions": _chat, "/v1/completions": _complete}
    posts |= {"/tokenize": _tokenize, "/detokenize": _detokenize}
    gets = {"/v1/models": _models, "/version": _version, "/health": _health}
    routes = [Route(path, answer, methods=["POST"]) for path, answer in posts.items()]
    routes += [Route(path, answer) for path, answer in gets.items()]
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys((HTTPException, Refused), _refused))
    app.state.serial = itertools.count(1)
    return app


async def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # no such route, or not this method
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": error.args[0]}, 400)


async def _health(_: Request) -> Response:
    return Response()


async def _version(_: Request) -> Response:
    return JSONResponse({"version": "0.32.0"})


async def _models(_: Request) -> Response:
    model = {"id": "demo", "object": "model", "created": 0, "owned_by": "florette", "root": "demo"}
    model |= {"parent": None, "max_model_len": MAX_MODEL_LEN}
    return JSONResponse({"object": "list", "data": [model]})


async def _body(request: Request) -> Json:
    try:
        body = orjson.loads(await request.body())
    except orjson.JSONDecodeError as error:
        raise _invalid("json_invalid", f"body.{error.pos}", "JSON decode error") from None
    if not isinstance(body, dict):
        raise _invalid("model_attributes_type", "body", "Input should be a valid dictionary")
    return body


async def _chat(request: Request) -> Response:
    body = await _body(request)
    messages, continued = _messages(body), bool(body.get("continue_final_message"))
    prompt, turn = _chatml(messages, continued), _read(messages, continued)
    asked = _sampling(body, MAX_MODEL_LEN, prompt)
    text = _formatted(_dict(body.get("response_format")), turn.asked) or _reply(turn)
    text = text.encode(errors="replace").decode()  # a schema's escapes may spell half of a surrogate pair
    return _respond(request, body, True, prompt, [_generate(text, asked)] * asked.n)


async def _complete(request: Request) -> Response:
    body = await _body(request)
    prompt = body.get("prompt")
    several = prompt if isinstance(prompt, list) and not isinstance(next(iter(prompt), 0), int) else [prompt]
    prompts = [each if isinstance(each, str) else _characters(each) for each in several]
    _refuse_if(not all(prompts), "Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    asked = _sampling(body, 16, "".join(prompts))  # vLLM's default there
    answers = [_generate(_plain(each), asked) for each in prompts for _ in range(asked.n)]
    return _respond(request, body, False, "".join(prompts), answers)


async def _tokenize(request: Request) -> Response:
    body = await _body(request)
    text = _chatml(_messages(body), False) if "messages" in body else body.get("prompt")
    if not isinstance(text, str):
        raise _invalid("missing", "body.prompt", "Field required")
    tokens = [ord(character) for character in text]
    counted = {"count": len(tokens), "max_model_len": MAX_MODEL_LEN}
    return JSONResponse({**counted, "tokens": tokens, "token_strs": None})


async def _detokenize(request: Request) -> Response:
    return JSONResponse({"prompt": _characters((await _body(request)).get("tokens"))})


def _characters(tokens: object) -> str:
    try:
        text = "".join(map(chr, _list(tokens)))
        text.encode()  # half of a surrogate pair is no character
    except (TypeError, ValueError, OverflowError):
        raise _invalid("int_parsing", "body.tokens", "Input should be this server's tokens") from None
    return text


def _chatml(messages: Sequence[Json], continued: bool) -> str:
    """The prompt as most chat templates write it."""
    turns = "".join(f"<|im_start|>{m.get('role')}\n{_text(m)}<|im_end|>\n" for m in messages)
    return turns.removesuffix("<|im_end|>\n") if continued else f"{turns}<|im_start|>assistant\n"


def _respond(request: Request, body: Json, chat: bool, prompt: str, answers: list[list[Step]]) -> Response:
    stream, said = bool(body.get("stream")), sum(map(len, answers))
    number = request.headers.get("x-request-id") or f"{next(request.app.state.serial):016x}"
    head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{number}", "created": int(time.time())}
    head |= {"object": f"chat.completion{'.chunk' * stream}" if chat else "text_completion"}
    head |= {"model": body.get("model") or "demo", "system_fingerprint": FINGERPRINT}
    usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + said, "completion_tokens": said}
    if stream:
        told = usage if _dict(body.get("stream_options")).get("include_usage") else None
        return StreamingResponse(_events(head, chat, answers, told), media_type="text/event-stream")
    choices = [_choice(index, chat, steps) for index, steps in enumerate(answers)]
    return JSONResponse({**head, "choices": choices, "service_tier": None, "usage": usage})


def _choice(index: int, chat: bool, steps: Sequence[Step]) -> Json:
    text = "".join(step.text for step in steps)
    unused = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    said = {"message": {"role": "assistant", "content": text, **unused}} if chat else {"text": text}
    return {"index": index, **said, "logprobs": _logprobs(chat, steps), **steps[-1].end, "token_ids": None}


def _logprobs(chat: bool, steps: Sequence[Step]) -> Json | None:
    return {"content": [step.logprob for step in steps]} if chat and steps[0].logprob else None


async def _events(
    head: Json, chat: bool, answers: list[list[Step]], usage: Json | None
) -> AsyncIterator[bytes]:
    """First each choice's role, then the choices token by token in turns."""
    for index in range(len(answers)) if chat else ():
        yield _event(head, {"index": index, "delta": {"role": "assistant", "content": ""}, **GOES_ON})
    for steps in itertools.zip_longest(*answers):
        for index, step in enumerate(steps):
            if step is not None:
                said = {"delta": {"content": step.text}} if chat else {"text": step.text, "stop_reason": None}
                more = {"logprobs": _logprobs(chat, [step]), "token_ids": None}
                yield _event(head, {"index": index, **said, **GOES_ON, **step.end, **more})
    if usage:
        yield _event(head, usage=usage)
    yield b"data: [DONE]\n\n"


def _event(head: Json, *choices: Json, **more: Json) -> bytes:
    return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"
