"""Rules over what was said: arguments, schemas, markers, finish reasons, usage."""

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from proxy.doctor.exchange import Answer
from proxy.doctor.findings import Finding, fail, warn
from proxy.doctor.rule import rule
from proxy.doctor.said import Call, Said, as_object, objects
from proxy.doctor.sse import Json, Stream, read_json

#: What models are trained to write around calls and turns; a caller should never see one that it did not write.
MARKERS = (
    *("✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"),
    *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<function=", "</function>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|python_tag|>"),
    *("[TOOL_CALLS]", "<|tool_call", "<｜tool▁call", "<|channel|>", "<start_function_call>"),
)
_THINKING = ("<think>", "</think>")

#: So much of a long text is shown on either side of what is wrong with it.
_SHOWN_CHARACTERS = 120

_FINISHES = ("stop", "length", "tool_calls", "function_call", "content_filter")
_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


@rule("argument validity", "arguments are a JSON object", "calls")
def arguments(answer: Answer, call: Call) -> Iterator[Finding]:
    """Only what the token limit cut off may be less."""
    try:
        value = read_json(call.arguments)
    except ValueError as error:
        yield fail("They are no JSON.", answer, call.told(), f"JSON: {error}")
        return
    if isinstance(value, str) and _is_object(value):
        yield fail("They are encoded twice.", answer, call.told(), f"{call.name}({value})")
    elif not isinstance(value, dict):
        yield fail("They are JSON, but no object.", answer, call.told(), "{...}")


@rule("schema accuracy", "a call is of a tool that was declared", "calls")
def declared(answer: Answer, call: Call) -> Iterator[Finding]:
    """The caller has nothing to run for any other."""
    names = [tool.get("name") for tool in _tools(answer)]
    if call.name not in names:
        yield fail("There is no such tool.", answer, call.told(), f"one of {', '.join(map(str, names))}")


@rule("schema accuracy", "arguments fit the tool's schema", "calls")
def schema(answer: Answer, call: Call) -> Iterator[Finding]:
    """Arguments that are no JSON, and tools that do not exist, have rules of their own."""
    parameters = next((tool.get("parameters") for tool in _tools(answer) if tool.get("name") == call.name), None)
    if parameters is None or not _is_object(call.arguments):
        return
    error = best_match(Draft202012Validator(parameters).iter_errors(json.loads(call.arguments)))
    if error is not None:
        yield fail("They do not fit.", answer, call.told(), f"{error.json_path}: {error.message}")


@rule("parallel calls", "the ids in an answer differ", "answers")
def distinct_ids(answer: Answer, said: Said) -> Iterator[Finding]:
    """By its id a result finds its call."""
    ids = [call.id for call in said.calls]
    if len(set(ids)) < len(ids):
        yield fail("Two calls share an id.", answer, ", ".join(ids), "an id for each")


@rule("marker leaks", "no marker stands in text or arguments", "answers")
def leaks(answer: Answer, said: Said) -> Iterator[Finding]:
    """Markers that stand in the request may come back; what becomes of them is checked apart."""
    asked = json.dumps(answer.request.fields, ensure_ascii=False)
    texts = [said.content, *(call.arguments for call in said.calls)]
    for text in texts if _tools(answer) else ():
        found = [marker for marker in (*MARKERS, *_THINKING) if marker in text and marker not in asked]
        if leaked := [marker for marker in found if marker in MARKERS]:
            yield fail("The model's markup reaches the caller.", answer, _around(text, leaked[0]), f"no {leaked[0]}")
        elif found:
            came = _around(text, found[0])
            yield warn("The model's thinking stands in its answer.", answer, came, "a reasoning field, or nothing")


@rule("finish reasons", "finish_reason says what was made", "answers")
def finish(answer: Answer, said: Said) -> Iterator[Finding]:
    """OpenAI itself says `stop` for a call that was forced by name."""
    came, made = said.told(), "function_call" if said.legacy else "tool_calls"
    forced = any(isinstance(answer.request.fields.get(name), dict) for name in ("tool_choice", "function_call"))
    if said.finish not in _FINISHES:
        yield fail("It is none of OpenAI's.", answer, came, ", ".join(_FINISHES))
    elif said.calls and said.finish not in (made, "length", *(["stop"] if forced else [])):
        yield fail("There are calls, and it says that there are none.", answer, came, made)
    elif not said.calls and said.finish in ("tool_calls", "function_call"):
        yield fail("It promises calls, and there are none.", answer, came, "stop, or the call")


@rule("usage", "a completion's usage adds up", "completions")
def usage(answer: Answer, whole: Json) -> Iterator[Finding]:
    """Prompt and completion make the total."""
    yield from _added_up(answer, whole.get("usage"))


@rule("usage", "a stream's usage comes if it is asked for, in a last chunk of its own", "streams")
def streamed_usage(answer: Answer, stream: Stream) -> Iterator[Finding]:
    """Clients that did not ask for it look for a choice in every chunk."""
    told = [place for place, chunk in enumerate(stream.chunks, 1) if chunk.get("choices") == [] and "usage" in chunk]
    asked = as_object(answer.request.fields.get("stream_options")).get("include_usage") is True
    if told != ([len(stream.chunks)] if asked else []):
        came = f"usage chunks: {told} of {len(stream.chunks)}"
        due = 'the last chunk has "choices": [] and usage' if asked else 'no chunk with "choices": []'
        yield fail("It came otherwise.", answer, came, due)
    elif asked:
        yield from _added_up(answer, stream.chunks[-1].get("usage"))


def _added_up(answer: Answer, told: Any) -> Iterator[Finding]:
    counts = [as_object(told).get(name) for name in _COUNTS]
    numbers = [count for count in counts if isinstance(count, int) and count >= 0]
    if len(numbers) < len(_COUNTS) or numbers[0] + numbers[1] != numbers[2] or not numbers[0]:
        due = "prompt_tokens + completion_tokens = total_tokens"
        yield fail("It does not add up.", answer, f"usage: {json.dumps(told, ensure_ascii=False)}", due)


def _around(text: str, marker: str) -> str:
    place = text.index(marker)
    begin = max(0, place - _SHOWN_CHARACTERS)
    return "..." * (begin > 0) + text[begin : place + _SHOWN_CHARACTERS]


def _tools(answer: Answer) -> list[Json]:
    fields = answer.request.fields
    return [as_object(tool.get("function")) for tool in objects(fields.get("tools"))] or objects(
        fields.get("functions")
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(read_json(text), dict)
    except ValueError:
        return False
