"""`docs/kernels.md`: its code runs, and its configurations are ones."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from asking import call
from proxy.app import create_app
from proxy.config import Config
from scripted import ScriptedUpstream
from serving import LoopThread, serve_app
from steps import Says
from tools.kernel_settings import KernelSettings
from tools.kernels.service import open_kernels
from tools.outcomes import CellStatus

PAGE = (Path(__file__).parent.parent / "docs/kernels.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


def test_the_example_goes_on_with_its_session(
    upstream: ScriptedUpstream, loop_thread: LoopThread, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = KernelSettings(pool=0, preload=())
    if reason := open_kernels(settings).unavailable():
        pytest.skip(f"NO SANDBOXES HERE, so that the example is not tried: {reason}")
    [example] = blocks("python")
    written = call("code_interpreter", json.dumps({"code": "rows = open('sales.csv').read().split()\nprint(rows[2])"}))
    upstream.script(Says(written), Says("Done."))
    config = Config(upstream=upstream.url, tools=["code_interpreter"], kernels=settings)  # type: ignore[arg-type]
    with serve_app(create_app(config), loop_thread) as url:
        exec(example.replace("http://127.0.0.1:8080", url), {})  # noqa: S102 - it is what the page says
    assert re.fullmatch(r"[\w-]{20,}\n", capsys.readouterr().out)
    assert "2,30" in json.dumps(upstream.received[-1].json)


def test_its_configurations_are_ones() -> None:
    first, gateway = map(yaml.safe_load, blocks("yaml"))
    assert Config.model_validate(first).tools
    gateway["kernels"]["token"] = "any"
    assert Config.model_validate(gateway).kernels.backend == "gateway"


@pytest.mark.parametrize("isolation", ["auto", "bwrap", "landlock", "none"])
def test_each_isolation_is_told(isolation: str) -> None:
    assert KernelSettings(isolation=isolation).isolation == isolation  # type: ignore[arg-type]
    assert f"| `{isolation}` |" in PAGE


def test_each_way_in_which_a_cell_ends_is_told() -> None:
    for status in get_args(CellStatus):
        assert f"`{status}`" in PAGE
