"""A kernel in a sandbox on this machine, spoken to through unix sockets that lie inside the sandbox."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, TypeVar

import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient

from tools.errors import ToolError
from tools.kernel_settings import KernelSettings
from tools.kernels.cells import CellLimits
from tools.kernels.driving import Driver
from tools.kernels.kernel import Changes, Kernel
from tools.kernels.starting import PORTS, Recipe, watch_limits
from tools.outcomes import Outcome
from tools.sandbox import processes
from tools.sandbox.launching import Launcher, Sandbox
from tools.sandbox.watching import Place, Token, Watch
from tools.sandbox.workdir import Changed, Workdir

T = TypeVar("T")

Channel = Literal["shell", "iopub", "control"]

#: The channels that we use. stdin is for questions to a person; that the kernel lives we see by its process.
_CHANNELS: tuple[Channel, ...] = ("shell", "iopub", "control")

#: A message of a picture holds it in base64, and some words beside it.
_BASE64_SHARE = 4 / 3
_BESIDE_BYTES = 1 << 20

#: So many messages wait for us at most; then those of the kernel wait in the kernel.
_WAITING_MESSAGES = 200

#: A kernel that is ready answers within milliseconds, on a loaded machine within seconds.
_GREETING_TIMEOUT_S = 30.0

#: So long later a kernel that could not be stopped at once is stopped.
_STOP_AGAIN_S = 0.5

#: So often that is tried: an interrupt takes some seconds at most, and a busy machine is not busy for ever.
_STOPS = 20

#: So many messages are read in a row, which takes less than a millisecond, if nobody makes them to be slow to read.
_TURN = 4

#: Its welcome comes within milliseconds; without it, it is asked so often.
_WELCOME_S = 0.1

#: A request beside its code. `silent` would keep the result from us; nobody is there to answer questions; and the next
#: request is to run whatever became of this one.
_EXECUTE = {
    "silent": False,
    "store_history": True,
    "user_expressions": {},
    "allow_stdin": False,
    "stop_on_error": False,
}


def sockets_of(settings: KernelSettings) -> zmq.asyncio.Context:
    """What the sockets of all kernels are made of."""
    context = zmq.asyncio.Context()
    context.setsockopt(zmq.LINGER, 0)
    context.setsockopt(zmq.MAXMSGSIZE, int(settings.image_bytes * _BASE64_SHARE) + _BESIDE_BYTES)
    context.setsockopt(zmq.RCVHWM, _WAITING_MESSAGES)
    # A kernel whose socket is gone is gone.
    context.setsockopt(zmq.RECONNECT_IVL, -1)
    # To send to it would wait for ever, in the loop's thread: it is to fail.
    context.setsockopt(zmq.SNDTIMEO, 0)
    return context


class _Client(AsyncKernelClient):
    """A client that finds its sockets through descriptors, which were opened before any user's code ran.

    Whatever that code puts in their place later, it leads nowhere.
    """

    descriptors: Mapping[str, int]

    def _make_url(self, channel: str) -> str:
        return f"ipc:///proc/self/fd/{self.descriptors[channel]}"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all embedded kernels of a service share. `owner` is the user of the sandboxes, if it is another than us."""

    launcher: Launcher
    recipe: Recipe
    context: zmq.asyncio.Context
    watch: Watch
    owner: int | None

    @property
    def settings(self) -> KernelSettings:
        """What the operator set."""
        return self.recipe.settings


async def begin(surroundings: Surroundings) -> Kernel:
    """A new kernel, ready to run its first cell. ToolError if it does not start."""
    key = secrets.token_hex(32)
    sandbox = await surroundings.launcher.launch(surroundings.recipe.kernel(key))
    try:
        await sandbox.ready()
        kernel = EmbeddedKernel(surroundings, sandbox, key)
    except BaseException:
        await sandbox.aclose()
        raise
    try:
        await kernel.greeted()
    except BaseException:
        await kernel.aclose()
        raise
    return kernel


