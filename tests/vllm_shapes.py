"""The JSON of a plain vLLM's chat completions, streamed and whole, and what it refuses.

Source: recorded from vLLM 0.32.0 started without a tool parser. Pure functions: a request and texts in,
dicts out.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

FINGERPRINT = "vllm-0.32.0-scripted"

#: A fixed moment (2023-11-14), so that the same request has the same answer.
CREATED_S = 1_700_000_000

#: VLLM_MAX_STOP_STRINGS as vLLM has it.
MAX_STOPS = 4

_NO_AUTO = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'

JsonObject = dict[str, Any]


@dataclass(frozen=True)
class Spoken:
    """What one choice says: its pieces of reasoning, its pieces of content and how it ended.

    With `finish_carries` the last piece travels in the finish chunk.
    """

    reasoning: Sequence[str]
    content: Sequence[str]
    finish: str | None
    stop_reason: str | int | None
    reasoning_field: str = "reasoning"
    finish_carries: bool = False


def stops(request: Mapping[str, Any]) -> list[str]:
    """The request's stop strings, whichever form they have."""
    stop = request.get("stop") or []
    return [stop] if isinstance(stop, str) else list(stop)


def head(request: Mapping[str, Any], kind: str, answer_id: str, model: str | None) -> JsonObject:
    """The fields that open every chunk and every completion."""
    named = model or request.get("model") or "scripted"
    return {"id": answer_id, "object": kind, "created": CREATED_S, "model": named}


def chunk(delta: JsonObject | None = None, finish: str | None = None, *, index: int = 0, **fields: Any) -> JsonObject:
    """One chunk with one choice, for scripts written out by hand; `fields` are added at the top level."""
    choice = {"index": index, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    opening = head({}, "chat.completion.chunk", "chatcmpl-scripted", None)
    return {**opening, "choices": [choice], **fields}


def error(message: str, status: int = 500, kind: str = "InternalServerError") -> JsonObject:
    """VLLM's error object; its `code` is the status, an integer."""
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def completion(opening: JsonObject, spoken: Sequence[Spoken], usage: JsonObject, logprobs: bool) -> JsonObject:
    """The whole answer to a request that does not stream."""
    return {
        **opening,
        "choices": [_choice(index, one, logprobs) for index, one in enumerate(spoken)],
        "service_tier": None,
        "system_fingerprint": FINGERPRINT,
        "usage": {**usage, "prompt_tokens_details": None},
        "prompt_logprobs": None,
        "prompt_token_ids": None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _choice(index: int, spoken: Spoken, logprobs: bool) -> JsonObject:
    thought = "".join(spoken.reasoning) if spoken.reasoning else None
    content = "".join(spoken.content)
    message = {
        "role": "assistant",
        "content": None if thought and not content else content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": None,
        spoken.reasoning_field: thought,
    }
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(spoken.content) if logprobs else None,
        "finish_reason": spoken.finish,
        "stop_reason": spoken.stop_reason,
        "token_ids": None,
        "routed_experts": None,
    }


def stream(opening: JsonObject, spoken: Sequence[Spoken], logprobs: bool) -> list[JsonObject]:
    """The chunks up to the finish chunks: first all roles, then the choices' pieces in turn.

    A choice whose `finish` is None has no finish chunk.
    """
    roles = [_role(opening, index) for index in range(len(spoken))]
    told = [_told(opening, index, one, logprobs) for index, one in enumerate(spoken)]
    return roles + [made for turn in zip_longest(*told) for made in turn if made is not None]


def _role(opening: JsonObject, index: int) -> JsonObject:
    delta = {"role": "assistant", "content": ""}
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    return {**opening, "choices": [choice], "prompt_token_ids": None, "prompt_text": None}


def _told(opening: JsonObject, index: int, spoken: Spoken, logprobs: bool) -> Iterable[JsonObject]:
    deltas = [(spoken.reasoning_field, piece) for piece in spoken.reasoning]
    deltas += [("content", piece) for piece in spoken.content]
    last = deltas.pop() if deltas and spoken.finish_carries else ("content", "")
    for name, piece in deltas:
        choice = _delta(index, name, piece, logprobs)
        yield {**opening, "choices": [{**choice, "finish_reason": None, "token_ids": None}]}
    if spoken.finish is not None:
        ended = {"finish_reason": spoken.finish, "stop_reason": spoken.stop_reason, "token_ids": None}
        choice = {**_delta(index, *last, logprobs), **ended}
        yield {**opening, "choices": [choice], "system_fingerprint": FINGERPRINT}


def _delta(index: int, name: str, piece: str, logprobs: bool) -> JsonObject:
    seen = _logprobs([piece]) if logprobs and piece else None
    return {"index": index, "delta": {name: piece}, "logprobs": seen}


def _logprobs(pieces: Iterable[str]) -> JsonObject:
    return {"content": [_logprob(piece) for piece in pieces if piece]}


def _logprob(piece: str) -> JsonObject:
    return {"token": piece, "logprob": -0.5, "bytes": list(piece.encode()), "top_logprobs": []}


def with_usage(chunks: Sequence[JsonObject], opening: JsonObject, usage: JsonObject) -> list[JsonObject]:
    """The chunks with vLLM's usage chunk behind them, which then is the one with the fingerprint."""
    plain = [{k: v for k, v in made.items() if k != "system_fingerprint"} for made in chunks]
    return [*plain, {**opening, "choices": [], "usage": usage, "system_fingerprint": FINGERPRINT}]


def with_each_usage(chunks: Sequence[JsonObject], prompt: int) -> list[JsonObject]:
    """The chunks with the usage so far on each, as `continuous_usage_stats` gives it: one token a chunk here."""
    return [
        {**made, "usage": {"prompt_tokens": prompt, "total_tokens": prompt + tokens, "completion_tokens": tokens}}
        for tokens, made in enumerate(chunks)
    ]


def refusal(request: Mapping[str, Any]) -> JsonObject | None:
    """VLLM's 400 for what a server without a tool parser does not take, or None."""
    for broken, message in _rules(request):
        if broken:
            return error(message, 400, "BadRequestError")
    return None


def _rules(request: Mapping[str, Any]) -> Iterable[tuple[bool, str]]:
    tools, stop = request.get("tools"), stops(request)
    choice = request.get("tool_choice", "auto" if tools else None)
    named = json.dumps(choice["function"]["name"]) if isinstance(choice, dict) else ""
    continues = request.get("continue_final_message") and request.get("add_generation_prompt") is not False
    return [
        (tools == [], "tools must not be an empty array"),
        (not tools and choice not in (None, "none"), "tool_choice needs tools to be set"),
        (choice == "auto", _NO_AUTO),
        (choice == "required", 'tool_choice="required" requires --tool-call-parser to be set'),
        (bool(named), f"tool_choice=function {named} requires --tool-call-parser to be set"),
        (len(stop) > MAX_STOPS, f"List should have at most {MAX_STOPS} items"),
        ("" in stop, "stop cannot contain an empty string"),
        (bool(request.get("stream_options")) and not request.get("stream"), "stream_options needs stream"),
        (bool(continues), "continue_final_message needs add_generation_prompt to be false"),
    ]
