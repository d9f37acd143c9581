"""The HTTP of a Jupyter Kernel Gateway: what is asked of it, and how it says no. See `gateway`."""

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import aiohttp

from tools.errors import RetryableToolError, ToolError
from tools.kernel_settings import KernelSettings
from tools.kernels.remote_files import CHUNK_BYTES

logger = logging.getLogger(__name__)

#: Where each kernel is a pod, its image may have to be fetched first.
START_TIMEOUT_S = 120.0

#: A message of a picture, or of a piece of a file, holds it in base64, and some words beside it.
_BASE64_SHARE = 4 / 3
_BESIDE_BYTES = 1 << 20

#: All else a gateway answers within milliseconds; but to end a kernel that does not heed it, it waits some seconds.
REQUEST_TIMEOUT_S = 30.0

#: A gateway that has gone without a word, with its machine, is noticed after this time and half of it again.
_HEARTBEAT_S = 20.0

#: A gateway that has died does not take leave.
_LEAVE_TIMEOUT_S = 1.0

#: A gateway that is about to put a kernel in the place of one that has ended fails to end either (jupyter_client 8.10,
#: for a second or two), and whose connection is lost comes back within seconds, or it is restarted: with no kernels.
_END_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)

#: Of what a gateway answers as many bytes are read: a kernel is told in 200.
_MOST_ANSWERED_BYTES = 64 << 10

#: Of what went wrong there as much is logged: a line or two.
_MOST_SAID_CHARS = 300

#: What goes into the path of a URL.
_KERNEL_ID = re.compile(r"[\w-]{1,128}", re.ASCII)


class Requests:
    """The gateway's HTTP. The token stands in the headers, and nowhere else."""

    def __init__(self, settings: KernelSettings) -> None:
        token = settings.token.get_secret_value() if settings.token else ""
        self._url = f"{settings.url}/api/kernels"
        self._max_message_bytes = int(max(settings.image_bytes, CHUNK_BYTES) * _BASE64_SHARE) + _BESIDE_BYTES
        self._http = aiohttp.ClientSession(
            headers={"Authorization": f"token {token}"} if token else {},
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S),
            # Its cookies would be sent back, and then it asks for more than the token.
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def start(self, kernel_name: str) -> str:
        """Has a kernel started, and gives its id. ToolError if none is."""
        try:
            status, body = await self._ask(
                "POST", json={"name": kernel_name}, timeout=aiohttp.ClientTimeout(total=START_TIMEOUT_S)
            )
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None
        if status in (401, 403):
            logger.warning("the gateway of the kernels refuses (%d): %s", status, _said(body))
            raise ToolError(f"No code can be run: the gateway of the kernels refuses to start one (status {status}).")
        kernel_id = _id_in(body) if status == 201 else None
        if kernel_id is None:
            logger.warning("the gateway of the kernels started none (%d): %s", status, _said(body))
            raise ToolError(f"No code can be run: the gateway of the kernels could not start one (status {status}).")
        return kernel_id

    async def knows(self, kernel_id: str) -> bool:
        """Whether the gateway has the kernel. RetryableToolError if it does not say so, or no."""
        try:
            status, body = await self._ask("GET", f"/{kernel_id}")
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from None
        if status not in (200, 404):
            logger.warning("the gateway of the kernels does not tell of one (%d): %s", status, _said(body))
            raise RetryableToolError(f"The gateway of the kernels does not give its kernel (status {status}).")
        return status == 200

    async def channels(self, kernel_id: str, session: str) -> aiohttp.ClientWebSocketResponse:
        """The kernel's messages. ToolError if there is no way to them."""
        try:
            return await self._http.ws_connect(
                f"{self._url}/{kernel_id}/channels?session_id={session}",
                heartbeat=_HEARTBEAT_S,
                max_msg_size=self._max_message_bytes,
                timeout=aiohttp.ClientWSTimeout(ws_close=_LEAVE_TIMEOUT_S),
            )
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("a kernel of the gateway cannot be reached: %s", _reason(error))
            raise ToolError("A kernel started at the gateway, and cannot be reached.") from None

    async def interrupt(self, kernel_id: str) -> None:
        """Has what runs in the kernel interrupted, if possible."""
        await self._tells("POST", f"/{kernel_id}/interrupt")

    async def end(self, kernel_id: str) -> None:
        """Has the kernel ended, if possible."""
        for pause_s in _END_PAUSES_S:
            await asyncio.sleep(pause_s)
            if await self._tells("DELETE", f"/{kernel_id}"):
                return

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._http.close()

    async def _tells(self, method: str, path: str) -> bool:
        try:
            status, body = await self._ask(method, path)
        except (aiohttp.ClientError, OSError) as error:
            logger.warning("%s at the gateway of the kernels: %s", method, _reason(error))
            return False
        # What has gone already is as it should be.
        if status < 400 or status == 404:
            return True
        logger.warning("%s at the gateway of the kernels: %d %s", method, status, _said(body))
        return False

    async def _ask(self, method: str, path: str = "", **kwargs: Any) -> tuple[int, bytes]:
        # A redirection could lead the token, and the code, to somebody else.
        async with self._http.request(method, self._url + path, allow_redirects=False, **kwargs) as response:
            body = b""
            while chunk := await response.content.read(_MOST_ANSWERED_BYTES - len(body)):
                body += chunk
            return response.status, body


def _unreachable(error: Exception) -> RetryableToolError:
    logger.warning("the gateway of the kernels cannot be reached: %s", _reason(error))
    return RetryableToolError("No code can be run: the gateway of the kernels cannot be reached.")


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _said(body: bytes) -> str:
    # Of a traceback the last line says what went wrong; in the message is nothing then but that something did.
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = {}
    traceback: str = part(told, "traceback", str).strip().rpartition("\n")[2]
    return (traceback or part(told, "message", str) or part(told, "reason", str))[:_MOST_SAID_CHARS]


def _id_in(body: bytes) -> str | None:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return None
    kernel_id = part(told, "id", str)
    return kernel_id if _KERNEL_ID.fullmatch(kernel_id) else None


def part(within: object, name: str, kind: type[Any]) -> Any:
    """What has this name in what came as JSON, if it is of this kind; else an empty one."""
    value = within.get(name) if isinstance(within, Mapping) else None
    return value if isinstance(value, kind) else kind()
