"""Texts from templates: what is written, what is told of templates, and what neither they nor values can do."""

import json
from pathlib import Path
from typing import Any

import pytest

from tools.base import ToolContext
from tools.errors import InvalidArguments, ToolError
from tools.executor import Call, Executor
from tools.settings import Wishes
from tools.text_generator import TextGenerator
from tools.toolbox import Toolbox
from tools.workers import Workers

LETTER = "Dear {{ name }},\n{% for item in items %}- {{ item }}\n{% endfor %}"


def fill(template: str, **values: Any) -> str:
    return str(TextGenerator(templates={"t": template}).call(json.dumps({"template": "t", "values": values})))


def test_a_template_is_filled() -> None:
    assert fill(LETTER, name="Ada", items=["tea", "<b>"]) == "Dear Ada,\n- tea\n- <b>\n"


def test_the_model_is_told_of_the_templates_and_what_they_want() -> None:
    tool = TextGenerator(templates={"letter": LETTER, "hello": "Hello!"})
    properties = tool.schema["properties"]
    assert properties["template"]["enum"] == ["hello", "letter"]
    assert "hello: none; letter: items, name" in properties["values"]["description"]
    assert tool.call({"template": "hello"}) == "Hello!"
    with pytest.raises(InvalidArguments, match="'letter2' is not one of"):
        tool.call({"template": "letter2"})


def test_a_value_that_is_missing_is_named() -> None:
    with pytest.raises(ToolError, match="'name' is undefined"):
        fill(LETTER, items=[])


def test_files_of_a_directory_are_templates(tmp_path: Path) -> None:
    (tmp_path / "reply.j2").write_text("Hi {{ name }}", "utf-8")
    (tmp_path / "note.md").write_text("你好", "utf-8")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG")
    (tmp_path / "more.txt").mkdir()
    tool = TextGenerator(directory=tmp_path, templates={"own": "x"})
    assert tool.schema["properties"]["template"]["enum"] == ["note", "own", "reply"]
    assert tool.call({"template": "reply", "values": {"name": "Ada"}}) == "Hi Ada"
    assert tool.call({"template": "note"}) == "你好"


@pytest.mark.parametrize("template", ["{{ x.__class__ }}", "{{ x.__class__.__mro__ }}", "{{ ''.format.__globals__ }}"])
def test_a_template_reaches_nothing_behind_its_values(template: str) -> None:
    with pytest.raises(ToolError):
        fill(template, x=[])


def test_a_value_is_no_template() -> None:
    assert fill("{{ x }}", x="{{ 7 * 7 }}") == "{{ 7 * 7 }}"


@pytest.mark.parametrize("template", ["{{ x / 0 }}", "{{ x + 'a' }}", "{{ x['a'] }}", "{{ range(10**9) }}"])
def test_a_template_that_cannot_be_filled_says_so(template: str) -> None:
    with pytest.raises(ToolError, match="cannot be filled"):
        fill(template, x=1)


def test_a_text_has_an_end() -> None:
    with pytest.raises(ToolError, match="longer than the 200,000 characters"):
        fill("{% for x in items %}{% for y in items %}{{ y }}{% endfor %}{% endfor %}", items=["abcdef"] * 1000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"templates": {"": "x"}}, "must have a name"),
        ({"max_chars": 0}, "'max_chars'"),
        ({"templates": {"t": "{% for %}"}}, "the template 't'"),
        ({"directory": "/nowhere/at/all"}, "No such file"),
    ],
)
def test_templates_that_are_none_are_an_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TextGenerator(**options)


def test_without_templates_it_cannot_be_used() -> None:
    assert "'templates' or 'directory'" in str(TextGenerator().unavailable())
    assert TextGenerator(templates={"t": ""}).unavailable() is None


def test_a_template_of_a_name_is_one(tmp_path: Path) -> None:
    (tmp_path / "t.txt").touch()
    with pytest.raises(ValueError, match="'t' is in 'templates' and in 'directory'"):
        TextGenerator(directory=tmp_path, templates={"t": ""})
    (tmp_path / "t.md").touch()
    with pytest.raises(ValueError, match="two templates named 't'"):
        TextGenerator(directory=tmp_path)


def test_a_directory_holds_no_files_of_elsewhere(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    (tmp_path / "secret.txt").write_text("secret", "utf-8")
    (templates / "t.txt").symlink_to(tmp_path / "secret.txt")
    (templates / "u.txt").write_text("{% include '../secret.txt' %}", "utf-8")
    tool = TextGenerator(directory=templates)
    assert tool.schema["properties"]["template"]["enum"] == ["u"]
    with pytest.raises(InvalidArguments, match="secret"):
        tool.call({"template": "u"})


def test_a_template_may_include_another() -> None:
    tool = TextGenerator(templates={"a": "{% include 'b' %}!", "b": "{{ self_ }} {{ self }}"})
    assert tool.call({"template": "a", "values": {"self_": "hi", "self": "x"}}).startswith("hi ")


def test_a_file_in_another_encoding_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"t\.txt is not in UTF-8"):
        TextGenerator(directory=tmp_path)


async def test_a_loop_without_an_end_is_ended() -> None:
    workers = Workers()
    try:
        loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
        executor = Executor(Toolbox.holding(TextGenerator(templates={"t": loop})), workers)
        call = Call("call_1", "text_generator", '{"template": "t"}')
        result = await executor.execute(call, ToolContext(), wishes=Wishes(timeout_s=3))
        assert result.status == "timeout"
    finally:
        await workers.aclose()


def test_a_directory_without_templates_or_with_too_long_ones_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no templates"):
        TextGenerator(directory=tmp_path)
    (tmp_path / "long.txt").write_text("x" * 1_000_001, "utf-8")
    with pytest.raises(ValueError, match=r"long\.txt is too long"):
        TextGenerator(directory=tmp_path)
    for number in range(1001):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(ValueError, match="more than 1000 templates"):
        TextGenerator(directory=tmp_path)
