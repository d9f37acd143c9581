"""The only place where the parts meet: a Config -> the ASGI application."""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from proxy.agent import Agent
from proxy.answers import SERVER_SEND
from proxy.auth import Caller, Key, Keys
from proxy.chat import Chat
from proxy.config import Config, ConfigError, ToolEnvironment, kernels_of
from proxy.file_routes import add_file_routes, is_signed_link
from proxy.formats.base import Options
from proxy.formats.registry import FORMATS, Formats
from proxy.guard import Guard
from proxy.hosting import Alias, Hosting, Setup
from proxy.limits import Limits
from proxy.pending import Pending
from proxy.prompting import Prompting
from proxy.routes import OPEN_PATHS, Service, add_routes
from proxy.running import Bounds
from proxy.turns import Profile
from proxy.upstream import Patience, Upstream, aiohttp_transport
from proxy.windows import Windows
from tools.base import BaseTool
from tools.cache import ToolCache
from tools.egress import Egress
from tools.executor import Executor
from tools.files import FileStore
from tools.kernel_settings import KernelSettings
from tools.outcomes import Kernels
from tools.registry import open_kernels
from tools.stores import MEMORY, Store, open_store
from tools.toolbox import Toolbox, ToolboxError
from tools.workers import Workers

logger = logging.getLogger(__name__)

#: So much of what our tools did is kept in memory until callers bring their results: some ten thousand answers.
_STATE_BYTES = 64_000_000


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
    egress: Egress | None = None,
    environment: ToolEnvironment | None = None,
    open_kernels: Callable[[KernelSettings, Store | None], Kernels] = open_kernels,
) -> FastAPI:
    """Florette in front of `config.upstream`.

    The seams: `transport` makes the HTTP transport to the upstream, `now` gives seconds since 1970, `clock` the
    nanoseconds by which limits are counted, `new_id` the random part of the ids of answers and calls, `formats` those
    that the config may name, `egress` is the way of tools to the network, `environment` what they see of ours,
    `open_kernels` makes kernels when a tool uses them.
    A config without an upstream is a ValueError: `cli` fills in the demo's address; one whose tools cannot be made is a
    ConfigError. `app.state.reload` takes over the tools and models of another config.
    """
    if config.upstream is None:
        raise ValueError("create_app needs an upstream")
    keys = _keys(config)
    upstream = Upstream(config.upstream, _key(config), _patience(config), transport(), passes_keys=not keys)
    files = _files(config, now)
    profiles = _Profiles(config, formats)
    hands = _Hands(config, environment or ToolEnvironment(), open_kernels)
    chat = Chat(upstream, profiles.of, lambda: f"call_{new_id()}", now)
    pending = Pending(hands.state, config.tool_state_ttl_s)
    hosting = Hosting(hands.setup(config), files, pending)
    windows = Windows(upstream, time.monotonic)
    agent = Agent(chat, files, windows, pending, egress or Egress(config.egress_allow), _bounds(config), time.monotonic)

    async def reload(new: Config) -> None:
        setup = hands.setup(new, before=hosting.setup)
        profiles.read(new)
        before, hosting.setup = hosting.setup, setup
        await before.retire()
        await hands.start(setup)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Whatever is wrong with the directory is told at once.
        await files.sweep()
        await hands.start(hosting.setup)
        yield
        await hosting.setup.retire()
        await hands.aclose()
        await agent.egress.aclose()
        await files.aclose()
        await upstream.aclose()

    app = _App(title="Florette", lifespan=lifespan, openapi_url=None)
    app.state.reload = reload
    service = Service(
        upstream,
        chat,
        agent,
        hosting,
        config.public_url,
        signs_links=bool(keys),
        max_body_bytes=config.max_body_bytes,
        reasoning_field=config.reasoning_field,
        now=now,
        new_id=new_id,
    )
    add_routes(app, service)
    add_file_routes(app, files)
    app.add_middleware(Guard, keys=Keys(keys, clock), open_paths=OPEN_PATHS, is_open=is_signed_link)
    return app


