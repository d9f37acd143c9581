"""Rounds: turn -> run the calls that are ours -> turn ... until the model answers, told to the caller as one answer.

    request -> Chat.turn -> Round -> the caller's events -------------------------> the caller
                  ^           `----> our calls -> Running -> results --.
                  `---------------- messages + calls + results <-------'

A call starts as soon as it is complete, while the model still writes. Where a turn calls the caller's tools, too, the
caller gets those, and `Pending` remembers ours. It always ends: behind a limit the model has one more turn, without
tools. When the caller leaves, the turn and the tools are cancelled.
"""

import asyncio
import logging
import secrets
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any

import anyio

from proxy.chat import Chat
from proxy.events import Dialog, Session, TurnEnd, Usage, Waiting
from proxy.formats.content import is_chinese
from proxy.hosting import Hosted
from proxy.inbox import Inbox
from proxy.pending import Pending
from proxy.rounds import Before, Round
from proxy.running import Bounds, Running
from proxy.turns import Said
from proxy.usage import Tally
from proxy.windows import Windows
from proxy.wire import ChatRequest, Message
from tools.context import Language, ToolContext
from tools.egress import Egress
from tools.errors import ToolError
from tools.executor import Result, shortened
from tools.files import FileError, FileStore

logger = logging.getLogger(__name__)

#: Ends by which nothing is complete that is not: no further turn would mend that.
_CUT_OFF = ("length", "content_filter")

#: The fields by which a caller bounds what is written; the bound holds for all turns together.
_LENGTHS = ("max_tokens", "max_completion_tokens")

#: What the model is told behind the last round.
_NO_MORE: Mapping[Language, str] = {
    "en": "No more tools can be called now. Answer with what you know so far.",
    "zh": "现在不能再调用工具了。请根据目前已知的信息作答。",
}

#: So many bytes by chance has the name of a session that the caller did not name: 192 bits, and 32 characters.
_SESSION_BYTES = 24

