"""What a kernel is started with: its Python, what it may see, its environment, and what `inside/boot.py` is to read."""

import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from tools.errors import ToolUnavailable
from tools.kernel_settings import KernelSettings
from tools.sandbox import confinement
from tools.sandbox.isolation import Found, find
from tools.sandbox.launching import Places, Program
from tools.sandbox.warded import threads_of
from tools.sandbox.watching import WatchLimits

logger = logging.getLogger(__name__)

#: The files that run inside, by their names there.
_FILES: Mapping[str, Path] = {
    **{name: Path(__file__).parent / "inside" / name for name in ("boot.py", "streams.py")},
    "confinement.py": Path(confinement.__file__),
}

#: A kernel has some 65 of its own; each of its subprocesses has three.
_OPEN_FILES = 256

#: Two for a machine that starts many kernels at once; one is as fast for what fits into a kernel.
_THREADS = "1"

#: What a Python is asked about itself.
_QUESTION = """
import importlib.metadata, json, sys, sysconfig
try:
    version = importlib.metadata.version("ipykernel")
except importlib.metadata.PackageNotFoundError:
    version = "0"
places = [sys.prefix, sys.base_prefix, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
print(json.dumps([sys.executable, places, int(version.partition(".")[0])]))
"""

#: The first that tells its readers when its output reaches them.
_IPYKERNEL = 7

#: To answer it takes 20 ms, on a loaded machine some seconds.
_ANSWER_TIMEOUT_S = 30.0

#: What of the system a kernel may read that confines itself.
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/fonts", "/etc/localtime", "/dev/urandom")

#: A list of the fonts of a machine that has many is some MB.
_FONT_LIST_BYTES = 50_000_000

#: Each file costs the system a kilobyte of memory beside what is in it, and no limit of size counts that.
_MOST_INODES = 50_000

#: A kernel has some 40, and each can hold some 0.4 MB that no process is seen to have.
_MOST_SOCKETS = 300

#: The sockets of a kernel, by the channel that each is for: the path of each ends in its number.
PORTS: Mapping[str, int] = {"shell": 1, "iopub": 2, "stdin": 3, "control": 4, "hb": 5}


@dataclass(frozen=True, slots=True)
class Python:
    """An interpreter, and the directories that it consists of."""

    executable: Path
    directories: tuple[Path, ...]


