"""What reading calls out of a model's text has in common in every format.

A parser is a state machine over `_text`, which holds no more than may still be part of a marker, with `_at` as the
place it has come to. A state consumes what it can and says whether to go on; it never decides on the cut of the
text, only on the text, so that any cut gives the same events. The states here:

    _plain     text, up to the next literal; blanks that may stand directly before a call are held back
    _thinking  from <think> at the start of a line to </think>; nothing in there is a call
    _reading   a reader takes the arguments
    _done      nothing that follows is wanted
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from proxy.events import CallArguments, CallEnd, CallStart, Dropped, Halt, ParserEvent, Reasoning, Runaway, Text
from proxy.formats.base import Prompt, ToolUse
from proxy.formats.markers import DECORATION, Lines, Scanner, scanner_for
from proxy.wire import Tool

THINK = "<think>"
END_THINK = "</think>"

_END_THINK = scanner_for(END_THINK)

#: Long pieces are read in slices, so that what is behind a call is not copied again for each call.
_SLICE = 4096


class Reader(Protocol):
    """Turns a model's text of one call's arguments into JSON text."""

    repairs: int

    @property
    def midway(self) -> bool:
        """True if whatever follows is still part of the value, a marker included."""
        ...

    @property
    def over(self) -> bool:
        """True if the value is complete, unless what follows shows that it goes on."""
        ...

    @property
    def runaway(self) -> bool:
        """True if the reader has stopped because the model went on for ever."""
        ...

    def feed(self, text: str) -> tuple[str, str | None]:
        """JSON text to pass on, and what follows the value once it is complete."""
        ...

    def close(self) -> str:
        """The JSON text that completes the value."""
        ...


class CallParser:
    """The states that all formats share; a format adds those between a marker and a call's arguments.

    `markers` says what to do at each of the format's markers, given its spelling. Where the model is offered no tools
    it is to hear none of them: all is text or thinking.
    """

    def __init__(
        self, markers: Mapping[str, Callable[[str], None]], prompt: Prompt, use: ToolUse, new_id: Callable[[], str]
    ) -> None:
        self._markers = markers if use.offered else {}
        self._scanner = scanner_for(*self._markers, THINK, END_THINK)
        self._new_id = new_id
        self._single = use.single
        self._tools = {tool.model_name: tool for tool in use.tools}
        self._tool: Tool | None = None
        self._name = ""
        self._raw: list[str] = []
        self._unsaid = 0
        self._text = ""
        self._at = 0
        self._closing = False
        self._truncated = False
        self._events: list[ParserEvent] = []
        self._lines = Lines()
        self._held: list[str] = []
        self._calls = 0
        self._dropped = 0
        self._reader: Reader | None = None
        self._state: Callable[[], bool] = self._plain
        self._behind_thinking: Callable[[], bool] = self._plain
        if prompt.thinking:
            self._state = self._thinking

    def feed(self, text: str) -> list[ParserEvent]:
        """The events that `text` completes."""
        if len(text) <= _SLICE:
            self._go_on(text)
        else:
            for start in range(0, len(text), _SLICE):
                self._go_on(text[start : start + _SLICE])
        return self._take()

    def think(self, text: str) -> list[ParserEvent]:
        """The events of text that the upstream calls thinking; see `Parser.think`."""
        return [Reasoning(text)]

    @property
    def midway(self) -> bool:
        """True if the text so far ends where a marker would not count: inside thinking or a string."""
        return self._state == self._thinking or (self._reader is not None and self._reader.midway)

    def close(self, *, truncated: bool = False) -> list[ParserEvent]:
        """The events that the end completes; see `Parser.close`."""
        self._closing = True
        self._truncated = truncated
        self._go_on("")
        if self._reader is not None:
            self._end_call(self._reader, open_end=True)
        self._release()
        if self._dropped:
            self._events.append(Dropped(self._dropped))
        return self._take()

    def _go_on(self, text: str) -> None:
        self._text = self._text[self._at :] + text if self._at < len(self._text) else text
        self._at = 0
        while self._state():
            pass

    def _take(self) -> list[ParserEvent]:
        events, self._events = self._events, []
        return events

    # -- states --------------------------------------------------------------------------------------------

    def _plain(self) -> bool:
        found = self._scanner.find(self._text, self._at)
        if found is None:
            end = len(self._text) if self._closing else self._scanner.partial(self._text, self._at)
            self._say(self._text[self._at : end])
            self._at = end
            return False
        self._say(self._text[self._at : found.start])
        self._at = found.end
        raw = self._text[found.start : found.end]
        if found.literal == END_THINK:
            # With no beginning, it is text; but directly before a call it is left over from a prompt that began it.
            self._held.append(raw)
        elif found.literal != THINK:
            self._markers[found.literal](raw)
        elif self._lines.at_start and not self._lines.in_fence:
            self._think(self._plain)
        else:
            self._say(raw)
        return True

    def _thinking(self) -> bool:
        found = _END_THINK.find(self._text, self._at)
        end = found.start if found else self._waiting_end(_END_THINK)
        if end > self._at:
            self._events.append(Reasoning(self._text[self._at : end]))
        self._at = found.end if found else end
        if found:
            self._state = self._behind_thinking
        return found is not None

    def _think(self, then: Callable[[], bool]) -> None:
        self._state, self._behind_thinking = self._thinking, then

    def _reading(self) -> bool:
        return self._read_up_to(len(self._text))

    def _read_up_to(self, end: int) -> bool:
        assert self._reader is not None
        said, rest = self._reader.feed(self._text[self._at : end])
        if said:
            self._events.append(CallArguments(self._calls, said))
        if self._reader.runaway:
            return self._run_away()
        if rest is None:
            self._at = end
            return False
        self._at = end - len(rest)
        if self._at < 0:
            # The marker's beginning came earlier, and was held back.
            self._text, self._at = rest + self._text[end:], 0
        self._end_call(self._reader)
        return True

    def _done(self) -> bool:
        self._at = len(self._text)
        return False

    # -- what states do ------------------------------------------------------------------------------------

    def _waiting_end(self, scanner: Scanner) -> int:
        # Up to where the text can be used now: a literal that may be coming at its end has to wait.
        return len(self._text) if self._closing else scanner.partial(self._text, self._at)

    def _waits(self, at: int) -> bool:
        # True if a marker may be coming right there.
        return not self._closing and self._scanner.partial(self._text, at) == at

    @property
    def _counts_unknown(self) -> bool:
        # True if a name that nobody declared would count here.
        return self._lines.at_start and not self._lines.in_fence

    def _take_raw(self, end: int) -> None:
        # What turns out to be no call has to be said as text.
        self._raw.append(self._text[self._at : end])
        self._at = end

    def _reject(self) -> None:
        # But for what stood in the prompt.
        said = "".join(self._raw)[self._unsaid :]
        self._raw.clear()
        self._state = self._plain
        self._say(said)

    def _is_cut_off(self, name: str) -> bool:
        # True if the model was cut off in the middle of a name that it was told.
        return self._closing and self._truncated and any(told.startswith(name) for told in self._tools)

    def _lose(self) -> None:
        # Half a call is neither a call nor anything that a reader could use.
        self._drop("".join(self._raw)[self._unsaid :])
        self._raw.clear()
        self._held.clear()
        self._state = self._plain

    def _say(self, text: str) -> None:
        self._lines.feed(text)
        if self._calls:
            self._drop(text)
            return
        solid = text.rstrip(DECORATION)
        if solid:
            self._release()
            self._events.append(Text(solid))
        if len(solid) < len(text):
            self._held.append(text[len(solid) :])

    def _drop(self, text: str) -> None:
        # Blanks around a call are nothing that is lost.
        self._dropped += len("".join(text.split()))

    def _release(self) -> None:
        if self._held and not self._calls:
            self._events.append(Text("".join(self._held)))
        self._held.clear()

    def _begin_call(self, name: str, reader: Reader) -> None:
        self._held.clear()
        self._events.append(CallStart(self._calls, self._new_id(), name))
        self._reader = reader
        self._state = self._reading

    def _end_call(self, reader: Reader, *, open_end: bool = False) -> None:
        truncated = open_end and self._truncated and not reader.over
        if open_end and not truncated:
            self._events.append(CallArguments(self._calls, reader.close()))
        self._events.append(CallEnd(self._calls, reader.repairs, truncated))
        self._reader = None
        self._called()

    def _empty_call(self, name: str) -> None:
        # A call of a tool with no arguments; if the model was cut off before them, they are not made up.
        self._held.clear()
        self._events.append(CallStart(self._calls, self._new_id(), name))
        if not self._truncated:
            self._events.append(CallArguments(self._calls, "{}"))
        self._events.append(CallEnd(self._calls, truncated=self._truncated))
        self._called()

    def _called(self) -> None:
        self._calls += 1
        self._state = self._plain
        if self._single and not self._closing:
            self._halt()

    def _run_away(self) -> bool:
        self._events.append(Runaway("The model wrote blanks without end inside the arguments of a call."))
        self._reader = None
        self._dropped = 0
        self._state = self._done
        return True

    def _halt(self) -> None:
        self._release()
        self._events.append(Halt())
        self._state = self._done
