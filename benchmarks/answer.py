"""What is asked and what is answered: one ✿ call with long arguments, in the wire shape of vLLM 0.32.0.

The answer's first token carries the moment it was sent, so that the caller can tell how long it was under
way.
"""

import json
from dataclasses import dataclass
from itertools import cycle
from typing import Any

#: A plain chunk on the wire is about 230 bytes; with a local path as the model's name, as many serve it, 328.
_MODEL = "/models/hub/models--Qwen--Qwen2.5-72B-Instruct-AWQ/snapshots/698703eae6604af048a3d2f509995dc302088217"
_ID = "chatcmpl-5f0c2d1e8b7a4963a1d4e0c7f6b29384"
_CREATED_S = 1_795_000_000

#: Lengths of the tokens, in step with nothing; 4 characters is what Qwen's tokenizer makes of English.
_TOKEN_LENGTHS = (4, 3, 5, 4, 2, 6)
_PREFACE = " Let me look at the forecast first.\n✿FUNCTION✿: get_weather\n✿ARGS✿: "

#: Digits of `time.monotonic_ns()`, of fixed width so that encoded chunks can be patched.
STAMP_DIGITS = 20
_STAMP = "0" * STAMP_DIGITS

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city for some days, with advice on what to wear.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city, as Hangzhou."},
                "days": {"type": "integer", "description": "How many days ahead."},
                "units": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "notes": {"type": "string", "description": "What else the user wants to know."},
            },
            "required": ["city"],
        },
    },
}
_MESSAGES = [
    {"role": "system", "content": "You are a travel assistant. Be brief."},
    {
        "role": "user",
        "content": "I am off to Hangzhou for a week. What will the weather be, and what do I pack?",
    },
]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The answer as bytes. `first` holds the role and the first token; the stamp stands at `stamp_at` in it.

    `events` counts the `data:` lines of the whole stream, `[DONE]` included.
    """

    first: bytes
    stamp_at: int
    rest: tuple[bytes, ...]
    whole: bytes
    events: int


def arguments() -> str:
    """The JSON text that the model writes as arguments."""
    notes = 'rain, wind and sun for each hour; 西湖边散步要带伞吗？ an umbrella or a coat, "layers" or not; '
    said = {"city": "Hangzhou 杭州", "days": 7, "units": "celsius", "notes": notes * 7}
    return json.dumps(said, ensure_ascii=False)


def tokens() -> list[str]:
    """The answer's tokens; the first is the stamp."""
    text = _PREFACE + arguments()
    lengths = cycle(_TOKEN_LENGTHS)
    cut = [f"<{_STAMP}>"]
    while text:
        size = next(lengths)
        cut.append(text[:size])
        text = text[size:]
    return cut


def encoded() -> Encoded:
    """The streamed answer and the whole one."""
    said = tokens()
    role = _event({"role": "assistant", "content": ""}, **{"prompt_token_ids": None, "prompt_text": None})
    first, *chunks = [_event({"content": token}) for token in said]
    finish = {"finish_reason": "stop", "stop_reason": None}
    chunks += [_event({"content": ""}, finish, system_fingerprint="vllm-0.32.0-bench"), b"data: [DONE]\n\n"]
    opening = http_chunk(role) + http_chunk(first)
    return Encoded(
        opening, opening.index(_STAMP.encode()), tuple(map(http_chunk, chunks)), _whole(said), 2 + len(chunks)
    )


def http_chunk(data: bytes) -> bytes:
    """The data as one chunk of an HTTP body: vLLM frames each event by itself."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(delta: dict[str, Any], finish: dict[str, Any] | None = None, **fields: Any) -> bytes:
    ending = finish or {"finish_reason": None}
    choice = {"index": 0, "delta": delta, "logprobs": None, **ending, "token_ids": None}
    head = {"id": _ID, "object": "chat.completion.chunk", "created": _CREATED_S, "model": _MODEL}
    return b"data: " + _json({**head, "choices": [choice], **fields}) + b"\n\n"


def _whole(said: list[str]) -> bytes:
    message = {
        "role": "assistant",
        "content": "".join(said),
        **dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning")),
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop", "stop_reason": None}
    usage = {
        "prompt_tokens": 420,
        "total_tokens": 617,
        "completion_tokens": 197,
        "prompt_tokens_details": None,
    }
    nothing = dict.fromkeys(("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params"))
    head = {"id": _ID, "object": "chat.completion", "created": _CREATED_S, "model": _MODEL}
    return _json({**head, "choices": [choice], "system_fingerprint": None, "usage": usage, **nothing})


def request(mode: str, *, tools: bool, stream: bool) -> bytes:
    """A chat request's body; the fake vLLM answers in `mode`, which stands as the model."""
    body: dict[str, Any] = {"model": mode, "messages": _MESSAGES, "stream": stream}
    return _json(body | {"tools": [_TOOL]} if tools else body)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
