"""Which tools there are, where they come from, and what an operator, the environment and a request set of them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import misbehaving
from tools.base import TOOL_REGISTRY
from tools.registry import BUILT_IN, UnknownTool, get_tool, load_file, offered
from tools.settings import ENTRIES, Settings, ToolEntry, Wishes
from tools.toolbox import Toolbox, ToolboxError

GREET = {"name": "greet", "greeting": "Hello"}

MINE = '''
from tools.base import register_tool

@register_tool()
def my_{name}(a: int) -> int:
    """{about}"""
    return a
'''


pytestmark = pytest.mark.usefixtures("registry_as_it_was")


def boxed(*entries: Any, **environment: str) -> Toolbox:
    return Toolbox.of(ENTRIES.validate_python(entries), environment)


def settings_of(box: Toolbox, name: str = "echo") -> Settings:
    return box.tools[name].settings


# -- where tools come from ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_tool_is_there_by_its_name(name: str) -> None:
    tool = get_tool(name)
    assert (tool.name, tool.__module__) == (name, BUILT_IN[name])


def test_a_tool_that_nobody_wants_is_not_loaded(tmp_path: Path) -> None:
    code = (
        "import sys; from tools.toolbox import Toolbox; from tools.executor import Executor; Toolbox.of(());"
        "print([name for name in ('sympy', 'jinja2', 'redis') if name in sys.modules])"
    )
    assert _printed(code) == "[]"


def _printed(code: str) -> str:
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8")
    return ran.stdout.strip()


def test_an_unknown_tool_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UnknownTool, match=r"no tool named 'wether'; there are: .*weather"):
        get_tool("wether")
    with pytest.raises(ToolboxError, match="no tool named 'wether'"):
        boxed("wether")


def test_a_file_brings_its_tools(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(name="first", about="One.") + MINE.format(name="second", about="Two."), "utf-8")
    box = boxed({"file": str(file)})
    assert list(box.tools) == ["my_first", "my_second"]
    assert list(boxed({"file": str(file), "name": "my_second", "timeout_s": 3}).tools) == ["my_second"]


def test_a_file_that_is_read_again_brings_what_it_holds_now(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(name="tool", about="Before."), "utf-8")
    before = boxed({"file": str(file)})
    file.write_text(MINE.format(name="tool", about="Afterwards."), "utf-8")
    after = Toolbox.of(ENTRIES.validate_python([{"file": str(file)}]), {}, before)
    assert [box.tools["my_tool"].tool.description for box in (before, after)] == ["Before.", "Afterwards."]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("x = 1", "registers no tool"),
        ("1/0", "ZeroDivisionError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("this is no Python", "SyntaxError"),
        (MINE.format(name="tool", about="One.") * 2, "already"),
    ],
)
def test_a_file_that_brings_nothing_says_why(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "mine.py"
    if content is not None:
        file.write_text(content, "utf-8")
    with pytest.raises(ToolboxError, match=said):
        boxed({"file": str(file)})
    assert "my_tool" not in TOOL_REGISTRY


def test_a_file_may_have_another_name_when_it_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(name="tool", about="One."), "utf-8")
    before = boxed({"file": str(file)})
    after = Toolbox.of(ENTRIES.validate_python([{"file": str(file.rename(tmp_path / "yours.py"))}]), {}, before)
    assert list(after.tools) == ["my_tool"]


def test_two_files_with_one_name_are_told_by_their_paths(tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_text(MINE.format(name="tool", about="One."), "utf-8")
    with pytest.raises(ToolboxError, match=r"two\.py: .*'my_tool' already, in .*one\.py"):
        boxed(*({"file": str(tmp_path / name)} for name in ("one.py", "two.py")))


def test_a_file_that_wants_what_is_not_installed_is_unavailable(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import no_such_library", "utf-8")
    box = boxed("echo", {"file": str(file)})
    assert list(box.tools) == ["echo"]
    assert box.unavailable == {str(file): f"{file}: the library 'no_such_library' is not installed"}


@pytest.mark.parametrize("broken", ["__init__", "unavailable", "expands"])
def test_a_tool_that_breaks_while_it_is_made_is_named(broken: str) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("oh")

    TOOL_REGISTRY["broken"] = type("Broken", (misbehaving.Echo,), {"name": "broken", broken: fail})
    with pytest.raises(ToolboxError, match="the tool 'broken': KeyError: 'oh'"):
        boxed("broken")


def test_a_file_that_broke_leaves_what_it_had(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(name="tool", about="One."), "utf-8")
    [tool] = load_file(file)
    file.write_text("1/0", "utf-8")
    with pytest.raises(ToolboxError, match="ZeroDivisionError"):
        boxed({"file": str(file)})
    assert TOOL_REGISTRY["my_tool"] is tool


def test_a_name_that_the_file_does_not_register_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(name="tool", about="One."), "utf-8")
    with pytest.raises(ToolboxError, match="registers my_tool, and not yours"):
        boxed({"file": str(file), "name": "yours"})


def test_an_installed_package_offers_tools(tmp_path: Path) -> None:
    """A distribution in miniature, on the path as an installed one is."""
    info = tmp_path / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[florette.tools]\nmy_tool = other_tools\nlost = no_such_module\n", "utf-8")
    (tmp_path / "other_tools.py").write_text(MINE.format(name="tool", about="Theirs."), "utf-8")
    sys.path.insert(0, str(tmp_path))
    try:
        assert offered().keys() >= {"my_tool", "lost"}
        box = boxed("my_tool", "lost")
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("other_tools", None)
    assert box.tools["my_tool"].tool.description == "Theirs."
    assert box.unavailable == {"lost": "the library 'no_such_module' is not installed"}


# -- the toolbox -------------------------------------------------------------------------------------------


def test_a_tool_that_stands_there_twice_is_an_error() -> None:
    with pytest.raises(ToolboxError, match="'echo' stands in 'tools' twice"):
        boxed("echo", {"name": "echo", "timeout_s": 5})


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"name": "greet"}, "'greeting': Field required"),
        ({"name": "greet", "greeting": ""}, "'greeting'"),
        ({"name": "echo", "volume": 11}, "'volume': there is no such option"),
    ],
)
def test_wrong_options_are_an_error_that_names_the_tool(entry: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolboxError, match=rf"the tool '{entry['name']}': {said}"):
        boxed(entry)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"name": "a b"},
        {"name": "echo", "timeout_s": 0},
        {"name": "echo", "max_retries": -1},
        {"name": "echo", "cache_enabled": "perhaps"},
        {"name": "echo", "max_output_chars": 1},
        7,
    ],
)
def test_wrong_settings_are_an_error(entry: Any) -> None:
    with pytest.raises(ValueError, match="validation error"):
        ENTRIES.validate_python([entry])


def test_a_tool_that_cannot_be_used_says_why() -> None:
    class Keyless(misbehaving.Echo):
        def unavailable(self) -> str:
            return "it has no key; set 'key'"

    TOOL_REGISTRY["keyless"] = Keyless
    Keyless.name = "keyless"
    box = boxed("echo", "keyless")
    assert (list(box.tools), dict(box.unavailable)) == (["echo"], {"keyless": "it has no key; set 'key'"})


def test_what_is_configured_as_before_is_the_same_tool() -> None:
    entries = [ENTRIES.validate_python([{"name": "greet", "greeting": greeting}, "echo"]) for greeting in ("a", "b")]
    first = Toolbox.of(entries[0])
    same = Toolbox.of(entries[0], {"TOOL_TIMEOUT": "9"}, first)
    other = Toolbox.of(entries[1], {}, same)
    assert same.tools["greet"].tool is first.tools["greet"].tool
    assert same.tools["greet"].settings.timeout_s == 9
    assert other.tools["greet"].tool is not first.tools["greet"].tool
    assert other.tools["echo"].tool is first.tools["echo"].tool


# -- layers ------------------------------------------------------------------------------------------------


def test_each_layer_beats_the_one_below() -> None:
    own = settings_of(boxed("echo"))
    assert (own.timeout_s, own.max_retries, own.cache_enabled) == (30, 3, True)
    entry = {"name": "echo", "timeout_s": 5, "max_retries": 1}
    file = settings_of(boxed(entry))
    assert (file.timeout_s, file.max_retries) == (5, 1)
    environment = settings_of(boxed(entry, TOOL_TIMEOUT="7", TOOL_CACHE_ENABLED="false"))
    assert (environment.timeout_s, environment.max_retries, environment.cache_enabled) == (7, 1, False)
    nearer = settings_of(boxed(entry, TOOL_TIMEOUT="7", TOOL_ECHO_TIMEOUT="9", TOOL_ECHO_MAX_RETRIES="0"))
    assert (nearer.timeout_s, nearer.max_retries) == (9, 0)
    request = Wishes.of({"timeout_s": 2, "max_retries": 0, "cache_enabled": False}).tightened(file)
    assert (request.timeout_s, request.max_retries, request.cache_enabled) == (2, 0, False)


def test_a_request_can_only_tighten() -> None:
    settings = Settings(timeout_s=5, max_retries=1, cache_enabled=False)
    assert Wishes(timeout_s=50, max_retries=9, cache_enabled=True).tightened(settings) == settings
    assert Wishes().tightened(settings) == settings


@pytest.mark.parametrize("wishes", [{"timeout_s": 0}, {"timeout": 5}, {"max_retries": "many"}])
def test_a_wish_that_cannot_be_is_an_error(wishes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(wishes))}'"):
        Wishes.of(wishes)


@pytest.mark.parametrize(
    ("variable", "value"), [("TOOL_TIMEOUT", "soon"), ("TOOL_ECHO_MAX_RETRIES", "-1"), ("TOOL_CACHE_ENABLED", "maybe")]
)
def test_a_wrong_variable_is_an_error_that_names_it(variable: str, value: str) -> None:
    with pytest.raises(ToolboxError, match=f"the variable {variable}: "):
        boxed("echo", **{variable: value})


def test_an_entry_keeps_its_options_apart_from_its_settings() -> None:
    entry = ToolEntry.model_validate({**GREET, "timeout_s": 5})
    assert (entry.options, entry.settings(Settings()).timeout_s) == ({"greeting": "Hello"}, 5)
