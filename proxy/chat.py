"""One turn: a chat request -> the prompt -> the upstream -> the model's text -> events.

    request -> Format.render -> Prompt -> Upstream -> pieces -> StopStrings -> Parser -> (choice, Event) ...

Streamed or not, the upstream's text goes through the same parser; what is not streamed is one piece.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from proxy.errors import ChoiceNotMet, InvalidRequest, UpstreamBroken
from proxy.events import (
    CallArguments,
    CallEnd,
    CallStart,
    Event,
    Extras,
    Halt,
    ParserEvent,
    Reasoning,
    Text,
    TurnEnd,
    TurnStart,
    Usage,
)
from proxy.formats.base import Format, Parser, Prompt
from proxy.pieces import Piece, PieceReader, read_whole
from proxy.stops import UPSTREAM_LIMIT, StopStrings
from proxy.upstream import Upstream
from proxy.wire import ChatRequest

Said = tuple[int, Event]

#: The upstream answers these with 400, or ignores them: it knows nothing of tools.
_TOOL_FIELDS = frozenset(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"))

#: Constrained to one of these, a model could not write a marker.
_WHOLE_ANSWER_FORMATS = frozenset(("json_object", "json_schema"))


#: In a turn's prompt the assistant's last words stand in the user's message: there is none to continue.
_CONTINUING = frozenset(("continue_final_message", "add_generation_prompt"))


def without_tool_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request's body without what a plain server refuses."""
    return {name: value for name, value in body.items() if name not in _TOOL_FIELDS}


