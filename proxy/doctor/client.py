"""The one door to the endpoint: requests out, whatever comes back in, byte for byte.

No SDK, since an SDK smooths over what a check looks for.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import httpx

from proxy.doctor.exchange import Answer, Request, read_answer
from proxy.doctor.patience import Patience

#: So many requests run side by side: enough to be quick, and no load for a server that others use, too.
_AT_ONCE = 4

#: Some 25,000 tokens, each in a chunk of its own: what goes on behind that answers no question that is asked here.
_MAX_BYTES = 8 * 1024 * 1024

#: Too many requests: it says nothing of what was asked.
_REFUSED = 429

#: Sleeps so many seconds.
Sleep = Callable[[float], Awaitable[object]]


class Unfit(Exception):
    """The endpoint cannot be examined; its one argument is a sentence that says why, without the key."""


class Endpoint:
    """An OpenAI-compatible server. `base_url` ends in `/v1`, or wherever `/chat/completions` hangs.

    Once it has refused a request for its limits, it is asked one at a time, and left in peace as long as it likes.
    """

    def __init__(self, http: httpx.AsyncClient, base_url: str, timeout_s: float, sleep: Sleep = asyncio.sleep) -> None:
        self.base_url = base_url
        self._http = http
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._queue = asyncio.Lock()
        self._patience = Patience()
        self._refusal = ""

    async def send(self, request: Request) -> Answer:
        """The answer. It never raises: an answer that does not come, or not to its end, says so in `broke`.

        After too long a refusal nothing is sent any more: ask `check_patience` before judging what came.
        """
        async with self._gate:
            if not self._patience.is_tried:
                answer = await self._try(request)
                if answer.status != _REFUSED:
                    return answer
            async with self._queue:
                return await self._send_in_turn(request)

    def check_patience(self) -> None:
        """Unfit if the endpoint refused for too long, so that not everything was asked."""
        if self._patience.is_over:
            raise Unfit(f"{self.base_url} keeps refusing requests for longer than the doctor waits: {self._refusal}")

    async def _send_in_turn(self, request: Request) -> Answer:
        while not self._patience.is_over:
            await self._sleep_if_told()
            answer = await self._try(request)
            if answer.status != _REFUSED:
                return answer
        return Answer(request, _REFUSED, broke="it was asked no more")

    async def _sleep_if_told(self) -> None:
        if self._patience.wait_s:
            await self._sleep(self._patience.begin_wait())

    async def _try(self, request: Request) -> Answer:
        waits = self._patience.waits
        answer = await self._send(request)
        if answer.status == _REFUSED:
            self._refusal = answer.told()
            self._patience.refused(answer.wait_s, waits)
        else:
            self._patience.let_in()
        return answer

    async def _send(self, request: Request) -> Answer:
        status, headers, body, broke = 0, httpx.Headers(), bytearray(), ""
        method, content = ("GET", None) if request.body is None else ("POST", request.content)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(method, self.base_url + request.path, content=content) as response,
            ):
                status, headers = response.status_code, response.headers
                async for data in response.aiter_bytes():
                    body += data
                    if len(body) > _MAX_BYTES:
                        broke = f"it goes on behind {_MAX_BYTES:,} bytes"
                        break
        except TimeoutError:
            broke = f"it did not end within {self._timeout_s:g} s"
        except httpx.HTTPError as error:
            broke = str(error) or type(error).__name__
        return read_answer(request, status, headers, bytes(body), broke)


@asynccontextmanager
async def connect(
    base_url: str, key: str | None, timeout_s: float, sleep: Sleep = asyncio.sleep
) -> AsyncIterator[Endpoint]:
    """The endpoint while the block runs; Unfit if URL, key or time are none."""
    url, headers = _checked_url(base_url), {"content-type": "application/json"}
    if not timeout_s > 0:
        raise Unfit("The timeout must be more than 0 seconds.")
    if key is not None:
        if not key.isascii() or not key.isprintable():
            raise Unfit("The API key must be printable ASCII, as a header is.")
        headers["authorization"] = f"Bearer {key}"
    async with httpx.AsyncClient(headers=headers, timeout=timeout_s) as http:
        yield Endpoint(http, url, timeout_s, sleep)


def _checked_url(base_url: str) -> str:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and httpx.URL(base_url).host and parts.port != 0
    except (ValueError, httpx.InvalidURL):
        usable = False
    if not usable:
        raise Unfit("The base URL must be like http://host:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise Unfit("The base URL must hold no password and no query; a key goes into --api-key.")
    return base_url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")
