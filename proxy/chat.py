"""One turn: a chat request -> the prompt -> the upstream -> the model's text -> events.

    request -> Format.render -> Prompt -> Upstream -> pieces -> StopStrings -> Parser -> Review -> (choice, Event) ...
                    ^                                                             |
                    `-------------- the model is told of its mistake -------------'

Streamed or not, the upstream's text goes through the same parser; what is not streamed is one piece.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from proxy.errors import FloretteError, InvalidRequest, UpstreamBroken, UpstreamRefused
from proxy.events import Event, Extras, Halt, ParserEvent, TurnEnd, TurnStart, Usage
from proxy.formats.base import Format, Grammar, Parser, Prompt, ToolUse
from proxy.guidance import Guidance, Guided, Support, is_refusal, is_wanted, structural_tag
from proxy.pieces import Piece, PieceReader, read_whole
from proxy.review import Review
from proxy.stops import UPSTREAM_LIMIT, StopStrings
from proxy.upstream import Upstream
from proxy.usage import Tally
from proxy.wire import ChatRequest, Message

Said = tuple[int, Event]

#: The upstream answers these with 400, or ignores them: it knows nothing of tools.
_TOOL_FIELDS = frozenset(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call"))

#: Constrained to one of these, a model could not write a marker.
_WHOLE_ANSWERS = ("json_object", "json_schema")

#: How an upstream may end an answer, as OpenAI tells it; vLLM knows `abort` and `error`, too, which are none.
_FINISHES = frozenset(("stop", "length", "tool_calls", "function_call", "content_filter"))
#: Those by which nothing is complete that is not.
_CUT_OFF = frozenset(("length", "content_filter"))

#: A turn's prompt is not the caller's: what of it is continued, and said again before the answer, is ours to say.
_CONTINUING = frozenset(("continue_final_message", "add_generation_prompt", "echo"))


def without_tool_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The request's body without what a plain server refuses."""
    return {name: value for name, value in body.items() if name not in _TOOL_FIELDS}


@dataclass(frozen=True, slots=True)
class Profile:
    """How a model is talked to. `repairs`: how often a call that is wrong may be asked for again."""

    format: Format
    guided: Guided = "auto"
    repairs: int = 0


