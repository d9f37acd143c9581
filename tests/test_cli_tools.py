"""The command line and tools: `florette tools`, what a wrong configuration says, and SIGHUP."""

import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from commanding import Command, serving
from pretending import DESCRIBED, Opener
from proxy.cli import main
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Holds, Says

Json = dict[str, Any]

TOOL = '''
import os
from tools.base import register_tool

@register_tool()
def {name}(text: str = "") -> str:
    """Tells what it sees of its surroundings."""
    return "{said} " + " ".join(sorted(name for name in os.environ if "KEY" in name or "FLORETTE" in name))
'''

#: What people are told of the pretended kernels.
IN_FORCE = """
isolation: bwrap
layers:
  namespaces: own processes, no network
  seccomp: no mounts
python: /opt/kernels/bin/python
limits:
  memory_bytes: 1073741824
  preload: numpy, pandas
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration with one tool of the operator's own, `look`."""
    (tmp_path / "look.py").write_text(TOOL.format(name="look", said="seen:"), "utf-8")
    return write(tmp_path, [{"file": str(tmp_path / "look.py"), "timeout_s": 20}])


def write(where: Path, tools: list[Any], **config: Any) -> Path:
    path = where / "config.yaml"
    path.write_text(yaml.safe_dump({"tools": tools, **config}), "utf-8")
    return path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Json]:
    assert main(["tools", "--json", *arguments]) == 0
    return {tool["name"]: tool for tool in json.loads(capsys.readouterr().out)}


# -- the list ----------------------------------------------------------------------------------------------


def test_the_list_tells_of_each_tool_whether_it_can_be_used_and_its_schema(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tools = listed(capsys, "--config", str(write(tmp_path, [{"name": "math_solver", "timeout_s": 5}, "amap_weather"])))
    solver = tools["math_solver"]
    assert (solver["state"], solver["reason"], solver["settings"]["timeout_s"]) == ("enabled", None, 5)
    assert solver["function"]["parameters"]["type"] == "object"
    assert tools["amap_weather"]["state"] == "unavailable"
    assert "key" in tools["amap_weather"]["reason"]
    assert (tools["weather"]["state"], tools["weather"]["reason"]) == ("off", "it is not in 'tools'")
    assert tools["weather"]["function"]["parameters"]["type"] == "object"


def test_the_list_is_for_people_too(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert main(["tools", "--config", str(file)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^look +enabled\n    Tells what it sees of its surroundings\.\n", printed, re.MULTILINE)
    assert '    {"additionalProperties": false, "properties": {"text": {"default": "", "type": "string"}}' in printed
    assert "timeout_s=20.0 max_retries=3 cache_enabled=True" in printed
    assert re.search(r"^weather +off: it is not in 'tools'$", printed, re.MULTILINE)


# -- kernels -----------------------------------------------------------------------------------------------


def test_the_list_tells_what_is_in_force_where_a_tool_runs_code(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    opener = Opener()
    config = str(write(tmp_path, ["run_code", "storage"], kernels={"pool": 3}))
    assert main(["tools", "--json", "--config", config], open_kernels=opener) == 0
    tools = {tool["name"]: tool for tool in json.loads(capsys.readouterr().out)}
    assert tools["run_code"]["kernels"] == json.loads(json.dumps(DESCRIBED))
    assert "kernels" not in tools["storage"]
    assert opener.only.settings.pool == 3
    assert (opener.only.starts, opener.only.closed.is_set()) == (0, True)


def test_people_are_told_of_it_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["tools", "--config", str(write(tmp_path, ["run_code"]))], open_kernels=Opener()) == 0
    assert IN_FORCE.replace("\n", "\n    ").rstrip(" ") in capsys.readouterr().out


@pytest.mark.parametrize("opener", [Opener(missing="no bwrap: apt install it"), Opener(library="zmq")], ids=["a", "b"])
def test_why_there_are_no_kernels_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, opener: Opener) -> None:
    assert main(["tools", "--config", str(write(tmp_path, ["run_code"]))], open_kernels=opener) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run_code")]
    assert line.partition(" unavailable: ")[2] in (
        "no bwrap: apt install it",
        "the library 'zmq' is not installed: install florette[kernels]",
    )


def test_without_a_tool_that_runs_code_no_kernels_are_opened(file: Path) -> None:
    opener = Opener()
    assert main(["tools", "--config", str(file)], open_kernels=opener) == 0
    assert opener.opened == []


def test_the_doctor_examines_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    opener = Opener()
    config = str(write(tmp_path, [], kernels={"isolation": "bwrap"}))
    assert main(["doctor", "--config", config], open_kernels=opener) == 0
    assert capsys.readouterr().out == f"Tools can run code here.{IN_FORCE}"
    assert (opener.only.settings.isolation, opener.only.closed.is_set()) == ("bwrap", True)


def test_programs_are_told_what_the_doctor_found(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = str(write(tmp_path, []))
    assert main(["doctor", "--json", "--config", config], open_kernels=Opener()) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"usable": True, "reason": None, "kernels": json.loads(json.dumps(DESCRIBED))}


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (Opener(missing="no bwrap: apt install it"), "no bwrap: apt install it"),
        (Opener(library="zmq"), "the library 'zmq' is not installed: install florette[kernels]"),
    ],
    ids=["isolation", "library"],
)
def test_the_doctor_says_what_would_help_and_exits_with_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, opener: Opener, reason: str
) -> None:
    config = str(write(tmp_path, []))
    assert main(["doctor", "--config", config], open_kernels=opener) == 1
    assert capsys.readouterr().out == f"Tools can run no code here: {reason}\n"
    assert main(["doctor", "--json", "--config", config], open_kernels=opener) == 1
    assert json.loads(capsys.readouterr().out)["reason"] == reason


