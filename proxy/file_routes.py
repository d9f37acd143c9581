"""OpenAI's file API: what callers hand over, and what tools made for them. Each caller sees its own only.

POST   /v1/files                  a form with `file`, `purpose` and, if wanted, `expires_after`
GET    /v1/files                  those of a `purpose`, at most `limit`, in `order`, behind the file `after`
GET    /v1/files/{id}             what is known of one
DELETE /v1/files/{id}
GET    /v1/files/{id}/content     its bytes; to anybody by a link that ends in ?signature=...

A browser never runs anything of what is kept here: all but true images is bytes to be downloaded.

Source: OpenAI's API reference, "Files"; `openai.types.FileObject`.
"""

import logging
import re
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.datastructures import QueryParams
from starlette.types import Scope

from proxy.auth import Lease
from proxy.errors import FileNotFound, FloretteError, InvalidRequest, QuotaReached, RequestTooLarge
from proxy.file_forms import read_upload, whole_number
from proxy.guard import LEASE
from tools.files import FileError, FileStore, FileTooLarge, NoSuchFile, QuotaExceeded, StoredFile
from tools.sniffing import TELLING_BYTES, image_type

logger = logging.getLogger(__name__)

Route = Callable[[Request], Awaitable[Response]]

_LINK = re.compile(r"/v1/files/file-[0-9a-f]{24}/content")

#: OpenAI's bound, and what it gives who does not ask for less.
_MAX_LIMIT = 10_000

#: What never changes may be kept by a browser, but what is deleted not for long.
_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "private, max-age=3600",
}

#: A page of another origin may show it; whoever has no key or link gets none.
_IMAGE_HEADERS = {"cross-origin-resource-policy": "cross-origin"}

#: What the store says -> what its caller is told, and what of the request is at fault.
_OURS: dict[type[FileError], tuple[type[InvalidRequest], str]] = {
    NoSuchFile: (FileNotFound, "id"),
    FileTooLarge: (RequestTooLarge, "file"),
    QuotaExceeded: (QuotaReached, "file"),
    FileError: (InvalidRequest, "file"),
}


def is_signed_link(scope: Scope) -> bool:
    """Whether a file's content is asked for by a signature, which the route will check, instead of a key."""
    return (
        scope["method"] in ("GET", "HEAD")
        and _LINK.fullmatch(scope["path"]) is not None
        and "signature" in QueryParams(scope["query_string"])
    )


def add_file_routes(app: FastAPI, store: FileStore) -> None:
    """Puts the file API onto the app. What goes wrong is raised as a FloretteError, which `routes` answers."""

    async def create(request: Request) -> Response:
        async with read_upload(request, store.max_file_bytes) as upload:
            file = await store.create(
                _owner(request), upload.name, upload.purpose, upload.pieces, expires_after_s=upload.expires_after_s
            )
        return JSONResponse(_told(file))

    async def list_all(request: Request) -> Response:
        query = request.query_params
        files, has_more = await store.list(
            _owner(request),
            purpose=query.get("purpose"),
            after=query.get("after"),
            limit=whole_number(query.get("limit", str(_MAX_LIMIT)), "limit", 1, _MAX_LIMIT),
            newest_first=_is_descending(query.get("order", "desc")),
        )
        ends = {"first_id": files[0].id if files else None, "last_id": files[-1].id if files else None}
        return JSONResponse({"object": "list", "data": [_told(file) for file in files], **ends, "has_more": has_more})

    async def retrieve(request: Request) -> Response:
        return JSONResponse(_told(await store.get(_owner(request), request.path_params["id"])))

    async def delete(request: Request) -> Response:
        file_id = request.path_params["id"]
        await store.delete(_owner(request), file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def content(request: Request) -> Response:
        file_id, signature = request.path_params["id"], request.query_params.get("signature")
        if signature is None:
            file = await store.get(_owner(request), file_id)
        else:
            file = await store.signed(file_id, signature)
        return await run_sync(_content, file, await store.path(file.owner, file_id))

    # Plain routes: FastAPI's own would look for parameters to inject, and there are none.
    for method, path, route in (
        ("POST", "/v1/files", create),
        ("GET", "/v1/files", list_all),
        ("GET", "/v1/files/{id}", retrieve),
        ("DELETE", "/v1/files/{id}", delete),
        ("GET", "/v1/files/{id}/content", content),
    ):
        app.add_route(path, _in_our_errors(route), methods=[method])


def _owner(request: Request) -> str:
    lease: Lease = request.scope[LEASE]
    return lease.caller.name


def _is_descending(order: str) -> bool:
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    return order == "desc"


# -- answers -----------------------------------------------------------------------------------------------


def _told(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
    }


def _content(file: StoredFile, path: Path) -> Response:
    with path.open("rb") as opened:
        image = image_type(opened.read(TELLING_BYTES))
    return FileResponse(
        path,
        media_type=image or "application/octet-stream",
        filename=file.name,
        content_disposition_type="inline" if image else "attachment",
        headers={**_HEADERS, **(_IMAGE_HEADERS if image else {}), "etag": f'"{file.sha256}"'},
    )


# -- errors ------------------------------------------------------------------------------------------------


def _in_our_errors(route: Route) -> Route:
    async def telling(request: Request) -> Response:
        try:
            return await route(request)
        except FileError as error:
            ours, param = _OURS[type(error)]
            raise ours(error.message, param=param) from None
        except (OSError, sqlite3.Error):
            logger.exception("the files cannot be reached")
            raise FloretteError("The files cannot be reached; the server's log has the details.") from None

    return telling
