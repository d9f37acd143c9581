"""Sandboxed kernels for any Jupyter tool: a kernel provisioner of jupyter_client, by the name of `florette-sandbox`.

    kernel.json: {"metadata": {"kernel_provisioner": {"provisioner_name": "florette-sandbox", "config": {...}}},
                  "interrupt_mode": "message", ...}

A kernelspec for it is in `kernelspec/florette`. Of its `argv`, and of the environment that a kernel is to have, nothing
is used. Source: jupyter_client's KernelProvisionerBase.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Enum, Int, List, Unicode

from tools.errors import ToolUnavailable
from tools.kernel_settings import Isolation, KernelSettings
from tools.kernels.starting import PORTS, Recipe, isolation_for, recipe_for, watch_limits
from tools.sandbox.isolation import Found
from tools.sandbox.launching import Sandbox
from tools.sandbox.watching import Place, Token, Watch

logger = logging.getLogger(__name__)

T = TypeVar("T")

_DEFAULTS = KernelSettings()

#: A kernel that ends when it is asked to does so in 0.2 s; after half of this time it is killed, and loses nothing.
_SHUTDOWN_S = 1.0


class SandboxProvisioner(KernelProvisionerBase):
    """One kernel in a sandbox. It may be called from any thread and any loop, and from another one each time."""

    isolation = Enum(
        ("auto", "bwrap", "landlock", "none"), _DEFAULTS.isolation, help="What keeps a kernel from all else."
    ).tag(config=True)
    python = Unicode("", help="The kernels' Python; empty: the one that runs this.").tag(config=True)
    preload = List(Unicode(), list(_DEFAULTS.preload), help="Modules that are imported at the start.").tag(config=True)
    memory_bytes = Int(_DEFAULTS.memory_bytes, help="Memory of a kernel, with all its processes.").tag(config=True)
    processes = Int(_DEFAULTS.processes, help="Processes and threads of a kernel.").tag(config=True)
    disk_bytes = Int(_DEFAULTS.disk_bytes, help="Room in the working directory.").tag(config=True)
    file_bytes = Int(_DEFAULTS.file_bytes, help="Longest file.").tag(config=True)

    _kernel: "_Kernel | None" = None
    _links: "_Links | None" = None

    @property
    def has_process(self) -> bool:
        """Whether a kernel was launched, and not cleaned up since."""
        return self._kernel is not None

    async def poll(self) -> int | None:
        """None as long as the kernel runs, then 0: how it ended is not known outside its sandbox."""
        return None if self._kernel is not None and self._kernel.sandbox.alive else 0

    async def wait(self) -> int | None:
        """Returns when the kernel has ended."""
        if self._kernel is not None:
            # Whoever waits may lose patience; the end comes nevertheless.
            await asyncio.shield(asyncio.wrap_future(self._kernel.gone))
        return 0

    async def send_signal(self, signum: int) -> None:
        """Ends the kernel if that is what the signal is for. No other reaches it: interrupts are messages."""
        if signum in (signal.SIGKILL, signal.SIGTERM):
            await self.kill()

    async def kill(self, restart: bool = False) -> None:
        """Ends the kernel and all that it started."""
        if self._kernel is not None:
            self._kernel.sandbox.kill()

    async def terminate(self, restart: bool = False) -> None:
        """Ends the kernel as `kill` does: there is nothing that it would have to put in order."""
        await self.kill(restart)

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Leaves out all that kernels are usually launched with: the command, and the environment."""
        return {"cmd": [], "env": {}}

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Launches the kernel, and tells where its sockets are. ToolError if it does not start."""
        if self._links is None:
            self._links = _Links()
        self._kernel = await _background().run(_launched(self._settings(), self._links))
        self.connection_info = self._links.connection()
        return self.connection_info

    async def cleanup(self, restart: bool = False) -> None:
        """Lets go of all that belongs to the kernel; the next one after a `restart` will be found in the same place."""
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await _background().run(kernel.aclose())
        if not restart and self._links is not None:
            self._links.close()
            self._links = None

    def get_shutdown_wait_time(self, recommended: float = 5.0) -> float:
        """Not for long: nothing is lost with it."""
        return min(recommended, _SHUTDOWN_S)

    def _settings(self) -> KernelSettings:
        return KernelSettings(
            isolation=cast(Isolation, self.isolation),
            python=Path(self.python) if self.python else None,
            preload=tuple(self.preload),
            memory_bytes=self.memory_bytes,
            processes=self.processes,
            disk_bytes=self.disk_bytes,
            file_bytes=self.file_bytes,
        )


class _Links:
    """Where clients find the sockets of a kernel, and of the one that comes after it.

    Links lead to descriptors that were opened before any user's code ran: whatever that code puts in the place of its
    sockets later leads nobody astray. The key stays, too: clients go on with the next kernel.
    """

    def __init__(self) -> None:
        self.key = secrets.token_hex(32)
        self._directory = tempfile.mkdtemp(prefix="florette-sockets-")
        self._descriptors: dict[int, int] = {}

    def lead_to(self, run_dir: str) -> None:
        """From now on they lead to the sockets there."""
        for port in PORTS.values():
            descriptor = os.open(f"{run_dir}/k-{port}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            if port in self._descriptors:
                os.dup2(descriptor, self._descriptors[port], inheritable=False)
                os.close(descriptor)
            else:
                self._descriptors[port] = descriptor
            link = Path(f"{self._prefix}-{port}")
            # jupyter_client removes what it takes for the sockets of a kernel that has ended.
            link.unlink(missing_ok=True)
            # Not /proc/self: clients may be other processes.
            link.symlink_to(f"/proc/{os.getpid()}/fd/{self._descriptors[port]}")

    def connection(self) -> KernelConnectionInfo:
        """What a client has to know."""
        return {
            "transport": "ipc",
            "ip": self._prefix,
            "shell_port": PORTS["shell"],
            "iopub_port": PORTS["iopub"],
            "stdin_port": PORTS["stdin"],
            "control_port": PORTS["control"],
            "hb_port": PORTS["hb"],
            # Its type says str; it is compared with bytes.
            "key": cast(str, self.key.encode()),
            "signature_scheme": "hmac-sha256",
        }

    def close(self) -> None:
        """Removes them."""
        for port, descriptor in self._descriptors.items():
            Path(f"{self._prefix}-{port}").unlink(missing_ok=True)
            os.close(descriptor)
        self._descriptors.clear()
        with contextlib.suppress(OSError):
            Path(self._directory).rmdir()

    @property
    def _prefix(self) -> str:
        return f"{self._directory}/k"


class _Kernel:
    """A kernel that runs. Made and closed in the background's loop."""

    def __init__(self, sandbox: Sandbox, watch: Watch) -> None:
        self.sandbox = sandbox
        self.gone: Future[None] = Future()
        sandbox.on_end(lambda: self.gone.set_result(None))
        self._watch = watch
        self._watched: Token | None = None
        self._places: list[Place] = []

    async def begin(self, links: _Links, settings: KernelSettings) -> None:
        """Waits until it listens. ToolError if it does not."""
        await self.sandbox.ready()
        links.lead_to(self.sandbox.outside.run_dir)
        self._places = [Place(path) for path in self.sandbox.outside.writable]
        limits = watch_limits(settings, apart=bool(self._places))
        self._watched = self._watch.add(self.sandbox.root_pid, limits, self._places, self._exceeded)

    async def aclose(self) -> None:
        """Ends it."""
        if self._watched is not None:
            self._watch.remove(self._watched)
        await self.sandbox.aclose()
        for place in self._places:
            place.close()

    def _exceeded(self, what: str) -> None:
        self.sandbox.kill()
        logger.warning("a kernel used more %s than it may, and was killed", what)


