"""The form by which a file is handed over: multipart/form-data -> an Upload.

Source: OpenAI's API reference, "Upload file"; `openai.types.FileCreateParams`; RFC 7578.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from proxy.errors import InvalidRequest, RequestTooLarge

#: Beside the file a form holds some short fields, and headers and a boundary for each.
_FORM_BYTES = 64 * 1024
_MAX_FIELDS = 20

#: So much of a file is in memory at a time.
_PIECE_BYTES = 1024 * 1024

#: Not OpenAI's list: nothing depends on it here, and theirs grows.
_PURPOSE = re.compile(r"[A-Za-z0-9_-]{1,64}")

#: OpenAI's bounds.
_MIN_EXPIRES_S, _MAX_EXPIRES_S = 3600, 30 * 86_400


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was sent, with its name as it came; `pieces` are its content."""

    name: str
    purpose: str
    expires_after_s: int | None
    pieces: AsyncIterator[bytes]


@asynccontextmanager
async def read_upload(request: Request, max_file_bytes: int) -> AsyncIterator[Upload]:
    """The file in the request's form, while the block runs; until then it is held in a temporary file.

    RequestTooLarge as soon as the body is longer than the file may be. InvalidRequest names the field at fault.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("Send the file as multipart/form-data, with the fields 'file' and 'purpose'.")
    bounded = _bounded(request, max_file_bytes)
    try:
        form = await bounded.form(max_files=1, max_fields=_MAX_FIELDS, max_part_size=_FORM_BYTES)
    except HTTPException as error:
        raise InvalidRequest(f"The form cannot be read: {error.detail}") from None
    try:
        file = _file(form)
        async with aclosing(_pieces(file)) as pieces:
            yield Upload(file.filename or "", _purpose(form), _expires_after_s(form), pieces)
    finally:
        await bounded.close()


def whole_number(text: str, param: str, least: int, most: int) -> int:
    """The number that a field or a query holds. InvalidRequest if it is none, or out of bounds."""
    # More digits than any bound has are not worth reading.
    number = int(text) if re.fullmatch(r"[0-9]{1,10}", text) else None
    if number is None or not least <= number <= most:
        raise InvalidRequest(f"'{param}' must be a whole number from {least} to {most}.", param=param)
    return number


def _bounded(request: Request, max_file_bytes: int) -> Request:
    left = max_file_bytes + _FORM_BYTES
    too_large = RequestTooLarge(f"The file is larger than the {max_file_bytes:,} bytes that it may have.", param="file")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > left:
        raise too_large

    async def receive() -> Message:
        nonlocal left
        message = await request.receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise too_large
        return message

    return Request(request.scope, receive)


def _file(form: FormData) -> UploadFile:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("'file' is missing: it must be a part of the form that has a filename.", param="file")
    return file


def _purpose(form: FormData) -> str:
    purpose = form.get("purpose")
    if not isinstance(purpose, str):
        raise InvalidRequest("'purpose' is missing; 'user_data' fits any file.", param="purpose")
    if not _PURPOSE.fullmatch(purpose):
        raise InvalidRequest("'purpose' must be one word, such as 'user_data'.", param="purpose")
    return purpose


def _expires_after_s(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidRequest("'expires_after[anchor]' must be 'created_at'.", param="expires_after[anchor]")
    return whole_number(str(seconds), "expires_after[seconds]", _MIN_EXPIRES_S, _MAX_EXPIRES_S)


async def _pieces(file: UploadFile) -> AsyncGenerator[bytes, None]:
    while piece := await file.read(_PIECE_BYTES):
        yield piece
