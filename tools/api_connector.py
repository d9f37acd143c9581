"""The operations of an OpenAPI document, each a tool.

    {name: api_connector, document: petstore.yaml, base_url: "https://pets.example/v1", include: [pets], prefix: pets_,
     headers: {Authorization: {env: PETS_KEY}}}

The document is read when the tools are made, from a file; nothing is fetched for it. Headers are the operator's: no
model and no error tells them.

Source: OpenAPI Specification 3.1; its parameters' default styles (`simple` in paths and headers, `form` in queries).
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urljoin, urlsplit

import yaml
from pydantic import Field, SecretStr

from tools.base import BaseTool, RetryableToolError, ToolContext, ToolError, ToolOptions, register_tool
from tools.openapi import Operation, operations

#: What a body says of an error, up to here: enough for a sentence.
_MAX_ERROR_CHARS = 300

#: A document of this size has some thousand operations.
_MAX_DOCUMENT_BYTES = 20_000_000


class Options(ToolOptions):
    """Which API, and which of its operations."""

    document: Annotated[Path, Field(description="The OpenAPI 3 document, a file in JSON or YAML.")]
    base_url: Annotated[
        str | None, Field(description="Where the API is; none: the first of the document's servers.")
    ] = None
    include: Annotated[
        tuple[str, ...], Field(description="The operationIds and tags to make tools of; none: all.")
    ] = ()
    prefix: Annotated[str, Field(pattern=r"^[\w-]{0,32}$", description="Stands before each tool's name.")] = ""
    headers: Annotated[dict[str, SecretStr], Field(description="Sent with each request, as keys are.")] = {}  # noqa: RUF012
    max_bytes: Annotated[int, Field(ge=1, le=10**9, description="The longest answer.")] = 1_000_000


@register_tool("api_connector")
class ApiConnector(BaseTool):
    """Stands for the tools of a document."""

    description = "Calls the operations of an API."
    Options = Options

    def __init__(self, **options: Any) -> None:
        """ValueError if the document cannot be read, or has none of the operations."""
        super().__init__(**options)
        document = _read(self.options.document)
        include = set(self.options.include)
        found = operations(document, self.options.prefix)
        base_url = self.options.base_url or _server_of(document)
        self._tools = [
            ApiOperation(operation, base_url, options)
            for operation in found
            if not include or operation.name.removeprefix(self.options.prefix) in include or include & {*operation.tags}
        ]
        if not self._tools:
            raise ValueError(f"'include': the document has none of {', '.join(sorted(include))}")

    def expands(self) -> Sequence[BaseTool]:
        """The operations."""
        return self._tools

    def call(self, params: Any, **kwargs: Any) -> str:
        """Is none: only the operations are called."""
        raise ToolError("This stands for other tools; call one of those.")


class ApiOperation(BaseTool):
    """One operation of an API."""

    Options = Options
    #: Whether it may be made twice, only the API knows.
    max_retries = 0

    def __init__(self, operation: Operation, base_url: str, options: Mapping[str, Any]) -> None:
        super().__init__(**options)
        self.name, self.description, self.parameters = operation.name, operation.description, operation.parameters
        if operation.method == "GET":
            self.max_retries = ApiConnector.max_retries
        self._operation = operation
        self._base_url = base_url

    def origins(self) -> Sequence[str]:
        """The API's own, which the operator named."""
        return (self._base_url,)

    async def call(self, params: Any, **kwargs: Any) -> str:
        """What the API answers: JSON in its shortest form, or text."""
        context: ToolContext = kwargs["context"]
        given = self.validate_parameters(params)
        path, query, headers, body = self._sorted(given)
        answer = await context.egress.request(
            self._operation.method,
            self._base_url.rstrip("/") + path,
            params=query or None,
            headers=headers | {name: value.get_secret_value() for name, value in self.options.headers.items()},
            json=body,
            timeout_s=self.timeout_s,
            max_bytes=self.options.max_bytes,
        )
        text = answer.text()
        if answer.status >= 400:
            self._refuse(answer.status, text)
        try:
            return json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        except (ValueError, RecursionError):
            return text or f"done ({answer.status})"

    def _refuse(self, status: int, text: str) -> None:
        said = f"The API answered {status}: {text.strip()[:_MAX_ERROR_CHARS]}"
        raise RetryableToolError(said) if status in (429, 502, 503, 504) else ToolError(said)

    def _sorted(self, given: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, str], Any]:
        # Each argument at its place.
        path = self._operation.path
        query: dict[str, Any] = {}
        headers: dict[str, str] = {}
        body: dict[str, Any] | None = None
        whole: Any = None
        for name, value in given.items():
            match self._operation.places[name]:
                case "path":
                    path = path.replace(f"{{{name}}}", _segment(name, value))
                case "query":
                    query[name] = [_plain(each) for each in value] if isinstance(value, list) else _plain(value)
                case "header":
                    headers[name] = _plain(value)
                case "body":
                    body = {**(body or {}), name: value}
                case "whole_body":
                    whole = value
        return path, query, headers, body if whole is None else whole


def _segment(name: str, value: Any) -> str:
    text = quote(_plain(value), safe="")
    if text in ("", ".", ".."):
        # Another operation's path would come of it.
        raise ToolError(f"'{name}' cannot be {value!r}.")
    return text


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(path: Path) -> Any:
    try:
        if path.stat().st_size > _MAX_DOCUMENT_BYTES:
            raise ValueError(f"'document': {path} is too large to be an OpenAPI document")
        return yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - safe
    except OSError as error:
        raise ValueError(f"'document': {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ValueError(f"'document': {path} is neither JSON nor YAML") from None


def _server_of(document: Any) -> str:
    servers = document.get("servers") if isinstance(document, Mapping) else None
    url = servers[0].get("url") if isinstance(servers, list) and servers and isinstance(servers[0], Mapping) else None
    if not isinstance(url, str) or urlsplit(urljoin("file:", url)).scheme not in ("http", "https"):
        raise ValueError("'base_url': the document's servers do not tell where the API is")
    return url
