"""Processes of a sandbox, seen from outside: all are found, measured, stopped and killed, and watched."""

import contextlib
import logging
import mmap
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from confining import OWNER, Confined, confined
from serving import HANG_S
from tools.sandbox import processes
from tools.sandbox.processes import descendants, family, proportional_bytes, resident_bytes
from tools.sandbox.watching import Excess, Token, Watch, WatchLimits
from tools.sandbox.workdir import Workdir

MB = 1 << 20

#: What Python itself may need, at most.
PYTHON_MB = 40


@pytest.fixture
def sandbox() -> Iterator[Confined]:
    with confined() as sandbox:
        yield sandbox


class Program:
    """A Python program that has said `ready`, and is told to go on by lines."""

    def __init__(self, process: "subprocess.Popen[bytes]", to: IO[bytes], out: IO[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self._to = to
        self._out = out
        self.says("ready")

    def says(self, word: str) -> None:
        assert self._out.readline().decode() == word + "\n"

    def go_on(self) -> None:
        self._to.write(b"\n")
        self._to.flush()


@contextlib.contextmanager
def program(text: str) -> Iterator[Program]:
    prelude = "import ctypes, os, signal, sys, threading\ndef ready(): print('ready', flush=True); input()\n"
    with subprocess.Popen(
        [sys.executable, "-c", prelude + text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin and process.stdout
        try:
            yield Program(process, process.stdin, process.stdout)
        finally:
            # All that it forked, too: they are of its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_three(sandbox: Confined) -> None:
    """A child, its child, and one whose parent has ended; returns when all three run."""
    sandbox.run("(sleep 1000 & exec sleep 1000) & (sleep 1000 &)")
    sandbox.run('until [ "$(cat /proc/[0-9]*/comm 2> /dev/null | grep -cx sleep)" = 3 ]; do :; done')


def stopped(sandbox: Confined) -> bool:
    """True when all stand still; where others use the processors, it may take some tries."""
    return any(processes.stop(sandbox.init, root_too=False) for _ in range(200))


def states(pids: list[int]) -> set[str]:
    return {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids}


def wait_for_end(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        ended = select.poll()
        ended.register(descriptor, select.POLLIN)
        assert ended.poll(HANG_S * 1000)
        os.close(descriptor)


# -- found and measured ------------------------------------------------------------------------------------


def test_children_of_children_and_those_without_a_parent_are_found(sandbox: Confined) -> None:
    before = descendants(sandbox.init)
    assert before[0] == sandbox.init
    run_three(sandbox)
    new = [pid for pid in descendants(sandbox.init) if pid not in before]
    assert [Path(f"/proc/{pid}/comm").read_text() for pid in new] == ["sleep\n"] * 3


def test_children_of_every_thread_are_found() -> None:
    text = """
def fork():
    os.fork() or signal.pause()
    ready()
    threading.Event().wait()
threading.Thread(target=fork).start()
"""
    with program(text) as parent:
        found = family(parent.pid)
        assert (found[0].pid, [process.threads for process in found]) == (parent.pid, [2, 1])


def test_what_has_gone_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert descendants(process.pid) == []
    assert resident_bytes([process.pid]) == proportional_bytes([process.pid]) == 0
    assert processes.stop(process.pid, root_too=False)
    processes.resume(process.pid)
    processes.kill(process.pid)


def test_no_more_are_looked_for_than_wanted() -> None:
    with program("for _ in range(50):\n    os.fork() or signal.pause()\nready()") as parent:
        assert len(descendants(parent.pid)) == 51
        assert len(descendants(parent.pid, most=20)) == 20
    with program("for _ in range(50): threading.Thread(target=signal.pause).start()\nready()") as parent:
        assert sum(process.threads for process in family(parent.pid, most=20)) == 51


def test_memory_is_counted_for_each_and_shared_memory_once() -> None:
    text = "held = b'x' * (64 << 20)\nfor _ in range(3): os.fork() or signal.pause()\nready()"
    with program(text) as parent:
        pids = descendants(parent.pid)
        assert 4 * 64 * MB < resident_bytes(pids) < 4 * (64 + PYTHON_MB) * MB
        assert 64 * MB < proportional_bytes(pids) < (64 + PYTHON_MB) * MB


def test_the_tables_of_memory_that_was_only_looked_at_are_counted() -> None:
    # All of it is the one page of zeros, and each 2 MB of it have a page of entries.
    text = """
import mmap
looked_at = mmap.mmap(-1, 32 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
looked_at.madvise(mmap.MADV_NOHUGEPAGE)
for place in range(0, 32 << 30, 2 << 20): looked_at[place]
ready()
"""
    with program(text) as parent:
        assert int(Path(f"/proc/{parent.pid}/statm").read_text().split()[1]) * mmap.PAGESIZE < PYTHON_MB * MB
        assert resident_bytes([parent.pid]) > 64 * MB
        assert proportional_bytes([parent.pid]) > 64 * MB


def test_memory_does_not_hide_behind_a_first_thread_that_has_ended() -> None:
    text = """
held = b'x' * (64 << 20)
first = threading.main_thread().native_id
def second():
    while 'Z' not in open(f'/proc/self/task/{first}/stat').read().rpartition(')')[2]: pass
    ready()
threading.Thread(target=second).start()
EXIT_THREAD = {'x86_64': 60, 'aarch64': 93}
ctypes.CDLL(None).syscall(EXIT_THREAD[os.uname().machine], 0)
"""
    with program(text) as parent:
        assert Path(f"/proc/{parent.pid}/statm").read_text().startswith("0 0 ")
        assert resident_bytes([parent.pid]) > 64 * MB
        assert proportional_bytes([parent.pid]) > 64 * MB


# -- stopped and killed ------------------------------------------------------------------------------------


def test_what_is_stopped_stands_still_but_for_init_and_runs_on_later(sandbox: Confined) -> None:
    run_three(sandbox)
    init, *others = descendants(sandbox.init)
    assert stopped(sandbox)
    assert states(others) == {"T"}
    assert "T" not in states([init, sandbox.process.pid])
    assert stopped(sandbox)
    processes.resume(sandbox.init)
    assert sandbox.run("echo here") == "here"
    assert "T" not in states(others)


def test_those_who_fork_without_end_are_stopped_and_run_on(sandbox: Confined) -> None:
    # A shell forks for each of them, and has thousands of children in a few seconds.
    for _ in range(5):
        sandbox.run("(while :; do (:) done) & (while :; do (: &) done) &")
        assert stopped(sandbox)
        before = descendants(sandbox.init)
        assert states(before[1:]) <= {"T", "Z"}
        assert descendants(sandbox.init) == before
        processes.resume(sandbox.init)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_nobody_survives_a_kill(sandbox: Confined, is_stopped: bool) -> None:
    sandbox.run("trap '' TERM INT")
    run_three(sandbox)
    held = [os.pidfd_open(pid) for pid in descendants(sandbox.init)]
    if is_stopped:
        processes.stop(sandbox.init, root_too=False)
    processes.kill(sandbox.init)
    assert len(held) >= 5
    wait_for_end(held)
    assert sandbox.process.wait() != 0


def test_where_there_is_no_namespace_nobody_survives_either() -> None:
    with program("for _ in range(5):\n    os.fork() and os.fork() or signal.pause()\nready()") as parent:
        held = [os.pidfd_open(pid) for pid in descendants(parent.pid)]
        processes.kill(parent.pid)
        assert len(held) == 11
        wait_for_end(held[1:])
        assert parent.process.wait() == -signal.SIGKILL
        os.close(held[0])


# -- watched -----------------------------------------------------------------------------------------------


class Watching:
    """A watch, and what it tells, in order."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.told: queue.Queue[tuple[str, Excess]] = queue.Queue()

    def add(self, name: str, pid: int, limits: WatchLimits, *places: Workdir) -> Token:
        return self.watch.add(pid, limits, places, lambda excess: self.told.put((name, excess)))

    def next(self) -> tuple[str, Excess]:
        return self.told.get(timeout=HANG_S)

    def looks_at_all(self, pid: int) -> None:
        """Returns when all that were added before have been looked at, and twice, as this one has been to be told."""
        self.add("last", pid, of(memory_bytes=0))
        assert self.next() == ("last", "memory")


@pytest.fixture
def watching() -> Iterator[Watching]:
    watch = Watch(interval_s=0.005)
    yield Watching(watch)
    watch.close()


def of(**limits: int) -> WatchLimits:
    """These limits; nobody reaches the others."""
    return WatchLimits(**{"memory_bytes": 1 << 40, "processes": 10**6, "inodes": 10**6, **limits})


def test_too_much_memory_is_told_once(watching: Watching) -> None:
    text = "held = b''\nready()\nheld = b'x' * (128 << 20)\nready()"
    with program(text) as bomb, program("ready()") as honest:
        for name, pid in (("honest", honest.pid), ("bomb", bomb.pid)):
            watching.add(name, pid, of(memory_bytes=100 * MB))
        watching.looks_at_all(honest.pid)
        bomb.go_on()
        assert watching.next() == ("bomb", "memory")
        watching.looks_at_all(honest.pid)


def test_what_processes_have_together_counts_and_what_they_share_counts_once(watching: Watching) -> None:
    text = """
held = b'x' * (32 << 20)
ready_for, tell = os.pipe()
for _ in range(4):
    if not os.fork():
        own = b'y' * SIZE
        os.write(tell, b'.')
        signal.pause()
for _ in range(4): os.read(ready_for, 1)
ready()
"""
    with program(text.replace("SIZE", "0")) as sharing, program(text.replace("SIZE", "(32 << 20)")) as bomb:
        for name, pid in (("sharing", sharing.pid), ("bomb", bomb.pid)):
            watching.add(name, pid, of(memory_bytes=120 * MB))
        assert watching.next() == ("bomb", "memory")
        watching.looks_at_all(sharing.pid)
        assert resident_bytes(descendants(sharing.pid)) > 120 * MB


@pytest.mark.parametrize("makes", ["os.fork() or signal.pause()", "threading.Thread(target=signal.pause).start()"])
def test_more_than_twice_as_many_processes_and_threads_as_may_be_are_told(watching: Watching, makes: str) -> None:
    text = f"ready()\nfor _ in range(NUMBER):\n    {makes}\nready()"
    with program(text.replace("NUMBER", "9")) as honest, program(text.replace("NUMBER", "10")) as bomb:
        for name, one in (("honest", honest), ("bomb", bomb)):
            watching.add(name, one.pid, of(processes=5))
            one.go_on()
            one.says("ready")
        assert watching.next() == ("bomb", "processes")
        watching.looks_at_all(honest.pid)


def test_too_many_files_on_all_places_together_are_told(sandbox: Confined, watching: Watching) -> None:
    places = [Workdir(sandbox.workdir(), owner=OWNER) for _ in range(2)]
    # The directory itself is one.
    watching.add("both", sandbox.init, of(inodes=20), *places)
    watching.add("one", sandbox.init, of(inodes=11), places[0])
    sandbox.run("for n in 1 2 3 4 5 6 7 8 9; do ln -s x $n; done")
    watching.looks_at_all(sandbox.init)
    sandbox.run("ln -s x 10")
    assert watching.next() == ("both", "inodes")
    watching.looks_at_all(sandbox.init)
    for place in places:
        place.close()


def test_nothing_is_told_of_what_is_watched_no_more(watching: Watching) -> None:
    with program("ready()\nfor _ in range(5): os.fork() or signal.pause()\nready()") as one:
        token = watching.add("removed", one.pid, of(processes=1))
        watching.looks_at_all(one.pid)
        watching.watch.remove(token)
        watching.watch.remove(token)
        one.go_on()
        one.says("ready")
        watching.looks_at_all(one.pid)


def test_what_has_ended_is_watched_in_vain(watching: Watching) -> None:
    with program("ready()") as one, program("ready()") as waited_for, program("ready()") as other:
        one.process.kill()
        waited_for.process.kill()
        waited_for.process.wait()
        # It has ended, and its number is still its own.
        os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT)
        assert descendants(one.pid) == [one.pid]
        for ended in (one, waited_for):
            watching.add("ended", ended.pid, of(processes=0))
        watching.looks_at_all(other.pid)


def test_a_failure_ends_neither_the_thread_nor_the_watch_of_others(
    watching: Watching, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    def fail(excess: Excess) -> None:
        failed.set()
        raise RuntimeError(f"nobody wants to know of {excess}")

    with program("ready()") as one, caplog.at_level(logging.ERROR):
        closed = Workdir(os.open("/dev/shm", os.O_DIRECTORY))  # noqa: S108 - any directory will do
        closed.close()
        watching.add("without its files", one.pid, of(), closed)
        watching.watch.add(one.pid, of(memory_bytes=0), (), fail)
        assert failed.wait(HANG_S)
        watching.looks_at_all(one.pid)
        assert caplog.text.count("a sandbox cannot be watched") == 2
        assert "nobody wants to know of memory" in caplog.text


def test_watching_leaves_no_descriptor_behind() -> None:
    def of_processes() -> int:
        descriptors = list(Path("/proc/self/fd").iterdir())
        return sum("pidfd" in str(one.readlink()) for one in descriptors if os.path.lexists(one))

    watch = Watch()
    with program("ready()") as one:
        before = of_processes()
        tokens = [watch.add(one.pid, of(), (), lambda _: None) for _ in range(3)]
        assert of_processes() == before + 3
        watch.remove(tokens[0])
        assert of_processes() == before + 2
        watch.close()
        assert of_processes() == before


def test_who_is_told_may_end_the_watch(watching: Watching) -> None:
    ended = threading.Event()

    def end(excess: Excess) -> None:
        watching.watch.remove(tokens[0])
        ended.set()

    tokens: list[Token] = []
    with program("ready()") as one:
        tokens.append(watching.watch.add(one.pid, of(memory_bytes=0), (), end))
        assert ended.wait(HANG_S)
        watching.looks_at_all(one.pid)


def test_there_is_a_thread_only_when_there_is_something_to_watch() -> None:
    def threads() -> int:
        return sum(thread.name == "sandbox-watch" for thread in threading.enumerate())

    before = threads()
    watch = Watch()
    assert threads() == before
    with program("ready()") as one:
        for _ in range(3):
            watch.add(one.pid, of(), (), lambda _: None)
        assert threads() == before + 1
        watch.close()
    assert threads() == before
    Watch().close()
