"""The README tells which versions of which clients were seen to work: those that the tests install."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
NODE: dict[str, str] = json.loads((ROOT / "tests/data/node/package.json").read_text("utf-8"))["dependencies"]

#: What the tests of the clients need beside them.
NO_CLIENTS = {"fastjsonschema", "hypothesis", "pytest", "zod"}


def pinned(file: str) -> dict[str, str]:
    """Package -> version."""
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / file).read_text("utf-8"), re.MULTILINE))


def shown() -> set[tuple[str, str, str]]:
    """Package, sign between, version: the sign is pip's or npm's."""
    section = (ROOT / "README.md").read_text("utf-8").partition("## Seen to work\n")[2].partition("\n## ")[0]
    return set(re.findall(r"`(@?[\w./-]+)(==|@)([\w.]+)`", section))


def test_each_version_that_is_shown_is_tested() -> None:
    pins = pinned("tests/clients.txt") | pinned(".ci/requirements.lock")
    tested = {(name, "==", version) for name, version in pins.items()}
    assert shown()
    assert shown() <= tested | {(name, "@", version) for name, version in NODE.items()}


def test_each_client_that_is_tested_apart_is_shown() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["dependency-groups"]["clients"]
    apart = {re.split(r"[\[>=]", requirement)[0] for requirement in wanted} | NODE.keys()
    assert apart - NO_CLIENTS <= {name for name, _, _ in shown()}


def test_the_versions_of_what_comes_from_npm_are_exact() -> None:
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in NODE.values()), NODE


def test_no_pin_records_where_a_package_comes_from() -> None:
    assert not re.search(r"https?:|file:|@", (ROOT / "tests/clients.txt").read_text("utf-8"))
    assert not (ROOT / "tests/data/node/package-lock.json").exists()