@cache
def python_at(path: Path | None) -> Python:
    """The interpreter there; None: the one that runs this. ToolUnavailable if it is none, or cannot run kernels."""
    asked = str(path or sys.executable)
    try:
        told = subprocess.run(  # noqa: S603 - the operator named it
            [asked, "-I", "-c", _QUESTION], capture_output=True, timeout=_ANSWER_TIMEOUT_S, check=True, env={}
        )
        executable, places, ipykernel = json.loads(told.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ToolUnavailable(f"the kernels' Python {asked} cannot be started: {error}") from None
    if ipykernel < _IPYKERNEL:
        needed = f"ipykernel>={_IPYKERNEL}"
        raise ToolUnavailable(f"the kernels' Python needs {needed}: {asked} -m pip install '{needed}'")
    return Python(Path(executable), _directories([*places, str(Path(executable).resolve().parent.parent)]))


def _directories(places: Iterable[str]) -> tuple[Path, ...]:
    # As they are called and as they are: links lead from the one to the other. The system's are there anyway.
    every = {path for place in places for path in (Path(place), Path(place).resolve())} - {Path("/usr")}
    return tuple(
        sorted(path for path in every if not every.intersection(path.parents) and Path("/usr") not in path.parents)
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How kernels are started.

    `fonts` is what `boot.py` printed of them. Where nothing around it confines a kernel, all share a user, `user`, and
    it `confines_itself` by Landlock, and by the filter `seccomp`.
    """

    settings: KernelSettings
    python: Python
    fonts: Mapping[str, str] | None = None
    user: int | None = None
    confines_itself: bool = False
    seccomp: bytes | None = None

    def kernel(self, key: str) -> Program:
        """A kernel that signs its messages with `key`, and listens on sockets `k-1` ... in its run directory."""
        return self._program("boot.py", lambda places: json.dumps(self._start(key, places)).encode())

    def font_list(self) -> Program:
        """What prints the fonts."""
        return self._program("boot.py", lambda _: b"", "fonts")

    def _program(self, name: str, stdin: Any, *arguments: str) -> Program:
        return Program(
            command=(str(self.python.executable), "-I", f"{{files}}/{name}", *arguments),
            files=_FILES,
            readable=self.python.directories,
            disk_bytes=self.settings.disk_bytes,
            stdin=stdin,
            environment={
                "PATH": f"{self.python.executable.parent}:/usr/local/bin:/usr/bin:/bin",
                "LANG": "C.UTF-8",
                # Its number has no name inside, and some ask for one.
                "USER": "user",
                # Nothing can be written where modules are, so it is not tried.
                "PYTHONDONTWRITEBYTECODE": "1",
                **{f"{name}_NUM_THREADS": _THREADS for name in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")},
            },
        )

    def _start(self, key: str, places: Places) -> dict[str, Any]:
        settings = self.settings
        return {
            "workdir": places.workdir,
            "limits": {
                "memory_bytes": settings.memory_bytes,
                "processes": settings.processes if self.user is None else self._processes_of(self.user),
                "file_bytes": settings.file_bytes,
                "open_files": _OPEN_FILES,
            },
            "preload": settings.preload,
            # Twice what is wanted: whoever reads it sees for certain that it is too much.
            "output_chars": 2 * settings.output_bytes,
            # Whoever waits for this very kernel would wait for that, too.
            "warm": settings.pool > 0,
            "fonts": self.fonts,
            "landlock": self._landlock(places) if self.confines_itself else None,
            "seccomp": base64.b64encode(self.seccomp).decode() if self.seccomp else None,
            "connection": {
                "transport": "ipc",
                "ip": f"{places.run_dir}/k",
                **{f"{channel}_port": port for channel, port in PORTS.items()},
                "key": key,
                "signature_scheme": "hmac-sha256",
            },
        }

    def _processes_of(self, user: int) -> int:
        # Counted for the user as a whole, whose other processes are no kernel's fault; each kernel is watched besides.
        kernels = self.settings.sessions + self.settings.pool + 1
        return threads_of(user) + self.settings.processes * kernels

    def _landlock(self, places: Places) -> dict[str, list[str]]:
        readable = (*_SYSTEM, *map(str, self.python.directories))
        return {
            "readable": [path for path in readable if Path(path).exists()],
            "writable": [places.workdir, places.run_dir, places.tmp_dir, "/dev/null"],
        }


def isolation_for(settings: KernelSettings) -> Found:
    """What keeps such kernels apart here, tried out, which takes some 50 ms. ToolUnavailable if nothing does."""
    return find(settings.isolation, Recipe(settings, python_at(settings.python)).font_list())


async def recipe_for(settings: KernelSettings, found: Found) -> Recipe:
    """How such kernels are started, by what was found; made once for all of them."""
    recipe = Recipe(
        settings,
        python_at(settings.python),
        user=None if found.name == "bwrap" else found.launcher.owner or os.getuid(),
        confines_itself=found.name == "landlock",
        seccomp=found.filter,
    )
    return replace(recipe, fonts=await _fonts(found, recipe))


async def _fonts(found: Found, recipe: Recipe) -> Mapping[str, str] | None:
    sandbox = await found.launcher.launch(recipe.font_list())
    try:
        told: Mapping[str, str] | None = json.loads(await sandbox.all_said(_FONT_LIST_BYTES))
    except ValueError as error:
        # Without them the first figure of each kernel takes a second longer, and that is all.
        logger.warning("there is no list of fonts for kernels: %s", error)
        return None
    finally:
        await sandbox.aclose()
    return told


def watch_limits(settings: KernelSettings, *, apart: bool) -> WatchLimits:
    """What all processes of such a kernel may use together; `apart`: they have a network of their own."""
    return WatchLimits(settings.memory_bytes, settings.processes, _MOST_INODES, _MOST_SOCKETS if apart else None)
