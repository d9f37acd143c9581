"""What a plain vLLM takes of a request, and what it refuses, in its words.

Error texts are vLLM 0.32.0's, as seen on the wire. All functions raise Refused and nothing else.
"""

from dataclasses import dataclass

import orjson

from proxy.demo.schema import Json, as_dict, as_list

#: A prompt's token is one character here: room for many tools and a long history.
MAX_MODEL_LEN = 131_072
#: vLLM's own default.
_MAX_STOPS = 4
#: vLLM's own default, too.
_MAX_LOGPROBS = 20


class Refused(Exception):
    """What vLLM answers with 400; its one argument is the error object of the answer."""

    def __init__(self, message: str, param: str | None = None, kind: str = "BadRequestError") -> None:
        super().__init__({"message": message, "type": kind, "param": param, "code": 400})


@dataclass(frozen=True, slots=True)
class Sampling:
    """`limit` counts tokens. `top`: how many alternatives to list beside each token; None is no logprobs."""

    n: int
    limit: int
    stop: list[str]
    keep_stop: bool
    top: int | None


def read_body(raw: bytes) -> Json:
    """The request's body, which has to be an object."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _invalid("json_invalid", f"body.{error.pos}", "JSON decode error") from None
    if not isinstance(body, dict):
        raise _invalid("model_attributes_type", "body", "Input should be a valid dictionary")
    return body


def read_messages(body: Json) -> list[Json]:
    """The messages of a chat request; it must not ask for tools."""
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


def read_prompts(body: Json) -> list[str]:
    """The prompts of a completions request: one or several, each a text or tokens."""
    prompt = body.get("prompt")
    several = prompt if isinstance(prompt, list) and not isinstance(next(iter(prompt), 0), int) else [prompt]
    prompts = [each if isinstance(each, str) else read_tokens(each) for each in several]
    _refuse_if(not all(prompts), "Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    return prompts


def read_prompt(body: Json) -> str:
    """The one text of a tokenize request."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise _invalid("missing", "body.prompt", "Field required")
    return prompt


def read_tokens(tokens: object) -> str:
    """The text that the tokens stand for."""
    try:
        text = "".join(map(chr, as_list(tokens)))
        text.encode()  # half of a surrogate pair is no character
    except (TypeError, ValueError, OverflowError):
        raise _invalid("int_parsing", "body.tokens", "Input should be this server's tokens") from None
    return text


def read_sampling(body: Json, limit: int, prompt: str) -> Sampling:
    """How to generate after the prompt; at most `limit` tokens unless the body says."""
    stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop") or []
    if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop):
        raise _invalid("string_type", "body.stop", "Input should be a valid string")
    if len(stop) > _MAX_STOPS:
        raise _invalid("too_long", "body.stop", f"List should have at most {_MAX_STOPS} items")
    key = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    _refuse_temperature(body.get("temperature"))
    n, limit, top = _integer(body, "n", 1), _integer(body, key, limit), _integer(body, "top_logprobs", 0)
    length = f"This model's maximum context length is {MAX_MODEL_LEN} tokens. However, your prompt contains"
    _refuse_if("" in stop, "stop cannot contain an empty string.")
    _refuse_if(n < 1, f"n must be at least 1, got {n}.")
    _refuse_if(limit < 1, f"max_tokens must be at least 1, got {limit}.", "max_tokens")
    _refuse_if(len(prompt) > MAX_MODEL_LEN, f"{length} {len(prompt)} input tokens.", "input_tokens")
    stray = body.get("stream_options") and not body.get("stream")
    _refuse_if(stray, "Stream options can only be defined when `stream=True`.", "stream_options")
    shown = min(max(top, 0), _MAX_LOGPROBS) if body.get("logprobs") else None
    return Sampling(n, limit, stop, bool(body.get("include_stop_str_in_output")), shown)


def _refuse_tools(tools: object, choice: object) -> None:
    _refuse_if(tools == [], "`tools` must not be an empty array.", "tools")
    if choice in (None, "none"):
        return
    _refuse_if(not tools, "When using `tool_choice`, `tools` must be set.", "tool_choice")
    parser = "--tool-call-parser to be set"
    _refuse_if(choice == "auto", f'"auto" tool choice requires --enable-auto-tool-choice and {parser}')
    name = as_dict(as_dict(choice).get("function")).get("name")
    called = f'function "{name}"' if name else f'"{choice}"'
    raise Refused(f"tool_choice={called} requires {parser}")


def _refuse_temperature(value: object) -> None:
    try:
        float(str(value or 0))
    except ValueError:
        raise _invalid("float_parsing", "body.temperature", "Input should be a valid number") from None


def _integer(body: Json, key: str, default: int) -> int:
    try:
        return default if body.get(key) is None else int(body[key])
    except (TypeError, ValueError, OverflowError):
        raise _invalid("int_parsing", f"body.{key}", "Input should be a valid integer") from None


def _invalid(kind: str, where: str, message: str) -> Refused:
    text = f"1 validation error:\n  {{'type': {kind!r}, 'loc': {where!r}, 'msg': {message!r}}}"
    return Refused(text, where, "Bad Request")


def _refuse_if(found: object, message: str, param: str | None = None) -> None:
    if found:
        raise Refused(f"{message} (parameter={param})" if param else message, param)
