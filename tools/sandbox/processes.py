"""The processes of a sandbox, seen from outside: found, measured, stopped and killed.

They are found below the sandbox's init: its first process, and the parent of all whose own parent has ended. `pid` is
always init's, by its number here; its parent must not have waited for it, else that may be the number of another.

Source: proc(5) for `children`, `status`, `smaps_rollup` and `stat`; pidfd_open(2).
"""

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: More are not looked for: 64 times the processes that a sandbox may have by default.
_MOST = 4096

#: So often those are looked for that were forked while others were stopped, with a wait in which they can stop: on a
#: processor with nothing else to do one is enough, and all together, some 20 ms, hold nobody up.
_ROUNDS = 6
_ROUND_S = 0.0005

#: The letters in `stat` of those that fork no more: stopped, dead, or waiting as no signal ends it (for a vfork).
_AT_REST = frozenset("TtZXD")


class Process(NamedTuple):
    """A process, and how many threads it has."""

    pid: int
    threads: int


def family(pid: int, *, most: int = _MOST) -> list[Process]:
    """The process and its descendants, parents first: all, or so many that they have `most` threads or more.

    Nothing if it has gone. What goes away meanwhile is no error; what comes meanwhile may be missed.
    """
    found: list[Process] = []
    waiting = [pid]
    known = {pid}
    left = most
    for one in waiting:
        threads = _threads(one)
        if threads:
            found.append(Process(one, len(threads)))
            left -= len(threads)
        if left <= 0:
            break
        # A child comes to another thread, and is met again, if the one that made it ends.
        for child in (child for thread in threads for child in _children(one, thread) if child not in known):
            known.add(child)
            waiting.append(child)
    return found


def descendants(pid: int, *, most: int = _MOST) -> list[int]:
    """The numbers of the family."""
    return [process.pid for process in family(pid, most=most)]


def resident_bytes(pids: Iterable[int]) -> int:
    """The memory that these processes have in use, also what is swapped out, and the tables that it is found by.

    What several of them share counts for each.
    """
    return sum(_told_bytes(pid, "status", "VmRSS", "VmSwap", "VmPTE") for pid in pids)


def proportional_bytes(pids: Iterable[int]) -> int:
    """The same, where what they share counts once; slow, as all is counted anew.

    For those that do not let it be read, it is the resident memory.
    """
    return sum(map(_proportional_bytes, pids))


def _proportional_bytes(pid: int) -> int:
    told = _told_bytes(pid, "smaps_rollup", "Pss", "SwapPss")
    return told + _told_bytes(pid, "status", "VmPTE") if told else resident_bytes([pid])


def _told_bytes(pid: int, name: str, *fields: str) -> int:
    # VmRSS:	    1764 kB
    # A process whose first thread has ended goes on, and shows its memory under its other threads only.
    for path in (f"/proc/{pid}", *(f"/proc/{pid}/task/{thread}" for thread in _threads(pid))):
        lines = (line.partition(":") for line in _read(f"{path}/{name}").splitlines())
        told = [int(value.removesuffix("kB")) * 1024 for field, _, value in lines if field in fields]
        if told:
            return sum(told)
    return 0


def used_sockets(pid: int) -> int:
    """The sockets in the network namespace of this process; 0 if it has gone."""
    # sockets: used 42
    words = _read(f"/proc/{pid}/net/sockstat").split(maxsplit=3)
    return int(words[2]) if len(words) > 2 else 0


def _threads(pid: int) -> list[str]:
    with suppress(OSError):
        return [thread.name for thread in Path(f"/proc/{pid}/task").iterdir()]
    return []


def _children(pid: int, thread: str) -> list[int]:
    return [int(child) for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def _parent(pid: int) -> int:
    fields = _stat(f"/proc/{pid}")
    return int(fields[1]) if fields else 0


def _is_at_rest(pid: int) -> bool:
    states = [_stat(f"/proc/{pid}/task/{thread}")[:1] for thread in _threads(pid)]
    return all(state[0] in _AT_REST for state in states if state)


def _stat(path: str) -> list[str]:
    # The state, the parent, ...; before them the program's name in brackets, which may have any character in it.
    return _read(f"{path}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    with suppress(OSError):
        return Path(path).read_text(encoding="ascii", errors="replace")
    return ""


# -- signals -----------------------------------------------------------------------------------------------


def stop(pid: int, *, root_too: bool) -> bool:
    """Stops all descendants; False if some run on: they fork too fast, or wait for a processor.

    `root_too`: and then init itself. Who is inside can make it run what is not ours, as it is of the same user.
    """
    if not _send_to_all(pid, signal.SIGSTOP):
        return False
    if root_too:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return True


def resume(pid: int) -> None:
    """Lets all run on."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    members = descendants(pid)
    for one in members[1:]:
        _send(one, members, signal.SIGCONT)


def kill(pid: int) -> None:
    """Kills all descendants, and then init, with whom its namespace ends, if it has one, and all that was missed."""
    _send_to_all(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _send_to_all(pid: int, number: signal.Signals) -> bool:
    at_rest: set[int] = set()
    for _ in range(_ROUNDS):
        members = descendants(pid)
        # Who was at rest before that list was made has no child that is not on it.
        others = [one for one in members[1:] if one not in at_rest]
        if not others:
            return True
        for one in others:
            _send(one, members, number)
        time.sleep(_ROUND_S)
        at_rest.update(one for one in others if _is_at_rest(one))
    return False


def _send(pid: int, members: Collection[int], number: signal.Signals) -> None:
    # The number may have been given to another process since it was found, but not since it is held.
    with suppress(ProcessLookupError):
        held = os.pidfd_open(pid)
        try:
            if _parent(pid) in members:
                signal.pidfd_send_signal(held, number)
        finally:
            os.close(held)
