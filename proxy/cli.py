"""The `florette` command.

    florette serve [--upstream URL] [--upstream-key KEY] [--host 127.0.0.1] [--port 8080] [--workers 1] [--config FILE]
                   [--allow-unauthenticated]
    florette tools [--config FILE] [--json]
    florette doctor --base-url URL --model M [--api-key KEY] [--timeout S] [--json]
    florette doctor --config FILE [--json]

While it serves, SIGHUP makes it read the file's `tools` and `models` anew.

Exit codes of serve: 0 after SIGTERM or Ctrl-C, 1 if the address cannot be had or workers keep ending, 2 for a bad flag
or config; of doctor: 0 if no check failed, 1 if one did, 2 if there is nothing to check or the endpoint keeps refusing,
130 after Ctrl-C; with a config 0 if tools can run code on this machine, 1 if not.
"""

import argparse
import asyncio
import gc
import ipaddress
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from proxy import __version__
from proxy.app import create_app
from proxy.config import Config, ConfigError, doctor_key, kernels_of, tool_environment
from proxy.demo import create_demo
from proxy.doctor import Scorecard, Tell, Unfit, Verdict, as_json, as_text, examine, progress_on
from proxy.listing import as_json as listed_as_json
from proxy.listing import as_text as listed_as_text
from proxy.listing import examined, listed, machine_as_json, machine_as_text
from proxy.workers import Crew, Post
from tools.kernel_settings import KernelSettings
from tools.outcomes import Kernels
from tools.registry import open_kernels
from tools.toolbox import OpenKernels, Toolbox, ToolboxError

#: Clients keep idle connections for 5 s (httpx) to 60 s; the side that closes first should be theirs.
_KEEPALIVE_S = 75

#: So many more objects made than freed before the collector looks: answers in flight make and drop thousands.
_GC_THRESHOLD = 20_000

#: So many connections may wait to be accepted: uvicorn's own default.
_BACKLOG = 2048

#: Why it does not start, and the three ways out.
_EXPOSED = (
    "Without keys Florette would serve whoever reaches {}: set 'api_keys' in the config, listen on 127.0.0.1, "
    "or say --allow-unauthenticated."
)

#: What is told of the upstream where there is none.
_DEMO = "the built-in demo upstream: NO MODEL behind it, set --upstream URL to use one"

#: The keys that serve takes as flags.
_FLAGS = ("upstream", "upstream_key", "host", "port", "workers", "allow_unauthenticated")

#: The flags of doctor that are about an endpoint; there is none without the first two.
_ENDPOINT_FLAGS = ("base_url", "model", "api_key", "timeout")

#: So long doctor waits for one answer: a model on a busy server takes half of it.
_ANSWER_TIMEOUT_S = 60

logger = logging.getLogger(__name__)

#: As shells count those who end by a signal.
_INTERRUPTED = 128 + signal.SIGINT