def test_kernels_that_workers_cannot_share_are_told_of_before_a_server_is_started(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = f"sqlite:///{tmp_path / 'state.db'}"
    config = str(write(tmp_path, ["run_code"], workers=2, files_dir=str(tmp_path), tool_state=state))
    help_ = "run one worker, or set kernels: {backend: gateway, url: ...}"
    why = f"kernels would be known to one of the 2 workers only; {help_}"
    assert main(["tools", "--config", config], open_kernels=Opener()) == 2
    assert capsys.readouterr().err == f"Config key 'tools': the tool 'run_code': {why}.\n"
    assert main(["doctor", "--config", config], open_kernels=Opener()) == 1
    assert capsys.readouterr().out == f"Tools can run no code here: {why}\n"


def test_a_config_that_cannot_be_used_ends_the_doctor_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = str(write(tmp_path, [], kernels={"isolation": "docker"}))
    assert main(["doctor", "--config", config], open_kernels=Opener()) == 2
    assert capsys.readouterr().err.startswith("Config key 'kernels.isolation': ")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--base-url and --model; or --config FILE"),
        (["--model", "m"], "doctor needs --base-url; or"),
        (["--config", "x.yaml", "--model", "m", "--timeout", "5"], "takes no --model and --timeout"),
    ],
)
def test_the_doctor_examines_an_endpoint_or_the_machine(
    capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# -- a wrong configuration ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        (["wether"], "Config key 'tools': there is no tool named 'wether'"),
        ([{"file": "nowhere.py"}], "/nowhere.py: No such file or directory."),
        ([{"name": "weather", "days": 3}], "Config key 'tools': the tool 'weather': 'days': there is no such option."),
        ([{"name": "weather", "timeout_s": -1}], "'timeout_s': Input should be greater than 0"),
        ([{"name": "amap_weather", "key": {"env": "NO_SUCH_KEY"}}], "'NO_SUCH_KEY' is empty or not set"),
        ("weather", "Config key 'tools': must be a list"),
        ([{}], "must have a 'name' or a 'file'"),
    ],
)
def test_tools_that_cannot_be_made_end_the_command_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tools: Any, said: str
) -> None:
    assert main(["tools", "--config", str(write(tmp_path, tools))]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_a_server_does_not_start_without_a_tool_that_it_should_have(tmp_path: Path) -> None:
    with serving("--port", "0", "--config", str(write(tmp_path, ["wether"]))) as command:
        code, printed, said = command.end()
    assert (code, printed) == (2, "")
    assert said.startswith("Config key 'tools': there is no tool named 'wether'")
    assert said.count("\n") == 1


def test_a_model_with_a_tool_that_is_not_there_ends_the_command_with_2(tmp_path: Path) -> None:
    config = write(tmp_path, ["storage"], models={"assistant": {"tools": ["weather"]}})
    with serving("--port", "0", "--config", str(config)) as command:
        code, _, said = command.end()
    assert (code, said) == (2, "Config key 'models.assistant.tools': there is no 'weather' in 'tools'.\n")


def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    with serving("--port", "0", "--config", str(write(tmp_path, ["weather"])), TOOL_TIMEOUT="soon") as command:
        code, _, printed = command.end()
    assert code == 2
    assert "the variable TOOL_TIMEOUT: 'timeout_s'" in printed


# -- it serves ---------------------------------------------------------------------------------------------


def ask(command: Command, tool: str, **fields: Any) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "Go."}], "tools": [{"type": tool}], **fields}
    return httpx.post(command.url + "/v1/chat/completions", json=body, timeout=PATIENCE_S)


