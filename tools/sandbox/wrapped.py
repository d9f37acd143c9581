"""Sandboxes of bubblewrap: nothing of one is on disk, and when we end, however that be, the system removes it whole.

we          -> bwrap -> the sandbox's first process -> the program
we, as root -> a shell, which shows what only root may see; it becomes setpriv, which becomes bwrap -> ...
"""

import asyncio
import json
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tools.errors import ToolError
from tools.sandbox.bubblewrap import RUN_DIR, TMP_DIR, WORKDIR, WRITABLE, Descriptors, View, arguments
from tools.sandbox.launching import LAUNCHER, WAITING, Places, Program, Sandbox, in_memory, launched
from tools.sandbox.processes import kill

#: Root would be exempt from the limit of processes, so its sandboxes belong to a user that nobody is: above those that
#: distributions give to people, services and containers.
SPARE_USER_ID = 1_999_111_222

#: The program's own files inside.
_FILES_DIR = f"{RUN_DIR}/florette"

#: Shows the spare user what lies behind directories that only root may enter: below /mnt, in a view of the file system
#: that nobody else has. Each step becomes the next one, so that bwrap is our own child: it dies with us only if whoever
#: dies may signal it, and another bwrap between us, which drops the right to, may not.
_STAGE = "/mnt"
_STAGING = """set -e
mount -t tmpfs -o mode=0755,size=64k florette /mnt
place=0
while [ "$1" != -- ]; do
    mkdir "/mnt/$place"
    mount --bind "$1" "/mnt/$place"
    place=$((place + 1))
    shift
done
shift
exec "$@"
"""

#: What bubblewrap tells of the process ids has some 200 bytes.
_INFO_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """Launches by the programs at these paths; `setpriv` only if we are root.

    `seccomp` is the filter that `tools.sandbox.seccomp` makes.
    """

    bwrap: str
    setpriv: str | None
    seccomp: bytes
    real_proc: bool = True

    @property
    def owner(self) -> int | None:
        """The user to whom what is in the sandbox belongs, seen from outside; None: us."""
        return None if self.setpriv is None else SPARE_USER_ID

    async def launch(self, program: Program) -> Sandbox:
        """As `Launcher` says."""
        process, info = await launched(lambda: self._spawn(program), _dispose)
        try:
            loop = asyncio.get_running_loop()
            root_pid = await loop.run_in_executor(WAITING, _root_pid, info)
            if root_pid is None:
                raise ToolError(f"There is no sandbox: {await loop.run_in_executor(WAITING, _said, process)}")
            root = f"/proc/{root_pid}/root"
            writable = tuple(root + path for path in WRITABLE)
            return Sandbox(process, root_pid, Places(root + WORKDIR, root + RUN_DIR, root + TMP_DIR, writable))
        except BaseException:
            _end(process)
            raise

    def try_out(self, program: Program, timeout_s: float) -> str | None:
        """What is wrong with sandboxes here, in bubblewrap's words. For those who have no loop.

        None: `program`, which says `ready` and waits, runs in one, and we reach its directories.
        """
        process, info = LAUNCHER.submit(self._spawn, program).result()
        silent = threading.Timer(timeout_s, process.kill)
        silent.start()
        try:
            assert process.stdout is not None
            root_pid = _root_pid(info)
            said = process.stdout.readline()
            if root_pid is None or said.strip() != b"ready":
                return (said + process.stdout.read()).decode("utf-8", "replace").strip() or "it said nothing"
            for place in (WORKDIR, RUN_DIR):
                os.close(os.open(f"/proc/{root_pid}/root{place}", os.O_RDONLY | os.O_DIRECTORY))
        except OSError as error:
            return f"its files cannot be reached from outside: {error.strerror}"
        finally:
            silent.cancel()
            process.kill()
            process.communicate()
        return None

    def _spawn(self, program: Program) -> tuple["subprocess.Popen[bytes]", int]:
        info, told = os.pipe()
        with ExitStack() as opened:
            opened.callback(os.close, told)
            given = {name: _opened(path, opened) for name, path in program.files.items()}
            descriptors = Descriptors(
                in_memory(self.seccomp, opened), told, {f"{_FILES_DIR}/{name}": fd for name, fd in given.items()}
            )
            view = View(
                {str(path): str(path) for path in program.readable},
                program.disk_bytes,
                program.environment,
                real_proc=self.real_proc,
            )
            command = [word.replace("{files}", _FILES_DIR) for word in program.command]
            process = subprocess.Popen(  # noqa: S603 - what the operator has installed
                self._command(view, descriptors, command),
                stdin=in_memory(program.stdin(Places(WORKDIR, RUN_DIR, TMP_DIR)), opened),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # What we read from, too: could bwrap not write, as we are gone, it would leave its child waiting.
                pass_fds=(descriptors.seccomp, told, info, *given.values()),
                # Ours may hold keys, and /proc shows it.
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
            )
        return process, info

    def _command(self, view: View, descriptors: Descriptors, command: Sequence[str]) -> list[str]:
        if self.setpriv is None:
            return [self.bwrap, *arguments(view, descriptors, command)]
        staged = {f"{_STAGE}/{number}": path for number, path in enumerate(view.readable)}
        seen = View(
            {path: stage for stage, path in staged.items()}, view.disk_bytes, view.environment, real_proc=view.real_proc
        )
        user = str(SPARE_USER_ID)
        return [
            *("/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _STAGING, "sh"),
            *(*staged.values(), "--", self.setpriv, "--reuid", user, "--regid", user, "--clear-groups", "--"),
            *(self.bwrap, *arguments(seen, descriptors, command)),
        ]


def _opened(path: Path, opened: ExitStack) -> int:
    # By us: the sandbox's user may not reach it.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def _root_pid(info: int) -> int | None:
    # And lets go of what it read from: whoever is no longer waiting for it could not know when.
    told = b""
    with os.fdopen(info, "rb", buffering=0) as pipe:
        while not told.rstrip().endswith(b"}"):
            piece = pipe.read(_INFO_BYTES)
            if not piece:
                return None
            told += piece
    return int(json.loads(told)["child-pid"])


def _dispose(spawned: tuple["subprocess.Popen[bytes]", int]) -> None:
    process, info = spawned
    os.close(info)
    _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    # With what it has started: that does not die with it before it has asked to.
    kill(process.pid)
    process.wait()
    if process.stdout:
        process.stdout.close()


def _said(process: "subprocess.Popen[bytes]") -> str:
    said, _ = process.communicate()
    return said.decode("utf-8", "replace").strip()
