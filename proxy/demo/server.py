"""vLLM's wire shape around the model: its routes, its tokens, its answers whole and streamed.

    body -> checks -> prompt and sampling -> model -> text -> tokens, stop strings -> JSON or chunks

Shapes are vLLM 0.32.0's, as seen on the wire.
"""

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, cycle, islice, pairwise, takewhile, zip_longest

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from proxy.demo.checks import (
    MAX_MODEL_LEN,
    Refused,
    Sampling,
    read_body,
    read_messages,
    read_prompt,
    read_prompts,
    read_sampling,
    read_tokens,
)
from proxy.demo.model import complete_chat, echo
from proxy.demo.prompts import text_of
from proxy.demo.schema import Json, as_dict

#: In every answer and every chunk.
FINGERPRINT = "florette-demo-no-model"

#: vLLM's own default there; a chat goes on until it ends.
_COMPLETION_LIMIT = 16
#: Shorter than any marker, and in step with none.
_TOKEN_LENGTHS = (2, 4, 3)
_GOES_ON = {"logprobs": None, "finish_reason": None}


@dataclass(frozen=True, slots=True)
class _Step:
    """One token on its way out. `text` lags behind while it may be the beginning of a stop string."""

    text: str
    logprob: Json | None
    end: Json


def create_demo() -> Starlette:
    """The ASGI app. It keeps no state but a counter for ids, answers at once, and asks for no key."""
    posts = {"/v1/chat/completions": _chat, "/v1/completions": _complete}
    posts |= {"/tokenize": _tokenize, "/detokenize": _detokenize}
    gets = {"/v1/models": _models, "/version": _version, "/health": _health}
    routes = [Route(path, answer, methods=["POST"]) for path, answer in posts.items()]
    routes += [Route(path, answer) for path, answer in gets.items()]
    app = Starlette(routes=routes, exception_handlers=dict.fromkeys((HTTPException, Refused), _refused))
    app.state.serial = count(1)
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


async def _chat(request: Request) -> Response:
    body = read_body(await request.body())
    messages, continued = read_messages(body), bool(body.get("continue_final_message"))
    prompt = _chatml(messages, continued)
    asked = read_sampling(body, MAX_MODEL_LEN, prompt)
    text = complete_chat(messages, continued, as_dict(body.get("response_format")))
    return _respond(request, body, True, prompt, [_generate(text, asked)] * asked.n)


async def _complete(request: Request) -> Response:
    body = read_body(await request.body())
    prompts = read_prompts(body)
    asked = read_sampling(body, _COMPLETION_LIMIT, "".join(prompts))
    answers = [_generate(echo(prompt), asked) for prompt in prompts for _ in range(asked.n)]
    return _respond(request, body, False, "".join(prompts), answers)


async def _tokenize(request: Request) -> Response:
    body = read_body(await request.body())
    text = _chatml(read_messages(body), False) if "messages" in body else read_prompt(body)
    tokens = [ord(character) for character in text]
    counted = {"count": len(tokens), "max_model_len": MAX_MODEL_LEN}
    return JSONResponse({**counted, "tokens": tokens, "token_strs": None})


async def _detokenize(request: Request) -> Response:
    body = read_body(await request.body())
    return JSONResponse({"prompt": read_tokens(body.get("tokens"))})


def _chatml(messages: Sequence[Json], continued: bool) -> str:
    """The prompt as most chat templates write it."""
    turns = "".join(f"<|im_start|>{m.get('role')}\n{text_of(m)}<|im_end|>\n" for m in messages)
    return turns.removesuffix("<|im_end|>\n") if continued else f"{turns}<|im_start|>assistant\n"


