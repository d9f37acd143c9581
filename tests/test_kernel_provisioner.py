"""Any Jupyter tool starts sandboxed kernels by our provisioner: here jupyter_client's own, in both of its kinds."""

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager, KernelManager

from gateway_server import CANARY, KERNELSPEC
from readable_python import open_directory, readable_python
from serving import HANG_S
from tools.errors import ToolError
from tools.kernel_settings import KernelSettings
from tools.kernels.provisioner import SandboxProvisioner
from tools.kernels.service import open_kernels

#: Kernels start quickly without libraries.
_QUICKLY: dict[str, Any] = {"preload": []}


@pytest.fixture(scope="module", autouse=True)
def _needs_a_sandbox() -> None:
    if reason := open_kernels(KernelSettings()).unavailable():
        pytest.skip(f"NOT TESTED IN A SANDBOX: no code can be run here: {reason}")


@pytest.fixture
def specs(tmp_path: Path) -> KernelSpecManager:
    return _specs(tmp_path, **_QUICKLY)


def _specs(directory: Path, **config: Any) -> KernelSpecManager:
    spec = json.loads(KERNELSPEC.read_text())
    spec["metadata"]["kernel_provisioner"]["config"] = config
    (directory / "florette").mkdir()
    (directory / "florette" / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(directory)])


@contextlib.asynccontextmanager
async def _kernel(
    specs: KernelSpecManager, tmp_path: Path
) -> AsyncIterator[tuple[AsyncKernelManager, AsyncKernelClient]]:
    manager = AsyncKernelManager(
        kernel_name="florette", kernel_spec_manager=specs, connection_file=str(tmp_path / "connection.json")
    )
    await manager.start_kernel(env={"FLORETTE_CANARY": CANARY})
    client = manager.client()
    try:
        client.start_channels()
        await client.wait_for_ready(timeout=HANG_S)
        yield manager, client
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
        manager.context.destroy(0)


async def _said(client: AsyncKernelClient, code: str, begun: asyncio.Event | None = None) -> str:
    said: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        if begun is not None and "begun" in message["content"].get("text", ""):
            begun.set()
        said.append(message["content"].get("text") or message["content"].get("ename") or "")

    await client.execute_interactive(code, output_hook=hear, timeout=HANG_S)
    return "".join(said)


async def test_an_asynchronous_client_starts_uses_and_ends_a_kernel(specs: KernelSpecManager, tmp_path: Path) -> None:
    async with _kernel(specs, tmp_path) as (manager, client):
        assert manager.ip is not None
        place = Path(manager.ip).parent
        assert await _said(client, "print(6 * 7)") == "42\n"
        assert await manager.is_alive()
        assert place.is_dir()
    assert not await manager.is_alive()
    assert not place.exists()


async def test_the_kernel_is_in_a_sandbox(specs: KernelSpecManager, tmp_path: Path) -> None:
    look = (
        "import os, socket\n"
        "try: socket.create_connection(('127.0.0.1', 9), 1)\n"
        "except OSError as error: print(type(error).__name__)\n"
        "print(os.getcwd(), os.getuid(), os.path.exists('/etc/passwd'), os.environ.get('FLORETTE_CANARY'))\n"
        "print(sorted(int(name) for name in os.listdir('/proc') if name.isdigit()))"
    )
    async with _kernel(specs, tmp_path) as (_, client):
        assert await _said(client, look) == "OSError\n/mnt/data 1000 False None\n[1, 2]\n"


async def test_an_interrupt_is_a_message(specs: KernelSpecManager, tmp_path: Path) -> None:
    async with _kernel(specs, tmp_path) as (manager, client):
        begun = asyncio.Event()
        running = asyncio.create_task(_said(client, "x = 1\nprint('begun', flush=True)\nwhile True: pass", begun))
        async with asyncio.timeout(HANG_S):
            await begun.wait()
            await manager.interrupt_kernel()
            await running
        assert "KeyboardInterrupt" in running.result()
        assert await _said(client, "print(x)") == "1\n"


@pytest.mark.parametrize("now", [True, False])
async def test_after_a_restart_clients_find_the_new_kernel_in_the_same_place(
    specs: KernelSpecManager, tmp_path: Path, now: bool
) -> None:
    async with _kernel(specs, tmp_path) as (manager, client):
        await _said(client, "x = 1")
        before = manager.get_connection_info()
        await manager.restart_kernel(now=now)
        assert manager.get_connection_info() == before
        await client.wait_for_ready(timeout=HANG_S)
        assert await _said(client, "print(x)") == "NameError"


async def test_that_a_kernel_has_ended_by_itself_is_seen(specs: KernelSpecManager, tmp_path: Path) -> None:
    async with _kernel(specs, tmp_path) as (manager, client):
        client.execute("import os; os._exit(1)")
        assert manager.provisioner is not None
        async with asyncio.timeout(HANG_S):
            assert await manager.provisioner.wait() == 0
        assert not await manager.is_alive()


async def test_who_waits_in_vain_for_its_end_may_wait_again(specs: KernelSpecManager, tmp_path: Path) -> None:
    async with _kernel(specs, tmp_path) as (manager, _):
        provisioner = manager.provisioner
        assert provisioner is not None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(provisioner.wait(), 0.01)
        assert await provisioner.poll() is None
        await provisioner.send_signal(signal.SIGINT)
        assert await provisioner.poll() is None
        await provisioner.send_signal(signal.SIGKILL)
        assert await asyncio.wait_for(provisioner.wait(), HANG_S) == 0