def called(tool: str) -> Says:
    return Says(f"✿FUNCTION✿: {tool}\n✿ARGS✿: {{}}\n✿RESULT✿")


def result_in(upstream: ScriptedUpstream, number: int) -> str:
    return str(upstream.received[number].json["messages"][-1]["content"]).partition("✿RESULT✿: ")[2]


def test_a_tools_process_sees_none_of_our_keys(upstream: ScriptedUpstream, file: Path) -> None:
    upstream.script(called("look"), Says(": Done."))
    secrets = {"FLORETTE_UPSTREAM_KEY": "sk-1", "FLORETTE_API_KEYS": "[{name: a, env: CALLERS_KEY}]"}
    flags = ("--port", "0", "--upstream", upstream.url, "--config", str(file))
    with serving(*flags, **secrets, CALLERS_KEY="sk-2", OTHER_KEY="theirs") as command:
        answer = httpx.post(
            command.url + "/v1/chat/completions",
            json={"model": "m", "messages": [{"role": "user", "content": "Go."}], "tools": [{"type": "look"}]},
            headers={"authorization": "Bearer sk-2"},
            timeout=PATIENCE_S,
        )
        assert answer.json()["choices"][0]["message"]["content"] == "Done."
        assert result_in(upstream, 1).startswith("seen: OTHER_KEY\n")
        command.tell(signal.SIGTERM)
        assert command.end()[0] == 0


def test_sighup_takes_effect_without_dropping_a_stream(upstream: ScriptedUpstream, file: Path, tmp_path: Path) -> None:
    held = Holds(called("look"), after=1)
    upstream.script(held, Says(": Old."), called("gaze"), Says(": New."))
    with serving("--port", "0", "--upstream", upstream.url, "--config", str(file)) as command:
        told: list[str] = []
        running = threading.Thread(target=lambda: told.append(ask(command, "look", stream=True).text))
        running.start()
        assert held.reached.wait(PATIENCE_S)

        (tmp_path / "look.py").write_text(TOOL.format(name="gaze", said="gazed:"), "utf-8")
        command.tell(signal.SIGHUP)
        command.until_logged("were read anew")
        held.release()
        running.join()
        assert "Old." in told[0]
        assert told[0].endswith("data: [DONE]\n\n")

        refused = ask(command, "look")
        assert (refused.status_code, "'look' is not run by this server" in refused.text) == (400, True)
        assert ask(command, "gaze").json()["choices"][0]["message"]["content"] == "New."
        assert result_in(upstream, 3).startswith("gazed:")


def test_a_configuration_that_cannot_be_used_changes_nothing(upstream: ScriptedUpstream, file: Path) -> None:
    upstream.script(called("look"), Says(": Done."))
    with serving("--port", "0", "--upstream", upstream.url, "--config", str(file)) as command:
        file.write_text("tools: [wether]", "utf-8")
        command.tell(signal.SIGHUP)
        assert "there is no tool named 'wether'" in command.until_logged("the configuration stays as it was")
        assert ask(command, "look").json()["choices"][0]["message"]["content"] == "Done."


def test_a_tool_that_cannot_be_used_is_told_at_the_start_and_to_who_asks(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    config = write(tmp_path, ["amap_weather"], models={"assistant": {"tools": ["amap_weather"]}})
    upstream.script(Says("Hi."))
    with serving("--port", "0", "--upstream", upstream.url, "--config", str(config)) as command:
        assert "key" in command.until_logged("the tool amap_weather cannot be used")
        refused = ask(command, "amap_weather")
        assert refused.status_code == 400
        assert "'amap_weather' cannot be used now" in refused.json()["error"]["message"]
        assert ask(command, "x", model="assistant", tools=[]).json()["choices"][0]["message"]["content"] == "Hi."