class _Profiles:
    """How each model is talked to, by the configuration that was read last."""

    def __init__(self, config: Config, formats: Formats) -> None:
        self._formats = formats
        self.read(config)

    def read(self, config: Config) -> None:
        self._usual = _profile(config, self._formats)
        self._profiles = {
            name: _profile(config.overridden(model), self._formats) for name, model in config.models.items()
        }

    def of(self, model: str | None) -> Profile:
        return self._profiles.get(model or "", self._usual)


class _Hands:
    """What tools need to run, whichever there are: processes, kernels, the cache, and what waits for callers."""

    def __init__(
        self,
        config: Config,
        environment: ToolEnvironment,
        open_kernels: Callable[[KernelSettings, Store | None], Kernels],
    ) -> None:
        self._variables = environment.variables
        self._holders: Counter[BaseTool] = Counter()
        self._workers = Workers(environment.for_processes)
        self._open_kernels = open_kernels
        self._config = config
        self._kernels: Kernels | None = None
        self._started = False
        self._results = open_store(config.tool_cache, max_bytes=config.tool_cache_max_bytes)
        self.state = open_store(config.tool_state, max_bytes=_STATE_BYTES)

    def setup(self, config: Config, before: Setup | None = None) -> Setup:
        """The tools and aliases of the configuration. ConfigError for a tool that cannot be made, or is not there."""
        if config.kernels != self._config.kernels:
            logger.warning("the config key 'kernels' is not read anew: what it says now holds from the next start on")
        boxed = before.executor.toolbox if before else None
        try:
            toolbox = Toolbox.of(config.tools, self._variables, boxed, kernels=self._opened)
        except ToolboxError as error:
            raise ConfigError(f"Config key 'tools': {error}.") from None
        for name, reason in toolbox.unavailable.items():
            logger.warning("the tool %s cannot be used: %s", name, reason)
        known = {*toolbox.tools, *toolbox.unavailable}
        aliases = {
            name: Alias(model.upstream_model or name, model.tools)
            for name, model in config.models.items()
            if model.tools or model.upstream_model
        }
        for alias, model in aliases.items():
            if missing := next((tool for tool in model.tools if tool not in known), None):
                raise ConfigError(f"Config key 'models.{alias}.tools': there is no {missing!r} in 'tools'.")
        executor = Executor(toolbox, self._workers, ToolCache(self._results), concurrency=config.tool_concurrency)
        uses_kernels = any(equipped.tool.uses_kernels for equipped in toolbox.tools.values())
        return Setup(executor, aliases, self._holders, self._kernels if uses_kernels else None)

    async def start(self, setup: Setup) -> None:
        """Starts the kernels, once, if the setup is the first that uses them."""
        if setup.kernels and not self._started:
            self._started = True
            await setup.kernels.start()

    async def aclose(self) -> None:
        """Ends the processes and the kernels, and closes what is kept."""
        if self._kernels:
            await self._kernels.aclose()
        await asyncio.gather(self._workers.aclose(), self._results.aclose(), self.state.aclose())

    def _opened(self) -> Kernels:
        if self._kernels is None:
            is_shared = self._config.tool_state != MEMORY
            self._kernels = self._open_kernels(kernels_of(self._config), self.state if is_shared else None)
        return self._kernels


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
            Caller(
                entry.name,
                Limits(entry.requests_per_minute, entry.tokens_per_minute, entry.concurrent_requests),
                None if entry.tools is None else frozenset(entry.tools),
            ),
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


def _bounds(config: Config) -> Bounds:
    return Bounds(
        rounds=config.agent_rounds,
        calls=config.agent_calls,
        time_s=config.agent_time_s,
        tool_time_s=config.agent_tool_time_s,
        tokens=config.agent_tokens,
        repeats=config.agent_repeats,
        heartbeat_s=config.heartbeat_s,
    )
