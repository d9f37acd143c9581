"""The command line, as a process of its own: what it prints, what it listens to, how it ends.

The contract: flags beat `FLORETTE_...`, which beats the file, which beats the defaults; one line tells that
all is ready; SIGTERM lets running answers finish and exits 0; a bad config is one sentence that names the key,
and exit 2.
"""

import itertools
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from pydantic import SecretStr

from commanding import ROOT, environment, serving
from proxy.app import create_app
from proxy.cli import main
from proxy.config import Config, ConfigError
from scripted import ScriptedUpstream
from serving import PATIENCE_S
from steps import Fails, Holds, Resets, Says
from tools.kernel_settings import KernelSettings

EXAMPLE = ROOT / "config.example.yaml"
HI = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
STREAMED = {"model": "m", "messages": HI, "tools": TOOLS, "stream": True}

#: The grace of a server that is told to stop while nothing runs: it must not be waited for.
LONG_GRACE_S = "3600"


# -- it serves ---------------------------------------------------------------------------------------------


def test_without_an_upstream_it_says_so_and_serves_the_demo() -> None:
    with serving("--port", "0", FLORETTE_GRACE_S=LONG_GRACE_S) as command:
        assert "demo" in command.ready
        assert "NO MODEL" in command.ready
        assert httpx.get(command.url + "/readyz").status_code == 200
        question = [{"role": "user", "content": "What is the weather?"}]
        body = {"model": "m", "messages": question, "tools": TOOLS}
        answer = httpx.post(command.url + "/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "get_weather"
        assert "no-model" in answer["system_fingerprint"]
        command.tell(signal.SIGTERM)
        assert command.end() == (0, "", "")


def test_one_line_tells_that_it_is_ready_and_where(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("It rains"))
    with serving("--port", "0", "--upstream", upstream.url) as command:
        at = urlsplit(command.url)
        assert (at.scheme, at.hostname) == ("http", "127.0.0.1")
        assert at.port != 0
        assert command.ready == f"florette is ready on {command.url}/v1 (upstream: {upstream.url})\n"
        answer = httpx.post(command.url + "/v1/chat/completions", json=STREAMED)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert "server" not in answer.headers
        command.tell(signal.SIGINT)
        assert command.end() == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_open_connection_without_a_request_delays_no_end(upstream: ScriptedUpstream, number: signal.Signals) -> None:
    with (
        serving("--port", "0", "--upstream", upstream.url, FLORETTE_GRACE_S=LONG_GRACE_S) as command,
        httpx.Client(base_url=command.url) as client,
    ):
        assert client.get("/healthz").status_code == 200
        command.tell(number)
        assert command.end() == (0, "", "")


# -- it ends -----------------------------------------------------------------------------------------------


def test_running_answers_finish_after_sigterm(upstream: ScriptedUpstream) -> None:
    held = Holds(Says("It rains", cut=2), after=2)
    upstream.script(held)
    with (
        serving("--port", "0", "--upstream", upstream.url) as command,
        httpx.stream("POST", command.url + "/v1/chat/completions", json=STREAMED) as answer,
    ):
        assert held.reached.wait(PATIENCE_S)
        command.tell(signal.SIGTERM)
        command.wait_until_deaf()
        held.release()
        *chunks, done, rest = answer.read().decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        said = [json.loads(chunk[6:])["choices"][0] for chunk in chunks]
        assert "".join(choice["delta"].get("content") or "" for choice in said) == "It rains"
        assert said[-1]["finish_reason"] == "stop"
        assert command.end() == (0, "", "")
    assert not upstream.received[0].left.is_set()


@pytest.mark.parametrize("impatience", ["a second signal", "the end of the grace period"])
def test_what_is_not_waited_for_ends_in_an_error(upstream: ScriptedUpstream, impatience: str) -> None:
    held = Holds(Says("It rains", cut=2), after=2)
    upstream.script(held)
    again = impatience == "a second signal"
    grace = LONG_GRACE_S if again else "0"
    with (
        serving("--port", "0", "--upstream", upstream.url, FLORETTE_GRACE_S=grace) as command,
        httpx.stream("POST", command.url + "/v1/chat/completions", json=STREAMED) as answer,
    ):
        assert held.reached.wait(PATIENCE_S)
        command.tell(signal.SIGTERM)
        if again:
            command.wait_until_deaf()
            command.tell(signal.SIGTERM)
        told = answer.read().decode()
        assert json.loads(told.rsplit("data: ", 1)[1])["error"]["code"] == "shutting_down"
        assert '"finish_reason":"' not in told
        code, printed, logged = command.end()
        assert (code, printed) == (0, "")
        assert again or "Traceback" not in logged
    assert upstream.received[0].left.wait(1)


# -- it does not start -------------------------------------------------------------------------------------


def test_an_address_that_is_taken_is_told_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serving("--port", str(port)) as command:
            assert command.end() == (1, "", f"Cannot listen on 127.0.0.1:{port}: Address already in use.\n")


@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_a_bad_key_ends_the_command_with_2(tmp_path: Path, way: str) -> None:
    file = tmp_path / "florette.yaml"
    file.write_text("port: 65536\n" if way == "file" else "", encoding="utf-8")
    flags = ("--port", "65536") if way == "flag" else ()
    settings = {"FLORETTE_PORT": "65536"} if way == "environment" else {}
    with serving(*flags, "--config", str(file), "--upstream-key", "sk-secret", **settings) as command:
        sentence = "Config key 'port': Input should be less than or equal to 65535.\n"
        assert command.end() == (2, "", sentence)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104 - to be refused
def test_without_keys_it_serves_no_other_machine(host: str) -> None:
    if host == "::" and not socket.has_ipv6:
        pytest.skip("no IPv6 on this machine")
    with serving("--port", "0", "--host", host, FLORETTE_API_KEYS="[]") as command:
        code, printed, said = command.end()
    assert (code, printed, said.count("\n")) == (2, "", 1)
    assert f"whoever reaches {host}:0:" in said
    assert all(way in said for way in ("'api_keys'", "listen on 127.0.0.1", "--allow-unauthenticated"))


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        (["--allow-unauthenticated"], {}),
        ([], {"FLORETTE_ALLOW_UNAUTHENTICATED": "true"}),
        ([], {"FLORETTE_API_KEYS": "[{name: a, env: A_KEY}]", "A_KEY": "sk-1"}),
        (["--host", "127.0.0.1"], {}),
        (["--host", "localhost"], {}),
    ],
    ids=str,
)
def test_with_keys_or_when_told_so_it_serves_any_machine(flags: list[str], settings: dict[str, str]) -> None:
    with serving("--port", "0", "--host", "0.0.0.0", *flags, **settings) as command:  # noqa: S104 - that is the point
        assert httpx.get(command.url + "/healthz").status_code == 200
        assert httpx.get(command.url + "/v1/models").status_code == (401 if "A_KEY" in settings else 200)


