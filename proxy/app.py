"""The only place where the parts meet: a Config -> the ASGI application."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from proxy.answers import SERVER_SEND
from proxy.auth import Caller, Key, Keys
from proxy.chat import Chat
from proxy.config import Config
from proxy.file_routes import add_file_routes, is_signed_link
from proxy.formats.base import Options
from proxy.formats.registry import FORMATS, Formats
from proxy.guard import Guard
from proxy.limits import Limits
from proxy.prompting import Prompting
from proxy.routes import OPEN_PATHS, Service, add_routes
from proxy.turns import Profile
from proxy.upstream import Patience, Upstream, aiohttp_transport
from tools.files import FileStore


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
    clock: Callable[[], int] = time.monotonic_ns,
    new_id: Callable[[], str] = lambda: secrets.token_hex(12),
    formats: Formats = FORMATS,
) -> FastAPI:
    """Florette in front of `config.upstream`.

    The seams: `transport` makes the HTTP transport to the upstream, `now` gives seconds since 1970, `clock` the
    nanoseconds by which limits are counted, `new_id` the random part of the ids of answers and calls, `formats` those
    that the config may name. A config without an upstream is a ValueError: `cli` fills in the demo's address.
    """
    if config.upstream is None:
        raise ValueError("create_app needs an upstream")
    keys = _keys(config)
    upstream = Upstream(config.upstream, _key(config), _patience(config), transport(), passes_keys=not keys)
    files = _files(config, now)
    usual = _profile(config, formats)
    profiles = {model: _profile(config.overridden(prompting), formats) for model, prompting in config.models.items()}

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Whatever is wrong with the directory is told at once.
        await files.sweep()
        yield
        await files.aclose()
        await upstream.aclose()

    app = _App(title="Florette", lifespan=lifespan, openapi_url=None)
    chat = Chat(upstream, lambda model: profiles.get(model or "", usual), lambda: f"call_{new_id()}", now)
    add_routes(app, Service(upstream, chat, config.max_body_bytes, config.reasoning_field, now, new_id))
    add_file_routes(app, files)
    app.add_middleware(Guard, keys=Keys(keys, clock), open_paths=OPEN_PATHS, is_open=is_signed_link)
    return app


def _profile(prompting: Prompting, formats: Formats) -> Profile:
    options = Options(
        default_system=prompting.default_system,
        language=prompting.language,
        vision=prompting.vision,
        thinking_begun=prompting.thinking_begun,
        history=prompting.history,
        control_tokens=prompting.control_tokens,
    )
    return Profile(formats[prompting.format](options), prompting.guided, prompting.repairs)


def _files(config: Config, now: Callable[[], float]) -> FileStore:
    return FileStore(
        config.files_dir,
        max_file_bytes=config.file_max_bytes,
        quota_bytes=config.files_quota_bytes,
        ttl_s=config.files_ttl_s,
        now=now,
    )


def _key(config: Config) -> str | None:
    return config.upstream_key.get_secret_value() if config.upstream_key else None


def _keys(config: Config) -> list[Key]:
    return [
        Key(
            Caller(entry.name, Limits(entry.requests_per_minute, entry.tokens_per_minute, entry.concurrent_requests)),
            entry.digest,
        )
        for entry in config.api_keys
    ]


def _patience(config: Config) -> Patience:
    return Patience(
        connect_timeout_s=config.connect_timeout_s,
        idle_timeout_s=config.idle_timeout_s,
        answer_timeout_s=config.answer_timeout_s,
        retries=config.retries,
        retry_backoff_s=config.retry_backoff_s,
    )
