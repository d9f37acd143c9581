"""The operations of an OpenAPI document as tools: what the model is told, and what the API is asked."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from serving import LoopThread, serve_app
from tools.api_connector import ApiConnector
from tools.base import BaseTool, RetryableToolError, ToolContext, ToolError
from tools.egress import Egress
from tools.openapi import operations
from tools.settings import ToolEntry
from tools.toolbox import Toolbox

Json = dict[str, Any]

DOCUMENT: Json = {
    "openapi": "3.1.0",
    "servers": [{"url": "https://pets.example/v1"}],
    "paths": {
        "/pets/{pet}": {
            "parameters": [{"name": "pet", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {
                "operationId": "getPet",
                "summary": "One pet.",
                "tags": ["pets"],
                "parameters": [
                    {"name": "fields", "in": "query", "schema": {"type": "array", "items": {"type": "string"}}},
                    {"name": "full", "in": "query", "schema": {"type": "boolean"}, "description": "All of it?"},
                    {"name": "x-mode", "in": "header", "schema": {"type": "string"}},
                    {"name": "session", "in": "cookie", "schema": {"type": "string"}},
                ],
            },
            "put": {
                "operationId": "setPet",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Pet"}}},
                },
            },
        },
        "/pets": {
            "post": {
                "tags": ["admin"],
                "description": "Many pets.",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": {"type": "array", "items": {"type": "integer"}}}},
                },
            }
        },
    },
    "components": {
        "schemas": {
            "Pet": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "parent": {"$ref": "#/components/schemas/Pet"}},
                "required": ["name"],
            }
        }
    },
}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "pets.yaml"
    path.write_text(yaml.safe_dump(DOCUMENT, sort_keys=False), "utf-8")
    return path


def tools_of(document: Path, **options: Any) -> dict[str, BaseTool]:
    expanded = ApiConnector(document=document, **options).expands()
    assert expanded is not None
    return {tool.name: tool for tool in expanded}


# -- what the model is told --------------------------------------------------------------------------------


def test_each_operation_is_a_tool(document: Path) -> None:
    tools = tools_of(document)
    assert list(tools) == ["getPet", "setPet", "post_pets"]
    get = tools["getPet"].function
    assert get["description"] == "One pet."
    assert get["parameters"] == {
        "type": "object",
        "properties": {
            "pet": {"type": "string"},
            "fields": {"type": "array", "items": {"type": "string"}},
            "full": {"type": "boolean", "description": "All of it?"},
            "x-mode": {"type": "string"},
        },
        "required": ["pet"],
        "additionalProperties": False,
    }
    assert tools["setPet"].schema["required"] == ["name", "pet"]
    assert tools["post_pets"].schema["properties"]["body"] == {"type": "array", "items": {"type": "integer"}}
    assert tools["setPet"].description == "PUT /pets/{pet}"
    assert (tools["getPet"].max_retries, tools["setPet"].max_retries) == (3, 0)


def test_a_schema_that_refers_to_itself_has_an_end(document: Path) -> None:
    schema = json.dumps(tools_of(document)["setPet"].schema)
    assert schema.count('"parent"') == 6


@pytest.mark.parametrize(
    ("include", "names"),
    [(["getPet"], ["p_getPet"]), (["admin"], ["p_post_pets"]), (["pets", "setPet"], ["p_getPet", "p_setPet"])],
)
def test_some_operations_can_be_chosen_and_named_apart(document: Path, include: list[str], names: list[str]) -> None:
    assert list(tools_of(document, include=include, prefix="p_")) == names


async def test_one_entry_of_the_configuration_brings_them_all(document: Path) -> None:
    entry = ToolEntry.model_validate({"name": "api_connector", "document": str(document), "timeout_s": 4})
    box = Toolbox.of([entry])
    assert list(box.tools) == ["getPet", "setPet", "post_pets"]
    assert {equipped.settings.timeout_s for equipped in box.tools.values()} == {4}
    again = Toolbox.of([entry], {}, box)
    assert again.tools["getPet"].tool is box.tools["getPet"].tool


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"swagger": "2.0"}, "not of OpenAPI 3"),
        ({"openapi": "3.0.0"}, "no 'paths'"),
        ([], "not of OpenAPI 3"),
        ({**DOCUMENT, "servers": []}, "do not tell where the API is"),
        ({**DOCUMENT, "servers": [{"url": "/v1"}]}, "do not tell where the API is"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "#/nowhere"}}}, "leads nowhere"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "other.yaml#/a"}}}, "leads out of the document"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "#/paths/~1a"}}}, "has no end"),
        ({**DOCUMENT, "paths": {"/a_b": {"get": {}}, "/a/b": {"get": {}}}}, "two operations"),
        ({**DOCUMENT, "paths": {"/a": 7}}, "'include'"),
    ],
)
def test_a_document_that_is_none_says_so(tmp_path: Path, document: Any, said: str) -> None:
    path = tmp_path / "api.json"
    path.write_text(json.dumps(document), "utf-8")
    with pytest.raises(ValueError, match=said):
        ApiConnector(document=path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: [", b"\x00"])
def test_a_file_that_is_no_document_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "api.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="neither JSON nor YAML"):
        ApiConnector(document=path)
    with pytest.raises(ValueError, match="No such file"):
        ApiConnector(document=tmp_path / "nothing")


def test_a_document_that_grows_without_end_is_refused() -> None:
    schemas = {f"s{n}": {"allOf": [{"$ref": f"#/schemas/s{n + 1}"}] * 9} for n in range(9)} | {"s9": {}}
    body = {"content": {"application/json": {"schema": {"$ref": "#/schemas/s0"}}}}
    bomb = {"openapi": "3.0.0", "paths": {"/a": {"post": {"requestBody": body}}}, "schemas": schemas}
    with pytest.raises(ValueError, match="too large"):
        operations(bomb)


def test_what_stands_for_others_is_not_called_itself(document: Path) -> None:
    with pytest.raises(ToolError, match="stands for other tools"):
        ApiConnector(document=document).call("{}")


# -- what the API is asked ---------------------------------------------------------------------------------


class Api:
    """An API that tells what it was asked, or fails as the pet's name says."""

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "PUT", "POST"])])

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.asked.append(
            {
                "method": request.method,
                "path": request.scope["raw_path"].decode().partition("?")[0],
                "query": request.url.query,
                "mode": request.headers.get("x-mode"),
                "key": request.headers.get("authorization"),
                "body": json.loads(body) if body else None,
            }
        )
        name = request.path_params["path"].rpartition("/")[2]
        if name.isdigit():
            return JSONResponse({"error": "no"}, int(name))
        return PlainTextResponse("a cat") if name == "text" else JSONResponse({"name": "Mimi", "ok": True})