BAD_FLAGS = [
    ({"port": 65536}, "'port'"),
    ({"port": -1}, "'port'"),
    ({"host": ""}, "'host'"),
    ({"upstream": ""}, "'upstream'"),
    ({"upstream": "localhost:8000"}, "'upstream'"),
    ({"upstream": "ftp://localhost/v1"}, "'upstream'"),
    ({"upstream": "http:///v1"}, "'upstream'"),
    ({"upstream": "http://[::1/v1"}, "'upstream'"),
    ({"upstream": "http://localhost:0/v1"}, "'upstream'"),
    ({"upstream": "http://localhost:99999/v1"}, "'upstream'"),
    ({"upstream": "http://localhost:http/v1"}, "'upstream'"),
    ({"upstream": "http://user:sk-secret@localhost/v1"}, "'upstream_key'"),
    ({"upstream": "http://localhost/v1?key=sk-secret"}, "'upstream_key'"),
    ({"upstream_key": "sk-secret", "port": 65536}, "'port'"),
    ({"upstream_key": "“sk-secret”"}, "'upstream_key'"),
    ({"upstream_key": "sk-secret\nsk-secret"}, "'upstream_key'"),
]

BAD_FILES = [
    ("prot: 8080", "'prot'"),
    ("port: eighty", "'port'"),
    ("port: 80.5", "'port'"),
    ("port: null", "'port'"),
    ("port: [80]", "'port'"),
    ("grace_s: -1", "'grace_s'"),
    ("max_body_bytes: 10", "'max_body_bytes'"),
    ("connect_timeout_s: 0", "'connect_timeout_s'"),
    ("idle_timeout_s: soon", "'idle_timeout_s'"),
    ("answer_timeout_s: .nan", "'answer_timeout_s'"),
    ("retries: 1.5", "'retries'"),
    ("retry_backoff_s: 11", "'retry_backoff_s'"),
    ("default_system: [x]", "'default_system'"),
    ("language: de", "'language'"),
    ("vision: perhaps", "'vision'"),
    ("reasoning_field: Thinking!", "'reasoning_field'"),
    ("log_level: loud", "'log_level'"),
    ("api_keys:", "'api_keys'"),
    ("api_keys: [{name: a, key: sk-secret}]", "'api_keys.0.key'"),
    ("allow_unauthenticated: perhaps", "'allow_unauthenticated'"),
    ("upstream: localhost", "'upstream'"),
    ("upstream_key: [sk-secret]", "'upstream_key'"),
    ("port: 8080\nvision: [", "not valid YAML"),
    ("port: 80: 80", "not valid YAML"),
    ("port: !!python/name:os.system", "not valid YAML"),
    ('port: 8080\nupstream_key: "sk-secret\n', "line 3"),
    ("upstream_key: sk-secret: 5", "line 1"),
    ("upstream_key: sk-secret\x00", "not valid YAML"),
    ("port: 2001-99-99", "not valid YAML"),
    ("port: !!int x", "not valid YAML"),
    ("port: !!timestamp x", "not valid YAML"),
    ("[" * 1000, "not valid YAML"),
    ("- port", "keys and values"),
    ("just text", "keys and values"),
]


