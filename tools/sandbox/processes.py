"""The processes of a sandbox, seen from outside: found, measured, stopped and killed, and watched by one thread.

They are found below the sandbox's init: its first process, and the parent of all whose own parent has ended. `pid` is
always init's, by its number here; its parent must not have waited for it, else that may be the number of another.

Source: proc(5) for `children`, `statm`, `smaps_rollup` and `stat`; pidfd_open(2).
"""

import logging
import os
import resource
import select
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple, NewType, Protocol

logger = logging.getLogger(__name__)

#: More are not looked for: 64 times the processes that a sandbox may have by default.
_MOST = 4096

#: So often those are looked for that were forked while others were stopped, with a wait in which they can stop: on a
#: processor with nothing else to do one is enough, and all together, some 20 ms, hold nobody up.
_ROUNDS = 20
_ROUND_S = 0.0005

#: The letters in `stat` of those that fork no more: stopped, dead, or waiting as no signal ends it (for a vfork).
_AT_REST = frozenset("TtZXD")

#: The limit of processes holds inside already, but not for root, and not for those who have their own namespace of
#: users: twice as many are nobody's who keeps to it, with the processes of the sandbox itself.
_PROCESSES_FACTOR = 2

#: Between vfork and exec a child's memory is its parent's, and counts twice, for a millisecond or, where there is much
#: to do, some: too much memory is believed when it is seen again after this time, in which a bomb grows by 5 %.
_AGAIN_S = 0.02


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
    """The memory that these processes have in use; what several of them share counts for each."""
    # In pages: size, resident, ...
    pages = sum(int(told.split()[1]) for pid in pids if (told := _of_memory(pid, "statm")))
    return pages * resource.getpagesize()


def proportional_bytes(pids: Iterable[int]) -> int:
    """The memory that these processes have in use, in which what they share counts once; slow, as all is counted anew.

    For those that do not let it be read, it is the resident memory.
    """
    return sum(map(_proportional_bytes, pids))


def _proportional_bytes(pid: int) -> int:
    for line in _of_memory(pid, "smaps_rollup").splitlines():
        name, _, value = line.partition(":")
        if name == "Pss":
            return int(value.removesuffix("kB")) * 1024
    return resident_bytes([pid])


def _of_memory(pid: int, name: str) -> str:
    # A process whose first thread has ended goes on, and shows its memory under its other threads only.
    for path in (f"/proc/{pid}", *(f"/proc/{pid}/task/{thread}" for thread in _threads(pid))):
        told = _read(f"{path}/{name}")
        if told and not told.startswith("0 "):
            return told
    return ""


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


def stop(pid: int) -> bool:
    """Stops all descendants, not init itself; False if some run on: they fork too fast, or wait for a processor."""
    return _send_to_all(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    """Lets all descendants run on."""
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


# -- the watch ---------------------------------------------------------------------------------------------


class HasInodes(Protocol):
    """A place for files."""

    def used_inodes(self) -> int:
        """So many files, directories and links are there."""
        ...


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """What one sandbox may have; `processes`: with all threads, and `inodes` on all its file systems together."""

    memory_bytes: int
    processes: int
    inodes: int


Excess = Literal["memory", "processes", "inodes"]

#: A sandbox that is being watched.
Token = NewType("Token", int)


class _Watched:
    """One sandbox; all that is done with it is done under its lock."""

    def __init__(
        self, pid: int, limits: WatchLimits, places: Sequence[HasInodes], on_excess: Callable[[Excess], None]
    ) -> None:
        self._pid = pid
        self._limits = limits
        self._places = places
        self._on_excess = on_excess
        self._suspected = False
        self._failed = False
        # Again by whom is told, as it may end the watch.
        self._lock = threading.RLock()
        try:
            self._held: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._held = None

    def look(self) -> bool:
        """Looks once, and tells of an excess; True if it should be looked again soon."""
        with self._lock:
            try:
                excess = self._excess() if self._is_alive() else None
                if excess:
                    self.end()
                    self._on_excess(excess)
            except Exception:
                if not self._failed:
                    logger.exception("a sandbox cannot be watched")
                self._failed = True
            return self._suspected and self._held is not None

    def end(self) -> None:
        """Looks no more."""
        with self._lock:
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def _is_alive(self) -> bool:
        # Else its number may be another's. A pidfd can be read as soon as its process has ended.
        if self._held is None:
            return False
        ended = select.poll()
        ended.register(self._held, select.POLLIN)
        return not ended.poll(0)

    def _excess(self) -> Excess | None:
        most = self._limits.processes * _PROCESSES_FACTOR
        members = family(self._pid, most=most + 1)
        if sum(process.threads for process in members) > most:
            return "processes"
        if self._has_too_much([process.pid for process in members]):
            return "memory"
        if sum(place.used_inodes() for place in self._places) > self._limits.inodes:
            return "inodes"
        return None

    def _has_too_much(self, pids: Sequence[int]) -> bool:
        before = self._suspected
        most = self._limits.memory_bytes
        self._suspected = resident_bytes(pids) > most and proportional_bytes(pids) > most
        return before and self._suspected


class Watch:
    """One thread that looks at all sandboxes, every `interval_s`, as long as there are any.

    0.1 s: twenty processes that fill their memory together are found at 1.05 to 1.1 times what they may have; a look
    costs some 0.3 ms, which is 0.3 % of a processor for each sandbox that works.
    """

    def __init__(self, *, interval_s: float = 0.1) -> None:
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._watched: dict[Token, _Watched] = {}
        self._tokens = count()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(
        self, pid: int, limits: WatchLimits, places: Sequence[HasInodes], on_excess: Callable[[Excess], None]
    ) -> Token:
        """Watches the sandbox of this init, and how many files there are at these places; a dead one in vain.

        `on_excess` is called in the thread, with what there is too much of, once: then the sandbox is watched no more.
        It must not wait for anybody.
        """
        with self._changed:
            token = Token(next(self._tokens))
            self._watched[token] = _Watched(pid, limits, tuple(places), on_excess)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sandbox-watch", daemon=True)
                self._thread.start()
            self._changed.notify()
            return token

    def remove(self, token: Token) -> None:
        """Watches it no more; nothing is told of it when this has returned. Another time, it does nothing."""
        with self._changed:
            watched = self._watched.pop(token, None)
        if watched:
            watched.end()

    def close(self) -> None:
        """Watches nothing any more, and ends the thread; then nothing can be added."""
        with self._changed:
            self._closed = True
            watched = list(self._watched.values())
            self._watched.clear()
            self._changed.notify()
        for one in watched:
            one.end()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._watched or self._closed)
                if self._closed:
                    return
                watched = list(self._watched.values())
            soon = [one.look() for one in watched]
            with self._changed:
                self._changed.wait_for(lambda: self._closed, _AGAIN_S if any(soon) else self._interval_s)
