"""Programs with nothing around them, where there is no bubblewrap: they may confine themselves, or be trusted.

    we -> warden -> [setpriv, if we are root ->] the program

Their directories are on disk; the warden makes and removes them, and kills all that was started, when the program ends
or we do.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tools.sandbox.launching import Places, Program, Sandbox, Warden, in_memory, launched
from tools.sandbox.wrapped import SPARE_USER_ID

#: By the server's own Python: the kernels' may be out of reach for whom it is not meant.
_WARDEN = (sys.executable, "-I", str(Path(__file__).with_name("warden.py")))


def threads_of(user: int) -> int:
    """The threads that the user has now, in all of its processes: what the limit of processes is counted by."""
    own = 0
    for process in Path("/proc").glob("[0-9]*/task"):
        with contextlib.suppress(OSError):
            own += len(list(process.iterdir())) if process.stat().st_uid == user else 0
    return own


def _dispose(spawned: tuple["subprocess.Popen[bytes]", int, int, Places]) -> None:
    process, alive, ended, _ = spawned
    # That is enough for the warden, who removes the rest.
    os.close(alive)
    os.close(ended)
    process.wait()
    if process.stdout:
        process.stdout.close()


@dataclass(frozen=True, slots=True)
class Warded:
    """Launches below the directory `root`; None: where temporary files are. `setpriv` only if we are root."""

    setpriv: str | None
    root: Path | None = None

    @property
    def owner(self) -> int | None:
        """The user to whom what is in the sandbox belongs; None: us."""
        return None if self.setpriv is None else SPARE_USER_ID

    async def launch(self, program: Program) -> Sandbox:
        """As `Launcher` says. The room that the program may use is not bounded."""
        process, alive, ended, places = await launched(lambda: self._spawn(program), _dispose)
        return Sandbox(process, process.pid, places, Warden(alive, ended))

    def _spawn(self, program: Program) -> tuple["subprocess.Popen[bytes]", int, int, Places]:
        # The warden makes it: whenever we are killed, there is somebody who removes it.
        directory = Path(self.root or tempfile.gettempdir()) / f"florette-kernel-{secrets.token_hex(8)}"
        workdir, run_dir, tmp_dir = (str(directory / name) for name in ("data", "run", "tmp"))
        places = Places(workdir, run_dir, tmp_dir)
        owner = -1 if self.owner is None else self.owner
        files = json.dumps({name: str(source) for name, source in program.files.items()})
        watched, alive = os.pipe()
        ended, told = os.pipe()
        with ExitStack() as opened:
            opened.callback(os.close, watched)
            opened.callback(os.close, told)
            command = [word.replace("{files}", f"{directory}/files") for word in program.command]
            process = subprocess.Popen(  # noqa: S603 - what the operator has installed
                [
                    *(*_WARDEN, str(watched), str(told), str(directory), str(owner), files),
                    *(*self._as_nobody(), *command),
                ],
                stdin=in_memory(program.stdin(places), opened),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(watched, told),
                env={**program.environment, "HOME": places.workdir, "TMPDIR": places.tmp_dir},
                cwd="/",
            )
        return process, alive, ended, places

    def _as_nobody(self) -> list[str]:
        if self.setpriv is None:
            return []
        user = str(SPARE_USER_ID)
        return [self.setpriv, "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs", "--"]