@pytest.fixture
async def api(loop_thread: LoopThread) -> AsyncIterator[tuple[Api, str, ToolContext]]:
    made = Api()
    egress = Egress()
    with serve_app(made.app, loop_thread) as url:
        yield made, url, ToolContext(egress=egress.allowing([url]))
        await egress.aclose()


Served = tuple[Api, str, ToolContext]


async def test_each_argument_goes_to_its_place(document: Path, api: Served) -> None:
    made, url, context = api
    tools = tools_of(document, base_url=f"{url}/v1/", headers={"Authorization": "Bearer sk-1"})
    arguments = {"pet": "a/b ü", "fields": ["x", "y&z"], "full": True, "x-mode": "fast"}
    assert await tools["getPet"].call(json.dumps(arguments), context=context) == '{"name":"Mimi","ok":true}'
    await tools["post_pets"].call({"body": [1, 2]}, context=context)
    await tools["setPet"].call({"pet": "tom", "name": "Tom"}, context=context)
    get, post, put = made.asked
    assert get == {
        "method": "GET",
        "path": "/v1/pets/a%2Fb%20%C3%BC",
        "query": "fields=x&fields=y%26z&full=true",
        "mode": "fast",
        "key": "Bearer sk-1",
        "body": None,
    }
    assert (post["path"], post["body"]) == ("/v1/pets", [1, 2])
    assert (put["path"], put["body"]) == ("/v1/pets/tom", {"name": "Tom"})


async def test_an_answer_may_be_text(document: Path, api: Served) -> None:
    _, url, context = api
    assert await tools_of(document, base_url=url)["getPet"].call({"pet": "text"}, context=context) == "a cat"


@pytest.mark.parametrize(("status", "kind"), [(404, ToolError), (503, RetryableToolError)])
async def test_an_error_of_the_apis_is_told_without_the_key(
    document: Path, api: Served, status: int, kind: type[ToolError]
) -> None:
    _, url, context = api
    tool = tools_of(document, base_url=url, headers={"Authorization": "Bearer sk-1"})["getPet"]
    with pytest.raises(kind) as caught:
        await tool.call({"pet": str(status)}, context=context)
    assert type(caught.value) is kind
    assert str(status) in caught.value.message
    assert "sk-1" not in caught.value.message


@pytest.mark.parametrize("pet", ["..", ".", ""])
async def test_a_segment_leads_to_no_other_operation(document: Path, api: Served, pet: str) -> None:
    made, url, context = api
    with pytest.raises(ToolError, match="'pet' cannot be"):
        await tools_of(document, base_url=url)["getPet"].call({"pet": pet}, context=context)
    assert made.asked == []
