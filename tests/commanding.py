"""`florette serve` as a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from serving import PATIENCE_S

ROOT = Path(__file__).parent.parent


class Command:
    """A running `florette serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        assert process.stderr
        self.process = process
        self._stdout, self._stderr = process.stdout, process.stderr
        self.ready = self._stdout.readline()

    @property
    def url(self) -> str:
        """Where it serves, without `/v1`."""
        words = self.ready.split()
        assert words[:4] == ["florette", "is", "ready", "on"], self.ready
        return words[4].removesuffix("/v1")

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def until_logged(self, text: str) -> str:
        """What was logged up to and with the line that holds the text; AssertionError if the log ends before."""
        lines: list[str] = []
        for line in self._stderr:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"{text!r} was not logged, but {lines}")

    def end(self) -> tuple[int, str, str]:
        """The exit code, and what else was printed on both ways."""
        code = self.process.wait(PATIENCE_S)
        return code, self._stdout.read(), self._stderr.read()

    def wait_until_deaf(self) -> None:
        """Returns when new connections are refused: the first thing that a server does when it stops."""
        at = urlsplit(self.url)
        patience_ends = time.monotonic() + PATIENCE_S
        while time.monotonic() < patience_ends:
            try:
                socket.create_connection((at.hostname, at.port)).close()
            except ConnectionError:
                return
        raise AssertionError("the command still listens")


def environment(**settings: str) -> dict[str, str]:
    """That of the tests, with these settings and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLORETTE_")}
    return kept | settings


@contextmanager
def serving(*flags: str, **settings: str) -> Iterator[Command]:
    """The command with these flags and environment variables, once it is ready or has failed."""
    with subprocess.Popen(
        [sys.executable, "-m", "proxy", "serve", *flags],
        cwd=ROOT,
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        try:
            yield Command(process)
        finally:
            process.kill()
