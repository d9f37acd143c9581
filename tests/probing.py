"""What becomes of a field, seen from both sides of Florette.

of a request      with the field and without it:
    passed on         the upstream is sent the same value in the same place
    used              something else differs, in what the upstream is sent or in what the caller is told
    refused           the caller is told 400
    ignored           none of these
of an answer      from an upstream that sends all there is, and from one that sends next to nothing:
    passed on         the caller is told what the first upstream sends
    written           the caller is told something that the second upstream does not send
    left out          none of these
"""

import copy
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from openai_schema import Json
from steps import DONE, event
from witness import CHAT, LACKING

#: Steps into a value; [] stands for every item of a list.
Path = Sequence[str | int]

#: What the parrot says at first: a text, and a call of the tool `f`.
CALL = 'Well. ✿FUNCTION✿: f\n✿ARGS✿: {"city": "Rome"}\n'
_USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}

#: Ids and the time differ from one answer to the next.
_CHANCE = re.compile(rb'"(chatcmpl-|call_)\w+"|"created":\d+')


class Parrot:
    """An upstream that says the same whatever it is asked, and keeps what it was asked.

    Only if it is made to say a certain text, to see whether it obeys, it does. A stream that never `ends` waits for
    the caller to leave.
    """

    whole: Json
    chunks: Sequence[Json]
    status: int
    ends: bool

    def __init__(self) -> None:
        self.asked: list[Json] = []
        self.calls()
        self.app = Starlette(routes=[Route("/v1/{path:path}", self._answer, methods=["GET", "POST"])])

    def calls(self) -> None:
        """From now on it makes a call."""
        self.status, self.ends = 200, True
        self.whole = {"choices": [{"message": {"content": CALL}, "finish_reason": "stop"}], "usage": _USAGE}
        self.chunks = [
            {"choices": [{"index": 0, "delta": {"content": CALL}}], "usage": _USAGE},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": _USAGE},
        ]

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        asked = json.loads(body or b"{}")
        match asked.get("response_format"):
            case {"type": "structural_tag", "format": {"type": "const_string", "value": word}}:
                return JSONResponse({"choices": [{"message": {"content": word}}]})
        self.asked.append(asked)
        if asked.get("stream") is True:
            return StreamingResponse(self._events(), media_type="text/event-stream")
        return JSONResponse(self.whole, self.status)

    async def _events(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            yield event(chunk)
        if not self.ends:
            await anyio.sleep_forever()
        yield DONE


@dataclass(frozen=True)
class Seen:
    """What came of a request; `sent` is what the upstream was asked first, if it was."""

    status: int
    told: bytes
    sent: Json | None

    @property
    def error(self) -> Json:
        """The error that the caller was told."""
        error: Json = json.loads(self.told)["error"]
        return error


class Prober:
    """A caller of Florette in front of the parrot."""

    def __init__(self, http: httpx.Client, parrot: Parrot) -> None:
        self.http = http
        self.parrot = parrot

    def ask(self, body: Json, *, lacking: bool = False) -> Seen:
        """Sends the request, which may lack what it should have."""
        self.parrot.asked.clear()
        answer = self.http.post(CHAT, json=body, headers={LACKING: "1"} if lacking else {})
        return Seen(answer.status_code, _CHANCE.sub(b"", answer.content), next(iter(self.parrot.asked), None))

    def told(self, body: Json) -> list[Json]:
        """The answer to the request, or its chunks."""
        answer = self.http.post(CHAT, json=body)
        if not body.get("stream"):
            return [answer.json()]
        *events, _done, _end = answer.text.split("\n\n")
        return [json.loads(event.removeprefix("data: ")) for event in events]


def request_classes(prober: Prober, body: Json, path: Path, *, rewritten: bool) -> tuple[set[str], Seen]:
    """What becomes of the field at the path, and what came of the request; `rewritten`: messages are not passed on."""
    seen = prober.ask(body)
    if seen.status == 400:
        return {"refused"}, seen
    passed = not rewritten and values(seen.sent, path) == values(body, path)
    other = prober.ask(without(body, path), lacking=True)
    sides = [(without(one.sent, path) if passed and one.sent else one.sent, one.told) for one in (seen, other)]
    found = {"passed on"} if passed else set()
    if sides[0] != sides[1]:
        found.add("used")
    return found or {"ignored"}, seen


@dataclass(frozen=True)
class Telling:
    """What an upstream sent and the caller was told, if the upstream sends all there is, and if hardly anything."""

    sent: Sequence[Json]
    told: Sequence[Json]
    bare_sent: Sequence[Json]
    bare_told: Sequence[Json]


def answer_classes(telling: Telling, path: Path) -> Iterator[str]:
    """What becomes of the field at the path; nothing if it is left out."""
    sent, told, bare_sent, bare_told = (
        {json.dumps(value) for one in side for value in values(one, path)}
        for side in (telling.sent, telling.told, telling.bare_sent, telling.bare_told)
    )
    if (sent & told) - bare_told:
        yield "passed on"
    if bare_told - bare_sent:
        yield "written"


def values(value: Any, path: Path) -> list[Any]:
    """What stands at the path; nothing, or several values with []."""
    found = [value]
    for step in path:
        found = [inner for one in found for inner in _step(one, step)]
    return found


def _step(value: Any, step: str | int) -> list[Any]:
    if isinstance(value, list):
        return value if step == "[]" else value[step : step + 1] if isinstance(step, int) else []
    return [value[step]] if isinstance(value, dict) and step in value else []


def without(value: Json, path: Path) -> Json:
    """A copy that has nothing at the path."""
    left = copy.deepcopy(value)
    for owner in values(left, path[:-1]):
        if isinstance(owner, dict):
            owner.pop(path[-1], None)
    return left
