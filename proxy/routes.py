"""The HTTP surface: OpenAI's paths -> turns and pass-through.

POST /v1/chat/completions     with tools, or calls in the history: a turn; else passed through byte for byte
                              where tools run here: rounds of turns
GET  /v1/models               the upstream's, and the names that the configuration gives
POST /v1/completions, /v1/embeddings, /v1/rerank, /tokenize, /detokenize      passed through
GET  /healthz                 we live
GET  /readyz                  the upstream answers

All but the last two are asked for a key first, where there are keys: see `guard`.
"""

import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from proxy.agent import Agent, Asker
from proxy.answers import EVENT_STREAM, Answer, Outlet
from proxy.auth import Lease
from proxy.chat import Chat
from proxy.chunks import ChunkWriter, Collector, Style
from proxy.cost import Cost
from proxy.errors import FloretteError, InvalidRequest, NoSuchRoute, RequestTooLarge, UpstreamBroken
from proxy.events import CallEnd, Dropped
from proxy.guard import LEASE
from proxy.hosting import Hosted, Hosting, with_aliases
from proxy.sse import DONE, Decoder, encode_done
from proxy.turns import Said, without_tool_fields
from proxy.upstream import Call, Upstream, to_json
from proxy.wire import ChatRequest, read_request

logger = logging.getLogger(__name__)

Events = AsyncGenerator[list[Said], None]

#: What those may ask who have no key: whether we live.
OPEN_PATHS = frozenset(("/healthz", "/readyz"))

#: Passed through: path, and whether it is below /v1.
_PASSED = (
    ("/v1/completions", "/completions", False),
    ("/v1/embeddings", "/embeddings", False),
    ("/v1/rerank", "/rerank", False),
    ("/tokenize", "/tokenize", True),
    ("/detokenize", "/detokenize", True),
)

#: Of what passes through: where a model writes, and where it only reads. The rest costs no tokens.
_WRITES = frozenset(("/chat/completions", "/completions"))
_READS = frozenset(("/embeddings", "/rerank"))

#: Headers of the upstream's answer that are of its own hop, or that are no longer true.
_NOT_PASSED = frozenset(
    (
        "connection",
        "keep-alive",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "proxy-authenticate",
        "date",
        "server",
    )
)

#: So much of a body that is too large is still read, times the limit, so that the caller can read the refusal.
_READ_BEYOND = 8


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes need; `now` gives seconds since 1970, `new_id` an answer's id.

    `public_url` is where callers reach us, if it is not where they say they do; `signs_links`: the links to files open
    without a key.
    """

    upstream: Upstream
    chat: Chat
    agent: Agent
    hosting: Hosting
    public_url: str | None
    signs_links: bool
    max_body_bytes: int
    reasoning_field: str
    now: Callable[[], float]
    new_id: Callable[[], str]


def add_routes(app: FastAPI, service: Service) -> None:
    """Puts the surface onto the app; every error comes out in OpenAI's shape."""
    router = APIRouter()
    _add_chat(app, service)
    _add_passed(router, service)
    _add_health(router, service)
    app.include_router(router)
    app.add_exception_handler(FloretteError, _error_answer)
    app.add_exception_handler(Exception, _bug)
    app.add_exception_handler(HTTPException, _unknown_route)
    app.add_exception_handler(ClientDisconnect, _nobody_there)


def _add_chat(app: FastAPI, service: Service) -> None:
    async def chat_completions(request: Request) -> Response:
        raw = await _body(request, service.max_body_bytes)
        body = _json(raw)
        caller = request.scope[LEASE].caller
        hosted = await service.hosting.of(body, caller)
        renamed = hosted is not None
        chat_request = hosted.request if hosted else read_request(body)
        body = hosted.body if hosted else body
        if not chat_request.declared and not chat_request.has_calls:
            plain = without_tool_fields(body)
            same = len(plain) == len(body) and not renamed
            timeout_s = service.upstream.patience.timeout_s(streamed=bool(chat_request.stream))
            content = raw if same else to_json(plain)
            call = Call("POST", "/chat/completions", content, timeout_s, is_json=not same)
            return _passed(service, call, request.headers, _lease(request, body, call.path))
        cost = _lease(request, body).cost
        if hosted and hosted.ours:
            events = service.agent.run(hosted, _asker(request, service))
        else:
            events = service.chat.turn(chat_request, body, request.headers, counted=cost is not None)
        if cost:
            events = _counted(events, cost)
        write = _streamed if chat_request.stream else _whole
        return Answer(lambda outlet: write(outlet, events, _style(chat_request, hosted, service), service))

    # A plain route: FastAPI's own would look for parameters to inject, and there are none.
    app.add_route("/v1/chat/completions", chat_completions, methods=["POST"])


