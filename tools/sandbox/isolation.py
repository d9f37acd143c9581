"""What can keep programs from all else on this machine: found by trying it, and never silently less than was asked for.

auto = bwrap, else landlock, else nothing is run       none = only if that is what was asked for
"""

import os
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from tools.errors import ToolUnavailable
from tools.kernel_settings import Isolation
from tools.sandbox import seccomp
from tools.sandbox.confinement import landlock_version
from tools.sandbox.launching import Program
from tools.sandbox.warded import Warded
from tools.sandbox.wrapped import Bubblewrap

#: The first Landlock that keeps a program from signalling others, and from their abstract sockets: Linux 6.12.
_LANDLOCK_NEEDED = 6

#: A sandbox starts in 50 ms, on a loaded machine in some seconds.
_TRIAL_TIMEOUT_S = 30.0

#: What says `ready`, and is there until it is killed.
_TRIAL = "print('ready', flush=True); import time; time.sleep(3600)"

#: What bubblewrap says -> what helps, in the order in which they are looked for.
_FIXES: Mapping[str, str] = MappingProxyType(
    {
        "uid map": "on Ubuntu: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile that "
        "allows bwrap 'userns'",
        "namespace": "in a container: security_opt seccomp=deploy/seccomp.json; elsewhere: sysctl -w "
        "kernel.unprivileged_userns_clone=1 user.max_user_namespaces=10000",
        "make / slave": "in a container: security_opt apparmor=unconfined, or a profile that allows 'mount'",
        "pivot": "in a container: security_opt seccomp=deploy/seccomp.json",
    }
)

_BWRAP_LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "namespaces": "own user, processes, network without any way out, ipc, host name; dies with the server",
        "files": "only the system's and Python's directories, read-only; what can be written is memory of a fixed size",
        "seccomp": "no mounts, tracing, keys, new namespaces, kernel modules, io_uring, memfd, or sockets but unix's",
        "capabilities": "none, and none can be gained",
        "limits": "memory, processes, length and number of files, watched over all processes of a sandbox",
    }
)

_LANDLOCK_LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "landlock": "only the system's and Python's directories can be read, and only its own written; no TCP, no "
        "signals to others",
        "seccomp": "no network at all, no mounts, tracing, keys, new namespaces, kernel modules, io_uring, memfd",
        "limits": "memory, processes (counted for the user as a whole), length and number of files; no quota of disk",
    }
)

_NO_LAYERS: Mapping[str, str] = MappingProxyType(
    {"none": "whatever the server's user may do, code may do: read its files, use its network, end its processes"}
)


@dataclass(frozen=True, slots=True)
class Found:
    """What is in force: its name, how programs are launched by it, and its layers, each with what it means.

    `filter` is what a program is to lay upon itself before it runs anything that is not ours, beside Landlock.
    """

    name: Isolation
    launcher: Bubblewrap | Warded
    layers: Mapping[str, str]
    filter: bytes | None = None


def find(wanted: Isolation, trial: Program) -> Found:
    """What there is of what is wanted; ToolUnavailable, with what would help, if there is nothing.

    It is tried out with a program that sees what `trial` does; the first word of its command is a Python.
    """
    trial = replace(trial, command=(trial.command[0], "-I", "-c", _TRIAL))
    setpriv = shutil.which("setpriv") if os.geteuid() == 0 else None
    if os.geteuid() == 0 and setpriv is None:
        raise ToolUnavailable("the server is root, and 'setpriv' is not there to run code as anybody else")
    hidden = setpriv and next((path for path in trial.readable if not _is_open(path)), None)
    out_of_reach = f"{hidden} can be read by root only: run the server as another user, or set kernels.python"
    if wanted == "none":
        if hidden:
            raise ToolUnavailable(out_of_reach)
        return Found("none", Warded(setpriv), _NO_LAYERS)
    problems = []
    if wanted in ("auto", "bwrap"):
        found = _bwrap(trial, setpriv)
        if isinstance(found, Found):
            return found
        problems.append(found)
    if wanted in ("auto", "landlock"):
        version = landlock_version()
        if version >= _LANDLOCK_NEEDED and not hidden:
            return Found("landlock", Warded(setpriv), _LANDLOCK_LAYERS, seccomp.program(apart=False))
        old = f"Landlock {_LANDLOCK_NEEDED} is not there, which comes with Linux 6.12 (found: {version})"
        problems.append(f"for Landlock, {out_of_reach}" if hidden else old)
    raise ToolUnavailable(f"code cannot be isolated here: {'; '.join(problems)}")


def _is_open(path: Path) -> bool:
    # To those who are neither the owner nor of the group.
    return all(each.stat().st_mode & stat.S_IXOTH for each in (path, *path.parents))


def _bwrap(trial: Program, setpriv: str | None) -> Found | str:
    path = shutil.which("bwrap")
    if path is None:
        return "bubblewrap is not installed (apt-get install bubblewrap)"
    try:
        launcher = Bubblewrap(str(Path(path)), setpriv, seccomp.program(apart=True))
    except ValueError as error:
        return str(error)
    problem = launcher.try_out(trial, _TRIAL_TIMEOUT_S)
    if problem is None:
        return Found("bwrap", launcher, _BWRAP_LAYERS)
    # In containers /proc has parts that are hidden, and no other can be mounted then.
    bare = replace(launcher, real_proc=False)
    if bare.try_out(trial, _TRIAL_TIMEOUT_S) is None:
        return Found("bwrap", bare, {**_BWRAP_LAYERS, "proc": "an imitation, as the real one cannot be mounted here"})
    fix = next((fix for said, fix in _FIXES.items() if said in problem), None)
    return f"bubblewrap does not work here: {problem}" + (f" ({fix})" if fix else "")