async def _launched(settings: KernelSettings, links: _Links) -> _Kernel:
    found, recipe = await _background().kind(settings)
    kernel = _Kernel(await found.launcher.launch(recipe.kernel(links.key)), _background().watch)
    try:
        await kernel.begin(links, settings)
    except BaseException:
        await kernel.aclose()
        raise
    return kernel


class _Background:
    """A loop in a thread of its own: those of jupyter_client's callers may stand still between two calls."""

    def __init__(self) -> None:
        self.watch = Watch()
        self._kinds: dict[KernelSettings, asyncio.Task[tuple[Found, Recipe]]] = {}
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="florette-kernels", daemon=True).start()

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it in the background, from any other loop."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    async def kind(self, settings: KernelSettings) -> tuple[Found, Recipe]:
        """What keeps such kernels apart, and how they are started: found out once. ToolUnavailable if nothing does."""
        if settings not in self._kinds:
            self._kinds[settings] = asyncio.create_task(_kind(settings))
        try:
            return await asyncio.shield(self._kinds[settings])
        except ToolUnavailable:
            # What is missing may be brought.
            self._kinds.pop(settings, None)
            raise


@cache
def _background() -> _Background:
    return _Background()


async def _kind(settings: KernelSettings) -> tuple[Found, Recipe]:
    found = await asyncio.to_thread(isolation_for, settings)
    return found, await recipe_for(settings, found)