def main(
    arguments: Sequence[str] | None = None, *, open_kernels: Callable[[KernelSettings], Kernels] = open_kernels
) -> int:
    """Runs the command and gives its exit code. `open_kernels` makes those that are told of."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.command == "doctor":
        _hold_together(parser, parsed)
        if parsed.config is None:
            return _doctor(parsed)
    flags = {name: getattr(parsed, name, None) for name in _FLAGS}

    def load() -> Config:
        return Config.load(flags, parsed.config)

    try:
        if parsed.command == "serve":
            return _serve(load)
        with _opening(load(), open_kernels) as (config, kernels):
            return (_tools if parsed.command == "tools" else _machine)(config, kernels, parsed.json)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="florette", description="OpenAI tool calls over a plain vLLM.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve the API")
    serve.add_argument("--upstream", metavar="URL", help="the vLLM to use, ending in /v1 (none: a built-in demo)")
    serve.add_argument("--upstream-key", metavar="KEY", help="sent to the upstream instead of the caller's key")
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (8080); 0 picks a free one")
    serve.add_argument("--workers", type=int, metavar="N", help="processes that serve (1)")
    serve.add_argument(
        "--allow-unauthenticated",
        action="store_const",
        const=True,
        help="without api_keys in the config, serve also those who are not on this machine",
    )
    serve.add_argument("--config", type=Path, metavar="FILE", help="a YAML file, as config.example.yaml")
    listing = commands.add_parser("tools", help="list the tools that can run here")
    listing.add_argument("--config", type=Path, metavar="FILE", help="a YAML file, as config.example.yaml")
    listing.add_argument("--json", action="store_true", help="print JSON")
    _add_doctor(commands.add_parser("doctor", help="check the tool calling of any OpenAI-compatible endpoint"))
    return parser


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument("--base-url", metavar="URL", help="the endpoint, ending in /v1")
    doctor.add_argument("--model", metavar="M", help="the model to ask")
    doctor.add_argument("--api-key", metavar="KEY", help="better in FLORETTE_DOCTOR_KEY: a command line is no secret")
    doctor.add_argument("--timeout", type=float, metavar="S", help=f"seconds for one answer ({_ANSWER_TIMEOUT_S})")
    doctor.add_argument("--json", action="store_true", help="print JSON, with every request in full")
    doctor.add_argument(
        "--config", type=Path, metavar="FILE", help="instead: check whether tools can run code on this machine, and how"
    )


def _hold_together(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> None:
    # Of doctor's flags: an endpoint and its model, or a config. Else the command ends here, as for any wrong flag.
    given = [name for name in _ENDPOINT_FLAGS if getattr(parsed, name) is not None]
    missing = [name for name in _ENDPOINT_FLAGS[:2] if name not in given]
    if parsed.config is None and missing:
        parser.error(f"doctor needs {_as_flags(missing)}; or --config FILE, to examine this machine")
    if parsed.config is not None and given:
        parser.error(f"doctor --config examines this machine, and takes no {_as_flags(given)}")


def _as_flags(names: Sequence[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


@contextmanager
def _opening(config: Config, open_kernels: Callable[[KernelSettings], Kernels]) -> Iterator[tuple[Config, OpenKernels]]:
    # The kernels, opened when somebody wants them, and closed behind the block.
    opened: list[Kernels] = []

    def kernels() -> Kernels:
        if not opened:
            opened.append(open_kernels(kernels_of(config)))
        return opened[0]

    try:
        yield config, kernels
    finally:
        for each in opened:
            asyncio.run(each.aclose())


def _tools(config: Config, kernels: OpenKernels, json: bool) -> int:
    try:
        toolbox = Toolbox.of(config.tools, tool_environment(config).variables, kernels=kernels)
    except ToolboxError as error:
        raise ConfigError(f"Config key 'tools': {error}.") from None
    print((listed_as_json if json else listed_as_text)(listed(toolbox, kernels)), end="")
    return 0


def _machine(_: Config, kernels: OpenKernels, json: bool) -> int:
    machine = examined(kernels)
    print((machine_as_json if json else machine_as_text)(machine), end="")
    return 0 if machine.unavailable is None else 1


def _doctor(parsed: argparse.Namespace) -> int:
    try:
        with progress_on(sys.stderr) as tell:
            card = asyncio.run(_examine(parsed, tell))
        print((as_json if parsed.json else as_text)(card), end="")
    except Unfit as unfit:
        print(unfit, file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("Interrupted: there is no scorecard.", file=sys.stderr)
        return _INTERRUPTED
    return 1 if card.verdict is Verdict.FAIL else 0


async def _examine(parsed: argparse.Namespace, tell: Tell) -> Scorecard:
    key = parsed.api_key or doctor_key()
    with _cancelled_by_ctrl_c():
        timeout_s = _ANSWER_TIMEOUT_S if parsed.timeout is None else parsed.timeout
        return await examine(parsed.base_url, parsed.model, key, timeout_s, tell=tell)


@contextmanager
def _cancelled_by_ctrl_c() -> Iterator[None]:
    """Cancels the running task once. asyncio's own way raises at the second Ctrl-C, in the midst of whatever runs."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None

    def stop(number: int, _: object) -> None:
        # From here on it ends: nothing more is heard, or the loop would be disturbed while it closes.
        signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is stop:
            signal.signal(signal.SIGINT, before)


