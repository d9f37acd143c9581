"""The operations of an OpenAPI document, each a tool.

    tools:
      - {name: api_connector, document: petstore.yaml, base_url: "https://pets.example/v2", include: [pets, getUser],
         headers: {Authorization: {env: PETS_TOKEN}}, prefix: pets_}

The document is a file of the operator's, read when the server starts; nothing is fetched for it.

Source: OpenAPI 3.0.4 and 3.1.1.
"""

import contextlib
import json
import logging
import mimetypes
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from tools.base import (
    BaseTool,
    ContentItem,
    FileItem,
    ImageItem,
    RetryableToolError,
    ToolContext,
    ToolError,
    ToolOptions,
    register_tool,
)
from tools.fetched import Fetched
from tools.openapi import Operation, Unfit, entries, read_operation
from tools.openapi_documents import check, read_document
from tools.openapi_requests import write_request
from tools.services import ServiceUrl, service_url
from tools.sniffing import image_type

logger = logging.getLogger(__name__)

#: What a server says about an error is told as far as this: the reason, and no page of HTML.
_MAX_REASON = 500

#: A key is longer; a short value, as that of a version, may stand anywhere.
_MIN_SECRET = 8

#: Where nobody else says how long.
_PATIENCE_S = 30.0

#: What is text although its type does not begin with "text/".
_TEXTS = ("json", "xml", "yaml", "javascript", "x-www-form-urlencoded")


class ApiConnectorOptions(ToolOptions):
    """The document, and how its server is reached."""

    document: Path | None = Field(None, description="The OpenAPI 3 document, a JSON or YAML file.")
    base_url: ServiceUrl | None = Field(
        None, description="The server's URL; without it, the first of the document's 'servers'."
    )
    include: tuple[str, ...] = Field((), description="operationIds or tags; without any, all operations are tools.")
    headers: dict[str, SecretStr] = Field(
        default_factory=dict, description="Headers of all requests, for keys: no model sees them."
    )
    max_bytes: int = Field(5_000_000, ge=1, le=10**9, description="The longest answer.")
    prefix: str = Field("", pattern=r"^[A-Za-z0-9_-]{0,32}$", description="What the names of all the tools begin with.")


def tools_of(document: Mapping[str, Any], options: ApiConnectorOptions) -> list[BaseTool]:
    """The tools, in the document's order. ValueError says what is wrong with the document or the options.

    An operation that cannot be called is left out, or an error if it is included by its own name.
    """
    check(document)
    found = list(entries(document, options.prefix))
    known = {word for entry in found for word in entry.words}
    if unknown := [word for word in options.include if word not in known]:
        raise ValueError(f"'include': the document has neither an operation nor a tag {unknown[0]!r}")
    tools: list[BaseTool] = []
    for entry in found:
        if options.include and not entry.words & set(options.include):
            continue
        try:
            operation = read_operation(document, entry, {name.lower() for name in options.headers})
            tools.append(ApiOperation(operation, _base_url(operation, options), options))
        except Unfit as error:
            if entry.own_name in options.include:
                raise ValueError(f"the operation {entry.own_name!r} {error}") from None
            logger.warning("api_connector leaves out %s %s, which %s", entry.method.upper(), entry.path, error)
    if not tools:
        raise ValueError("none of the document's operations can be called")
    return tools


def _base_url(operation: Operation, options: ApiConnectorOptions) -> str:
    if options.base_url:
        return options.base_url
    try:
        return service_url(operation.server or "")
    except ValueError:
        raise ValueError("the document does not tell a server's whole URL: set 'base_url'") from None


@register_tool("api_connector")
class ApiConnector(BaseTool):
    """One entry of the configuration, which stands for a document's operations."""

    description = "Calls the operations of an API that an OpenAPI document describes, each as a tool of its own."
    Options = ApiConnectorOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        document = self.options.document
        self._tools = tools_of(read_document(document), self.options) if document else None

    def unavailable(self) -> str | None:
        """See BaseTool."""
        return None if self._tools else "it needs a document: set the option 'document' to an OpenAPI file"

    def expands(self) -> Sequence[BaseTool] | None:
        """See BaseTool."""
        return self._tools

    def call(self, params: Any, **kwargs: Any) -> str:
        """Is for nobody: where it is configured, its operations stand in its place."""
        raise ToolError("This stands for other tools; call one of those.")


class ApiOperation(BaseTool):
    """One operation."""

    timeout_s = _PATIENCE_S
    description = "An operation of an API."

    def __init__(self, operation: Operation, base_url: str, options: ApiConnectorOptions) -> None:
        super().__init__()
        self.name = operation.name
        self.description = operation.description
        self.parameters = operation.schema
        # Whether anything else may be done twice, only the API knows.
        self.max_retries = type(self).max_retries if operation.method == "GET" else 0
        self._operation = operation
        self._base_url = base_url
        self._max_bytes = options.max_bytes
        # A document may name any server; only the operator's own word opens a private address.
        self._origins = [options.base_url] if options.base_url else []
        self._headers = {name.lower(): value.get_secret_value() for name, value in options.headers.items()}

    def origins(self) -> Sequence[str]:
        """See BaseTool."""
        return self._origins

    async def call(self, params: Any, **kwargs: Any) -> str | ContentItem:
        """See BaseTool."""
        request = write_request(self._operation, self.validate_parameters(params))
        context: ToolContext = kwargs.get("context") or ToolContext()
        remaining_s = context.remaining_s()
        defaults = {"accept": "application/json, */*;q=0.5"}
        if request.body is not None:
            defaults["content-type"] = "application/json"
        answer = await context.egress.request(
            self._operation.method,
            self._base_url + request.target,
            headers={**defaults, **request.headers, **self._headers},
            content=request.body,
            timeout_s=_PATIENCE_S if remaining_s is None else remaining_s,
            max_bytes=self._max_bytes,
        )
        self._check(answer)
        return self._told(answer)

    def _check(self, answer: Fetched) -> None:
        try:
            answer.raise_for_status()
        except RetryableToolError:
            raise
        except ToolError as error:
            reason = " ".join(answer.text().split()) if _is_text(answer) else ""
            raise ToolError(f"{error.message} {self._without_keys(reason)[:_MAX_REASON]}".rstrip()) from None

    def _told(self, answer: Fetched) -> str | ContentItem:
        if not answer.body:
            return f"Done: the status is {answer.status} ({HTTPStatus(answer.status).phrase})."
        if kind := image_type(answer.body):
            return ImageItem(data=answer.body, name=f"{self.name}.{kind.removeprefix('image/')}")
        if not _is_text(answer):
            extension = mimetypes.guess_extension(_media_type(answer)) or ".bin"
            return FileItem(f"{self.name}{extension}", data=answer.body)
        text = answer.text()
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        return self._without_keys(text)

    def _without_keys(self, text: str) -> str:
        # Some services send back what they were sent.
        for value in self._headers.values():
            # The key alone first, then what stands around it: the order has to be the same each time.
            for secret in (value.rpartition(" ")[2], value):
                if len(secret) >= _MIN_SECRET:
                    text = text.replace(secret, "***")
        return text


def _media_type(answer: Fetched) -> str:
    return answer.headers.get("content-type", "").partition(";")[0].strip().lower()


def _is_text(answer: Fetched) -> bool:
    kind = _media_type(answer)
    return not kind or kind.startswith("text/") or any(text in kind for text in _TEXTS)
