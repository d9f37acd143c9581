"""One choice of an answer: its pieces -> events, and how it finished.

piece -> StopStrings -> Parser -> Review -> events
"""

from collections.abc import Sequence
from typing import Any

from proxy.errors import UpstreamBroken
from proxy.events import Event, Extras, Halt, ParserEvent, TurnEnd
from proxy.formats.base import Parser, Prompt
from proxy.pieces import Piece
from proxy.review import Review
from proxy.stops import StopStrings

#: How an upstream may end an answer, as OpenAI tells it; vLLM knows `abort` and `error`, too, which are none.
_FINISHES = frozenset(("stop", "length", "tool_calls", "function_call", "content_filter"))
#: Those by which nothing is complete that is not.
_CUT_OFF = frozenset(("length", "content_filter"))


class ChoiceReader:
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