def refusal(flags: dict[str, Any], file: Path | None = None) -> str:
    """What is said of a bad configuration: one sentence that holds no key."""
    with pytest.raises(ConfigError) as refused:
        Config.load(flags, file, {})
    said = str(refused.value)
    assert "\n" not in said
    assert said.endswith(".")
    assert "secret" not in said
    return said


@pytest.mark.parametrize(("flags", "named"), BAD_FLAGS, ids=str)
def test_a_bad_flag_is_told_in_a_sentence(flags: dict[str, Any], named: str) -> None:
    assert named in refusal(flags)


@pytest.mark.parametrize(("content", "named"), BAD_FILES, ids=lambda value: value[:30])
def test_a_bad_file_is_told_in_a_sentence(tmp_path: Path, content: str, named: str) -> None:
    file = tmp_path / "florette.yaml"
    file.write_text(content, encoding="utf-8")
    assert named in refusal({}, file)


@pytest.mark.parametrize("kind", ["missing", "folder", "bytes"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "florette.yaml"
    if kind == "folder":
        file.mkdir()
    if kind == "bytes":
        file.write_bytes(b"\xff\xfe\xff")
    assert str(file) in refusal({}, file)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND"),
        (["sevre"], "sevre"),
        (["serve", "--prot", "1"], "--prot"),
        (["serve", "--port", "eighty"], "--port"),
        (["serve", "--port"], "--port"),
        (["serve", "8080"], "8080"),
    ],
)
def test_what_is_no_flag_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str], named: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


# -- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", list(itertools.product([True, False], repeat=3)), ids=str)
def test_flags_beat_the_environment_beats_the_file_beats_the_defaults(
    tmp_path: Path, given: tuple[bool, bool, bool]
) -> None:
    in_flags, in_environment, in_file = given
    file = tmp_path / "florette.yaml"
    file.write_text("port: 3\nretries: 3\n" if in_file else "retries: 3\n", encoding="utf-8")
    config = Config.load(
        {"port": 1 if in_flags else None, "host": None},
        file,
        {"FLORETTE_PORT": "2", "FLORETTE_HOST": ""} if in_environment else {"PORT": "5", "FLORETTE_HOST": ""},
    )
    first = [value for value, present in zip((1, 2, 3), given, strict=True) if present]
    assert config == Config(port=[*first, 8080][0], retries=3)


@pytest.mark.parametrize(("given", "used"), [("sk-ours\n", "sk-ours"), (" sk-ours ", "sk-ours"), ("\n", None)])
def test_blanks_around_a_key_are_no_part_of_it(given: str, used: str | None) -> None:
    """Where it comes out of a file, a line end is behind it."""
    key = Config.load({"upstream_key": given}, None, {}).upstream_key
    assert (key and key.get_secret_value()) == used


def test_what_kubernetes_sets_beside_a_service_is_not_ours() -> None:
    """For a service named `florette` it sets FLORETTE_PORT to a URL."""
    assert Config.load({}, None, {"FLORETTE_PORT": "tcp://10.0.0.1:80", "FLORETTE_RETRIES": "3"}) == Config(retries=3)


def test_all_three_reach_the_running_server(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.script(Fails(401, {"error": "no"}))
    file = tmp_path / "florette.yaml"
    file.write_text(
        "upstream: http://from.the.file/v1\nupstream_key: sk-of-the-file\nport: 1\nretries: 0\n",
        encoding="utf-8",
    )
    flags = ("--port", "0", "--config", str(file), "--upstream", upstream.url)
    with serving(
        *flags,
        FLORETTE_UPSTREAM="http://from.the.environment/v1",
        FLORETTE_UPSTREAM_KEY="sk-of-the-environment",
    ) as command:
        assert f"(upstream: {upstream.url})" in command.ready
        assert httpx.post(command.url + "/v1/chat/completions", json=STREAMED).status_code == 502
    assert upstream.received[0].headers["authorization"] == "Bearer sk-of-the-environment"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/llm/v1", "https://host/llm/v1"),
    ],
)
def test_an_upstreams_url_may_end_with_or_without_its_path(given: str, used: str) -> None:
    assert Config(upstream=given).upstream == used


