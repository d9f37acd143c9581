"""The operations of an OpenAPI document as tools: what the model is told, and what the API is asked."""

import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from misbehaving import PIXEL
from serving import LoopThread, serve_app
from tools.api_connector import ApiConnector, ApiConnectorOptions, tools_of
from tools.base import BaseTool, FileItem, ImageItem, InvalidArguments, RetryableToolError, ToolContext, ToolError
from tools.egress import Egress
from tools.openapi import entries, read_operation
from tools.openapi_requests import write_request
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


def options(**given: Any) -> ApiConnectorOptions:
    return ApiConnectorOptions.model_validate(given)


def tools_in(document: Path, **given: Any) -> dict[str, BaseTool]:
    expanded = ApiConnector(document=document, **given).expands()
    assert expanded is not None
    return {tool.name: tool for tool in expanded}


def one(operation: Json, path: str = "/a", **more: Any) -> BaseTool:
    """The tool of a document with that one operation, a POST."""
    document = {"openapi": "3.0.4", "servers": [{"url": "https://a.example"}], "paths": {path: {"post": operation}}}
    [tool] = tools_of({**document, **more}, options())
    return tool


def with_parameter(**parameter: Any) -> Json:
    return {"operationId": "do", "parameters": [{"name": "p", "in": "query", **parameter}]}


def with_body(schema: Json, *, required: bool = True, kind: str = "application/json", **more: Any) -> Json:
    return {"operationId": "do", "requestBody": {"required": required, "content": {kind: {"schema": schema}}}, **more}


# -- what the model is told --------------------------------------------------------------------------------


def test_each_operation_is_a_tool(document: Path) -> None:
    tools = tools_in(document)
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
    assert tools["setPet"].schema["required"] == ["pet", "name"]
    assert tools["post_pets"].schema["properties"]["body"] == {"type": "array", "items": {"type": "integer"}}
    assert tools["setPet"].description == "PUT /pets/{pet}"
    assert (tools["getPet"].max_retries, tools["setPet"].max_retries) == (3, 0)


def test_a_schema_that_refers_to_itself_has_an_end(document: Path) -> None:
    schema = json.dumps(tools_in(document)["setPet"].schema)
    assert schema.count('"parent"') == 8
    assert schema.endswith('"required": ["pet", "name"], "additionalProperties": false}')


@pytest.mark.parametrize(
    ("include", "names"),
    [
        (["getPet"], ["p_getPet"]),
        (["admin"], ["p_post_pets"]),
        (["post_pets"], ["p_post_pets"]),
        (["pets", "setPet"], ["p_getPet", "p_setPet"]),
    ],
)
def test_some_operations_can_be_chosen_and_named_apart(document: Path, include: list[str], names: list[str]) -> None:
    assert list(tools_in(document, include=include, prefix="p_")) == names


def test_names_are_names_and_differ() -> None:
    long = "x" * 80
    paths = {
        "/a/b": {"get": {}},
        "/a_b": {"get": {}},
        "/c": {"get": {"operationId": "Pets: löschen!"}, "post": {"operationId": long}, "put": {"operationId": long}},
        "/d": {"get": {"operationId": "!"}},
    }
    tools = tools_of({**DOCUMENT, "paths": paths}, options())
    assert [tool.name for tool in tools] == [
        "get_a_b",
        "get_a_b_2",
        "Pets_l_schen",
        "x" * 64,
        "x" * 62 + "_2",
        "operation",
    ]


async def test_one_entry_of_the_configuration_brings_them_all(document: Path) -> None:
    entry = ToolEntry.model_validate({"name": "api_connector", "document": str(document), "timeout_s": 4})
    box = Toolbox.of([entry])
    assert list(box.tools) == ["getPet", "setPet", "post_pets"]
    assert {equipped.settings.timeout_s for equipped in box.tools.values()} == {4}
    again = Toolbox.of([entry], {}, box)
    assert again.tools["getPet"].tool is box.tools["getPet"].tool


def test_without_a_document_it_cannot_be_used(document: Path) -> None:
    assert "document" in str(ApiConnector().unavailable())
    assert ApiConnector().expands() is None
    assert ApiConnector(document=document).unavailable() is None


