"""The nous format's reader: the model's text -> events.

A call is recognised wherever `<tool_call>` is followed by an object with a declared name; an unknown name only at the
start of a line, outside code fences, and with arguments. Everything else is text. The states between a marker and the
arguments, beside those of `parsing`:

    _forced    where a call was begun for the model: does it begin it anew?                  -> _object | _plain
    _marked    behind <tool_call>, or behind a call in it: an object?                        -> _object | _plain
    _object    in the object around a call, sign by sign until its arguments begin           -> _value | _whole | _plain
    _whole     in an object whose arguments come before its name: they are held back         -> _reading | _plain
    _value     where arguments are due: an object, one in quotes, or nothing                 -> _reading | _plain
    _behind    behind the arguments: another call, or the end                                -> _object | _plain

Source: Qwen-Agent 0.0.34 `nous_fncall_prompt.py`; `docs/format-nous.md` lists where this reading differs from it.
"""

import re
from collections.abc import Callable

from proxy.events import CallArguments
from proxy.formats.arguments import ObjectReader
from proxy.formats.base import Prompt, ToolUse
from proxy.formats.envelope import Envelope
from proxy.formats.markers import scanner_for
from proxy.formats.parsing import CallParser, Reader
from proxy.formats.quoted import MAX_HELD, OBJECT, OBJECT_SO_FAR, reader_of
from proxy.formats.schemas import ANYTHING, view_of

CALL = "<tool_call>"
END_CALL = "</tool_call>"
RESPONSE = "<tool_response>"

#: What every marker begins with, and what cannot stand in JSON outside a string.
LEAD = "<"

#: So much of an object may stand before its arguments: a name of 64 characters, an id, and whatever else is held back.
_MAX_HEADER = 1024
#: So many blanks may stand between a marker and what it waits for; more is text.
_MAX_BLANKS = 64

_NAME = re.compile(r"[\w-]{1,64}")
_BLANKS = re.compile(rf"\s{{0,{_MAX_BLANKS}}}")
#: A block or a list around the calls, as far as it has come.
_LEAD_IN = re.compile(r"B(?:`{1,2}\Z|```\w{0,16}B)?(?:\[B)?".replace("B", _BLANKS.pattern))
_BETWEEN = re.compile(r"[\s,}\]\"'`]*")
_NOTHING = re.compile(rf"(?:null|None)\b|([\"'])\s{{0,{_MAX_BLANKS}}}\1|(?=[,}}\]])")
_NULLS = ("null", "None")
#: JSON has no line ends in its strings: where such a line begins inside one, its quote is missing.
_CLOSING_LINE = scanner_for(f"\n{END_CALL}")


