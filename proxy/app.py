"""The only place where the parts meet: a Config -> the ASGI application."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from proxy.answers import SERVER_SEND
from proxy.chat import Chat
from proxy.config import Config
from proxy.formats.qwen import Qwen
from proxy.routes import Service, add_routes
from proxy.upstream import Patience, Upstream, aiohttp_transport


class _App(FastAPI):
    """FastAPI that lets an `Answer` write to the server directly.

    Three of its layers wrap `send` to see whether an answer has begun. An `Answer` tells of its own errors, and
    writes thousands of times: without them a streamed event costs a tenth less.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keeps the server's own `send` in the scope."""
        scope[SERVER_SEND] = send
        await super().__call__(scope, receive, send)


def create_app(
    config: Config,
    *,
    transport: Callable[[], httpx.AsyncBaseTransport] = aiohttp_transport,
    now: Callable[[], float] = time.time,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
) -> FastAPI:
    """Florette in front of `config.upstream`.

    The seams: `transport` makes the HTTP transport to the upstream, `now` gives seconds since 1970, `new_id` the
    random part of the ids of answers and calls. A config without an upstream is a ValueError: `cli` fills in the
    demo's address.
    """
    if config.upstream is None:
        raise ValueError("create_app needs an upstream")
    upstream = Upstream(config.upstream, _key(config), _patience(config), transport())
    qwen = Qwen(config.default_system, config.language, config.vision, config.thinking_begun)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await upstream.aclose()

    app = _App(title="Florette", lifespan=lifespan, openapi_url=None)
    chat = Chat(upstream, qwen, lambda: f"call_{new_id()}")
    add_routes(app, Service(upstream, chat, config.max_body_bytes, config.reasoning_field, now, new_id))
    return app


def _key(config: Config) -> str | None:
    return config.upstream_key.get_secret_value() if config.upstream_key else None


def _patience(config: Config) -> Patience:
    return Patience(
        connect_timeout_s=config.connect_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
        answer_timeout_s=config.answer_timeout_s,
        retries=config.retries,
        retry_backoff_s=config.retry_backoff_s,
    )
