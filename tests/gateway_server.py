"""A real Jupyter Kernel Gateway on a free loopback port, whose kernels are those of our provisioner."""

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import HANG_S
from tools.kernel_settings import KernelSettings
from tools.kernels.service import open_kernels

KERNELSPEC = Path(__file__).parent.parent / "tools" / "kernels" / "kernelspec" / "florette" / "kernel.json"

#: Is in the environment of the gateway, and nobody in a kernel is to find it.
CANARY = "canary-in-the-gateways-environment"

#: The line that it writes when it can be asked.
_READY = b"is available at"

#: Its address may have been taken meanwhile.
_TRIES = 5


class GatewayServer:
    """A gateway that can be stopped, and started again at the same place, as one that knows no kernels."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.token = secrets.token_hex(8)
        self.port = 0
        self._directory = directory
        spec = json.loads(KERNELSPEC.read_text())
        spec["metadata"]["kernel_provisioner"]["config"] = config
        place = directory / "kernels" / "florette"
        place.mkdir(parents=True)
        (place / "kernel.json").write_text(json.dumps(spec))
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._said: list[bytes] = []
        self._news = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kernels(self) -> list[str]:
        """The ids of the kernels that it has."""
        headers = {"Authorization": f"token {self.token}"}
        answer = httpx.get(f"{self.url}/api/kernels", headers=headers, timeout=HANG_S, trust_env=False)
        return [kernel["id"] for kernel in answer.raise_for_status().json()]

    def said(self) -> str:
        return b"".join(self._said).decode(errors="replace")

    def heard(self) -> None:
        """Waits until it says something more."""
        with self._news:
            self._news.wait(1)

    def start(self) -> None:
        for _ in range(_TRIES):
            self.port = self.port or _free_port()
            if self._is_started():
                return
            self.stop()
        raise AssertionError(f"the gateway does not start:\n{self.said()}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is None:
            return
        for _ in range(_TRIES):
            # It writes a line when it is told to end, which fails where it is about to write another; then it goes on.
            self._process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(HANG_S / _TRIES)
                break
        else:
            self._process.kill()
            raise AssertionError(f"the gateway does not end:\n{self.said()}")
        assert self._reader is not None
        self._reader.join(HANG_S)
        self._process = None

    def _is_started(self) -> bool:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "kernel_gateway", "--ip=127.0.0.1", f"--port={self.port}"),
                *(f"--KernelGatewayApp.auth_token={self.token}", "--JupyterWebsocketPersonality.list_kernels=True"),
                *(
                    "--KernelGatewayApp.port_retries=0",
                    "--KernelRestarter.time_to_dead=0.2",
                    "--MappingKernelManager.buffer_offline_messages=False",
                ),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._directory,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self._directory),
                "JUPYTER_PATH": str(self._directory),
                "FLORETTE_CANARY": CANARY,
                # The provisioner is the one of this tree, however it was installed.
                "PYTHONPATH": str(KERNELSPEC.parents[4]),
            },
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self._process, ready))
        self._reader.start()
        ready.wait(HANG_S)
        return self._process.poll() is None

    def _read(self, process: subprocess.Popen[bytes], ready: threading.Event) -> None:
        # To its end, or it would wait for somebody to read.
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._news:
                    self._said.append(line)
                    self._news.notify_all()
                if _READY in line:
                    ready.set()
        ready.set()


@contextlib.contextmanager
def gateway_server(**config: Any) -> Iterator[GatewayServer]:
    """Runs a gateway while the block does; `config` is the provisioner's. Skips the test, loudly, where none can."""
    if importlib.util.find_spec("kernel_gateway") is None:
        pytest.skip("NOT TESTED AGAINST A GATEWAY: there is none; install it (pip install jupyter-kernel-gateway)")
    if reason := open_kernels(KernelSettings()).unavailable():
        pytest.skip(f"NOT TESTED AGAINST A GATEWAY: no code can be run here: {reason}")
    with tempfile.TemporaryDirectory() as directory:
        server = GatewayServer(Path(directory), **config)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