def test_what_stands_for_others_is_not_called_itself(document: Path) -> None:
    with pytest.raises(ToolError, match="stands for other tools"):
        ApiConnector(document=document).call("{}")


def test_a_summary_and_a_description_are_both_told() -> None:
    assert one({"summary": " Ask. ", "description": "Asks it.\n"}).description == "Ask.\nAsks it."
    assert len(one({"description": "x" * 5000}).description) == 1000


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"type": "string", "nullable": True}, {"type": ["string", "null"]}),
        (
            {"type": "string", "nullable": True, "enum": ["a"]},
            {"type": ["string", "null"], "enum": ["a", None]},
        ),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"minimum": 1, "exclusiveMinimum": False}, {"minimum": 1}),
        ({"exclusiveMaximum": 9}, {"exclusiveMaximum": 9}),
        ({"type": "integer", "example": 7, "xml": {}, "x-order": 1}, {"type": "integer"}),
        ({"additionalProperties": {"$ref": "#/s/b"}}, {"additionalProperties": {"type": "boolean"}}),
        ({"additionalProperties": False, "items": True}, {"additionalProperties": False, "items": True}),
        ({"anyOf": [{"$ref": "#/s/b"}, True]}, {"anyOf": [{"type": "boolean"}, {}]}),
        ({"$ref": "#/s/b", "description": "Own."}, {"type": "boolean", "description": "Own."}),
        ({"$ref": "#/l/1"}, {"type": "number"}),
        ({"$ref": "#/s/a~1b%20c"}, {"type": "null"}),
        (
            {"type": "object", "properties": {"id": {"readOnly": True}, "example": {}}, "required": ["id", "example"]},
            {"type": "object", "properties": {"example": {}}, "required": ["example"]},
        ),
    ],
)
def test_schemas_stand_by_themselves(given: Json, told: Json) -> None:
    schemas = {"b": {"type": "boolean"}, "a/b c": {"type": "null"}}
    tool = one(with_parameter(schema=given), s=schemas, l=[{}, {"type": "number"}])
    assert tool.schema["properties"]["p"] == told


def test_a_parameter_of_the_operation_takes_the_place_of_its_paths() -> None:
    shared = {"name": "p", "in": "query", "schema": {"type": "integer"}}
    paths = {"/a": {"parameters": [shared], "get": with_parameter(schema={"type": "boolean"})}}
    [tool] = tools_of({**DOCUMENT, "paths": paths}, options())
    assert tool.schema["properties"] == {"p": {"type": "boolean"}}


def test_headers_that_are_given_are_none_of_the_models_business() -> None:
    headers = [{"name": name, "in": "header", "required": True} for name in ("X-Key", "Authorization", "X-Own")]
    document = {**DOCUMENT, "paths": {"/a": {"get": {"parameters": headers}}}}
    [tool] = tools_of(document, options(headers={"x-key": "k"}))
    assert list(tool.schema["properties"]) == ["X-Own"]


@pytest.mark.parametrize(
    ("operation", "properties"),
    [
        (with_body({"type": "object", "properties": {"a": {}}}), ["a"]),
        (with_body({"type": "object", "properties": {"a": {}}}, required=False), ["body"]),
        (with_body({"type": "object", "properties": {"a": {}}, "additionalProperties": True}), ["body"]),
        (with_body({"type": "object", "properties": {"a": {}}, "oneOf": [{}]}), ["body"]),
        (with_body({"type": "object", "properties": {"p": {}}}, **with_parameter()), ["p", "body"]),
        (with_body({}, **with_parameter(name="body")), ["body", "request_body"]),
        (with_body({}, kind="application/merge-patch+json"), ["body"]),
        (with_body({}, kind="text/csv", required=False), []),
    ],
)
def test_a_body_is_its_fields_or_one_argument(operation: Json, properties: list[str]) -> None:
    assert list(one(operation).schema["properties"]) == properties


def test_a_name_that_stands_in_two_places_is_two_arguments() -> None:
    parameters = [{"name": "id", "in": "path", "required": True}, {"name": "id", "in": "query"}]
    tool = one({"parameters": parameters}, "/a/{id}")
    assert list(tool.schema["properties"]) == ["id", "query_id"]


