"""The configuration of kernels: what it says, when they are opened, started and closed, and who may use them."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from asking import call
from pretending import Opener
from proxy.app import create_app
from proxy.config import Config, ConfigError
from scripted import ScriptedUpstream
from serving import PATIENCE_S, LoopThread, serve_app
from steps import Says
from tools.base import ToolUnavailable
from tools.kernel_settings import KernelSettings
from tools.registry import open_kernels
from tools.settings import ENTRIES
from tools.toolbox import Toolbox

Json = dict[str, Any]

RUN = call("run_code", '{"code": "x"}') + "✿RESULT✿"
WARNED = "'kernels' is not read anew"


def loaded(text: str, file: Path | None = None, **environment: str) -> Config:
    if file:
        file.write_text(text, "utf-8")
    return Config.load({}, file, environment)


# -- keys --------------------------------------------------------------------------------------------------


def test_settings_come_from_the_file_or_a_variable(tmp_path: Path) -> None:
    text = "kernels: {isolation: landlock, sessions: 50}"
    in_file = loaded(text, tmp_path / "florette.yaml").kernels
    in_variable = loaded("", FLORETTE_KERNELS="{isolation: landlock, sessions: 50}").kernels
    assert in_file == in_variable == KernelSettings(isolation="landlock", sessions=50)


def test_the_python_of_kernels_is_meant_as_seen_from_the_file(tmp_path: Path) -> None:
    text = "kernels: {python: venv/bin/python}"
    assert loaded(text, tmp_path / "florette.yaml").kernels.python == tmp_path / "venv/bin/python"
    text = "kernels: {python: /opt/bin/python}"
    assert loaded(text, tmp_path / "florette.yaml").kernels.python == Path("/opt/bin/python")


def test_a_token_may_be_a_variable_and_is_never_shown(tmp_path: Path) -> None:
    text = 'kernels: {backend: gateway, url: "http://kernels:8888/", token: {env: GATEWAY_TOKEN}}'
    config = loaded(text, tmp_path / "florette.yaml", GATEWAY_TOKEN="sk-secret\n")
    assert config.kernels.url == "http://kernels:8888"
    assert config.kernels.token
    assert config.kernels.token.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(config) + str(config.model_dump())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kernels:", "'kernels': must be a mapping, such as {isolation: bwrap, sessions: 50}."),
        ("kernels: bwrap", "'kernels': must be a mapping"),
        ("kernels: {isolation: docker}", "'kernels.isolation': Input should be 'auto', 'bwrap', 'landlock' or 'none'."),
        ("kernels: {sesions: 1}", "'kernels.sesions': there is no such key."),
        ("kernels: {pool: -1}", "'kernels.pool': Input should be greater than or equal to 0."),
        ("kernels: {backend: gateway}", "'kernels': 'backend: gateway' and 'url' belong together."),
        ('kernels: {url: "http://kernels"}', "'kernels': 'backend: gateway' and 'url' belong together."),
        (
            'kernels: {backend: gateway, url: "http://me:s3cr3t@kernels"}',
            "'kernels.url': must hold no name and no password, as it is shown; a token goes into 'token'.",
        ),
        ("kernels: {backend: gateway, url: kernels}", "'kernels.url': must be a URL like http://kernels:8888."),
        ("kernels: {token: {env: NO_SUCH}}", "'kernels': the variable 'NO_SUCH' is empty or not set."),
        ("kernels: {token: [sk-secret]}", "'kernels.token': "),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        loaded(text, tmp_path / "florette.yaml")
    assert f"Config key {said}" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


# -- who may use them --------------------------------------------------------------------------------------


def test_a_tool_that_uses_kernels_is_unavailable_without_any() -> None:
    box = Toolbox.of(ENTRIES.validate_python(["run_code", "surroundings"]))
    assert list(box.tools) == ["surroundings"]
    assert box.unavailable == {"run_code": "it runs code in kernels, and there are none here"}


@pytest.mark.parametrize(
    ("opener", "reason"),
    [
        (
            Opener(missing="bwrap is not installed: apt install bubblewrap"),
            "bwrap is not installed: apt install bubblewrap",
        ),
        (Opener(library="zmq"), "the library 'zmq' is not installed: install florette[kernels]"),
    ],
    ids=["isolation", "library"],
)
def test_why_there_are_no_kernels_is_told_word_for_word(
    upstream: ScriptedUpstream,
    loop_thread: LoopThread,
    caplog: pytest.LogCaptureFixture,
    opener: Opener,
    reason: str,
) -> None:
    with serving(upstream, loop_thread, opener, tools=["run_code", "surroundings"]) as (http, _):
        assert f"the tool run_code cannot be used: {reason}" in caplog.text
        refused = ask(http, "run_code")
        assert (refused.status_code, "'run_code' cannot be used now" in refused.text) == (400, True)
        upstream.script(Says("Hi."))
        assert ask(http, "surroundings").json()["choices"][0]["message"]["content"] == "Hi."
    assert [kernels.starts for kernels in opener.opened] == [0] * len(opener.opened)


def test_a_library_that_is_missing_is_named_with_what_brings_it() -> None:
    missing = "tools.no_such_module"
    with pytest.raises(ToolUnavailable, match=r"'tools.no_such_module' is not installed: install florette\[kernels\]"):
        open_kernels(KernelSettings(), module=missing)


# -- when they are opened, started and closed --------------------------------------------------------------


@contextmanager
def serving(
    upstream: ScriptedUpstream, loop_thread: LoopThread, opener: Opener, **config: Any
) -> Iterator[tuple[httpx.Client, Any]]:
    """A client in front of the app, and what reads a configuration anew."""
    app = create_app(Config.model_validate({"upstream": upstream.url, **config}), open_kernels=opener)

    def reload(**new: Any) -> None:
        loop_thread.run(app.state.reload(Config.model_validate({"upstream": upstream.url, **new})))

    with ExitStack() as running:
        url = running.enter_context(serve_app(app, loop_thread))
        yield running.enter_context(httpx.Client(base_url=url, timeout=PATIENCE_S)), reload


def ask(http: httpx.Client, tool: str) -> httpx.Response:
    body = {"model": "m", "messages": [{"role": "user", "content": "Go."}], "tools": [{"type": tool}]}
    return http.post("/v1/chat/completions", json=body)


def test_kernels_are_opened_by_the_settings_started_once_and_closed(
    upstream: ScriptedUpstream, loop_thread: LoopThread
) -> None:
    opener = Opener()
    with serving(upstream, loop_thread, opener, tools=["run_code"], kernels={"sessions": 3}) as (http, reload):
        assert (opener.only.settings, opener.only.starts) == (KernelSettings(sessions=3), 1)
        reload(tools=["run_code", "surroundings"], kernels={"sessions": 3})
        upstream.script(Says(RUN), Says(": Done."))
        assert ask(http, "run_code").json()["choices"][0]["message"]["content"] == "Done."
        assert (len(opener.only.ran), opener.only.starts) == (1, 1)
        assert not opener.only.closed.is_set()
    assert opener.only.closed.is_set()


def test_where_no_tool_uses_them_there_are_none(upstream: ScriptedUpstream, loop_thread: LoopThread) -> None:
    opener = Opener()
    with serving(upstream, loop_thread, opener, tools=["surroundings"]):
        pass
    assert opener.opened == []


def test_they_are_opened_and_started_when_a_new_tool_needs_them(
    upstream: ScriptedUpstream, loop_thread: LoopThread
) -> None:
    opener = Opener()
    with serving(upstream, loop_thread, opener, tools=["surroundings"]) as (http, reload):
        reload(tools=["run_code"])
        assert opener.only.starts == 1
        upstream.script(Says(RUN), Says(": Done."))
        assert ask(http, "run_code").json()["choices"][0]["message"]["content"] == "Done."
    assert opener.only.closed.is_set()


def test_their_settings_are_those_of_the_start(
    upstream: ScriptedUpstream, loop_thread: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    opener = Opener()
    caplog.set_level(logging.WARNING)
    with serving(upstream, loop_thread, opener, tools=["surroundings"], kernels={"pool": 2}) as (_, reload):
        reload(tools=["surroundings"], kernels={"pool": 2})
        assert WARNED not in caplog.text
        reload(tools=["run_code"], kernels={"pool": 5})
        assert WARNED in caplog.text
        assert opener.only.settings == KernelSettings(pool=2)
