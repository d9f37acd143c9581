"""The steps of a script: what the scripted upstream does with one request.

Step                            anything with play(request, line)
|-- Answer                      a whole answer: reply(request) -> Reply
|   |-- Says                    a chat completion in vLLM's wire shape
|   |-- Begins                  the beginning of one: no finish chunk, no usage, no [DONE]
|   |-- Chunks                  a stream of events given literally
|   |-- Answers                 any body, type and status
|   |-- Fails                   an error status
|   |-- Obeys                   what the request's grammar leaves no choice about
|   `-- Echo                    the request's own body
|-- Holds(answer, after)        waits in the middle until the test calls release()
`-- Resets Closes GoesSilent    each after an Answer, or, given none, before the first byte
"""

import asyncio
import concurrent.futures
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from itertools import accumulate
from typing import Any

import vllm_shapes
from cutting import Cut, Writes, cut_at_stop, cut_text, cut_writes
from exchange import Line, Received, Reply
from vllm_shapes import JsonObject, Spoken

DONE = b"data: [DONE]\n\n"
EVENT_STREAM = "text/event-stream; charset=utf-8"


def event(payload: object) -> bytes:
    """A payload as vLLM writes it: compact JSON, characters as they are."""
    return b"data: " + to_json(payload) + b"\n\n"


def to_json(value: object) -> bytes:
    """Compact JSON with literal characters."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class Step(ABC):
    """What happens to one request."""

    @abstractmethod
    async def play(self, request: Received, line: Line) -> None:
        """Answers, or does not; ConnectionError when the peer leaves meanwhile."""


class Answer(Step):
    """A step that answers, and completely."""

    @abstractmethod
    def reply(self, request: Received) -> Reply:
        """The answer to `request`."""

    async def play(self, request: Received, line: Line) -> None:
        """Sends the whole reply."""
        await _send(self.reply(request), line)
        await line.end()


async def _send(reply: Reply, line: Line) -> None:
    await line.begin(reply)
    for data in reply.writes:
        await line.send(data)


@dataclass(frozen=True)
class Says(Answer):
    """A chat completion in vLLM's wire shape, streamed when the request asks for it.

    `text` is what each of the request's `n` choices says, or a text for each of them; `finish` likewise. A
    stop of the request ends a text as in vLLM, unless `honour_stop` is off. `hold_back` delays the pieces as
    vLLM does while it looks for a stop, `finish_carries` puts the last piece into the finish chunk. `tokens`
    are those of the prompt and of the answer; `usage=False` never tells them. Logprobs come when the request
    asks for them. `extra` is added to the top level. What a plain vLLM refuses is answered 400, unless
    `refuse` is off.
    """

    text: str | Sequence[str] = ""
    _: KW_ONLY
    cut: Cut = None
    finish: str | Sequence[str] = "stop"
    stop_reason: str | int | None = None
    reasoning: str | None = None
    reasoning_field: str = "reasoning"
    model: str | None = None
    tokens: tuple[int, int] = (10, 5)
    usage: bool = True
    honour_stop: bool = True
    hold_back: bool = False
    finish_carries: bool = False
    refuse: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    writes: Writes = "event"

    def __post_init__(self) -> None:
        pieces = self.cut if isinstance(self.cut, Sequence) and self.cut != "char" else ()
        if any(isinstance(piece, str) for piece in pieces) and "".join(map(str, pieces)) != self.text:
            raise ValueError(f"{pieces!r} are not the pieces of {self.text!r}")

    @classmethod
    def pieces(cls, *pieces: str, **fields: Any) -> "Says":
        """Says exactly these deltas, empty ones included."""
        return cls("".join(pieces), cut=pieces, **fields)

    def reply(self, request: Received) -> Reply:
        """The completion, or vLLM's 400."""
        asked = request.json
        if self.refuse and (refusal := vllm_shapes.refusal(asked)):
            return Reply([to_json(refusal)], "application/json", 400)
        if asked.get("stream"):
            return Reply(cut_writes(self._events(request), self.writes), EVENT_STREAM, chunked=True)
        return Reply([to_json(self._completion(request))], "application/json")

    def _completion(self, request: Received) -> JsonObject:
        opening = self._opening(request, "chat.completion")
        logprobs = bool(request.json.get("logprobs"))
        whole = vllm_shapes.completion(opening, self._spoken(request.json), self._usage(), logprobs)
        return {**whole, **self.extra} if self.usage else {**whole, "usage": None, **self.extra}

    def _events(self, request: Received) -> list[bytes]:
        asked = request.json
        opening = {**self._opening(request, "chat.completion.chunk"), **self.extra}
        chunks = vllm_shapes.stream(opening, self._spoken(asked), bool(asked.get("logprobs")))
        options = asked.get("stream_options") or {}
        if self.usage and options.get("continuous_usage_stats"):
            chunks = vllm_shapes.with_each_usage(chunks, self.tokens[0])
        if self.usage and options.get("include_usage"):
            chunks = vllm_shapes.with_usage(chunks, opening, self._usage())
        return [*map(event, chunks), DONE]

    def _opening(self, request: Received, kind: str) -> JsonObject:
        answer_id = request.headers.get("x-request-id", f"scripted-{request.number}")
        return vllm_shapes.head(request.json, kind, f"chatcmpl-{answer_id}", self.model)

    def _usage(self) -> JsonObject:
        prompt, answer = self.tokens
        return {"prompt_tokens": prompt, "total_tokens": prompt + answer, "completion_tokens": answer}

    def _spoken(self, asked: Mapping[str, Any]) -> list[Spoken]:
        count = asked.get("n") or 1
        texts = [self.text] * count if isinstance(self.text, str) else self.text
        finishes = [self.finish] * count if isinstance(self.finish, str) else self.finish
        return [self._one(*choice, asked) for choice in zip(texts, finishes, strict=True)]

    def _one(self, text: str, finish: str, asked: Mapping[str, Any]) -> Spoken:
        stops = vllm_shapes.stops(asked) if self.honour_stop else []
        include = bool(asked.get("include_stop_str_in_output"))
        thought, hit = cut_at_stop(self.reasoning or "", stops, include)
        if hit is None:
            text, hit = cut_at_stop(text, stops, include)
        else:
            text = ""  # vLLM looks for stops in the raw text, and thinking comes first
        held_back = max(map(len, stops), default=1) - 1 if self.hold_back and not include else 0
        evenly = self.cut if self.cut == "char" or isinstance(self.cut, int) else None
        return Spoken(
            reasoning=cut_text(thought, evenly),
            content=_held(cut_text(text, self.cut), held_back),
            finish=finish if hit is None else "stop",
            stop_reason=self.stop_reason if hit is None else hit,
            reasoning_field=self.reasoning_field,
            finish_carries=self.finish_carries or held_back > 0,
        )


