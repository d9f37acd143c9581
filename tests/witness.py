"""What passes between Florette and its callers, held against OpenAI's published schema.

A `Witness` stands around the app in every test over HTTP; the tests know nothing of it. What passes byte for byte is
not Florette's own and is not judged.
"""

import json
import re
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from beyond import answer_complaint, request_complaint
from openai_schema import ANSWER, CHUNK, ERROR
from proxy.wire import read_request

CHAT = "/v1/chat/completions"
DONE = b"data: [DONE]"

#: A request with this header is one that OpenAI would not take, and says so.
LACKING = "x-lacking"


@dataclass
class Exchange:
    """A request and its answer, as far as they came; `left`: the caller did not wait for the end."""

    method: str
    path: str
    lacking: bool = False
    hosts: Collection[str] = ()
    asked: bytearray = field(default_factory=bytearray)
    status: int = 0
    content_type: str = ""
    told: bytearray = field(default_factory=bytearray)
    whole: bool = False
    left: bool = False


class Witness:
    """ASGI: an app, and a record of its exchanges in `seen`. `hosts`: the models that come with tools."""

    def __init__(self, app: ASGIApp, seen: deque[Exchange], hosts: Collection[str] = ()) -> None:
        self._app = app
        self._seen = seen
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        lacking = any(name.decode() == LACKING for name, _ in scope["headers"])
        exchange = Exchange(scope["method"], scope["path"], lacking, hosts=self._hosts)

        async def hear() -> Message:
            message = await receive()
            exchange.asked += message.get("body", b"")
            exchange.left |= message["type"] == "http.disconnect" and not exchange.whole
            return message

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.content_type = dict(message["headers"]).get(b"content-type", b"").decode()
            else:
                exchange.told += message.get("body", b"")
                exchange.whole = not message.get("more_body")
            await send(message)

        try:
            await self._app(scope, hear, tell)
        finally:
            self._seen.append(exchange)


def complaints(exchange: Exchange) -> Iterator[str]:
    """What in the exchange OpenAI's schema does not allow, a line each."""
    at = f"{exchange.method} {exchange.path} answered {exchange.status}"
    yield from (f"{at}: {complaint}" for complaint in _complaints(exchange) if complaint)


def _complaints(exchange: Exchange) -> Iterator[str | None]:
    if exchange.status >= 400 and not exchange.left:
        yield _of_json(ERROR, exchange)
    elif exchange.path == CHAT and exchange.status == 200:
        yield from _of_a_chat(exchange)


def _of_a_chat(exchange: Exchange) -> Iterator[str | None]:
    asked = json.loads(exchange.asked)
    declared = [entry for entry in asked.get("tools") or () if entry.get("type", "function") == "function"]
    hosted = asked.get("model") in exchange.hosts or len(declared) < len(asked.get("tools") or ())
    if "tools" in asked:
        # The others are our own tools, of which OpenAI's schema knows nothing.
        asked = {**asked, "tools": declared}
    yield None if exchange.lacking or hosted else request_complaint(asked)
    request = read_request({**asked, "tool_choice": None} if hosted else asked)
    if not (hosted or request.declared or request.has_calls):
        return
    if request.stream:
        yield from _of_a_stream(bytes(exchange.told))
    elif exchange.whole:
        yield _of_json(ANSWER, exchange)


def _of_json(definition: str, exchange: Exchange) -> str | None:
    try:
        return answer_complaint(definition, json.loads(exchange.told))
    except ValueError:
        return f"{definition}: {bytes(exchange.told[:200])!r} is not JSON"


#: A text may be any: where chunks differ in nothing else, one stands for all.
_TEXT = re.compile(rb'"(content|arguments|reasoning_content)":"(?:[^"\\]|\\.)*"')


def _of_a_stream(told: bytes) -> Iterator[str | None]:
    *events, _unfinished = told.split(b"\n\n")
    for event in events:
        if event.strip() and event != DONE and not event.startswith(b":"):
            yield _of_an_event(_TEXT.sub(rb'"\1":""', event.strip()))


@lru_cache(4096)
def _of_an_event(event: bytes) -> str | None:
    if not event.startswith(b"data: "):
        return f"{event[:200]!r} is no event"
    payload = json.loads(event.removeprefix(b"data: "))
    return answer_complaint(ERROR if "error" in payload else CHUNK, payload)