def test_no_key_is_ever_printed(upstream: ScriptedUpstream) -> None:
    """Not even when all is logged and everything fails."""
    upstream.script(Fails(401, {"error": "Incorrect API key provided: sk-ours"}), Fails(500), Resets())
    flags = ("--port", "0", "--upstream", upstream.url, "--upstream-key", "sk-ours")
    with serving(*flags, FLORETTE_LOG_LEVEL="debug", FLORETTE_RETRIES="0") as command:
        theirs = {"authorization": "Bearer sk-theirs"}
        for _ in range(3):
            answer = httpx.post(command.url + "/v1/chat/completions", json=STREAMED, headers=theirs)
            assert answer.status_code in (500, 502)
        assert upstream.received[0].headers["authorization"] == "Bearer sk-ours"
        command.tell(signal.SIGTERM)
        code, printed, logged = command.end()
    assert code == 0
    assert "upstream_key_refused" in logged
    assert not {key for key in ("sk-ours", "sk-theirs") if key in command.ready + printed + logged}
    assert "sk-ours" not in repr(Config(upstream_key=SecretStr("sk-ours")))


def test_no_key_of_a_caller_is_ever_printed(upstream: ScriptedUpstream) -> None:
    upstream.script(Says("hello"), Fails(401, {"error": "Unauthorized"}), Resets())
    settings = {"FLORETTE_API_KEYS": "[{name: ada, env: ADAS_KEY}]", "ADAS_KEY": "sk-adas", "FLORETTE_RETRIES": "0"}
    with serving("--port", "0", "--upstream", upstream.url, FLORETTE_LOG_LEVEL="debug", **settings) as command:
        told = [
            httpx.post(command.url + "/v1/chat/completions", json=STREAMED, headers={"authorization": f"Bearer {key}"})
            for key in ("sk-wrong", "sk-adas", "sk-adas", "sk-adas")
        ]
        command.tell(signal.SIGTERM)
        code, printed, logged = command.end()
    assert [answer.status_code for answer in told] == [401, 200, 502, 502]
    assert code == 0
    assert "sk-" not in printed + logged + "".join(answer.text for answer in told)


def test_the_example_lists_every_key_with_its_default() -> None:
    written = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert sorted(written) == sorted(Config.model_fields)
    assert Config.load({}, EXAMPLE, {}) == Config()


def test_the_example_lists_every_key_of_kernels_with_its_default() -> None:
    written = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["kernels"]
    assert sorted(written) == sorted(KernelSettings.model_fields)
    assert KernelSettings.model_validate(written) == KernelSettings()


def test_every_key_is_described() -> None:
    fields = [*Config.model_fields.values(), *KernelSettings.model_fields.values()]
    assert all(field.description for field in fields)


def test_an_app_cannot_be_made_without_an_upstream() -> None:
    """The demo is the command's to start."""
    with pytest.raises(ValueError, match="upstream"):
        create_app(Config())


# -- it is light -------------------------------------------------------------------------------------------

#: What tools, tests and benchmarks need. It would be waited for at every start, and stay in memory.
NOT_TO_SERVE = {
    *("hypothesis", "langchain_core", "langchain_openai", "openai", "psutil", "pytest"),
    *("jupyter_client", "numpy", "pandas", "pdfplumber", "PIL", "torch", "transformers", "zmq"),
}


def test_serving_loads_nothing_that_only_tools_or_tests_need() -> None:
    program = "import sys, proxy.cli; print(*sys.modules)"
    run = [sys.executable, "-c", program]
    printed = subprocess.run(run, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in printed.split()}
    assert {"proxy", "fastapi", "uvicorn"} <= loaded
    assert not loaded & NOT_TO_SERVE


@pytest.mark.parametrize("written", ["guided: off", "models: {m: {guided: off}}"])
def test_off_may_be_written_as_yaml_reads_it(tmp_path: Path, written: str) -> None:
    """A bare `off` is false there."""
    file = tmp_path / "config.yaml"
    file.write_text(written, encoding="utf-8")
    config = Config.load({}, file, {})
    assert "off" in (config.guided, *(model.guided for model in config.models.values()))