class NousParser(CallParser):
    """Reads one answer in the nous format; a prefill is read as if the model had said it."""

    def __init__(self, prompt: Prompt, use: ToolUse, new_id: Callable[[], str]) -> None:
        markers = {CALL: self._at_call, END_CALL: self._at_end_call, RESPONSE: self._at_response}
        super().__init__(markers, prompt, use, new_id)
        self._envelope = Envelope(LEAD)
        if prompt.prefill:
            self._envelope.feed(prompt.prefill.removeprefix(CALL))
            self._state = self._forced

    def _at_call(self, raw: str) -> None:
        self._raw = [raw]
        self._state = self._marked

    def _at_end_call(self, raw: str) -> None:
        # The rest of a call, unless there was none.
        if not self._calls:
            self._say(raw)

    def _at_response(self, raw: str) -> None:
        if self._calls:
            self._halt()
        else:
            self._say(raw)

    # -- states --------------------------------------------------------------------------------------------

    def _forced(self) -> bool:
        blanks = _BLANKS.match(self._text, self._at)
        assert blanks is not None
        if self._waits(blanks.end()):
            return False
        self._state = self._plain if self._scanner.match(self._text, blanks.end()) else self._object
        return True

    def _marked(self) -> bool:
        lead_in = _LEAD_IN.match(self._text, self._at)
        assert lead_in is not None
        if lead_in.end() == len(self._text) and not self._closing:
            return False
        if self._text.startswith("{", lead_in.end()):
            self._take_raw(lead_in.end())
            self._begin_object()
        elif self._truncated and lead_in.end() == len(self._text):
            self._lose()
        else:
            self._reject()
        return True

    def _object(self) -> bool:
        end, closed = self._end_of_writing()
        while self._at < end:
            if self._envelope.at_arguments and not self._text[self._at].isspace():
                self._begin_arguments()
                return True
            if self._follow(self._at + 1):
                self._end_object()
                return True
            if self._envelope.size >= _MAX_HEADER:
                self._give_up()
                return True
        return self._may_end_object(closed=closed)

    def _whole(self) -> bool:
        end, closed = self._end_of_writing()
        limit = self._at + MAX_HELD - self._envelope.size
        if self._follow(min(end, limit)):
            self._end_object()
        elif end >= limit:
            self._reject()
        else:
            return self._may_end_object(closed=closed)
        return True

    def _value(self) -> bool:
        unclear = self._may_become_value()
        if unclear and not self._closing:
            return False
        found = self._scanner.match(self._text, self._at)
        if nothing := _NOTHING.match(self._text, self._at):
            self._at = nothing.end()
            self._empty_call(self._name)
        elif chosen := self._reader_of(self._text, self._at):
            self._at, reader = chosen
            self._begin_call(self._name, reader)
        elif found and found.literal == END_CALL:
            self._empty_call(self._name)
        elif unclear and self._truncated:
            self._at = len(self._text)
            self._empty_call(self._name)
        else:
            self._reject()
        return True

    def _reading(self) -> bool:
        end, closed = self._end_of_writing()
        goes_on = self._read_up_to(end)
        if closed and self._reader is not None:
            self._end_call(self._reader, open_end=True)
        return goes_on or closed

    def _behind(self) -> bool:
        between = _BETWEEN.match(self._text, self._at)
        assert between is not None
        self._at = between.end()
        if self._at == len(self._text):
            return False
        self._state = self._plain
        if self._text[self._at] == "{":
            self._begin_object()
        return True

    # -- what states do ------------------------------------------------------------------------------------

    def _end_of_writing(self) -> tuple[int, bool]:
        # Up to where the text can be part of an object, and whether it ends there.
        if "\n" not in self._text:
            return len(self._text), False
        found = _CLOSING_LINE.find(self._text, self._at)
        return (found.start, True) if found else (self._waiting_end(_CLOSING_LINE), False)

    def _begin_object(self) -> None:
        self._envelope = Envelope(LEAD)
        self._state = self._object

    def _follow(self, end: int) -> bool:
        # Goes on in the object; true if it is complete.
        rest = self._envelope.feed(self._text[self._at : end])
        self._take_raw(end - len(rest or ""))
        return rest is not None

    def _begin_arguments(self) -> None:
        name = self._envelope.name
        if name is None:
            self._state = self._whole
        elif self._resolve(name):
            self._state = self._value
        else:
            self._reject()

    def _give_up(self) -> None:
        if self._envelope.at_arguments and self._envelope.name in self._tools:
            # Nothing but blanks where they should begin.
            self._run_away()
        else:
            self._reject()

    def _may_end_object(self, *, closed: bool) -> bool:
        if not closed and not self._closing:
            return False
        cut_off = self._truncated and not closed
        if not cut_off:
            self._envelope.close()
        if cut_off and self._envelope.name is None:
            self._lose()
        else:
            self._end_object()
        return True

    def _end_object(self) -> None:
        name, arguments = self._envelope.name, self._envelope.arguments
        if name is None or not self._resolve(name):
            self._reject()
        elif arguments is not None:
            self._read_whole(arguments)
        elif self._tool:
            self._empty_call(self._name)
        else:
            self._reject()

    def _read_whole(self, arguments: str) -> None:
        if _NOTHING.fullmatch(arguments):
            self._empty_call(self._name)
        elif chosen := self._reader_of(arguments, 0):
            place, reader = chosen
            self._begin_call(self._name, reader)
            said, rest = reader.feed(arguments[place:])
            self._events.append(CallArguments(self._calls, said if rest is not None else said + reader.close()))
            self._end_call(reader)
        else:
            self._reject()

    def _may_become_value(self) -> bool:
        said = self._text[self._at :]
        may_become_nothing = any(word.startswith(said) for word in _NULLS)
        return (
            may_become_nothing
            or OBJECT_SO_FAR.fullmatch(said) is not None
            or self._scanner.partial(self._text, self._at) == self._at
        )

    def _reader_of(self, text: str, at: int) -> tuple[int, Reader] | None:
        reader = ObjectReader(LEAD, view_of(self._tool.json_schema) if self._tool else ANYTHING)
        reader.repairs = self._envelope.repairs
        if text.startswith("{", at):
            return at, reader
        quoted = OBJECT.match(text, at)
        return reader_of(quoted, reader, LEAD) if quoted else None

    def _resolve(self, name: str) -> bool:
        self._tool = self._tools.get(name)
        self._name = self._tool.name if self._tool else name
        return self._tool is not None or (self._counts_unknown and _NAME.fullmatch(name) is not None)

    def _called(self) -> None:
        super()._called()
        self._raw.clear()
        if self._state == self._plain:
            self._state = self._behind