class Chat:
    """Runs turns against one upstream; `profile` tells how to talk to a model, `new_id` gives each call its id.

    `now` gives seconds; they only have to go forward.
    """

    def __init__(
        self,
        upstream: Upstream,
        profile: Callable[[str | None], Profile],
        new_id: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._profile = profile
        self._new_id = new_id
        self._guidance = Guidance(upstream, now)

    async def turn(
        self, request: ChatRequest, body: Mapping[str, Any], headers: Mapping[str, str], *, counted: bool = False
    ) -> AsyncGenerator[list[Said], None]:
        """The events of one answer, those that came together as one list.

        A Usage ends it if the caller wants to see it, or if it is `counted`. Raises what `Upstream` raises,
        UpstreamBroken, ChoiceNotMet, AnswerNotMet and RunawayArguments.
        """
        turn = _Turn(request, body, self._profile(request.model), self._new_id, counted=counted)
        refused: Grammar | None = None
        grammar, support = await self._grammar(turn, body, headers)
        ask: _Ask | None = turn.first(grammar, sure=support == "yes")
        try:
            while ask is not None:
                reader = PieceReader(each_usage=request.wants_each_usage)
                try:
                    if ask.streamed:
                        async with aclosing(self._upstream.stream(ask.body, headers)) as reads:
                            async for payloads in reads:
                                yield turn.go_on(reader.feed(payloads))
                                if failed := turn.failed or reader.failed:
                                    raise failed
                                if not reader.done and turn.is_over():
                                    break
                        yield turn.end(reader.usage, None if reader.done else reader.chunks)
                    else:
                        pieces, usage = read_whole(await self._upstream.complete(ask.body, headers))
                        yield turn.go_on(pieces)
                        yield turn.end(usage)
                except UpstreamRefused as error:
                    if ask.grammar is None or turn.heard or not is_refusal(error):
                        raise
                    refused, ask = ask.grammar, turn.first(None, sure=False)
                    continue
                if turn.failed:
                    raise turn.failed
                ask = turn.next()
        finally:
            if refused is not None and turn.heard:
                self._guidance.refused(refused, body)
        if usage := turn.usage:
            yield [(0, Usage(usage))]

    async def _grammar(
        self, turn: "_Turn", body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[Grammar | None, Support]:
        if not is_wanted(turn.profile.guided, turn.use, body):
            return None, "no"
        grammar = turn.grammar()
        support = await self._guidance.support(grammar, body, headers)
        return (None if support == "no" else grammar), support


def _use(request: ChatRequest) -> ToolUse:
    forbidden = frozenset(tool.name for tool in request.all_tools) - {tool.name for tool in request.declared}
    use = ToolUse(request.declared, request.choice, request.parallel, forbidden=forbidden)
    # Without tools the upstream enforces the format by itself.
    return replace(use, answer=request.answer_schema) if use.offered else use


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request to the upstream; `grammar` is the one that the body carries."""

    body: dict[str, Any]
    streamed: bool
    grammar: Grammar | None


class _Turn:
    """One answer: what the upstream is asked for it, at first and after a mistake, and what its pieces say."""

    def __init__(
        self,
        request: ChatRequest,
        body: Mapping[str, Any],
        profile: Profile,
        new_id: Callable[[], str],
        *,
        counted: bool,
    ) -> None:
        self._request = request
        self._body = {name: value for name, value in without_tool_fields(body).items() if name not in _CONTINUING}
        self.profile = profile
        self.use = _use(request)
        self._new_id = new_id
        # One call is all that is wanted: the upstream can be dropped behind it, if it streams.
        self._streamed = bool(request.stream) or (self.use.offered and self.use.single)
        self._counts = counted or request.wants_usage or not request.stream
        self._prompt = self._render(())
        self._choices: list[_Choice] = []
        self._asked: Sequence[int] = ()
        self._guided = False
        self._tally = Tally()
        self._head: Mapping[str, Any] = {}
        self._begun = 0
        self._tried = False
        self.heard = False

    # -- what the upstream is asked ------------------------------------------------------------------------

    def grammar(self) -> Grammar:
        """What the answer to the prompt may be."""
        return self.profile.format.grammar(self._prompt, self.use)

    def first(self, grammar: Grammar | None, *, sure: bool) -> _Ask:
        """The request for all choices; `sure`: the upstream holds the model to the grammar."""
        self._guided = grammar is not None
        trusted = sure and self.use.bounded
        self._choices = [
            _Choice(Review(self.use, repairs=self.profile.repairs, trusted=trusted))
            for _ in range(self._request.n or 1)
        ]
        return self._ask(range(len(self._choices)), grammar)

    def next(self) -> _Ask | None:
        """The request for a choice that has to be asked again, telling the model of its mistake; None if none has."""
        for index, choice in enumerate(self._choices):
            if choice.stopped_short:
                # Without the format's stop strings: the parser finds its markers by itself.
                self._prompt = replace(self._prompt, stop=())
            elif mistake := choice.review.mistake:
                self._prompt = self._render(mistake.told)
                choice.review.again()
            else:
                continue
            self._tried = True
            return self._ask([index], self.grammar() if self._guided else None)
        return None

    def _render(self, told: Sequence[Message]) -> Prompt:
        try:
            return self.profile.format.render([*self._request.messages, *told], self.use)
        except RecursionError:
            raise InvalidRequest("The request body is nested too deeply.") from None

    def _ask(self, choices: Sequence[int], grammar: Grammar | None) -> _Ask:
        self._asked = choices
        prompt = self._prompt
        stops = self._request.stops
        room = UPSTREAM_LIMIT - len(prompt.stop)
        include = bool(self._request.include_stop_str_in_output)
        for index in choices:
            parser = self.profile.format.parser(prompt, self.use, self._new_id)
            local_stops = StopStrings(stops[room:], include=include) if stops[room:] else None
            self._choices[index].begin(parser, prompt, local_stops)
        sent = self._body | {"messages": prompt.messages}
        if len(choices) < len(self._choices):
            sent["n"] = len(choices)
        if stops or prompt.stop:
            sent["stop"] = [*stops[:room], *prompt.stop]
        if prompt.continued:
            sent |= {"continue_final_message": True, "add_generation_prompt": False}
        if prompt.special:
            sent.setdefault("skip_special_tokens", False)
        self._format_answer(sent, grammar)
        self._count(sent)
        return _Ask(sent, self._streamed, grammar)

    def _format_answer(self, sent: dict[str, Any], grammar: Grammar | None) -> None:
        answer_format = sent.get("response_format")
        if grammar is not None:
            sent["response_format"] = structural_tag(grammar)
        elif self.use.offered and isinstance(answer_format, dict) and answer_format.get("type") in _WHOLE_ANSWERS:
            del sent["response_format"]

    def _count(self, sent: dict[str, Any]) -> None:
        if self._streamed and self._counts:
            # The upstream may be dropped before its usage chunk: then the last count is the one to tell.
            counted = {"include_usage": True, "continuous_usage_stats": True}
            sent["stream_options"] = {**(sent.get("stream_options") or {}), **counted}

    # -- what it says --------------------------------------------------------------------------------------

    @property
    def failed(self) -> FloretteError | None:
        """What the model did not do that the caller demanded, told or not."""
        return next((choice.review.failed for choice in self._choices if choice.review.failed), None)

    def is_over(self) -> bool:
        """True if nothing that the upstream may still send is wanted."""
        return all(self._choices[index].is_over for index in self._asked)

    def go_on(self, pieces: list[Piece]) -> list[Said]:
        """The events of these pieces."""
        self.heard = self.heard or bool(pieces)
        said: list[Said] = []
        for piece in pieces:
            if piece.choice is None:
                said += self._whole(piece.head or {})
            elif piece.choice < len(self._asked):
                index = self._asked[piece.choice]
                if self._begun <= index:
                    said += self._begin(index)
                said += [(index, event) for event in self._choices[index].read(piece)]
        return said

    def end(self, usage: Mapping[str, Any] | None, dropped_behind: int | None = None) -> list[Said]:
        """The end of what was asked. `usage` is the upstream's last word; it was dropped behind so many chunks."""
        said: list[Said] = []
        for index in self._asked:
            said += self._begin(index)
            said += [(index, event) for event in self._choices[index].end()]
        if usage is None and dropped_behind is not None:
            self._tally.estimate(len(str(self._prompt.messages)), dropped_behind)
        else:
            self._tally.add(usage)
        return said

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """What the whole answer took, if it is to be told."""
        return self._tally.usage if self._counts else None

    def _whole(self, head: Mapping[str, Any]) -> list[Said]:
        if self._tried:
            # One answer has one id, and its usage is told at its end.
            return []
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

    def __init__(self, review: Review) -> None:
        self.review = review

    def begin(self, parser: Parser, prompt: Prompt, stops: StopStrings | None) -> None:
        """The upstream is asked, for the first time or again."""
        self._parser = parser
        self._stops = stops
        self._marker_stops = prompt.stop
        self._may_repeat_marker = prompt.after_results
        self.stopped_short = False
        self._finish: str | None = None
        self._fields: dict[str, Any] = {}
        self._kept: list[Event] = []
        self._ended = False
        self._halted = False

    @property
    def is_over(self) -> bool:
        """True if nothing that may still come is wanted."""
        return self._halted or self.review.over

    def read(self, piece: Piece) -> Sequence[Event]:
        """The events of a piece."""
        if self._ended or self.review.over:
            return ()
        if piece.fields is None and piece.finish is None and not (piece.reasoning or self._kept):
            return self._feed(piece.content) if piece.content and not self._halted else ()
        if piece.fields:
            self._keep(piece)
        events: list[Event] = [*self._checked(self._parser.think(piece.reasoning))] if piece.reasoning else []
        if piece.content and not self._halted:
            events += self._feed(piece.content)
        if not self.review.holds:
            events = [*self._released(), *events]
        if piece.finish is not None:
            self._finish = self._finish or piece.finish
            events += self.end()
        return events

    def end(self) -> list[Event]:
        """The end of the choice, once: UpstreamBroken if the upstream never said that it was finished."""
        if self._ended or self.review.over:
            return []
        if self._finish is None and not self._halted:
            raise UpstreamBroken("The upstream's answer ended before it was finished.")
        self._ended = True
        finish = self._finish or "stop"
        events: list[Event] = []
        if self._stops and not self._halted:
            events += self._checked(self._parser.feed(self._stops.close()))
        stop = self._fields.get("stop_reason")
        if stop in self._marker_stops:
            del self._fields["stop_reason"]
            if self._parser.midway:
                # The marker was a word of the thinking or of a string: what came behind it is missing.
                finish = "length"
            elif self._may_repeat_marker:
                # The model said once more the marker that its prompt ends in: no end, but the beginning.
                self.stopped_short = True
                return []
        if finish not in _FINISHES:
            raise UpstreamBroken(f"The upstream gave the answer up before it was finished: {finish}.")
        # A stop string of the caller's ends the text wherever it stands, as `max_tokens` does.
        cut_off = finish in _CUT_OFF or (isinstance(stop, str) and stop not in self._marker_stops)
        events += self._checked(self._parser.close(truncated=cut_off))
        events += self.review.close(finish)
        return [] if self.review.over else [*self._released(), *events, self._turn_end(finish)]

    def _keep(self, piece: Piece) -> None:
        # Log probabilities hold the words: they are held back with them.
        fields = dict(piece.fields or {})
        if piece.finish is not None and "stop_reason" in fields:
            self._fields = {"stop_reason": fields.pop("stop_reason")}
        if fields:
            self._kept.append(Extras(fields))

    def _released(self) -> list[Event]:
        kept, self._kept = self._kept, []
        return kept

    def _feed(self, content: str) -> Sequence[Event]:
        if self._stops is None:
            return self._checked(self._parser.feed(content))
        events = self._checked(self._parser.feed(self._stops.feed(content)))
        if self._stops.stopped_by is not None:
            self._finish, self._fields = "stop", {"stop_reason": self._stops.stopped_by}
            self._halted = True
        return events

    def _checked(self, said: list[ParserEvent]) -> Sequence[Event]:
        self._may_repeat_marker = self._may_repeat_marker and not said
        passed = self.review.pass_on(said)
        if passed and type(passed[-1]) is Halt:
            # Whatever ends the upstream's text behind this, the answer is complete.
            self._halted, self._finish = True, self._finish or "stop"
        return passed

    def _turn_end(self, finish: str) -> TurnEnd:
        if self.review.truncated and finish not in _CUT_OFF:
            finish = "length"
        elif self.review.calls and finish == "stop":
            finish = "tool_calls"
        return TurnEnd(finish, self._fields)
