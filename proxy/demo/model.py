"""Messages -> the text that a model would go on with.

messages -> Turn -> a call half done goes on | results are answered from | words are repeated | tools are called
                  | the JSON that was asked for is given | the words come back
"""

import json
import re
from collections.abc import Sequence

from proxy.demo.prompts import Tool, Turn, read_turn
from proxy.demo.schema import Form, Json, as_dict
from proxy.demo.words import as_code, is_chinese, subjects, to_repeat, words

#: The dialog that the project started from, as a real model answered it.
_DRAW_A_DOG = ("my_image_gen", "帮我画张小狗在草地上的图片")
_DOG_DRAWN = '{"prompt":"小狗站在草地上的图片","image_url":"![](小狗站在草地上的图片)"}'

#: The score to call a tool: a word of its description.
_ENOUGH = 2
#: The score to call one more: a word of its name.
_CLEARLY = 3

_BETWEEN = r"(\band\b|\bthen\b|[,;，；。]|再|和)"
_LAST_BETWEEN = re.compile(rf"{_BETWEEN}\s*$")


def complete_chat(messages: Sequence[Json], continued: bool, wanted: Json) -> str:
    """The answer; `wanted` is the request's `response_format`, `continued` its `continue_final_message`."""
    turn = read_turn(messages, continued)
    text = (
        _guided(wanted, turn.asked)
        or _rest_of_call(turn)
        or _from_results(turn)
        or to_repeat(turn.asked)
        or _new_calls(turn)
        or _formed(turn)
        or echo(turn.asked)
    )
    return text.encode(errors="replace").decode()  # a schema's escapes may spell half of a surrogate pair


def echo(text: str) -> str:
    """What is answered to a text that asks for no tool."""
    if is_chinese(text):
        return f"这是 Florette 的演示上游，背后没有模型。你说的是：{text}"
    return f"This is Florette's demo upstream: there is no model behind it. You said: {text}"


def _guided(wanted: Json, asked: str) -> str | None:
    """What guided decoding would force out, whatever else the prompt asks for."""
    if wanted.get("type") == "json_schema":
        schema = as_dict(as_dict(wanted.get("json_schema")).get("schema"))
        return json.dumps(Form(schema, asked, subjects(asked)).value(), ensure_ascii=False)
    if wanted.get("type") == "json_object":
        return json.dumps({"answer": echo(asked)}, ensure_ascii=False)
    return None


def _rest_of_call(turn: Turn) -> str:
    """What completes the call that the prompt stops in; nothing if it stops elsewhere."""
    if not turn.begun:
        return ""
    asked = words(turn.asked)
    likeliest_first = sorted(turn.tools, key=lambda tool: tool.score(asked), reverse=True)
    for calls in (_planned(turn), *(_calls(tool, turn.asked, turn) for tool in likeliest_first)):
        rest = turn.ended(calls).removeprefix(turn.begun)
        if calls.startswith(turn.begun) and (turn.is_named or rest.startswith("\n")):
            return rest
    return ""


def _from_results(turn: Turn) -> str:
    return turn.lead + (_formed(turn) or _answer(turn.results, is_chinese(turn.asked))) if turn.results else ""


def _formed(turn: Turn) -> str:
    """The JSON that the prompt asks for, if it does."""
    form = Form(turn.form, turn.asked, subjects(turn.asked))
    return json.dumps(form.value(), ensure_ascii=False) if turn.form else ""


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


def _new_calls(turn: Turn) -> str:
    calls = _planned(turn)
    return calls and turn.ended(calls)


def _planned(turn: Turn) -> str:
    """The calls that the user's words ask for, often none; several tools only where the prompt allows it."""
    left, chosen = words(turn.asked), list[Tool]()
    while turn.tools and (turn.parallel or not chosen):
        best = max(turn.tools, key=lambda tool: tool.score(left))
        if best.score(left) < (_CLEARLY if chosen else _ENOUGH):
            break
        chosen.append(best)
        left -= best.worth.keys()
    parts = _parts(turn.asked, chosen) if len(chosen) > 1 else {}
    return "".join(_calls(tool, parts.get(tool.name, turn.asked), turn) for tool in chosen)


def _parts(text: str, tools: Sequence[Tool]) -> dict[str, str]:
    """Each tool's clauses: from one with its words to the next with another's."""
    parts, owner = dict[str, str](), tools[0]
    for clause in re.split(_BETWEEN, text):
        said = words(clause)
        best = max(tools, key=lambda tool: tool.score(said))
        owner = best if best.score(said) >= _ENOUGH else owner
        parts[owner.name] = parts.get(owner.name, "") + clause
    return {name: _LAST_BETWEEN.sub("", part).strip() for name, part in parts.items()}


def _calls(tool: Tool, part: str, turn: Turn) -> str:
    """One call, or one for each of several things where prompt and tool allow that."""
    if tool.fenced:
        given = [f"\n```py\n{as_code(part)}\n```"]
    elif (tool.name, part) == _DRAW_A_DOG:
        given = [_DOG_DRAWN]
    else:
        given = _arguments(tool.schema, part, subjects(part) or subjects(turn.asked), turn.parallel)
    return "".join(turn.call(tool.name, arguments) for arguments in given)


def _arguments(schema: Json, part: str, about: list[str], parallel: bool) -> list[str]:
    one_each = about and parallel and Form(schema, "", []).takes_one()
    groups = [[subject] for subject in about] if one_each else [about]
    return [Form(schema, part, group).arguments() for group in groups]
