"""A real Redis on a free loopback port: with a password, keeping nothing on the disk."""

import contextlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator

import pytest

from serving import PATIENCE_S

#: The line that it writes when it can be asked.
_READY = b"Ready to accept connections"

#: A free port may be taken by another test before Redis has it; so often is another one tried.
_TRIES = 5


@contextlib.contextmanager
def redis_server() -> Iterator[str]:
    """Runs a Redis while the block does; gives its URL. Skips the test, loudly, where Redis is not installed."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("NOT TESTED AGAINST REDIS: there is no redis-server; install it (apt-get install redis-server)")
    with tempfile.TemporaryDirectory() as directory:
        password = secrets.token_hex(8)
        process, port = _started(binary, directory, password)
        try:
            yield f"redis://:{password}@127.0.0.1:{port}/0"
        finally:
            _end(process)


def _started(binary: str, directory: str, password: str) -> tuple[subprocess.Popen[bytes], int]:
    said: list[bytes] = []
    for _ in range(_TRIES):
        port = _free_port()
        process = subprocess.Popen(
            [
                *(binary, "--bind", "127.0.0.1", "--port", str(port), "--requirepass", password),
                *("--save", "", "--appendonly", "no", "--dir", directory),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if _is_ready(process, said):
            return process, port
        _end(process)
    raise AssertionError(f"redis-server does not start:\n{b''.join(said).decode(errors='replace')}")


def _is_ready(process: subprocess.Popen[bytes], said: list[bytes]) -> bool:
    assert process.stdout is not None
    # Reading ends when it has.
    impatient = threading.Timer(PATIENCE_S, process.kill)
    impatient.start()
    try:
        for line in process.stdout:
            said.append(line)
            if _READY in line:
                return True
        return False
    finally:
        impatient.cancel()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    # Reads to the end, or the last lines might not find room in the pipe.
    process.communicate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
