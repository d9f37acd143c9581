"""Several workers behind one port, as processes: they start together, follow each other, and end together."""

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from asking import call
from commanding import Command, serving
from gateway_server import gateway_server
from proxy.config import Config, ConfigError
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Holds, Says

HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
STREAMED = {"model": "m", "messages": HI, "tools": TOOLS, "stream": True}

RUNS_CODE = '''
from tools.base import BaseTool, register_tool

@register_tool("run")
class Run(BaseTool):
    """Runs code."""
    description = "Runs code."
    uses_kernels = True

    async def call(self, params, **kwargs):
        return "ran"
'''

LOOK = '''
from tools.base import register_tool

@register_tool()
def {name}() -> str:
    """Looks."""
    return "seen"
'''


def write(where: Path, **config: Any) -> str:
    path = where / "config.yaml"
    path.write_text(yaml.safe_dump({"files_dir": str(where / "files"), **config}), "utf-8")
    return str(path)


@contextmanager
def working(tmp_path: Path, upstream: ScriptedUpstream, number: int = 2, **config: Any) -> Iterator[Command]:
    """A command with so many workers; none of them is left behind."""
    flags = ("--port", "0", "--upstream", upstream.url, "--workers", str(number))
    with serving(*flags, "--config", write(tmp_path, **config)) as command:
        before = workers_of(command)
        yield command
    _, alive = psutil.wait_procs(before, PATIENCE_S)
    assert alive == []


def workers_of(command: Command) -> list[psutil.Process]:
    return psutil.Process(command.process.pid).children()


def ask(command: Command, **fields: Any) -> httpx.Response:
    """By a connection of its own, which any worker may take."""
    return httpx.post(command.url + "/v1/chat/completions", json={**STREAMED, **fields}, timeout=PATIENCE_S)


@contextmanager
def only(one: psutil.Process, workers: list[psutil.Process]) -> Iterator[None]:
    """Meanwhile no other answers."""
    others = [worker for worker in workers if worker != one]
    for worker in others:
        worker.suspend()
    try:
        yield
    finally:
        for worker in others:
            worker.resume()


# -- they serve --------------------------------------------------------------------------------------------


