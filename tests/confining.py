"""A shell in a sandbox of its own, for tests of what is seen of it from outside."""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import pytest

#: Root's sandboxes belong to another user, whom the machine need not know; ours are our own.
OWNER = 54321 if os.geteuid() == 0 else None

WORKDIR = "/mnt/data"

_BWRAP = [
    *("bwrap", "--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--unshare-ipc", "--unshare-net"),
    *("--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"),
    *("--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--proc", "/proc", "--dev", "/dev"),
]


@dataclass(frozen=True)
class Confined:
    """A sandbox: the process outside of it, the number of its init, and what its shell reads and writes."""

    process: subprocess.Popen[bytes]
    init: int
    to: IO[bytes]
    out: IO[bytes]

    def workdir(self) -> int:
        """A descriptor of its working directory."""
        return os.open(f"/proc/{self.init}/root{WORKDIR}", os.O_RDONLY | os.O_DIRECTORY)

    def run(self, commands: str) -> str:
        """Lets the shell run these commands -> what they write, without the last line end."""
        self.to.write(commands.encode() + b"\necho; echo .end.\n")
        self.to.flush()
        lines = iter(self.out.readline, b".end.\n")
        said = []
        for line in lines:
            assert line, "the sandbox has ended"
            said.append(line.decode())
        return "".join(said).rstrip("\n")

    def die(self) -> None:
        """Ends it, and returns when it has ended."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def confined(*, disk_bytes: int = 4 << 20, mounts: Sequence[str] = ()) -> Iterator[Confined]:
    """Starts one, with so much room where it works; `mounts` are further arguments of bubblewrap."""
    told, tell = os.pipe()
    arguments = [
        *(*_BWRAP, "--size", str(disk_bytes), "--tmpfs", WORKDIR, *mounts, "--chdir", WORKDIR),
        *("--info-fd", str(tell), "--", "/bin/sh"),
    ]
    user = {} if OWNER is None else {"user": OWNER, "group": OWNER, "extra_groups": []}
    try:
        process = subprocess.Popen(
            arguments,
            pass_fds=[tell],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **user,  # type: ignore[call-overload]
        )
    except FileNotFoundError:
        os.close(told)
        pytest.skip("NOT TESTED: bubblewrap is not installed, so there is no sandbox to look at")
    finally:
        os.close(tell)
    with process:
        try:
            yield _begun(process, told)
        finally:
            process.kill()


def _begun(process: subprocess.Popen[bytes], told: int) -> Confined:
    assert process.stdin and process.stdout
    said = b""
    while b"}" not in said and (more := os.read(told, 1024)):
        said += more
    os.close(told)
    if b"}" not in said:
        pytest.skip(f"NOT TESTED: there can be no sandbox here: {process.stdout.read().decode()}")
    begun = Confined(process, json.loads(said)["child-pid"], process.stdin, process.stdout)
    # As soon as the shell answers, all is mounted.
    if begun.run("echo here") != "here":
        pytest.skip("NOT TESTED: there can be no sandbox here")
    return begun
