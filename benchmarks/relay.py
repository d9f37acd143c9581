"""What Florette is measured against: the least that a FastAPI proxy can do, which is to copy bytes.

The same HTTP client, server and settings as Florette's, and no look at what passes. Run as
`python -m benchmarks.relay UPSTREAM`; prints its port.
"""

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask

from proxy.upstream import aiohttp_transport


def create_relay(upstream: str) -> FastAPI:
    """An application that sends each chat request on to `upstream` and its answer back."""
    client = httpx.AsyncClient(transport=aiohttp_transport(), headers={"accept-encoding": "identity"})

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def relay(request: Request) -> StreamingResponse:
        content = await request.body()
        headers = {"content-type": "application/json"}
        asked = client.build_request("POST", f"{upstream}/chat/completions", content=content, headers=headers)
        answer = await client.send(asked, stream=True)
        return StreamingResponse(
            answer.aiter_raw(),
            answer.status_code,
            media_type=answer.headers["content-type"],
            background=BackgroundTask(answer.aclose),
        )

    return app


def main(upstream: str) -> None:
    """Serves until it is ended."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_relay(upstream), log_config=None, access_log=False, server_header=False, backlog=2048
    )
    print(sock.getsockname()[1], flush=True)
    uvicorn.Server(config).run(sockets=[sock])


if __name__ == "__main__":
    main(sys.argv[1])