# -- documents that cannot be used -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"swagger": "2.0"}, "of Swagger 2.0; convert it"),
        ({"openapi": "2.9"}, "not of OpenAPI 3"),
        ({"openapi": "3.0.0"}, "no 'paths'"),
        ([], "no OpenAPI document"),
        ({**DOCUMENT, "servers": []}, "set 'base_url'"),
        ({**DOCUMENT, "servers": [{"url": "/v1"}]}, "set 'base_url'"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "#/nowhere"}}}, "not there"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "#/servers/7"}}}, "not there"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "other.yaml#/a"}}}, "another document"),
        ({**DOCUMENT, "paths": {"/a": {"$ref": "#/paths/~1a"}}}, "lead nowhere"),
        ({**DOCUMENT, "paths": {"/a": 7}}, "none of the document's operations"),
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
    with path.open("wb") as file:
        file.truncate(20_000_001)
    with pytest.raises(ValueError, match="longer than"):
        ApiConnector(document=path)


def test_a_date_in_yaml_is_text(tmp_path: Path) -> None:
    path = tmp_path / "api.yaml"
    path.write_text(
        "{openapi: 3.0.0, servers: [{url: 'https://a.example'}], paths: {/a: {get: {parameters:"
        " [{name: day, in: query, schema: {type: string, default: 2026-11-29}}]}}}}"
    )
    assert tools_in(path)["get_a"].validate_parameters("{}") == {"day": "2026-11-29"}


def test_what_the_document_has_not_cannot_be_included(document: Path) -> None:
    with pytest.raises(ValueError, match="neither an operation nor a tag 'getDog'"):
        ApiConnector(document=document, include=["getPet", "getDog"])


def growing() -> Json:
    """A schema of nine to the ninth parts."""
    return {f"s{n}": {"allOf": [{"$ref": f"#/s/s{n + 1}"}] * 9} for n in range(9)} | {"s9": {}}


