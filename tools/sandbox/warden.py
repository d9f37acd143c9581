"""Watches over a program that has no sandbox around it: when it ends, or we do, nothing of it stays.

    python3 -I warden.py ALIVE ENDED DIRECTORY OWNER FILES COMMAND ...

Runs as a process of its own, by itself, under any Python. It makes the directory, so that there is none without it:
with `data`, `run` and `tmp`, and the `FILES` (JSON: name -> path) in `files`; all of it is the user's `OWNER` (-1: our
own). `ALIVE` and `ENDED` are ends of pipes. When something comes through the first, or the command ends, all that it
has started is killed, and the second is closed. When the other end of the first is closed, as it is at the latest when
whoever holds it is killed, the directory is removed, too.
"""

import ctypes
import json
import os
import secrets
import select
import signal
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

#: From <linux/prctl.h>: processes whose parents have ended become ours, so that none of them is lost sight of.
_PR_SET_CHILD_SUBREAPER = 36

#: Three or four do, and as many more as a machine is busy.
_ROUNDS = 1000


def main() -> None:
    """Starts the command, waits, and clears up."""
    alive, ended, directory, owner, files, *command = sys.argv[1:]
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # What signals our group, a Ctrl-C for one, is meant for whoever started us.
    os.setsid()
    Path(directory).mkdir(mode=0o700)
    try:
        _furnish(Path(directory), json.loads(files), int(owner))
        with subprocess.Popen(command, env={**os.environ, "FLORETTE_WARDEN": str(os.getpid())}) as program:  # noqa: S603 - that is what we are for
            # Whoever reads what the program says is to see its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            select.select([int(alive), os.pidfd_open(program.pid)], [], [])
            _kill_all()
            os.close(int(ended))
            while os.read(int(alive), 1):
                pass
    finally:
        with suppress(OSError):
            _remove(directory)


def _furnish(directory: Path, files: dict[str, str], owner: int) -> None:
    made = [directory]
    for name in ("files", "data", "run", "tmp"):
        made.append(directory / name)
        made[-1].mkdir(mode=0o700)
    for name, source in files.items():
        made.append(directory / "files" / name)
        made[-1].write_bytes(Path(source).read_bytes())
    for path in made:
        os.chown(path, owner, owner)


def _remove(directory: str) -> None:
    # Neither a call nor a descriptor for each level: whoever worked there may have made thousands, and closed them to
    # their owner. What is below is brought to the top; nobody is left who could change it meanwhile.
    top = _opened(directory)
    while names := os.listdir(top):  # noqa: PTH208 - pathlib knows no descriptors
        for name in names:
            if not _is_directory(name, top):
                os.unlink(name, dir_fd=top)
                continue
            within = _opened(name, top)
            for inner in os.listdir(within):  # noqa: PTH208
                if _is_directory(inner, within):
                    os.close(_opened(inner, within))
                    os.rename(inner, secrets.token_hex(8), src_dir_fd=within, dst_dir_fd=top)
                else:
                    os.unlink(inner, dir_fd=within)
            os.close(within)
            os.rmdir(name, dir_fd=top)
    os.close(top)
    Path(directory).rmdir()


def _is_directory(name: str, within: int) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=within, follow_symlinks=False).st_mode)


def _opened(name: str, within: int | None = None) -> int:
    os.chmod(name, 0o700, dir_fd=within)
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=within)


def _kill_all() -> None:
    # Those that start others faster than they are killed are stopped first: what stands still starts nothing.
    stopped: set[int] = set()
    for _ in range(_ROUNDS):
        new = set(_descendants(os.getpid())) - stopped
        if not new:
            break
        for process in new:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGSTOP)
        stopped |= new
    for _ in range(_ROUNDS):
        left = _descendants(os.getpid())
        if not left:
            return
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        _reap()


def _reap() -> None:
    with suppress(ChildProcessError):
        # One at least, so that this waits until there is less to do.
        os.waitpid(-1, 0)
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    waiting = [pid]
    while waiting:
        for children in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            try:
                own = [int(child) for child in children.read_text().split()]
            except OSError:
                continue
            found += own
            waiting += own
    return found


if __name__ == "__main__":
    main()