class EmbeddedKernel:
    """As `Kernel` says."""

    def __init__(self, surroundings: Surroundings, sandbox: Sandbox, key: str) -> None:
        settings = surroundings.settings
        self._surroundings = surroundings
        self._sandbox = sandbox
        self._key = key
        self._files = Workdir(
            os.open(sandbox.outside.workdir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC),
            owner=surroundings.owner,
            max_files=settings.files,
            max_bytes=settings.file_bytes,
        )
        self._places = [Place(path) for path in sandbox.outside.writable]
        self._driver = Driver(
            CellLimits(settings.output_bytes, settings.messages, settings.images, settings.image_bytes),
            settings.interrupt_grace_s,
            self._interrupt,
            sandbox.kill,
            self._renew,
        )
        self._loop = asyncio.get_running_loop()
        self._paths: dict[str, int] = {
            channel: _opened(sandbox.outside.run_dir, PORTS[channel]) for channel in _CHANNELS
        }
        self._watched: Token | None = None
        self._is_paused, self._stops_left = False, 0
        self._connect()
        sandbox.on_end(self._ended)
        self.resume()

    @property
    def alive(self) -> bool:
        """As `Kernel` says."""
        return self._sandbox.alive

    async def execute(self, code: str, *, time_s: float) -> Outcome:
        """As `Kernel` says."""
        # Half of a surrogate pair is no character, and cannot be sent.
        sent = code.encode("utf-8", "replace").decode()
        request = self._client.session.msg("execute_request", {**_EXECUTE, "code": sent})

        async def send() -> None:
            self._send("shell", request)

        return await self._driver.run(request["header"]["msg_id"], send, time_s)

    async def settled(self) -> None:
        """As `Kernel` says."""
        await self._driver.settled()

    async def put(self, name: str, path: Path) -> None:
        """As `Kernel` says."""
        await _in_thread(lambda: self._files.put(name, path))

    async def changes(self) -> Changes:
        """As `Kernel` says."""
        files = await _in_thread(self._files.changes)
        return Changes(files, self._files.left_out, self._files.unread)

    async def read(self, file: Changed) -> AsyncGenerator[bytes, None]:
        """As `Kernel` says."""
        pieces = self._files.pieces(file)
        try:
            while piece := await _in_thread(lambda: next(pieces, b"")):
                yield piece
        finally:
            pieces.close()

    async def inherit(self, dead: Kernel) -> list[str] | None:
        """As `Kernel` says: the directory of a sandbox is there as long as we hold it."""
        if not isinstance(dead, EmbeddedKernel):
            return None
        return await _in_thread(lambda: self._files.copy_from(dead._files))

    def pause(self) -> None:
        """As `Kernel` says."""
        if self.alive:
            self._is_paused, self._stops_left = True, _STOPS
            self._stop()

    def resume(self) -> None:
        """As `Kernel` says."""
        if self.alive:
            self._is_paused = False
            processes.resume(self._sandbox.root_pid)
            self._watch()

    async def aclose(self) -> None:
        """As `Kernel` says."""
        self._unwatch()
        await self._sandbox.aclose()
        await self._driver.settled()
        await self._disconnect()
        for descriptor in self._paths.values():
            os.close(descriptor)
        self._paths.clear()
        for place in self._places:
            place.close()
        self._places.clear()
        await asyncio.to_thread(self._files.close)

    # -- the connection ----------------------------------------------------------------------------------------

    async def greeted(self) -> None:
        """Returns when what the kernel puts out reaches us. ToolError if that does not happen."""
        try:
            async with asyncio.timeout(_GREETING_TIMEOUT_S):
                while not await self._is_greeted():
                    if not self.alive:
                        raise ToolError("A kernel started, and ended at once.")
                    # It welcomes each reader, but for one who comes while it writes: libzmq tells it of both at once,
                    # and it looks for one. Asked for anything, it writes again.
                    self._send("shell", self._client.session.msg("kernel_info_request", {}))
        except TimeoutError:
            raise ToolError("A kernel started, and did not answer.") from None

    async def _is_greeted(self) -> bool:
        try:
            async with asyncio.timeout(_WELCOME_S):
                await self._greeting.wait()
        except TimeoutError:
            return False
        return True

    def _connect(self) -> None:
        self._client = _Client(context=self._surroundings.context)
        self._client.descriptors = self._paths
        self._client.session.key = self._key.encode()
        # Against messages that are sent twice: only the kernel itself can do that, to itself.
        self._client.session.digest_history_size = 0
        self._client.start_channels(stdin=False, hb=False)
        self._greeting = asyncio.Event()
        self._interrupted = asyncio.Event()
        self._readers = [asyncio.create_task(self._read(channel)) for channel in _CHANNELS]

    async def _disconnect(self) -> None:
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        for channel in (self._client.shell_channel, self._client.iopub_channel, self._client.control_channel):
            channel.stop()

    async def _renew(self) -> None:
        await self._disconnect()
        self._connect()
        with contextlib.suppress(ToolError):
            await self.greeted()

    async def _read(self, name: Channel) -> None:
        channel = getattr(self._client, f"{name}_channel")
        session = self._client.session
        for number in count(1):
            frames = await channel.socket.recv_multipart()
            if number % _TURN == 0:
                # Others get theirs, however much there is to be read.
                await asyncio.sleep(0)
            if not self._driver.admits(frames):
                continue
            try:
                message = session.deserialize(session.feed_identities(frames)[1])
            except Exception:  # noqa: BLE001 - whatever it sends, it comes from a stranger's code
                self._driver.end("It sent what is no message, so its kernel was killed.")
                return
            if name == "iopub":
                self._greeting.set()
            if name == "control":
                # There nothing but our interrupts is answered.
                self._interrupted.set()
            else:
                self._driver.heard(name, message)

    def _send(self, name: Channel, message: dict[str, Any]) -> None:
        # By the socket that is read from, at once: what the channel's own `send` does past it can take the notice away
        # that something has come, for which the reader would wait for ever then.
        frames = self._client.session.serialize(message)
        sent = getattr(self._client, f"{name}_channel").socket.send_multipart(frames, zmq.DONTWAIT)
        if isinstance(sent.exception(), zmq.Again):
            # It has ended, and we are not told yet; or what runs there has closed its sockets, and cannot be reached.
            self._sandbox.kill()

    async def _interrupt(self) -> None:
        if not self.alive:
            return
        self._interrupted.clear()
        self._send("control", self._client.session.msg("interrupt_request", {}))
        # Before that is answered the interrupt may still be on its way.
        await self._interrupted.wait()

    def _ended(self) -> None:
        # Nor is there anything on its way any more.
        self._interrupted.set()
        self._driver.ended()

    # -- its processes -----------------------------------------------------------------------------------------

    def _stop(self) -> None:
        # A cell that was cancelled may still be ending; or processes are started faster than they are found. It is
        # watched until it stands still.
        if not (self._is_paused and self.alive):
            return
        if self._driver.is_settled and processes.stop(self._sandbox.root_pid, root_too=bool(self._places)):
            self._unwatch()
        elif self._stops_left:
            self._stops_left -= 1
            self._loop.call_later(_STOP_AGAIN_S, self._stop)
        else:
            self._driver.end("What it left running could not be stopped, so its kernel was killed.")

    def _watch(self) -> None:
        self._unwatch()
        self._watched = self._surroundings.watch.add(
            self._sandbox.root_pid,
            watch_limits(self._surroundings.settings, apart=bool(self._places)),
            self._places,
            self._exceeded,
        )

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._surroundings.watch.remove(self._watched)
            self._watched = None

    def _exceeded(self, what: str) -> None:
        # In the thread that watches: the kernel must not go on until the loop has time.
        self._driver.end(f"It used more {what} than it may, so its kernel was killed.")


async def _in_thread(do: Callable[[], T]) -> T:
    # Whoever comes next must not meet a thread that is still at it: it is waited for, also by who is cancelled.
    doing = asyncio.ensure_future(asyncio.to_thread(do))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait({doing})
        raise


def _opened(run_dir: str, port: int) -> int:
    # Before any user's code has run there: what has this name now is the kernel's socket.
    return os.open(f"{run_dir}/k-{port}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