def endless() -> Json:
    """What YAML's aliases can make: a schema that is in itself."""
    schema: Json = {"type": "object"}
    schema["properties"] = {"inner": schema}
    return schema


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (with_body({"$ref": "#/s/s0"}), "too large"),
        (with_body(endless()), "cannot be read"),
        (with_body({"$ref": "other.json"}), "another document"),
        (with_body({"allOf": 7}), "does not have the form"),
        (with_body({}, kind="multipart/form-data"), "only JSON is sent"),
        ({"operationId": "do", "requestBody": {"required": True}}, "a body of no type"),
        (with_parameter(**{"in": "cookie", "required": True}), "cookie parameter 'p'"),
        (with_parameter(style="wild"), "the style 'wild'"),
        ({"operationId": "do", "parameters": [{}]}, "does not have the form"),
    ],
)
def test_an_operation_that_cannot_be_called_is_left_out_or_an_error_if_it_is_wanted(
    operation: Json, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    document = {**DOCUMENT, "s": growing(), "paths": {"/a": {"post": operation, "get": {}}}}
    with caplog.at_level(logging.WARNING):
        assert [tool.name for tool in tools_of(document, options())] == ["get_a"]
    assert said in caplog.text
    with pytest.raises(ValueError, match=f"the operation 'do' .*{said}"):
        tools_of(document, options(include=("do",)))


def test_a_path_parameter_that_is_not_told_of_is_missed() -> None:
    with pytest.raises(ValueError, match="path parameter 'id'"):
        tools_of({**DOCUMENT, "paths": {"/a/{id}": {"get": {}}}}, options(include=("get_a_id",)))


# -- the request -------------------------------------------------------------------------------------------


def target(arguments: Json, *, path: str = "/a", **parameter: Any) -> str:
    [entry] = entries({"paths": {path: {"get": with_parameter(**parameter)}}})
    return write_request(read_operation({}, entry, ()), arguments).target


@pytest.mark.parametrize(
    ("parameter", "value", "query"),
    [
        ({}, "a b&c", "p=a%20b%26c"),
        ({}, True, "p=true"),
        ({}, 3.0, "p=3"),
        ({}, 2.5, "p=2.5"),
        ({}, ["a,b", None, 1], "p=a%2Cb&p=&p=1"),
        ({}, {"x": 1, "y": [2]}, "x=1&y=%5B2%5D"),
        ({"explode": False}, ["a,b", "c"], "p=a%2Cb,c"),
        ({"explode": False}, {"x": 1, "y": 2}, "p=x,1,y,2"),
        ({"style": "spaceDelimited"}, ["a", "b"], "p=a%20b"),
        ({"style": "pipeDelimited"}, ["a", "b"], "p=a%7Cb"),
        ({"style": "deepObject"}, {"x": "1", "y&": 2}, "p%5Bx%5D=1&p%5By%26%5D=2"),
        ({"style": "deepObject"}, "plain", "p=plain"),
        ({"style": "deepObject"}, ["a", "b"], "p=a,b"),
        ({"content": {"application/json": {}}}, {"x": [1]}, "p=%7B%22x%22%3A%5B1%5D%7D"),
        ({}, "\ud800", "p=%3F"),
    ],
)
def test_a_querys_values_are_written_as_their_style_says(parameter: Json, value: Any, query: str) -> None:
    assert target({"p": value}, **parameter) == f"/a?{query}"


def test_what_is_not_given_is_not_sent() -> None:
    assert target({}) == target({"p": None}) == "/a"


@pytest.mark.parametrize(
    ("parameter", "value", "path"),
    [
        ({}, ["a", "b/c"], "/x/a,b%2Fc/y"),
        ({}, {"k": 1, "l": "m"}, "/x/k,1,l,m/y"),
        ({"explode": True}, {"k": 1, "l": "m"}, "/x/k=1,l=m/y"),
        ({"content": {"application/json": {}}}, {"k": 1}, "/x/%7B%22k%22%3A1%7D/y"),
    ],
)
def test_a_paths_values_are_written_as_their_style_says(parameter: Json, value: Any, path: str) -> None:
    assert target({"p": value}, path="/x/{p}/y", **{**parameter, "in": "path"}) == path


@given(st.text().filter(lambda text: text not in ("", ".", "..")))
def test_whatever_a_model_writes_stays_in_its_segment(text: str) -> None:
    url = httpx.URL("https://a.example/v1" + target({"p": text}, path="/x/{p}/y", **{"in": "path"}))
    _, version, x, segment, y = url.raw_path.decode().split("/")
    assert (version, x, y) == ("v1", "x", "y")
    assert unquote(segment) == text.encode("utf-8", "replace").decode()
    assert (url.query, url.fragment, url.host) == (b"", "", "a.example")


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
            said = {"error": "no", "seen": dict(request.headers), "more": "x" * 1000}
            return JSONResponse(said, int(name))
        others: Mapping[str, Response] = {
            "text": PlainTextResponse("a cat"),
            "nothing": Response(status_code=204),
            "picture": Response(PIXEL, media_type="image/png"),
            "archive": Response(b"PK\x03\x04", media_type="application/zip"),
            "stuff": Response(b"\x00\x01", media_type="x/unheard-of"),
            "broken": Response(b"\x00\x01", 500, media_type="application/zip"),
            "echo": JSONResponse({"key": request.headers.get("authorization")}),
        }
        return others.get(name) or JSONResponse({"name": "Mimi", "ok": True})


Served = tuple[Api, str, ToolContext]

KEY = "sk-pets-1234"


@pytest.fixture
async def api(loop_thread: LoopThread) -> AsyncIterator[Served]:
    made = Api()
    egress = Egress()
    with serve_app(made.app, loop_thread) as url:
        yield made, url, ToolContext(egress=egress.allowing([url]))
        await egress.aclose()


async def test_each_argument_goes_to_its_place(document: Path, api: Served) -> None:
    made, url, context = api
    tools = tools_in(document, base_url=f"{url}/v1/", headers={"Authorization": f"Bearer {KEY}"})
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
        "key": f"Bearer {KEY}",
        "body": None,
    }
    assert (post["path"], post["body"]) == ("/v1/pets", [1, 2])
    assert (put["path"], put["body"]) == ("/v1/pets/tom", {"name": "Tom"})