def _held(pieces: list[str], held_back: int) -> list[str]:
    if not held_back:
        return pieces
    text = "".join(pieces)
    return cut_text(text, [max(0, place - held_back) for place in accumulate(map(len, pieces))])


@dataclass(frozen=True, init=False)
class Begins(Answer):
    """The beginning of a chat completion: role and pieces, then HTTP ends properly and too soon.

    No pieces, no role: a head with nothing behind it. For a request that does not stream, half of the JSON.
    """

    pieces: tuple[str, ...]

    def __init__(self, *pieces: str) -> None:
        object.__setattr__(self, "pieces", pieces)

    def reply(self, request: Received) -> Reply:
        """What of the completion gets out."""
        if request.json.get("stream"):
            return Reply(self._events(request), EVENT_STREAM, chunked=True)
        whole = Says("".join(self.pieces)).reply(request)
        half = whole.writes[0][: len(whole.writes[0]) // 2] if self.pieces else b""
        return replace(whole, writes=[half], chunked=True)

    def _events(self, request: Received) -> list[bytes]:
        if not self.pieces:
            return []
        spoken = Spoken((), self.pieces, finish=None, stop_reason=None)
        answer_id = f"chatcmpl-scripted-{request.number}"
        opening = vllm_shapes.head(request.json, "chat.completion.chunk", answer_id, None)
        return [*map(event, vllm_shapes.stream(opening, [spoken], logprobs=False))]


@dataclass(frozen=True)
class Chunks(Answer):
    """A stream given literally: a dict becomes a `data:` event, bytes go as they are. No [DONE] is added."""

    payloads: Sequence[JsonObject | bytes]
    _: KW_ONLY
    writes: Writes = "event"

    def reply(self, request: Received) -> Reply:
        """The stream, whatever was asked."""
        events = [data if isinstance(data, bytes) else event(data) for data in self.payloads]
        return Reply(cut_writes(events, self.writes), EVENT_STREAM, chunked=True)


@dataclass(frozen=True)
class Answers(Answer):
    """Any answer: a dict or list is sent as JSON, a str as text, bytes as they are.

    With `writes` the body goes out in HTTP chunks, otherwise in one write with a content-length.
    """

    body: JsonObject | list[Any] | str | bytes = b""
    status: int = 200
    _: KW_ONLY
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None
    writes: Writes | None = None

    def reply(self, request: Received) -> Reply:
        """The same for every request."""
        body, content_type = _encoded(self.body)
        writes = [body] if self.writes is None else cut_writes([body], self.writes)
        chunked = self.writes is not None
        return Reply(writes, self.content_type or content_type, self.status, self.headers, chunked)


@dataclass(frozen=True)
class Fails(Answer):
    """An error status; with no body given, vLLM's error object."""

    status: int
    body: JsonObject | str | bytes | None = None
    _: KW_ONLY
    headers: Mapping[str, str] = field(default_factory=dict)

    def reply(self, request: Received) -> Reply:
        """The error."""
        told = vllm_shapes.error("the script says so", self.status) if self.body is None else self.body
        return Answers(told, self.status, headers=self.headers).reply(request)


@dataclass(frozen=True)
class Obeys(Answer):
    """The one text that the request's structural tag admits."""

    def reply(self, request: Received) -> Reply:
        """The completion; KeyError when the tag leaves a choice."""
        return Says(request.json["response_format"]["format"]["value"], refuse=False).reply(request)


def _encoded(body: JsonObject | list[Any] | str | bytes) -> tuple[bytes, str]:
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    if isinstance(body, str):
        return body.encode(), "text/plain; charset=utf-8"
    return to_json(body), "application/json"


@dataclass(frozen=True)
class Echo(Answer):
    """The request's own body and content-type."""

    def reply(self, request: Received) -> Reply:
        """What came in."""
        return Reply([request.body], request.headers.get("content-type", "application/octet-stream"))


@dataclass(frozen=True)
class Holds(Step):
    """Plays `answer`, but waits after so many of its writes until `release` (None: before the first byte).

    `reached` is set when it waits. A streamed Says writes the role first, so `after=1` is before the text.
    """

    answer: Answer
    _: KW_ONLY
    after: int | None = None
    reached: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    _released: concurrent.futures.Future[None] = field(
        default_factory=concurrent.futures.Future, compare=False, repr=False
    )

    def release(self) -> None:
        """Lets the answer go on; from any thread."""
        if not self._released.done():
            self._released.set_result(None)

    async def play(self, request: Received, line: Line) -> None:
        """The answer with the wait inside."""
        reply = self.answer.reply(request)
        if self.after is None:
            await self._wait(line)
        await line.begin(reply)
        for number, data in enumerate(reply.writes):
            if number == self.after:
                await self._wait(line)
            await line.send(data)
        if self.after == len(reply.writes):
            await self._wait(line)
        await line.end()

    async def _wait(self, line: Line) -> None:
        self.reached.set()
        await line.wait(asyncio.wrap_future(self._released))


@dataclass(frozen=True)
class _Breaks(Step):
    """Sends all of `answer` but its end, or nothing at all, and then misbehaves."""

    answer: Answer | None = None

    async def play(self, request: Received, line: Line) -> None:
        """The answer's bytes, then the end that the step is named after."""
        if self.answer is not None:
            await _send(self.answer.reply(request), line)
            await line.let_read()
        await self._end(line)

    @abstractmethod
    async def _end(self, line: Line) -> None: ...


@dataclass(frozen=True)
class Resets(_Breaks):
    """Breaks the connection (RST)."""

    async def _end(self, line: Line) -> None:
        line.reset()


@dataclass(frozen=True)
class Closes(_Breaks):
    """Closes the connection (FIN) without completing the answer."""

    async def _end(self, line: Line) -> None:
        line.close()


@dataclass(frozen=True)
class GoesSilent(_Breaks):
    """Says nothing more and keeps the connection open until the peer leaves."""

    async def _end(self, line: Line) -> None:
        await line.wait(asyncio.get_running_loop().create_future())
