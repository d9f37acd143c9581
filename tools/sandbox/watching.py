"""The watch over sandboxes: one thread that looks what each of them uses, and tells of excesses."""

import logging
import os
import select
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, NewType, Protocol

from tools.sandbox.processes import family, proportional_bytes, resident_bytes, used_sockets
from tools.sandbox.system_calls import used_inodes

logger = logging.getLogger(__name__)

#: The limit of processes holds inside already, but not for root, and not for those who have their own namespace of
#: users: twice as many are nobody's who keeps to it, with the processes of the sandbox itself.
_PROCESSES_FACTOR = 2

#: Between vfork and exec a child's memory is its parent's, and counts twice, for a millisecond or, where there is much
#: to do, some: too much memory is believed when it is seen again after this time, in which a bomb grows by 5 %.
_AGAIN_S = 0.02


class HasInodes(Protocol):
    """A place for files."""

    def used_inodes(self) -> int:
        """So many files, directories and links are there."""
        ...


class Place:
    """A directory, by its path. OSError if it is not there."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def used_inodes(self) -> int:
        """As HasInodes says."""
        return used_inodes(self._descriptor)

    def close(self) -> None:
        """Lets go of it, once nobody watches it any more."""
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """What one sandbox may have; `processes`: with all threads, and `inodes` on all its file systems together."""

    memory_bytes: int
    processes: int
    inodes: int
    #: In its own namespace of networks, unix sockets included; None: it has none.
    sockets: int | None = None


Excess = Literal["memory", "processes", "inodes", "sockets"]

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
        if self._limits.sockets is not None and used_sockets(self._pid) > self._limits.sockets:
            return "sockets"
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
