"""What a tool is: written as a class or as a function, told to a model, held against its schema."""

import json
import uuid
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from tools.base import (
    TOOL_REGISTRY,
    BaseTool,
    Details,
    FileItem,
    ImageItem,
    InvalidArguments,
    TextItem,
    ToolContext,
    ToolOptions,
    register_tool,
)
from tools.items import as_items, from_json, to_json
from tools.parameters import as_schema, parse, validated
from tools.registry import get_tool

CITY = {"name": "city", "type": "string", "description": "A city", "required": True}


pytestmark = pytest.mark.usefixtures("registry_as_it_was")


# -- classes -----------------------------------------------------------------------------------------------


def test_a_tool_is_written_as_in_qwen_agent() -> None:
    """Source: the seed's example, `my_image_gen`."""

    @register_tool("my_tool")
    class MyTool(BaseTool):
        description = "Tells of a city."
        parameters = (CITY, {"name": "days", "type": "integer", "description": "How many", "required": False})

        def call(self, params: str, **kwargs: Any) -> str:
            return str(json.loads(params)["city"])

    assert TOOL_REGISTRY["my_tool"] is MyTool is get_tool("my_tool")
    assert MyTool().call('{"city": "Rome"}') == "Rome"
    assert MyTool().function == {
        "name": "my_tool",
        "description": "Tells of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city"},
                "days": {"type": "integer", "description": "How many"},
            },
            "required": ["city"],
        },
    }


def test_the_name_of_a_tool_may_stand_in_the_class() -> None:
    @register_tool()
    class Named(BaseTool):
        name = "my_name"
        description = "A tool."

        def call(self, params: Any, **kwargs: Any) -> str:
            return ""

    assert get_tool("my_name") is Named
    assert not Named().is_async


def test_a_call_may_be_asynchronous() -> None:
    class Waits(BaseTool):
        name = "waits"
        description = "A tool."

        async def call(self, params: Any, **kwargs: Any) -> str:
            return ""

    assert Waits().is_async


def _tool(**fields: Any) -> type[BaseTool]:
    fields = {"__module__": __name__, **fields}
    return type("Tool", (BaseTool,), {"description": "A tool.", "call": lambda self, params, **kwargs: "", **fields})


def test_a_name_that_is_taken_is_an_error() -> None:
    register_tool("taken")(_tool())
    with pytest.raises(ValueError, match=r"there is a tool named 'taken' already, in .*test_tools_base\.py"):
        register_tool("taken")(_tool())