def _generate(text: str, asked: Sampling) -> list[_Step]:
    """The text token by token, never none; the last step says why it ended."""
    tokens = _tokens(text)[: asked.limit]
    written = "".join(tokens)
    ends = [(written.find(stop) + len(stop), stop) for stop in asked.stop if stop in written]
    end, stop = min(ends, key=lambda each: each[0], default=(len(written) + 1, None))
    kept = written[: end - (0 if asked.keep_stop else len(stop or ""))]
    held = 0 if asked.keep_stop else max(map(len, asked.stop), default=1) - 1
    starts = takewhile(lambda start: start < end, accumulate(map(len, tokens[:-1]), initial=0))
    sent = [*(max(0, start - held) for start in starts), len(kept)]
    spans = zip(pairwise(sent), tokens, strict=False)  # tokens behind a stop string are not said
    steps = [_Step(kept[a:b], _logprob(token, asked.top), {}) for (a, b), token in spans]
    why = {"finish_reason": "length" if stop is None and tokens[-1] else "stop", "stop_reason": stop}
    return [*steps[:-1], replace(steps[-1], end=why)]


def _tokens(text: str) -> list[str]:
    """The text in small pieces, and an empty one that stands for the end of the sequence."""
    characters = iter(text)
    pieces = ("".join(islice(characters, length)) for length in cycle(_TOKEN_LENGTHS))
    return [*takewhile(bool, pieces), ""]


def _logprob(token: str, top: int | None) -> Json | None:
    if top is None:
        return None
    sure = -0.01 - sum(token.encode()) % 89 / 100  # below 0, and for each token always the same
    ranked = [(token, sure), *((f"{token}{i}", sure - i) for i in range(1, top))]
    entries = [{"token": each, "logprob": value, "bytes": list(each.encode())} for each, value in ranked]
    return {**entries[0], "top_logprobs": entries[:top]}


def _respond(request: Request, body: Json, chat: bool, prompt: str, answers: list[list[_Step]]) -> Response:
    stream, said = bool(body.get("stream")), sum(map(len, answers))
    number = request.headers.get("x-request-id") or f"{next(request.app.state.serial):016x}"
    head = {"id": f"{'chatcmpl' if chat else 'cmpl'}-{number}", "created": int(time.time())}
    head |= {"object": f"chat.completion{'.chunk' * stream}" if chat else "text_completion"}
    head |= {"model": body.get("model") or "demo", "system_fingerprint": FINGERPRINT}
    usage = {"prompt_tokens": len(prompt), "total_tokens": len(prompt) + said, "completion_tokens": said}
    if stream:
        told = usage if as_dict(body.get("stream_options")).get("include_usage") else None
        return StreamingResponse(_events(head, chat, answers, told), media_type="text/event-stream")
    choices = [_choice(index, chat, steps) for index, steps in enumerate(answers)]
    return JSONResponse({**head, "choices": choices, "service_tier": None, "usage": usage})


def _choice(index: int, chat: bool, steps: Sequence[_Step]) -> Json:
    text = "".join(step.text for step in steps)
    unused = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "reasoning"))
    said = {"message": {"role": "assistant", "content": text, **unused}} if chat else {"text": text}
    return {"index": index, **said, "logprobs": _logprobs(chat, steps), **steps[-1].end, "token_ids": None}


def _logprobs(chat: bool, steps: Sequence[_Step]) -> Json | None:
    return {"content": [step.logprob for step in steps]} if chat and steps[0].logprob else None


async def _events(head: Json, chat: bool, answers: list[list[_Step]], usage: Json | None) -> AsyncIterator[bytes]:
    """First each choice's role, then the choices token by token in turns."""
    for index in range(len(answers)) if chat else ():
        yield _event(head, {"index": index, "delta": {"role": "assistant", "content": ""}, **_GOES_ON})
    for steps in zip_longest(*answers):
        for index, step in enumerate(steps):
            if step is not None:
                said = {"delta": {"content": step.text}} if chat else {"text": step.text, "stop_reason": None}
                more = {"logprobs": _logprobs(chat, [step]), "token_ids": None}
                yield _event(head, {"index": index, **said, **_GOES_ON, **step.end, **more})
    if usage:
        yield _event(head, usage=usage)
    yield b"data: [DONE]\n\n"


def _event(head: Json, *choices: Json, **more: Json) -> bytes:
    return b"data: " + orjson.dumps({**head, "choices": choices, **more}) + b"\n\n"