async def test_the_memory_of_all_its_processes_is_watched(tmp_path: Path) -> None:
    bomb = (
        "import os, time\n"
        "for _ in range(20):\n"
        "    if not os.fork():\n"
        "        held = b'x' * (60 << 20); time.sleep(60); os._exit(0)"
    )
    specs = _specs(tmp_path, **_QUICKLY, memory_bytes=512 << 20)
    async with _kernel(specs, tmp_path) as (manager, client):
        client.execute(bomb)
        assert manager.provisioner is not None
        async with asyncio.timeout(HANG_S):
            await manager.provisioner.wait()


async def test_a_planted_socket_leads_no_client_astray(specs: KernelSpecManager, tmp_path: Path) -> None:
    async with _kernel(specs, tmp_path) as (manager, client):
        plant = "import os\nfor name in os.listdir('/run'):\n    if name.startswith('k-'):\n"
        plant += "        os.unlink('/run/' + name); os.symlink('/etc/passwd', '/run/' + name)"
        await _said(client, plant)
        # One that comes later finds the kernel nevertheless.
        late = manager.client()
        late.start_channels()
        try:
            await late.wait_for_ready(timeout=HANG_S)
            assert await _said(late, "print(1)") == "1\n"
        finally:
            late.stop_channels()


async def test_a_python_that_runs_no_kernels_is_told(tmp_path: Path) -> None:
    provisioner = SandboxProvisioner(python=str(tmp_path / "absent"))
    with pytest.raises(ToolError, match=r"the kernels' Python .*absent cannot be started"):
        await provisioner.launch_kernel([])
    assert not provisioner.has_process
    await provisioner.cleanup()


@pytest.mark.parametrize("isolation", ["none", "landlock"])
async def test_the_isolation_is_what_the_kernelspec_says(tmp_path: Path, isolation: str) -> None:
    with open_directory() as place:
        python = readable_python(place)
        if reason := open_kernels(KernelSettings(isolation=isolation, python=python)).unavailable():  # type: ignore[arg-type]
            pytest.skip(f"NOT TESTED: {reason}")
        specs = _specs(tmp_path, **_QUICKLY, isolation=isolation, python=str(python))
        async with _kernel(specs, tmp_path) as (_, client):
            look = (
                "try: print(len(open('/etc/passwd').read()) > 0)\nexcept OSError as error: print(type(error).__name__)"
            )
            assert await _said(client, look) == {"none": "True\n", "landlock": "PermissionError\n"}[isolation]


def test_a_blocking_client_starts_uses_restarts_and_ends_a_kernel(specs: KernelSpecManager, tmp_path: Path) -> None:
    manager = KernelManager(
        kernel_name="florette", kernel_spec_manager=specs, connection_file=str(tmp_path / "connection.json")
    )
    manager.start_kernel()
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=HANG_S)
        assert _value(client, "40 + 2") == "42"
        # Between two calls its loop stands still, and the end of the kernel is seen nevertheless.
        client.execute("import os; os._exit(1)")
        assert manager.provisioner is not None
        asyncio.run(asyncio.wait_for(manager.provisioner.wait(), HANG_S))
        assert not manager.is_alive()
        manager.restart_kernel()
        client.wait_for_ready(timeout=HANG_S)
        assert _value(client, "'here'") == "'here'"
        client.execute("print('begun', flush=True)\nwhile True: pass")
        while client.get_iopub_msg(timeout=HANG_S)["content"].get("text") != "begun\n":
            pass
        manager.interrupt_kernel()
        assert client.get_shell_msg(timeout=HANG_S)["content"]["ename"] == "KeyboardInterrupt"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.context.destroy(0)
    assert not manager.is_alive()
    assert not Path(str(manager.ip)).parent.exists()


def _value(client: BlockingKernelClient, expression: str) -> Any:
    reply = client.execute_interactive("", user_expressions={"value": expression}, timeout=HANG_S)
    return reply["content"]["user_expressions"]["value"]["data"]["text/plain"]


def test_a_kernel_does_not_outlive_the_program_that_started_it(tmp_path: Path) -> None:
    _specs(tmp_path, **_QUICKLY)
    program = (
        "import os, sys\n"
        "from jupyter_client.kernelspec import KernelSpecManager\n"
        "from jupyter_client.manager import KernelManager\n"
        "specs = KernelSpecManager(kernel_dirs=[sys.argv[1]])\n"
        "manager = KernelManager(kernel_name='florette', kernel_spec_manager=specs,\n"
        "                        connection_file=sys.argv[1] + '/connection.json')\n"
        "manager.start_kernel()\n"
        "print(manager.provisioner._kernel.sandbox.root_pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=KERNELSPEC.parents[4],
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:
        assert process.stdout is not None
        watched = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
    try:
        assert _has_ended(watched)
    finally:
        os.close(watched)


def _has_ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd)
    return bool(poll.poll(HANG_S * 1000))


def test_it_is_found_by_its_name() -> None:
    [found] = entry_points(group="jupyter_client.kernel_provisioners", name="florette-sandbox")
    assert found.load() is SandboxProvisioner