def test_all_serve_and_one_line_tells_when_they_do(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.script(*[Says("It rains")] * 6)
    with working(tmp_path, upstream, 3) as command:
        assert command.ready == f"florette is ready on {command.url}/v1 (upstream: {upstream.url})\n"
        assert len(workers_of(command)) == 3
        assert [ask(command).text.endswith("data: [DONE]\n\n") for _ in range(6)] == [True] * 6
        command.tell(signal.SIGTERM)
        assert command.end() == (0, "", "")


def test_each_has_the_demo_where_there_is_no_upstream(tmp_path: Path) -> None:
    with serving("--port", "0", "--workers", "2", "--config", write(tmp_path)) as command:
        assert "NO MODEL" in command.ready
        answer = httpx.post(command.url + "/v1/chat/completions", json={**STREAMED, "stream": False})
        assert "no-model" in answer.json()["system_fingerprint"]
        command.tell(signal.SIGINT)
        assert command.end() == (0, "", "")


def test_a_file_is_there_whichever_of_them_is_asked(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with working(tmp_path, upstream) as command:
        given = {"file": ("a.txt", b"words")}
        made = httpx.post(command.url + "/v1/files", files=given, data={"purpose": "user_data"})
        file = made.json()["id"]
        read = [httpx.get(f"{command.url}/v1/files/{file}/content").text for _ in range(8)]
        assert read == ["words"] * 8


def test_a_session_of_code_goes_on_whichever_of_them_is_asked(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    state = f"sqlite:///{tmp_path / 'state.db'}"
    with gateway_server(preload=[]) as gateway:
        kernels = {"backend": "gateway", "url": gateway.url, "token": gateway.token, "pool": 0}
        with working(tmp_path, upstream, tools=["code_interpreter"], tool_state=state, kernels=kernels) as command:
            workers = workers_of(command)
            session: dict[str, str] = {}
            for number, worker in enumerate(workers * 2, start=1):
                code = json.dumps({"code": f"open('{number}', 'w'); x = globals().get('x', 0) + 1; print('x is', x)"})
                upstream.script(Says(call("code_interpreter", code)), Says("Done."))
                told = {"messages": True, **session}
                with only(worker, workers):
                    answer = ask(command, stream=False, tools=[{"type": "code_interpreter"}], florette=told).json()
                _, result, _ = answer["florette"]["messages"]
                assert f"x is {number}\n" in result["content"]
                assert f"Files: {number} (0 bytes)" in result["content"]
                session = {"session": answer["florette"]["session"]}
            assert len(gateway.kernels()) == 1
            command.tell(signal.SIGTERM)
            assert command.end()[:2] == (0, "")
        assert gateway.kernels() == []


# -- they end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["to the first of them", "to all, as a terminal does"])
def test_running_answers_finish_after_a_signal(upstream: ScriptedUpstream, tmp_path: Path, way: str) -> None:
    held = Holds(Says("It rains", cut=2), after=2)
    upstream.script(held)
    with (
        working(tmp_path, upstream) as command,
        httpx.stream("POST", command.url + "/v1/chat/completions", json=STREAMED) as answer,
    ):
        assert held.reached.wait(PATIENCE_S)
        for worker in workers_of(command) if way.startswith("to all") else ():
            worker.send_signal(signal.SIGINT)
        command.tell(signal.SIGINT)
        command.wait_until_deaf()
        held.release()
        assert answer.read().decode().endswith("data: [DONE]\n\n")
        code, printed, _ = command.end()
        assert (code, printed) == (0, "")


def test_a_second_signal_waits_for_no_answer(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    held = Holds(Says("It rains", cut=2), after=2)
    upstream.script(held)
    with (
        working(tmp_path, upstream, grace_s=3600) as command,
        httpx.stream("POST", command.url + "/v1/chat/completions", json=STREAMED) as answer,
    ):
        assert held.reached.wait(PATIENCE_S)
        command.tell(signal.SIGTERM)
        command.wait_until_deaf()
        command.tell(signal.SIGTERM)
        told = answer.read().decode()
        assert json.loads(told.rsplit("data: ", 1)[1])["error"]["code"] == "shutting_down"
        assert command.end()[0] == 0


def test_they_end_when_the_first_of_them_is_killed(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with working(tmp_path, upstream) as command:
        workers = workers_of(command)
        command.tell(signal.SIGKILL)
        gone, alive = psutil.wait_procs(workers, PATIENCE_S)
        assert (len(gone), alive) == (2, [])


# -- one follows another -----------------------------------------------------------------------------------


def test_one_that_dies_is_followed_by_another(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.script(*[Says("It rains")] * 4)
    with working(tmp_path, upstream) as command:
        first, second = workers_of(command)
        first.kill()
        assert f"worker {first.pid} ended by signal 9; another one is started" in command.until_logged("is ready")
        assert second in workers_of(command)
        assert len(workers_of(command)) == 2
        assert [ask(command).status_code for _ in range(4)] == [200] * 4
        command.tell(signal.SIGTERM)
        assert command.end()[:2] == (0, "")


def test_where_they_keep_dying_all_end(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with working(tmp_path, upstream) as command:
        spared, _ = workers_of(command)
        for _ in range(5):
            [worker] = [worker for worker in workers_of(command) if worker != spared]
            worker.kill()
            command.until_logged("is ready")
        [worker] = [worker for worker in workers_of(command) if worker != spared]
        worker.kill()
        assert "all end" in command.until_logged("the last of too many")
        assert command.end()[:2] == (1, "")


# -- SIGHUP ------------------------------------------------------------------------------------------------


def test_sighup_reaches_all_and_those_who_follow(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOK.format(name="look"), "utf-8")
    file, state = [{"file": str(tmp_path / "look.py")}], f"sqlite:///{tmp_path / 'state.db'}"
    upstream.script(*[Says("Hi.")] * 6)
    with working(tmp_path, upstream, tools=file, tool_state=state) as command:
        assert ask(command, tools=[{"type": "gaze"}]).status_code == 400
        (tmp_path / "look.py").write_text(LOOK.format(name="gaze"), "utf-8")
        command.tell(signal.SIGHUP)
        for _ in range(2):
            command.until_logged("were read anew")
        workers_of(command)[0].kill()
        command.until_logged("were read anew")
        assert [ask(command, tools=[{"type": "gaze"}]).status_code for _ in range(6)] == [200] * 6


def test_a_tool_that_must_not_be_among_several_changes_nothing(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUNS_CODE, "utf-8")
    with working(tmp_path, upstream) as command:
        state = f"sqlite:///{tmp_path / 'state.db'}"
        write(tmp_path, tools=[{"file": str(tmp_path / "run.py")}], tool_state=state)
        command.tell(signal.SIGHUP)
        for _ in range(2):
            assert "run one worker" in command.until_logged("the configuration stays as it was")


# -- they do not start -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"workers": 0}, "'workers': Input should be greater than or equal to 1."),
        ({"workers": 65}, "'workers': Input should be less than or equal to 64."),
        ({"files_dir": None}, "'workers': more than one keep files in a directory that they share: set 'files_dir'."),
        (
            {"tools": ["storage"]},
            "'workers': more than one share what our tools did: set 'tool_state' to sqlite:///PATH or redis://HOST.",
        ),
    ],
    ids=["none", "many", "files", "state"],
)
def test_what_they_cannot_share_is_told_in_one_sentence(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Config.load({}, Path(write(tmp_path, **{"workers": 2, **config})), {})
    assert str(refused.value) == f"Config key {said}"


def test_with_a_tool_whose_kernels_they_cannot_share_none_starts(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUNS_CODE, "utf-8")
    config = write(tmp_path, workers=2, tools=[{"file": "run.py"}], tool_state="redis://127.0.0.1:9")
    with serving("--port", "0", "--config", config) as command:
        code, printed, logged = command.end()
    assert (code, command.ready, printed) == (2, "", "")
    assert logged.replace(f"{tmp_path}/", "") == (
        "Config key 'tools': the tool 'run.py': kernels would be known to one of the 2 workers only; "
        "run one worker, or set kernels: {backend: gateway, url: ...}.\n"
    )


def test_with_kernels_elsewhere_there_may_be_several(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(RUNS_CODE, "utf-8")
    kernels = {"backend": "gateway", "url": "http://127.0.0.1:9"}
    state = f"sqlite:///{tmp_path / 'state.db'}"
    tools = [{"file": str(tmp_path / "run.py")}]
    with working(tmp_path, upstream, tools=tools, tool_state=state, kernels=kernels) as command:
        assert len(workers_of(command)) == 2


def test_an_address_that_is_taken_is_told_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving("--port", str(port), "--workers", "3", "--config", write(tmp_path)) as command:
            assert command.end() == (1, "", f"Cannot listen on 127.0.0.1:{port}: Address already in use.\n")
