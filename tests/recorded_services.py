"""Services of the internet in miniature, on loopback: what was asked, and the answers that a test gives."""

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Json = dict[str, Any]


class Services:
    """Answers each path with what the test put there: JSON, a response, a status, or a list to tell one by one."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[tuple[str, Json, Mapping[str, str]]] = []
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])

    async def _answer(self, request: Request) -> Response:
        path = request.path_params["path"]
        asked = await request.json() if request.method == "POST" else dict(request.query_params)
        self.asked.append((path, asked, request.headers))
        answer = self.answers[path]
        if isinstance(answer, list):
            answer = answer.pop(0)
        if isinstance(answer, Response):
            return answer
        return JSONResponse({"error": {"message": "no"}}, answer) if isinstance(answer, int) else JSONResponse(answer)