#: Results shorter than this, all together, fit into any context.
_SMALL_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the caller's name, its request's headers, and how the caller reaches a file of this id."""

    name: str
    headers: Mapping[str, str]
    link: Callable[[str], Awaitable[str]]


class Agent:
    """Answers requests whose tools run here. `clock` gives seconds that only go forward."""

    def __init__(
        self,
        chat: Chat,
        files: FileStore,
        windows: Windows,
        pending: Pending,
        egress: Egress,
        bounds: Bounds,
        clock: Callable[[], float],
    ) -> None:
        self.chat = chat
        self.files = files
        self.windows = windows
        self.pending = pending
        self.egress = egress
        self.bounds = bounds
        self.clock = clock

    async def run(self, hosted: Hosted, asker: Asker) -> AsyncGenerator[list[Said], None]:
        """The events of the answer, as `Chat.turn` gives those of a turn; raises what it raises."""
        answer = _Answer(self, hosted, asker)
        async with hosted.setup.in_use():
            try:
                async with aclosing(answer.events()) as events:
                    async for said in events:
                        yield said
            finally:
                with anyio.CancelScope(shield=True):
                    await answer.aclose()


class _Answer:
    """One answer, from its first turn to its last."""

    def __init__(self, agent: Agent, hosted: Hosted, asker: Asker) -> None:
        self._agent = agent
        self._hosted = hosted
        self._asker = asker
        self._request = hosted.request
        self._messages: list[Message] = list(hosted.request.messages)
        self._language = _language(self._messages)
        self._inbox = Inbox()
        # A name of our own making is as good as a key: who does not know it cannot guess it.
        self._session = hosted.tells.session or secrets.token_urlsafe(_SESSION_BYTES)
        context = ToolContext(
            session_id=self._session,
            caller=asker.name,
            files=hosted.files,
            language=self._language,
            egress=agent.egress,
            kernels=hosted.setup.kernels,
            keep=self._keep,
        )
        allowed = hosted.request.allowed
        offered = {name: wishes for name, wishes in hosted.ours.items() if allowed is None or name in allowed}
        self._running = Running(
            hosted.setup.executor,
            context,
            offered,
            self._inbox,
            agent.bounds,
            agent.clock,
            tells=hosted.tells.events,
        )
        self._pump: asyncio.Task[None] | None = None
        self._dialog: list[dict[str, Any]] = []
        self._tally = Tally()
        self._begun = False
        self._callers = {tool.name for tool in hosted.request.all_tools} - hosted.ours.keys()

    async def events(self) -> AsyncGenerator[list[Said], None]:
        """All turns, as one answer."""
        before, body = Before(), self._hosted.body
        for number in count(1):
            turn = Round(before, self._is_ours)
            async with aclosing(self._listen(turn, body)) as events:
                async for said in events:
                    yield said
            self._tally.add(turn.usage)
            await self._note(turn)
            body = self._rest(self._hosted.body)
            if turn.handed_back or turn.finish in _CUT_OFF or not turn.ours:
                break
            if self._written_out(body):
                turn.finish = "length"
                break
            last = number >= self._agent.bounds.rounds or self._spent() or self._running.is_over()
            self._request = self._next(last=last)
            before = turn.then()
        finish = turn.finish if turn.finish in _CUT_OFF or not turn.handed_back else "tool_calls"
        yield [(0, TurnEnd(finish, turn.fields)), (0, Dialog(self._dialog))]
        if self._hosted.keeps_sessions:
            yield [(0, Session(self._session))]
        if usage := self._tally.usage:
            yield [(0, Usage(usage))]

    async def aclose(self) -> None:
        """Ends the turn, which frees the upstream, and the tools."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        await self._running.aclose()

    # -- one turn ------------------------------------------------------------------------------------------

    async def _listen(self, turn: Round, body: Mapping[str, Any]) -> AsyncGenerator[list[Said], None]:
        # What the turn and the tools say, until the one and the others have ended.
        self._pump = pump = asyncio.create_task(self._read(turn, body))
        pump.add_done_callback(lambda _: self._inbox.wake())
        while True:
            said = await self._inbox.take(self._agent.bounds.heartbeat_s)
            if said:
                self._begun = True
                yield said
            elif said is None and self._begun:
                yield [(0, Waiting())]
            if pump.done() and self._inbox.empty:
                pump.result()
                if not self._running.busy:
                    return

    async def _read(self, turn: Round, body: Mapping[str, Any]) -> None:
        answered = self._agent.chat.turn(self._request, body, self._asker.headers, counted=True)
        async with aclosing(answered) as events:
            async for said in events:
                passed, complete = turn.read(said)
                if passed:
                    await self._inbox.put(passed)
                for call in complete:
                    self._running.start(call)

    def _is_ours(self, name: str) -> bool:
        # A name that nobody declared is answered here: the model is told which tools there are.
        return name not in self._callers

    # -- between turns -------------------------------------------------------------------------------------

    async def _note(self, turn: Round) -> None:
        # The turn's messages, for the next turn and for the caller.
        ours = turn.ours
        results = self._running.results(ours)
        texts = await self._fitting(results, turn)
        told: list[dict[str, Any]] = [turn.message()]
        told += [
            {"role": "tool", "tool_call_id": call.id, "content": text} for call, text in zip(ours, texts, strict=True)
        ]
        self._dialog += told
        self._messages += [Message.model_validate(message) for message in told]
        if turn.handed_back and any("tool_call_id" in message for message in self._dialog):
            await self._agent.pending.keep(self._asker.name, [call.id for call in turn.handed_back], self._dialog)

    async def _fitting(self, results: Sequence[Result], turn: Round) -> list[str]:
        texts = [result.text for result in results]
        if sum(map(len, texts)) < _SMALL_CHARACTERS:
            return texts
        model, headers = self._hosted.body.get("model"), self._asker.headers
        room = await self._agent.windows.room(model, _tokens(turn.usage), headers)
        if room is None:
            return texts
        sizes = await self._agent.windows.cut(texts, room, model, headers)
        return [
            text if size >= len(text) else await self._shortened(result.call.name, text, size)
            for result, text, size in zip(results, texts, sizes, strict=True)
        ]

    async def _shortened(self, name: str, text: str, longest: int) -> str:
        try:
            where = f"the whole text is in {await self._keep(f'{name}-output.txt', text.encode('utf-8', 'replace'))}"
        except ToolError as error:
            where = f"the whole text could not be kept: {error.message}"
        return shortened(text, longest, where)

    async def _keep(self, name: str, data: bytes | AsyncIterator[bytes]) -> str:
        try:
            stored = await self._agent.files.create(self._asker.name, name, "assistants_output", data)
            return await self._asker.link(stored.id)
        except FileError as error:
            raise ToolError(error.message) from None
        except (OSError, sqlite3.Error) as error:
            logger.error("a file of a tool cannot be kept: %s", error)
            raise ToolError("The server has no room for files.") from None

    def _next(self, *, last: bool) -> ChatRequest:
        if not last:
            return self._hosted.request.going_on(self._messages, "auto")
        told = Message(role="user", content=_NO_MORE[self._language])
        return self._hosted.request.going_on([*self._messages, told], "none")

    def _spent(self) -> bool:
        return int((self._tally.usage or {}).get("total_tokens") or 0) >= self._agent.bounds.tokens

    def _rest(self, body: Mapping[str, Any]) -> dict[str, Any]:
        written = int((self._tally.usage or {}).get("completion_tokens") or 0)
        return {
            **body,
            **{name: length - written for name in _LENGTHS if (length := _length(body.get(name))) is not None},
        }

    def _written_out(self, body: Mapping[str, Any]) -> bool:
        return any((length := _length(body.get(name))) is not None and length <= 0 for name in _LENGTHS)


def _length(given: Any) -> int | None:
    # vLLM takes "50" and 50.0, too; what it refuses it is to see as it came.
    try:
        return None if isinstance(given, bool) or given is None or int(given) != float(given) else int(given)
    except (TypeError, ValueError, OverflowError):
        return None


def _tokens(usage: Mapping[str, Any] | None) -> int:
    return int((usage or {}).get("total_tokens") or 0)


def _language(messages: Sequence[Message]) -> Language:
    asked = [message.content for message in messages if message.role in ("system", "user")]
    return "zh" if any(map(is_chinese, asked)) else "en"
