"""What keeps code apart is found by trying it; what is missing is told with what helps, and nothing less is taken."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from commanding import environment
from readable_python import open_directory, readable_python
from serving import HANG_S
from tools.kernel_settings import KernelSettings
from tools.kernels.embedded import Surroundings, begin, sockets_of
from tools.kernels.service import open_kernels
from tools.kernels.starting import isolation_for, recipe_for
from tools.outcomes import Outcome, Written
from tools.sandbox.watching import Watch
from tools.sandbox.wrapped import Bubblewrap

ROOT = Path(__file__).parent.parent


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that others may walk through."""
    with open_directory() as made:
        yield made


@pytest.fixture
def programs(place: Path) -> Path:
    """What is installed: a directory for PATH, with no bubblewrap in it."""
    (found := place / "programs").mkdir(mode=0o711)
    if setpriv := shutil.which("setpriv"):
        (found / "setpriv").symlink_to(setpriv)
    return found


def doctor(directory: Path, path: str, **kernels: Any) -> tuple[int, dict[str, Any]]:
    """What `florette doctor --config` says of a machine on which only what is in `path` is installed."""
    config = directory / "config.yaml"
    config.write_text(json.dumps({"kernels": kernels, "tools": ["code_interpreter"]}))
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "doctor", "--config", str(config), "--json"],
        cwd=ROOT,
        env=environment() | {"PATH": path},
        capture_output=True,
        timeout=HANG_S,
        check=False,
    )
    assert not done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_without_bubblewrap_its_package_is_named(place: Path, programs: Path) -> None:
    code, told = doctor(place, str(programs), isolation="bwrap")
    assert code == 1
    assert "bubblewrap is not installed (apt-get install bubblewrap)" in told["reason"]


def test_then_landlock_is_taken_by_auto_and_said_to_be(place: Path, programs: Path) -> None:
    python = readable_python(place)
    if reason := open_kernels(KernelSettings(isolation="landlock", python=python)).unavailable():
        pytest.skip(f"NO LANDLOCK HERE: {reason}")
    code, told = doctor(place, str(programs), python=str(python))
    assert (code, told["kernels"]["isolation"]) == (0, "landlock")
    assert "no quota of disk" in told["kernels"]["layers"]["limits"]


@pytest.mark.parametrize(
    ("said", "helps"),
    [
        ("bwrap: setting up uid map: Permission denied", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("bwrap: Creating new namespace failed: Operation not permitted", "security_opt seccomp=deploy/seccomp.json"),
        ("bwrap: Failed to make / slave: Permission denied", "apparmor=unconfined"),
    ],
)
def test_what_bubblewrap_says_is_told_with_what_helps(place: Path, programs: Path, said: str, helps: str) -> None:
    fails = programs / "bwrap"
    fails.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    fails.chmod(0o755)
    code, told = doctor(place, str(programs), isolation="bwrap")
    assert code == 1
    assert f"bubblewrap does not work here: {said}" in told["reason"]
    assert helps in told["reason"]


def test_a_bubblewrap_that_says_nothing_is_not_waited_for(place: Path, programs: Path) -> None:
    (programs / "bwrap").symlink_to(shutil.which("true") or "/usr/bin/true")
    code, told = doctor(place, str(programs), isolation="bwrap")
    assert code == 1
    assert "bubblewrap does not work here: it said nothing" in told["reason"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only for root a Python can be out of others' reach")
def test_a_python_that_only_root_may_read_is_told(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    python = readable_python(closed)
    if not python.is_relative_to(closed):
        pytest.skip("everybody may read this Python")
    missing = open_kernels(KernelSettings(isolation="none", python=python)).unavailable()
    assert missing is not None
    assert "can be read by root only: run the server as another user, or set kernels.python" in missing


@pytest.mark.parametrize("python", ["/nowhere/python", "/usr/bin/true"])
def test_what_is_no_python_is_told(python: str) -> None:
    missing = open_kernels(KernelSettings(python=Path(python))).unavailable()
    assert missing is not None
    assert f"the kernels' Python {python} cannot be started" in missing


def test_a_python_without_ipykernel_is_told(place: Path) -> None:
    (place / "bin").mkdir()
    (python := place / "bin" / "python").symlink_to(sys.executable)
    (place / "pyvenv.cfg").write_text(f"home = {Path(sys.base_prefix) / 'bin'}\ninclude-system-site-packages = false\n")
    missing = open_kernels(KernelSettings(python=python)).unavailable()
    assert missing is not None
    assert "the kernels' Python needs ipykernel>=7:" in missing


async def test_where_proc_cannot_be_mounted_an_imitation_does() -> None:
    settings = KernelSettings(isolation="bwrap", pool=0)
    if reason := open_kernels(settings).unavailable():
        pytest.skip(f"NO SANDBOXES HERE: {reason}")
    found = isolation_for(settings)
    assert isinstance(found.launcher, Bubblewrap)
    bare = Bubblewrap(found.launcher.bwrap, found.launcher.setpriv, found.launcher.seccomp, real_proc=False)
    context, watch = sockets_of(settings), Watch()
    recipe = await recipe_for(settings, found)
    kernel = await begin(Surroundings(bare, recipe, context, watch, bare.owner))
    try:
        code = "plt.plot([1, 2])\nprint(sorted(os.listdir('/proc')), len(pd.DataFrame({'a': [1]})))\n!echo from a shell"
        outcome = await kernel.execute(code, time_s=HANG_S)
        assert outcome.status == "ok", outcome
        assert said(outcome) == "['cpuinfo', 'filesystems', 'meminfo', 'self', 'stat'] 1\nfrom a shell\n"
    finally:
        await kernel.aclose()
        watch.close()
        context.destroy()


def said(outcome: Outcome) -> str:
    return "".join(piece.text for piece in outcome.pieces if isinstance(piece, Written))