@pytest.mark.parametrize("name", ["", "a b", "a/b", "x" * 65, "get.weather"])
def test_a_name_that_no_api_takes_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="no tool's name"):
        register_tool(name or "a.b")(_tool())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"description": ""}, "has no description"),
        ({"parameters": [{"type": "string"}]}, "must have a 'name'"),
        ({"parameters": [CITY, CITY]}, "same name"),
        ({"parameters": {"type": "array"}}, "must be an object's schema"),
        ({"parameters": {"properties": {"a": {"type": "text"}}}}, "no JSON schema"),
    ],
)
def test_a_tool_that_no_model_could_use_is_an_error(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        register_tool("wrong")(_tool(**fields))
    assert "wrong" not in TOOL_REGISTRY


def test_options_are_validated() -> None:
    class Options(ToolOptions):
        size: Annotated[int, Field(ge=1)] = 1

    tool = _tool(Options=Options)
    assert tool(size=3).options.size == 3
    with pytest.raises(ValueError, match="'size': Input should be greater than or equal to 1"):
        tool(size=0)
    with pytest.raises(ValueError, match="'sise': there is no such option"):
        tool(sise=1)


async def test_a_tool_has_defaults_for_all_else() -> None:
    tool = _tool()()
    assert (tool.unavailable(), tool.expands(), list(tool.origins())) == (None, None, [])
    await tool.aclose()


# -- functions ---------------------------------------------------------------------------------------------


class Point(BaseModel):
    """A point."""

    x: int
    y: int = 0


def test_a_function_with_type_hints_and_a_docstring_is_a_tool() -> None:
    @register_tool()
    def plan(
        city: str,
        when: date,
        at: Point,
        days: Annotated[int, Field(ge=1, le=16)] = 3,
        unit: Literal["C", "F"] = "C",
    ) -> str:
        """Plans a trip,
        and tells of it.

        Args:
            city: The city to go to,
                by its name.
            when (date): The first day.

        Returns:
            The plan.
        """
        return f"{city} {when:%d.%m.} {at.x + at.y} {days} {unit}"

    tool = get_tool("plan")()
    schema = tool.schema
    assert tool.description == "Plans a trip, and tells of it."
    assert schema["properties"]["city"] == {"type": "string", "description": "The city to go to, by its name."}
    assert schema["properties"]["when"] == {"type": "string", "format": "date", "description": "The first day."}
    assert schema["properties"]["days"] == {"type": "integer", "default": 3, "minimum": 1, "maximum": 16}
    assert schema["properties"]["unit"]["enum"] == ["C", "F"]
    assert schema["required"] == ["city", "when", "at"]
    assert schema["additionalProperties"] is False
    assert tool.call('{"city": "Rome", "when": "2026-12-24", "at": {"x": 1}}') == "Rome 24.12. 1 3 C"
    assert plan("Rome", date(2026, 1, 1), Point(x=1)) == "Rome 01.01. 1 3 C", "the function itself stays as it is"
    with pytest.raises(InvalidArguments, match="date"):
        tool.call({"city": "Rome", "when": "someday", "at": {"x": 1}})
    with pytest.raises(InvalidArguments, match="40 is greater than the maximum of 16"):
        tool.call({"city": "Rome", "when": "2026-12-24", "at": {"x": 1}, "days": 40})


async def test_an_asynchronous_function_is_told_its_context_if_it_asks() -> None:
    @register_tool("who")
    async def who_asks(context: ToolContext) -> str:
        """Tells who asks."""
        return context.caller

    tool = get_tool("who")()
    assert (tool.is_async, tool.schema["properties"]) == (True, {})
    assert await tool.call("{}", context=ToolContext(caller="ada")) == "ada"
    assert await tool.call("{}") == ""


def test_a_function_whose_parameters_no_model_can_fill_is_no_tool() -> None:
    def untyped(a) -> str:  # type: ignore[no-untyped-def]
        """A tool."""
        return str(a)

    def any_number(*a: int) -> str:
        """A tool."""
        return str(a)

    for function, said in ((untyped, "'a' has no type hint"), (any_number, "'a' has no name of its own")):
        with pytest.raises(ValueError, match=said):
            register_tool()(function)


# -- arguments ---------------------------------------------------------------------------------------------


def test_arguments_are_filled_up_with_defaults() -> None:
    schema = as_schema({"properties": {"a": {"type": "integer", "default": 5}, "b": {}}})
    assert validated('{"b": 1}', schema) == {"a": 5, "b": 1}
    assert validated({"a": 7}, schema) == {"a": 7}


@pytest.mark.parametrize("params", ['{"a": NaN}', '{"a": -Infinity}'])
def test_what_only_python_takes_for_json_is_none(params: str) -> None:
    with pytest.raises(InvalidArguments, match="not valid JSON"):
        parse(params)


@pytest.mark.parametrize("params", ["", "{}", "  {} "])
def test_no_arguments_are_an_empty_object(params: str) -> None:
    assert parse(params) == {}


def test_what_is_wrong_is_told_with_its_place_and_the_parameters() -> None:
    schema = as_schema(
        {
            "properties": {"days": {"type": "array", "items": {"type": "integer"}}, "unit": {"enum": ["C", "F"]}},
            "required": ["unit"],
        }
    )
    with pytest.raises(InvalidArguments) as caught:
        validated({"days": [1, "two"]}, schema)
    told = caught.value.message
    assert "at 'days[1]': 'two' is not of type 'integer'" in told
    assert "'unit' is a required property" in told
    assert told.endswith("The parameters are: 'days', 'unit'.")


def test_a_long_argument_is_not_told_whole() -> None:
    schema = as_schema({"properties": {"a": {"type": "string", "maxLength": 3}}})
    with pytest.raises(InvalidArguments) as caught:
        validated({"a": "x" * 100_000}, schema)
    assert len(caught.value.message) < 500
    assert "is too long" in caught.value.message


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=5))
def test_arguments_pass_if_the_schema_says_so_and_only_then(value: Any) -> None:
    schema = as_schema({"properties": {"a": {"type": ["array", "integer"], "maxItems": 1}}})
    if Draft202012Validator(schema).is_valid({"a": value}):
        assert validated(json.dumps({"a": value}), schema) == {"a": value}
    else:
        with pytest.raises(InvalidArguments):
            validated(json.dumps({"a": value}), schema)


# -- results -----------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.builds(TextItem, st.text())
        | st.builds(ImageItem, st.none() | st.text(), st.none() | st.binary(), st.text())
        | st.builds(FileItem, st.text(), st.none() | st.text(), st.none() | st.binary())
        | st.builds(Details, st.dictionaries(st.text(), st.text() | st.lists(st.integers())))
    )
)
def test_items_come_back_from_json_as_they_were(items: list[Any]) -> None:
    assert from_json(json.loads(json.dumps(to_json(items)))) == items


def test_an_item_may_stand_alone() -> None:
    assert as_items(ImageItem("http://here/a.png")) == [ImageItem("http://here/a.png")]
    with pytest.raises(TypeError, match="cannot hold"):
        as_items(float("nan"))
    with pytest.raises(TypeError):
        as_items(uuid.uuid4())  # type: ignore[arg-type]


def test_details_are_as_json_has_them() -> None:
    assert as_items([TextItem("a"), Details({"sizes": (1, 2)})]) == [TextItem("a"), Details({"sizes": [1, 2]})]
    for data in ({"x": float("nan")}, {"x": uuid.uuid4()}):
        with pytest.raises(TypeError):
            as_items(Details(data))