def _add_passed(router: APIRouter, service: Service) -> None:
    def add(path: str, upstream_path: str, root: bool) -> None:
        @router.post(path)
        async def passed(request: Request) -> Response:
            raw = await _body(request, service.max_body_bytes)
            body = _json(raw)
            renamed = service.hosting.renamed(body)
            same = renamed is body
            timeout_s = service.upstream.patience.timeout_s(streamed=body.get("stream") is True)
            call = Call("POST", upstream_path, raw if same else to_json(renamed), timeout_s, root, is_json=not same)
            return _passed(service, call, request.headers, _lease(request, body, upstream_path))

    for path, upstream_path, root in _PASSED:
        add(path, upstream_path, root)

    @router.get("/v1/models")
    async def models(request: Request) -> Response:
        lease = request.scope[LEASE]
        timeout_s = service.upstream.patience.timeout_s(streamed=False)
        call = Call("GET", "/models", b"", timeout_s)
        aliases = service.hosting.aliases_for(lease.caller)
        if not aliases:
            return _passed(service, call, request.headers, lease)

        async def respond(outlet: Outlet) -> None:
            told = await service.upstream.ask(call, request.headers)
            await outlet.json(200, with_aliases(told, aliases))

        return Answer(respond)


def _add_health(router: APIRouter, service: Service) -> None:
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> Response:
        async def respond(outlet: Outlet) -> None:
            await service.upstream.check()
            await outlet.json(200, {"status": "ok"})

        return Answer(respond)


# -- requests ----------------------------------------------------------------------------------------------


async def _body(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "")
    said: list[bytes] = []
    size = 0
    async for data in request.stream():
        size += len(data)
        if size <= limit:
            said.append(data)
        elif size > _READ_BEYOND * limit:
            break
    if size > limit or (declared.isdigit() and int(declared) > limit):
        raise RequestTooLarge(f"The request body is larger than the {limit:,} bytes that this server takes.")
    return b"".join(said)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequest("The request body is not valid JSON: it is nested too deeply.") from None
    except UnicodeDecodeError:
        raise InvalidRequest("The request body is not valid JSON: it is not UTF-8.") from None
    except ValueError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"it has no {name}")


# -- what they cost ----------------------------------------------------------------------------------------


def _lease(request: Request, body: Mapping[str, Any], path: str = "/chat/completions") -> Lease:
    # With a Cost only where somebody counts: else a streamed event costs nothing more.
    lease: Lease = request.scope[LEASE]
    if lease.counts_tokens and path in _WRITES | _READS:
        lease.cost = Cost(body, writes=path in _WRITES)
    return lease


async def _counted(events: Events, cost: Cost) -> Events:
    async with aclosing(events):
        async for said in events:
            cost.events(said)
            yield said


# -- answers -----------------------------------------------------------------------------------------------


async def _streamed(outlet: Outlet, events: Events, style: Style, service: Service) -> None:
    writer = ChunkWriter(style, _defaults(style, service))
    mended = _Mended()
    started = False
    async with aclosing(events):
        async for said in events:
            data = b"".join([writer.encoded(choice, event) for choice, event in said])
            mended.count(said)
            if data and not started:
                # Not before the first event: until then an error can still be a status.
                await outlet.start(200, EVENT_STREAM, event_stream=True)
                started = True
            if data:
                await outlet.write(data)
    mended.log()
    await outlet.end(encode_done())


