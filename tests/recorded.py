"""Answers as servers give them, for the doctor to judge; and a small endpoint that serves them.

`completion` and `chunks` are in OpenAI's shape, from its API reference; `vllm_completion` and `vllm_chunks` are in that
of a vLLM 0.32.0 with `--tool-call-parser hermes`, as recorded from one.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from proxy.doctor.exchange import Answer, Request, read_answer
from serving import LoopThread, serve_app

Json = dict[str, Any]

#: Name and arguments; for a stream the arguments piece by piece.
Made = tuple[str, str | Sequence[str]]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}

HEAD = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m"}
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
JSON_TYPE = {"content-type": "application/json"}
STREAM_TYPE = {"content-type": "text/event-stream; charset=utf-8"}


def asked(**fields: Any) -> Request:
    """A request with a tool."""
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    return Request("/chat/completions", {"model": "m", "messages": messages, "tools": [WEATHER], **fields})


def completion(content: str | None, *calls: Made, finish: str | None = None) -> Json:
    """A whole answer."""
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = [
            {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": "".join(arguments)}}
            for index, (name, arguments) in enumerate(calls)
        ]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish or _finish(calls)}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def chunk(delta: Json, finish: str | None = None, index: int = 0) -> Json:
    """One chunk with one choice."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk() -> Json:
    """The last chunk of a stream that was asked for usage."""
    return {**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE}


def chunks(content: str, *calls: Made, finish: str | None = None) -> list[Json]:
    """A streamed answer without its usage."""
    made = [chunk({"role": "assistant", "content": ""})]
    made += [chunk({"content": word}) for word in content.split("|") if word]
    for index, (name, arguments) in enumerate(calls):
        function = {"name": name, "arguments": ""}
        first = {"index": index, "id": f"call_{index}", "type": "function", "function": function}
        made.append(chunk({"tool_calls": [first]}))
        made += [chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}) for piece in arguments]
    return [*made, chunk({}, finish or _finish(calls))]


def vllm_completion(content: str | None, *calls: Made, finish: str | None = None) -> Json:
    """VLLM's: with an empty list where there are no calls."""
    whole = completion(content, *calls, finish=finish)
    whole["choices"][0]["message"] |= {"function_call": None, "reasoning": None}
    whole["choices"][0]["message"].setdefault("tool_calls", [])
    return whole


def vllm_chunks(content: str, *calls: Made, finish: str | None = None) -> list[Json]:
    """VLLM's: a call's first delta has no `arguments`."""
    made = chunks(content, *calls, finish=finish)
    for one in made:
        for call in one["choices"][0]["delta"].get("tool_calls", ()):
            if "id" in call:
                del call["function"]["arguments"]
    return made


def sent(payloads: Sequence[Json | str], done: str = "data: [DONE]\n\n") -> bytes:
    """The bytes of a stream; a text goes as it is."""
    events = [each if isinstance(each, str) else f"data: {json.dumps(each)}\n\n" for each in payloads]
    return ("".join(events) + done).encode()


def whole(body: Json, request: Request | None = None) -> Answer:
    """The answer that this completion is."""
    return read_answer(request or asked(), 200, JSON_TYPE, json.dumps(body).encode())


def streamed(payloads: Sequence[Json | str], request: Request | None = None, done: str = "data: [DONE]\n\n") -> Answer:
    """The answer that these chunks are."""
    return read_answer(request or asked(stream=True), 200, STREAM_TYPE, sent(payloads, done))


def _finish(calls: Sequence[Made]) -> str:
    return "tool_calls" if calls else "stop"


#: What an endpoint says to a body: a completion, a stream's chunks, or any answer.
Script = Callable[[Json], Json | list[Json] | Response]


class Stage:
    """An endpoint that plays whatever script it is given last. `keys` are the Authorization headers that came."""

    def __init__(self) -> None:
        self.url = ""
        self.keys: set[str | None] = set()
        self._script: Script = lambda body: completion("Hello.")

    def play(self, script: Script) -> str:
        """Plays this from now on, but is polite at first: a doctor comes in by a plain question. Gives the URL."""
        first = iter([completion("Hello.")])
        self._script = lambda body: next(first, None) or script(body)
        return self.url

    async def answer(self, request: HttpRequest) -> Response:
        """The answer to a chat request."""
        self.keys.add(request.headers.get("authorization"))
        said = self._script(json.loads(await request.body()))
        if isinstance(said, Response):
            return said
        if isinstance(said, dict):
            return JSONResponse(said)
        return Response(sent([*said, usage_chunk()]), media_type="text/event-stream")


@contextlib.contextmanager
def serve_stage(loop_thread: LoopThread) -> Iterator[Stage]:
    """Serves it while the block runs."""
    stage = Stage()
    app = Starlette(routes=[Route("/v1/chat/completions", stage.answer, methods=["POST"])])
    with serve_app(app, loop_thread) as url:
        stage.url = f"{url}/v1"
        yield stage