class _Server(uvicorn.Server):
    """uvicorn's server, telling when it is ready, and leaving signals to `_serve`, so that SIGTERM ends with 0."""

    def __init__(self, app: ASGIApp, sock: socket.socket, config: Config, ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                ws="none",
                server_header=False,
                # Whole seconds is what uvicorn takes; None would wait without end.
                timeout_graceful_shutdown=max(1, round(config.grace_s)),
                timeout_keep_alive=_KEEPALIVE_S,
                backlog=_BACKLOG,
            )
        )
        self._sock = sock
        self._ready = ready

    async def run_until_told(self) -> None:
        """Serves until `should_exit`."""
        await self.serve(sockets=[self._sock])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tells that the server is ready once it is."""
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def _serve(load: Callable[[], Config]) -> int:
    config = load()
    logging.basicConfig(level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for chatty in ("uvicorn", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        sock = _listen(config.host, config.port)
    except OSError as error:
        print(f"Cannot listen on {config.host}:{config.port}: {error.strerror or error}.", file=sys.stderr)
        return 1
    if not (config.api_keys or config.allow_unauthenticated or _is_loopback(sock)):
        sock.close()
        print(_EXPOSED.format(f"{config.host}:{config.port}"), file=sys.stderr)
        return 2
    said = f"florette is ready on {_url(sock)} (upstream: {config.upstream or _DEMO})"

    def ready() -> None:
        print(said, flush=True)

    def serve(post: Post) -> int:
        with asyncio.Runner(loop_factory=uvicorn.Config(FastAPI(), log_config=None).get_loop_factory()) as runner:
            runner.run(_run(config, sock, load, post))
        return 0

    if config.workers == 1:
        return serve(Post(ready))
    return Crew(config.workers, serve, ready=ready, stopping=sock.close).run()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Said aloud: asyncio switches Nagle's algorithm off only for sockets that say that they are TCP.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _is_loopback(sock: socket.socket) -> bool:
    # What it is bound to, not what the host was called: a name can stand for any address.
    return ipaddress.ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


async def _run(config: Config, sock: socket.socket, load: Callable[[], Config], post: Post) -> None:
    if config.upstream is not None:
        app = create_app(config, environment=tool_environment(config))
        await _run_proxy(app, config, sock, load, post)
        return
    demo_sock = _listen("127.0.0.1", 0)
    config = config.model_copy(update={"upstream": _url(demo_sock)})
    # Before anything serves: a tool that cannot be made is told, and that is all.
    app = create_app(config, environment=tool_environment(config))
    demo_ready = asyncio.Event()
    demo = _Server(create_demo(), demo_sock, config, demo_ready.set)
    async with asyncio.TaskGroup() as group:
        group.create_task(demo.run_until_told())
        await demo_ready.wait()
        await _run_proxy(app, config, sock, load, post)
        demo.should_exit = True


async def _run_proxy(app: FastAPI, config: Config, sock: socket.socket, load: Callable[[], Config], post: Post) -> None:
    def ready() -> None:
        # What was imported lives as long as the process: the garbage collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD)
        post.ready()

    server = _Server(app, sock, config, ready)
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        try:
            await app.state.reload(load())
            logger.warning("the tools and models of the configuration were read anew")
        except ConfigError as error:
            logger.error("the configuration stays as it was: %s", error)
        except Exception:
            logger.exception("the configuration stays as it was, because of a bug")

    def stop() -> None:
        if server.should_exit:
            # A second signal does not wait for running answers; that they are cut off is no news then.
            logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
            server.force_exit = True
        server.should_exit = True

    def begin_reload() -> None:
        task = asyncio.create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def end(over: int) -> None:
        loop.remove_reader(over)
        server.should_exit = True

    loop = asyncio.get_running_loop()
    if post.over is not None:
        loop.add_reader(post.over, end, post.over)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, begin_reload)
    await server.run_until_told()