async def test_the_server_is_the_documents_where_nobody_says_another(api: Served) -> None:
    made, url, context = api
    variables = {"version": {"default": "v2"}}
    servers = [{"url": f"{url}/{{version}}", "variables": variables}]
    for document in (
        {**DOCUMENT, "servers": servers, "paths": {"/a": {"get": {}}}},
        {**DOCUMENT, "paths": {"/a": {"get": {"servers": servers}}}},
    ):
        [tool] = tools_of(document, options())
        await tool.call({}, context=context)
        assert made.asked.pop()["path"] == "/v2/a"
        # It is not the operator's word, and opens no private address.
        assert list(tool.origins()) == []
    [tool] = tools_of(document, options(base_url=url))
    assert list(tool.origins()) == [url]


async def test_a_body_that_is_optional_can_be_left_out(api: Served) -> None:
    made, url, context = api
    operation = with_body({"type": "object"}, required=False)
    [tool] = tools_of({**DOCUMENT, "paths": {"/a": {"post": operation}}}, options(base_url=url))
    await tool.call({}, context=context)
    await tool.call({"body": {}}, context=context)
    assert [asked["body"] for asked in made.asked] == [None, {}]


@pytest.mark.parametrize(
    ("pet", "told"),
    [
        ("text", "a cat"),
        ("nothing", "Done: the status is 204 (No Content)."),
        ("picture", ImageItem(data=PIXEL, name="getPet.png")),
        ("archive", FileItem("getPet.zip", data=b"PK\x03\x04")),
        ("stuff", FileItem("getPet.bin", data=b"\x00\x01")),
        ("echo", '{"key":"Bearer ***"}'),
    ],
)
async def test_an_answer_is_told_as_what_it_is(document: Path, api: Served, pet: str, told: Any) -> None:
    _, url, context = api
    tool = tools_in(document, base_url=url, headers={"Authorization": f"Bearer {KEY}", "X-Version": "1"})["getPet"]
    assert await tool.call({"pet": pet}, context=context) == told


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        ("404", ToolError, r"404 \(Not Found\)\. {\"error\":\"no\""),
        ("503", RetryableToolError, "503"),
        ("broken", ToolError, r"500 \(Internal Server Error\)\.$"),
    ],
)
async def test_an_error_of_the_apis_is_told_without_the_key(
    document: Path, api: Served, status: str, kind: type[ToolError], said: str
) -> None:
    _, url, context = api
    tool = tools_in(document, base_url=url, headers={"Authorization": f"Bearer {KEY}"})["getPet"]
    with pytest.raises(kind, match=said) as caught:
        await tool.call({"pet": status}, context=context)
    assert type(caught.value) is kind
    assert KEY not in caught.value.message
    assert len(caught.value.message) < 700


@pytest.mark.parametrize("pet", ["..", ".", ""])
async def test_a_segment_leads_to_no_other_operation(document: Path, api: Served, pet: str) -> None:
    made, url, context = api
    with pytest.raises(InvalidArguments, match="'pet' must not be empty"):
        await tools_in(document, base_url=url)["getPet"].call({"pet": pet}, context=context)
    assert made.asked == []


async def test_a_header_is_one_line(document: Path, api: Served) -> None:
    made, url, context = api
    with pytest.raises(InvalidArguments, match="'x-mode' must not have line breaks"):
        await tools_in(document, base_url=url)["getPet"].call({"pet": "tom", "x-mode": "a\r\nb: c"}, context=context)
    assert made.asked == []


async def test_the_operators_headers_are_stronger_than_the_models(api: Served) -> None:
    made, url, context = api
    parameters = [{"name": "X-Mode", "in": "header"}]
    paths = {"/a": {"get": {"parameters": parameters}}}
    [tool] = tools_of({**DOCUMENT, "paths": paths}, options(base_url=url, headers={"x-mode": "slow"}))
    with pytest.raises(InvalidArguments):
        await tool.call({"X-Mode": "fast"}, context=context)
    await tool.call({}, context=context)
    assert made.asked[0]["mode"] == "slow"


async def test_an_answer_has_a_bound(document: Path, api: Served) -> None:
    _, url, context = api
    with pytest.raises(ToolError, match="more than the 5 bytes"):
        await tools_in(document, base_url=url, max_bytes=5)["getPet"].call({"pet": "tom"}, context=context)