async def _whole(outlet: Outlet, events: Events, style: Style, service: Service) -> None:
    collector = Collector(style, _defaults(style, service))
    mended = _Mended()
    async with aclosing(events):
        async for said in events:
            mended.count(said)
            for choice, event in said:
                collector.add(choice, event)
    mended.log()
    await outlet.json(200, collector.completion())


def _style(request: ChatRequest, hosted: Hosted | None, service: Service) -> Style:
    return Style(
        legacy=request.legacy,
        reasoning_field=service.reasoning_field,
        tells_usage=request.wants_usage or not request.stream,
        model=request.model or "",
        is_alias=hosted is not None,
        tells_tools=hosted is not None and hosted.tells.events,
        tells_dialog=hosted is not None and hosted.tells.messages,
    )


def _defaults(style: Style, service: Service) -> dict[str, Any]:
    return {"id": f"chatcmpl-{service.new_id()}", "created": int(service.now()), "model": style.model}


def _asker(request: Request, service: Service) -> Asker:
    base = service.public_url or str(request.base_url).rstrip("/")

    async def link(file_id: str) -> str:
        url = f"{base}/v1/files/{file_id}/content"
        return f"{url}?signature={await service.agent.files.sign(file_id)}" if service.signs_links else url

    return Asker(request.scope[LEASE].caller.name, request.headers, link)


class _Mended:
    """Counts what was mended or left out in one answer, for the log."""

    def __init__(self) -> None:
        self.repairs = 0
        self.dropped = 0

    def count(self, said: list[Said]) -> None:
        for _, event in said:
            match event:
                case CallEnd(repairs=repairs):
                    self.repairs += repairs
                case Dropped(characters):
                    self.dropped += characters

    def log(self) -> None:
        if self.repairs or self.dropped:
            logger.info("answer mended: %d repairs, %d characters dropped", self.repairs, self.dropped)


def _passed(service: Service, call: Call, headers: Mapping[str, str], lease: Lease) -> Answer:
    async def respond(outlet: Outlet) -> None:
        upstream = service.upstream
        async with upstream.send(call, headers) as response:
            is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
            # The length of a stream is not certain before its end: it may have to tell of an error.
            left_out = _NOT_PASSED | {"content-length"} if is_stream else _NOT_PASSED
            kept = [(name, value) for name, value in response.headers.raw if name.decode().lower() not in left_out]
            await outlet.start(response.status_code, kept, event_stream=is_stream)
            payloads: list[bytes] = []
            decoder = Decoder()
            async with aclosing(upstream.read(response, call.timeout_s)) as reads:
                async for data in reads:
                    if is_stream:
                        came = decoder.feed(data)
                        payloads = came or payloads
                        if lease.cost:
                            lease.cost.payloads(came)
                        if came and came[-1] == DONE:
                            # With that the caller has all of it, however long the upstream takes to hang up.
                            lease.release()
                    elif lease.cost:
                        lease.cost.part(data)
                    await outlet.write(data)
            if is_stream and DONE not in payloads + decoder.close():
                raise UpstreamBroken("The upstream's answer ended before it was finished.")
            await outlet.end()

    return Answer(respond)


# -- errors ------------------------------------------------------------------------------------------------


async def _error_answer(_: Request, error: Exception) -> Response:
    assert isinstance(error, FloretteError)
    return JSONResponse(error.body(), error.status, error.headers)


async def _bug(_: Request, __: Exception) -> Response:
    # Starlette hands it on to the server behind this, which logs it.
    answer = FloretteError("Florette failed because of a bug; the server's log has the details.")
    return JSONResponse(answer.body(), answer.status)


async def _nobody_there(_: Request, __: Exception) -> Response:
    # The caller left while it was still sending; this goes nowhere.
    return Response(status_code=400)


async def _unknown_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path
    known = {404: f"Unknown request URL: {method} {path}.", 405: f"Not allowed: {method} {path}."}
    answer = NoSuchRoute(known.get(error.status_code, str(error.detail)), status=error.status_code)
    return JSONResponse(answer.body(), answer.status, error.headers)
