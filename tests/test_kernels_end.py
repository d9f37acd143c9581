"""When the server ends, however that be, nothing of its kernels is left: no process, no socket, no directory."""

import json
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from openai.types.chat import ChatCompletionChunk

from asking import call, client_of
from commanding import serving
from readable_python import open_directory, readable_python
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Says
from tools.kernel_settings import KernelSettings
from tools.kernels.service import open_kernels

ENDLESS = "import subprocess, sys\nsubprocess.Popen(['sleep', '1000'], start_new_session=True)\nwhile True: pass"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for all that the server makes, which kernels of another user can reach."""
    with open_directory() as made:
        yield made


@pytest.fixture(params=["bwrap", "landlock"])
def kernels(request: pytest.FixtureRequest, place: Path) -> dict[str, Any]:
    """The configuration of kernels that are apart, without libraries: those are no concern here."""
    settings: dict[str, Any] = {"isolation": request.param, "preload": [], "pool": 1}
    if request.param == "landlock":
        settings["python"] = str(readable_python(place))
    if reason := open_kernels(KernelSettings(**settings)).unavailable():
        pytest.skip(f"NO SANDBOXES HERE, so that nothing of their end is tested: {reason}")
    return settings


def begin(upstream: ScriptedUpstream, client: openai.OpenAI) -> openai.Stream[ChatCompletionChunk]:
    """Runs a cell in one session, which is idle then, and begins one in another that does not end."""
    first, second = (call("code_interpreter", json.dumps({"code": code})) for code in ("1+1", ENDLESS))
    upstream.script(Says(first), Says("Two."), Says(second))
    asked: dict[str, Any] = {"model": "analyst", "messages": [{"role": "user", "content": "What is 1+1?"}]}
    assert client.chat.completions.create(**asked).choices[0].message.content == "Two."
    tells = {"florette": {"events": True, "session": "busy"}}
    stream: openai.Stream[ChatCompletionChunk] = client.chat.completions.create(**asked, stream=True, extra_body=tells)
    # Told when the call begins.
    assert any("tool_call" in json.dumps(chunk.model_dump().get("florette") or {}) for chunk in stream)
    return stream


def started(server: psutil.Process) -> list[psutil.Process]:
    """The processes of the kernels, once what the endless cell has started is among them."""
    patience_ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < patience_ends:
        found = server.children(recursive=True)
        if any("1000" in process.cmdline() for process in found):
            return found
    raise AssertionError("the cell did not begin")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left(
    number: signal.Signals, kernels: dict[str, Any], upstream: ScriptedUpstream, place: Path, tmp_path: Path
) -> None:
    (temporary := place / "temporary").mkdir(mode=0o711)
    config = {
        "upstream": upstream.url,
        "tools": ["code_interpreter"],
        "kernels": kernels,
        "models": {"analyst": {"upstream_model": "m", "tools": ["code_interpreter"]}},
        "files_dir": str(tmp_path / "files"),
        "port": 0,
        "grace_s": 0.5,
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with ExitStack() as held:
        command = held.enter_context(serving("--config", str(tmp_path / "config.yaml"), TMPDIR=str(temporary)))
        client = held.enter_context(client_of(command.url))
        held.enter_context(begin(upstream, client))
        processes = started(psutil.Process(command.process.pid))
        ends = [os.pidfd_open(process.pid) for process in processes]
        for end in ends:
            held.callback(os.close, end)
        command.tell(number)
        command.process.wait(PATIENCE_S)
        for end in ends:
            assert select.select([end], [], [], PATIENCE_S)[0], "a process is left"
        # What was just being started when the server ended is cleared up, too, at its own time.
        patience_ends = time.monotonic() + PATIENCE_S
        while list(temporary.iterdir()):
            assert time.monotonic() < patience_ends, "a directory is left"