class Chat:
    """Runs turns against one upstream in one format; `new_id` gives each call its id."""

    def __init__(self, upstream: Upstream, fmt: Format, new_id: Callable[[], str]) -> None:
        self._upstream = upstream
        self._format = fmt
        self._new_id = new_id

    async def turn(
        self, request: ChatRequest, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> AsyncGenerator[list[Said], None]:
        """The events of one answer, those that came together as one list.

        Raises what `Upstream` raises, UpstreamBroken and ChoiceNotMet.
        """
        prompt = self._prompt(request)
        sent, local_stops = _upstream_body(request, body, prompt)
        turn = _Turn(request, prompt, lambda: self._parser(request, prompt), local_stops)
        if not request.stream:
            pieces, usage = read_whole(await self._upstream.complete(sent, headers))
            yield turn.go_on(pieces)
        else:
            reader = PieceReader(each_usage=request.wants_each_usage)
            async with aclosing(self._upstream.stream(sent, headers)) as reads:
                async for payloads in reads:
                    yield turn.go_on(reader.feed(payloads))
                    if failed := turn.failed or reader.failed:
                        raise failed
                    if not reader.done and turn.is_over():
                        break
            usage = reader.usage if request.wants_usage else None
        yield turn.end(usage)
        if turn.failed:
            raise turn.failed

    def _prompt(self, request: ChatRequest) -> Prompt:
        try:
            return self._format.render(request.messages, request.declared, request.choice, request.parallel)
        except RecursionError:
            raise InvalidRequest("The request body is nested too deeply.") from None

    def _parser(self, request: ChatRequest, prompt: Prompt) -> Parser:
        return self._format.parser(prompt, request.declared, request.choice, request.parallel, self._new_id)


def _upstream_body(request: ChatRequest, body: Mapping[str, Any], prompt: Prompt) -> tuple[dict[str, Any], list[str]]:
    # What the upstream is asked, and the caller's stop strings that did not fit.
    kept = {name: value for name, value in without_tool_fields(body).items() if name not in _CONTINUING}
    sent = kept | {"messages": prompt.messages}
    stops = request.stops
    room = UPSTREAM_LIMIT - len(prompt.stop)
    if stops or prompt.stop:
        sent["stop"] = [*stops[:room], *prompt.stop]
    answer_format = sent.get("response_format")
    if prompt.stop and isinstance(answer_format, dict) and answer_format.get("type") in _WHOLE_ANSWER_FORMATS:
        del sent["response_format"]
    if request.wants_usage:
        # The upstream may be dropped before its usage chunk: then the last count is the one to tell.
        sent["stream_options"] = {**sent["stream_options"], "continuous_usage_stats": True}
    return sent, stops[room:]


class _Turn:
    """Goes through the pieces of one answer: one parser for each choice."""

    def __init__(
        self, request: ChatRequest, prompt: Prompt, new_parser: Callable[[], Parser], local_stops: list[str]
    ) -> None:
        include = bool(request.include_stop_str_in_output)
        self._choices = [
            _Choice(request, new_parser(), StopStrings(local_stops, include=include) if local_stops else None, prompt)
            for _ in range(request.n or 1)
        ]
        self._head: Mapping[str, Any] = {}
        self._begun = 0

    @property
    def failed(self) -> ChoiceNotMet | None:
        """What the model did not do that the caller demanded."""
        return next((choice.failed for choice in self._choices if choice.failed), None)

    def is_over(self) -> bool:
        """True if nothing that the upstream may still send is wanted."""
        return all(choice.halted for choice in self._choices)

    def go_on(self, pieces: list[Piece]) -> list[Said]:
        said: list[Said] = []
        for piece in pieces:
            index = piece.choice
            if index is None:
                said += self._whole(piece.head or {})
            elif index < len(self._choices):
                if self._begun <= index:
                    said += self._begin(index)
                said += [(index, event) for event in self._choices[index].read(piece)]
        return said

    def end(self, usage: Mapping[str, Any] | None) -> list[Said]:
        said: list[Said] = []
        for index, choice in enumerate(self._choices):
            said += self._begin(index)
            said += [(index, event) for event in choice.end()]
        if usage is not None:
            said.append((0, Usage(usage)))
        return said

    def _whole(self, head: Mapping[str, Any]) -> list[Said]:
        if self._begun:
            return [(0, Extras({}, head))]
        self._head = {**self._head, **head}
        return []

    def _begin(self, choice: int) -> list[Said]:
        begun = range(self._begun, choice + 1)
        self._begun = max(self._begun, choice + 1)
        return [(index, TurnStart(self._head)) for index in begun]


class _Choice:
    """Reads one choice and says how it finished."""

    def __init__(self, request: ChatRequest, parser: Parser, stops: StopStrings | None, prompt: Prompt) -> None:
        self._demand = request.choice
        self._parser = parser
        self._stops = stops
        self._marker_stops = prompt.stop
        self._calls = 0
        self._truncated = False
        self._finish: str | None = None
        self._fields: dict[str, Any] = {}
        self._ended = False
        self.halted = False
        self.failed: ChoiceNotMet | None = None

    def read(self, piece: Piece) -> Sequence[Event]:
        if self._ended or self.failed:
            return ()
        if piece.fields is None and piece.finish is None and not piece.reasoning:
            return self._feed(piece.content) if piece.content and not self.halted else ()
        events: list[Event] = []
        if piece.fields:
            events += self._extras(piece)
        if piece.reasoning:
            events.append(Reasoning(piece.reasoning))
        if piece.content and not self.halted:
            events += self._feed(piece.content)
        if piece.finish is not None:
            self._finish = self._finish or piece.finish
            events += self.end()
        return events

    def end(self) -> list[Event]:
        """The end of the choice, once: UpstreamBroken if the upstream never said that it was finished."""
        if self._ended:
            return []
        if self._finish is None and not self.halted:
            raise UpstreamBroken("The upstream's answer ended before it was finished.")
        self._ended = True
        finish = self._finish or "stop"
        events: list[Event] = []
        if self._stops and not self.halted:
            events += self._checked(self._parser.feed(self._stops.close()))
        stop = self._fields.get("stop_reason")
        if stop in self._marker_stops:
            del self._fields["stop_reason"]
            if self._parser.midway:
                # The marker was a word of the thinking or of a string: what came behind it is missing.
                finish = "length"
        # A stop string of the caller's ends the text wherever it stands, as `max_tokens` does.
        cut_off = finish == "length" or (isinstance(stop, str) and stop not in self._marker_stops)
        events += self._checked(self._parser.close(truncated=cut_off))
        return [*events, *self._turn_end(finish)]

    def _extras(self, piece: Piece) -> list[Event]:
        fields = dict(piece.fields or {})
        if piece.finish is not None and "stop_reason" in fields:
            self._fields = {"stop_reason": fields.pop("stop_reason")}
        return [Extras(fields)] if fields else []

    def _feed(self, content: str) -> Sequence[Event]:
        if self._stops is None:
            return self._checked(self._parser.feed(content))
        events = self._checked(self._parser.feed(self._stops.feed(content)))
        if self._stops.stopped_by is not None:
            self._finish, self._fields = "stop", {"stop_reason": self._stops.stopped_by}
            self.halted = True
        return events

    def _checked(self, said: list[ParserEvent]) -> Sequence[Event]:
        for number, event in enumerate(said):
            match event:
                case CallArguments() | Text() | Reasoning():
                    pass
                case CallStart(name=name) if self._demand.mode == "named" and name != self._demand.name:
                    self.failed = _unmet(self._demand.name)
                    return said[:number]
                case CallEnd(truncated=truncated):
                    self._calls += not truncated
                    self._truncated = truncated
                case Halt():
                    # Whatever ends the upstream's text behind this, the answer is complete.
                    self.halted, self._finish = True, self._finish or "stop"
        return said

    def _turn_end(self, finish: str) -> list[Event]:
        if self._truncated:
            finish = "length"
        elif self._calls and finish == "stop":
            finish = "tool_calls"
        if finish != "length" and not self._calls and self._demand.mode in ("required", "named"):
            self.failed = self.failed or _unmet(self._demand.name)
        return [] if self.failed else [TurnEnd(finish, self._fields)]


def _unmet(name: str | None) -> ChoiceNotMet:
    wanted = f"'{name}'" if name else "a tool"
    return ChoiceNotMet(
        f"The model did not call {wanted}, although tool_choice demands it; ask again or word the request clearer."
    )
