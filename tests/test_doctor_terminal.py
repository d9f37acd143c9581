"""The doctor on a terminal, and in front of somebody who has no time: as a process of its own."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from proxy.doctor.battery import CHECKS, RULES
from proxy.doctor.progress import progress_on
from recorded import Stage, serve_stage, vllm_chunks, vllm_completion
from scripted import ScriptedUpstream
from serving import HANG_S, LoopThread
from steps import Fails, GoesSilent, Says

ROOT = Path(__file__).parent.parent
LINES = len(CHECKS) + len(RULES)
FIRST = f"\r0 of {LINES} checks"
ERASED = f"\r{' ' * (len(FIRST) - 1)}\r"


@pytest.fixture(scope="module")
def stage(loop_thread: LoopThread) -> Iterator[Stage]:
    """An endpoint that plays what each test writes for it."""
    with serve_stage(loop_thread) as served:
        yield served


@contextmanager
def doctor(url: str, stderr: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    """The command at work."""
    with subprocess.Popen(
        [sys.executable, "-m", "proxy", "doctor", "--base-url", url, "--model", "m"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def on_a_terminal(url: str) -> tuple[int, str, str]:
    """Exit code, and what is printed where stderr is a terminal."""
    ours, theirs = os.openpty()
    try:
        with doctor(url, theirs) as process:
            out, _ = process.communicate(timeout=HANG_S)
        return process.returncode, out, os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_terminal_shows_how_far_it_is_and_then_nothing_of_it(stage: Stage) -> None:
    url = stage.play(lambda body: vllm_chunks("Hi") if body.get("stream") else vllm_completion("Hi"))
    code, out, err = on_a_terminal(url)
    shown = [f"\r{done} of {LINES} checks" for done in range(LINES + 1)]
    assert err == "".join(shown) + f"\r{' ' * len(shown[-1].strip())}\r"
    assert code == 1
    assert out.startswith("m at http://")


def test_why_there_is_nothing_to_check_stands_on_a_line_of_its_own(upstream: ScriptedUpstream) -> None:
    upstream.script(Fails(500, "broken"))
    code, out, err = on_a_terminal(upstream.url)
    assert (code, out) == (2, "")
    assert err == f"{FIRST}{ERASED}{upstream.url} gives no answer to a plain question to 'm': 500 broken\r\n"


def test_what_is_no_terminal_is_told_nothing() -> None:
    out = io.StringIO()
    with progress_on(out) as tell:
        tell(1, 2)
    assert out.getvalue() == ""


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_ends_it_with_one_line_and_130(upstream: ScriptedUpstream, times: int) -> None:
    """However often: somebody in a hurry sees no more of it."""
    upstream.script(Says("Hello."), *[GoesSilent()] * 4)
    with doctor(upstream.url) as process:
        upstream.wait_for(5)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=HANG_S)
    assert (process.returncode, out, err) == (130, "", "Interrupted: there is no scorecard.\n")
