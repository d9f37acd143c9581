"""The README's commands and code do what it shows, on the demo upstream."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.app import create_app
from proxy.config import Config
from proxy.demo import create_demo
from serving import LoopThread, serve_app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def block(language: str, hint: str) -> str:
    [found] = [text for kind, text in BLOCKS if kind == language and hint in text]
    return str(found)


@pytest.fixture(scope="module")
def address(loop_thread: LoopThread) -> Iterator[str]:
    """Florette on the demo, as `make run` starts it."""
    with (
        serve_app(create_demo(), loop_thread) as demo,
        serve_app(create_app(Config(upstream=f"{demo}/v1")), loop_thread) as url,
    ):
        yield url.removeprefix("http://")


def same_but_for_ids(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {
            name: type(value).__name__ if name in ("id", "created") else same_but_for_ids(value)
            for name, value in answer.items()
        }
    return [same_but_for_ids(value) for value in answer] if isinstance(answer, list) else answer


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_curl_command_prints_what_is_shown(address: str) -> None:
    command = shlex.split(block("sh", "curl").replace("127.0.0.1:8080", address))
    printed = subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout
    assert same_but_for_ids(json.loads(printed)) == same_but_for_ids(json.loads(block("json", "chatcmpl")))


def test_the_sdk_example_prints_what_is_shown(address: str) -> None:
    code = block("python", "OpenAI").replace("127.0.0.1:8080", address)
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout
    assert printed == block("text", "Paris")


def test_every_make_target_that_is_shown_exists() -> None:
    shown = set(re.findall(r"^make ([\w-]+)", README, re.MULTILINE))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert shown
    assert shown <= targets


def test_every_flag_that_is_shown_is_taken() -> None:
    shown = set(re.findall(r"--[\w-]+", block("sh", "florette serve [")))
    taken = set(re.findall(r"--[\w-]+", _help_of_serve()))
    assert shown <= taken
    assert taken - shown == {"--help"}


def _help_of_serve() -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "proxy", "serve", "--help"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return ran.stdout


def test_every_file_that_is_linked_exists() -> None:
    links = re.findall(r"\]\(([\w./-]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
