"""Several processes that serve on one socket, each as one alone would: they start together, and they end together.

    we:          fork, before there is a loop or a thread; then wait for signals, and for what workers tell
    a worker:    tells that it is ready; ends when it is told to, or when we have gone

The first worker starts alone, so that what is wrong with the configuration is told once. SIGTERM and SIGINT end all of
them, a second one at once; SIGHUP is passed on. A worker that ends by itself is followed by another one.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

logger = logging.getLogger(__name__)

#: What we hear. A terminal, or systemd, tells the workers of the first three, too.
_HEARD = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

#: So many workers may end by themselves in so many seconds; with more, something is wrong that no new one mends.
_MOST_ENDS = 5
_ENDS_S = 60.0


@dataclass(frozen=True, slots=True)
class Post:
    """What one who serves is to know: `ready` tells that it does; the descriptor `over`, if any, ends when it is to."""

    ready: Callable[[], None]
    over: int | None = None


@dataclass(slots=True)
class _Worker:
    pid: int
    # Where it tells that it is ready; closed, and None, when it has, or has ended.
    told: int | None
    ready: bool = False


class Crew:
    """`number` processes that run `serve`, which gives an exit code.

    `ready` is called once, when all of them serve, and `stopping` when they are told to end.
    """

    def __init__(
        self, number: int, serve: Callable[[Post], int], *, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        self._number = number
        self._serve = serve
        self._all_ready = ready
        self._stopping = stopping
        self._workers: dict[int, _Worker] = {}
        # Nothing is ever written there: that it ends is the message, and it reaches a worker also when we are killed.
        self._over, self._going_on = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._ends: deque[float] = deque()
        self._announced = self._ending = self._reloaded = False
        self._code = 0

    def run(self) -> int:
        """Runs them until they are told to end, and gives the exit code. In a worker it raises SystemExit."""
        self._hear()
        self._start()
        while self._workers:
            for number in self._heard():
                self._pass_on(number)
            self._bury()
        return self._code

    # -- signals -------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        self._signals, told = socket.socketpair()
        for end in (self._signals, told):
            end.setblocking(False)
        # Kept: the descriptor is all that the interpreter knows of it.
        self._told = told
        signal.set_wakeup_fd(told.fileno())
        for number in _HEARD:
            signal.signal(number, lambda *_: None)
        self._selector.register(self._signals, selectors.EVENT_READ)

    def _heard(self) -> set[int]:
        # Waits until something happens; which signals there were. That a worker is ready is dealt with here.
        numbers: set[int] = set()
        for key, _ in self._selector.select():
            if isinstance(key.data, _Worker):
                self._listen(key.data, key.fd)
            else:
                with contextlib.suppress(BlockingIOError):
                    numbers |= set(self._signals.recv(4096))
        return numbers

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._reloaded = True
            self._tell(number)
        elif number in (signal.SIGTERM, signal.SIGINT) and self._ending:
            self._tell(number)
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._end()

    def _tell(self, number: int) -> None:
        # One that is not ready does not listen yet.
        for worker in self._workers.values():
            if worker.ready:
                os.kill(worker.pid, number)

    def _end(self) -> None:
        # Not by a signal: who got one of its own already would take ours for the second one, and drop its answers.
        if not self._ending:
            self._ending = True
            self._stopping()
            os.close(self._going_on)

    # -- workers -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        told, tell = os.pipe()
        # A signal that comes before the worker is itself would be taken for ours.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
        pid = os.fork()
        if pid == 0:
            self._become(told, tell)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        os.close(tell)
        worker = self._workers[pid] = _Worker(pid, told)
        self._selector.register(told, selectors.EVENT_READ, worker)

    def _become(self, told: int, tell: int) -> NoReturn:
        signal.set_wakeup_fd(-1)
        # Until it has a loop to hear them with; what it misses, it is told when it is ready.
        for number in _HEARD:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HEARD)
        self._selector.close()
        for end in (self._signals, self._told):
            end.close()
        others = [worker.told for worker in self._workers.values() if worker.told is not None]
        for descriptor in (told, self._going_on, *others):
            os.close(descriptor)

        def ready() -> None:
            os.write(tell, b"!")
            os.close(tell)

        raise SystemExit(self._serve(Post(ready, self._over)))

    def _listen(self, worker: _Worker, told: int) -> None:
        worker.ready = bool(os.read(told, 1))
        self._hang_up(worker)
        if not worker.ready:
            return
        if self._reloaded:
            os.kill(worker.pid, signal.SIGHUP)
        if self._announced:
            logger.info("worker %d is ready", worker.pid)
        elif not self._ending:
            while len(self._workers) < self._number:
                self._start()
            if all(each.ready for each in self._workers.values()):
                self._announced = True
                self._all_ready()

    def _hang_up(self, worker: _Worker) -> None:
        if worker.told is not None:
            self._selector.unregister(worker.told)
            os.close(worker.told)
            worker.told = None

    def _bury(self) -> None:
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                del self._workers[pid]
                self._hang_up(worker)
                self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        if self._ending:
            return
        if not self._announced:
            # It said why.
            self._code = code if code > 0 else 1
            self._end()
            return
        how = f"by signal {-code}" if code < 0 else f"with {code}"
        now = time.monotonic()
        self._ends.append(now)
        while self._ends[0] < now - _ENDS_S:
            self._ends.popleft()
        if len(self._ends) > _MOST_ENDS:
            logger.critical("worker %d ended %s, the last of too many: all end", pid, how)
            self._code = 1
            self._end()
            return
        logger.error("worker %d ended %s; another one is started", pid, how)
        self._start()
