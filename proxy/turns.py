"""One answer of the upstream's, or several where it makes mistakes: what it is asked, and what its pieces say."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy.choices import ChoiceReader
from proxy.errors import FloretteError, InvalidRequest
from proxy.events import Event, Extras, TurnStart
from proxy.formats.base import Format, Grammar, Prompt, ToolUse
from proxy.formats.grammar import Guided, structural_tag
from proxy.pieces import Piece
from proxy.review import Review
from proxy.stops import UPSTREAM_LIMIT, StopStrings
from proxy.usage import Tally
from proxy.wire import ChatRequest, Message

Said = tuple[int, Event]

#: The upstream answers these with 400, or ignores them: it knows nothing of tools.
_TOOL_FIELDS = frozenset(("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "florette"))

#: Constrained to one of these, a model could not write a marker.
_WHOLE_ANSWERS = ("json_object", "json_schema")

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


def _use(request: ChatRequest) -> ToolUse:
    forbidden = frozenset(tool.name for tool in request.all_tools) - {tool.name for tool in request.declared}
    use = ToolUse(request.declared, request.choice, request.parallel, forbidden=forbidden)
    # Without tools the upstream enforces the format by itself.
    return replace(use, answer=request.answer_schema) if use.offered else use


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to the upstream; `grammar` is the one that the body carries."""

    body: dict[str, Any]
    streamed: bool
    grammar: Grammar | None


class Turn:
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
        self._choices: list[ChoiceReader] = []
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

    def first(self, grammar: Grammar | None, *, sure: bool) -> Ask:
        """The request for all choices; `sure`: the upstream holds the model to the grammar."""
        self._guided = grammar is not None
        trusted = sure and self.use.bounded
        self._choices = [
            ChoiceReader(Review(self.use, repairs=self.profile.repairs, trusted=trusted))
            for _ in range(self._request.n or 1)
        ]
        return self._ask(range(len(self._choices)), grammar)

    def next(self) -> Ask | None:
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

    def _ask(self, choices: Sequence[int], grammar: Grammar | None) -> Ask:
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
        return Ask(sent, self._streamed, grammar)

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
