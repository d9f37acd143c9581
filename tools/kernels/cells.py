"""The messages of one cell -> its Outcome. No input or output and no clock: whoever drives the cell feeds it.

    iopub: stream, execute_result, display_data, error ... -> pieces, in order;  status: idle
    shell: execute_reply -> how it ended

All of it was written by code that nobody trusts: nothing that comes raises, and nothing grows beyond the limits.
Times are linear in what comes, however it is cut.

Sources: "Messaging in Jupyter" (protocol 5.4); ECMA-48 for escape sequences.
"""

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from tools.kernels.terminal import Escapes, Screen, plain
from tools.outcomes import CellStatus, Outcome, Picture, Piece, Raised, Shown, Written
from tools.sniffing import image_type

#: What a cell that is interrupted raises: of what it awaits it is told that it was cancelled.
INTERRUPTS = ("KeyboardInterrupt", "CancelledError")


@dataclass(frozen=True, slots=True)
class CellLimits:
    """What one cell may put out: bytes of text in all, messages, images, and bytes of each image."""

    output_bytes: int
    messages: int
    images: int
    image_bytes: int


class Cell:
    """Reads what a kernel says of the request `msg_id`.

    `over` says which limit was passed ("more than 2,000 messages"): then the cell is to be interrupted. What was
    within the limits is kept, all else is dropped and counted.
    """

    def __init__(self, msg_id: str, limits: CellLimits) -> None:
        self._msg_id = msg_id
        self._budget = _Budget(limits)
        self._limits = limits
        self._is_idle = False
        self._reply: Mapping[str, Any] | None = None
        self._failed = False
        self._entries: list[_Stream | _Display | Raised] = []
        self._displays: dict[str, _Display] = {}
        self._images = 0
        self._clears_next = False
        # Of each stream, not of each piece: the other stream's text may come in the midst of a sequence.
        self._escapes = {"stdout": Escapes(), "stderr": Escapes()}

    @property
    def over(self) -> str | None:
        """The limit that was passed, in words; None if none was."""
        return self._budget.over

    @property
    def has_reply(self) -> bool:
        """Whether the kernel has answered the request; output may be on its way still."""
        return self._reply is not None

    @property
    def is_done(self) -> bool:
        """Whether all has come: the answer, and that the kernel is idle after it."""
        return self._is_idle and self.has_reply

    def shell(self, message: Mapping[str, Any]) -> None:
        """Takes a message of the shell channel."""
        if self.is_meant_by(message) and _kind(message) == "execute_reply":
            self._reply = _mapping(message, "content")

    def iopub(self, message: Mapping[str, Any]) -> None:
        """Takes a message of the iopub channel; those of other cells are none of this one's."""
        if not self.is_meant_by(message):
            return
        kind, content = _kind(message), _mapping(message, "content")
        state = _string(content, "execution_state") if kind == "status" else ""
        self._is_idle = self._is_idle or state == "idle"
        if not self._budget.admits(state or kind):
            return
        match kind:
            case "stream":
                self._write(content)
            case "execute_result" | "display_data":
                self._display(content, is_result=kind == "execute_result")
            case "update_display_data":
                self._update(content)
            case "clear_output" if content.get("wait") is True:
                self._clears_next = True
            case "clear_output":
                self._clear()
            case "error":
                self._raise(content)

    def outcome(self, status: CellStatus | None = None, duration_s: float = 0.0, notes: Sequence[str] = ()) -> Outcome:
        """What became of the cell so far; without its files.

        `status` is what the driver knows better (timeout, died); else it is told from what came.
        """
        replied = _string(self._reply, "status")
        if replied == "error" and not self._failed:
            # An ExceptionGroup, for one, is told in the reply only; so is what was lost of iopub.
            self._raise(self._reply or {})
        status = status or ("limit" if self.over else "error" if self._failed or replied == "aborted" else "ok")
        aborted = ["The kernel did not run the code."] if replied == "aborted" else []
        return Outcome(
            status,
            pieces=tuple(self._pieces(without_interrupt=status in ("limit", "timeout"))),
            notes=(*self._budget.notes(), *self._left_out(), *aborted, *notes),
            duration_s=duration_s,
        )

    def is_meant_by(self, message: Mapping[str, Any]) -> bool:
        """True if the message answers this cell's request."""
        return _string(_mapping(message, "parent_header"), "msg_id") == self._msg_id

    # -- what comes ----------------------------------------------------------------------------------------

    def _write(self, content: Mapping[str, Any]) -> None:
        name = _string(content, "name")
        if name not in self._escapes:
            return
        text = self._escapes[name].without(self._budget.within(_string(content, "text")))
        if not text:
            return
        last = self._entries[-1] if self._entries and not self._clears_next else None
        if not (isinstance(last, _Stream) and last.name == name):
            last = _Stream(cast(Literal["stdout", "stderr"], name), Screen())
            self._add(last)
        last.screen.write(text)

    def _display(self, content: Mapping[str, Any], *, is_result: bool = False) -> None:
        # What is to be cleared frees its place before the new image looks for one.
        display = _Display()
        self._add(display)
        if display_id := _string(_mapping(content, "transient"), "display_id"):
            self._displays[display_id] = display
        self._show(display, content, is_result)

    def _update(self, content: Mapping[str, Any]) -> None:
        display = self._displays.get(_string(_mapping(content, "transient"), "display_id"))
        if display is None:
            # Of an earlier cell, whose outcome has been told: this is where the new state can be seen.
            self._display(content)
        else:
            self._show(display, content, isinstance(display.made, Shown) and display.made.is_result)

    def _show(self, display: "_Display", content: Mapping[str, Any], is_result: bool) -> None:
        self._images -= isinstance(display.made, _Image)
        display.made = self._made(_mapping(content, "data"), is_result)
        self._images += isinstance(display.made, _Image)

    def _made(self, data: Mapping[str, Any], is_result: bool) -> "Shown | _Image | _LeftOut | None":
        # The types of a bundle are one thing in several forms.
        images = [encoded for kind in _IMAGE_TYPES if (encoded := _string(data, kind))]
        if not images:
            text = plain(self._budget.within(_text_of(data)))
            return Shown(text, is_result) if text else None
        if self._images >= self._limits.images:
            return _LeftOut(f"more than {self._limits.images:,} in one cell")
        read = [_image_of(encoded, self._limits.image_bytes) for encoded in images]
        return next((image for image in read if isinstance(image, _Image)), read[0])

    def _raise(self, content: Mapping[str, Any]) -> None:
        self._failed = True
        # What is beyond the limit is not even looked at.
        within = self._budget.within
        name = plain(within(_string(content, "ename"))) or within("Error")
        message = plain(within(_string(content, "evalue")))
        lines = content.get("traceback")
        told = "\n".join(part for part in lines if isinstance(part, str)) if isinstance(lines, list) else ""
        if name:
            self._add(Raised(name, message, _tidy(within(told)) or within(f"{name}: {message}")))

    def _add(self, entry: "_Stream | _Display | Raised") -> None:
        if self._clears_next:
            self._clear()
        self._entries.append(entry)

    def _clear(self) -> None:
        self._entries.clear()
        self._displays.clear()
        self._images = 0
        self._clears_next = False

    # -- what is told --------------------------------------------------------------------------------------

    def _pieces(self, *, without_interrupt: bool) -> Iterator[Piece]:
        pictures = 0
        for entry in self._entries:
            made = entry.made if isinstance(entry, _Display) else entry
            if isinstance(made, _Image):
                pictures += 1
                yield Picture(f"image-{pictures}.{made.kind}", made.data)
            elif isinstance(made, _Stream):
                if text := made.screen.text():
                    yield Written(made.name, text)
            elif isinstance(made, Shown) or (
                isinstance(made, Raised) and not (without_interrupt and made.name in INTERRUPTS)
            ):
                yield made

    def _left_out(self) -> Iterator[str]:
        made = [entry.made for entry in self._entries if isinstance(entry, _Display)]
        for why, count in Counter(image.why for image in made if isinstance(image, _LeftOut)).items():
            yield f"{count:,} image{' is' if count == 1 else 's are'} left out: {why}."


@dataclass(slots=True)
class _Stream:
    name: Literal["stdout", "stderr"]
    screen: "Screen"


@dataclass(slots=True)
class _Display:
    made: "Shown | _Image | _LeftOut | None" = None


@dataclass(frozen=True, slots=True)
class _Image:
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class _LeftOut:
    why: str


class _Budget:
    """What a cell may put out still."""

    def __init__(self, limits: CellLimits) -> None:
        self.over: str | None = None
        self._left_bytes = limits.output_bytes
        self._left_messages = limits.messages
        self._lost_bytes = self._lost_messages = 0
        self._many_bytes = f"more than {limits.output_bytes:,} bytes of text"
        self._many_messages = f"more than {limits.messages:,} messages"
        # These come with every cell, once each, and are no output of its.
        self._due = {"busy", "execute_input", "idle"}

    def admits(self, kind: str) -> bool:
        """Whether one more message of this kind, or state, is within the limit."""
        if kind in self._due:
            self._due.discard(kind)
        elif self._left_messages:
            self._left_messages -= 1
        else:
            self._lost_messages += 1
            self.over = self.over or self._many_messages
            return False
        return True

    def within(self, text: str) -> str:
        """As much of the beginning of `text` as is within the limit, in UTF-8."""
        written = text.encode("utf-8", "surrogatepass")
        if len(written) <= self._left_bytes:
            self._left_bytes -= len(written)
            return text
        kept = written[: self._left_bytes].decode("utf-8", "ignore")
        self._lost_bytes += len(written) - self._left_bytes
        self._left_bytes = 0
        self.over = self.over or self._many_bytes
        return kept

    def notes(self) -> Iterator[str]:
        """What was dropped, in sentences."""
        if self._lost_bytes:
            yield f"The code put out {self._many_bytes}; left out beyond that: {self._lost_bytes:,}."
        if self._lost_messages:
            yield f"The code put out {self._many_messages}; left out beyond that: {self._lost_messages:,}."


# -- messages ----------------------------------------------------------------------------------------------


def _mapping(within: object, name: str) -> Mapping[str, Any]:
    value = within.get(name) if isinstance(within, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _string(within: object, name: str) -> str:
    value = within.get(name) if isinstance(within, Mapping) else None
    return value if isinstance(value, str) else ""


def _kind(message: Mapping[str, Any]) -> str:
    return _string(_mapping(message, "header"), "msg_type") or _string(message, "msg_type")


#: Of several forms the first is taken: the others lose more, or move.
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif")

#: What IPython's own wrappers say of themselves; what they wrap says more.
_WRAPPER = re.compile(r"<IPython\.core\.display\.\w+ object>")


def _text_of(data: Mapping[str, Any]) -> str:
    plain = _string(data, "text/plain")
    if plain and not _WRAPPER.fullmatch(plain):
        return plain
    if rich := _string(data, "text/markdown") or _string(data, "text/latex"):
        return rich
    unshown = next((kind for kind in ("image/svg+xml", "text/html") if _string(data, kind)), None)
    return f"[{unshown} output, which is not shown]" if unshown else plain


def _image_of(encoded: str, longest: int) -> _Image | _LeftOut:
    # In base64 it is 4/3 as long, and a little more with line ends: what is twice as long need not be decoded.
    if len(encoded) > 2 * longest + 4:
        return _LeftOut(f"longer than {longest:,} bytes")
    try:
        data = base64.b64decode(encoded.replace("\n", ""), validate=True)
    except ValueError:
        return _LeftOut("broken data")
    if len(data) > longest:
        return _LeftOut(f"longer than {longest:,} bytes")
    # What the bytes are counts, and not what the kernel says of them.
    kind = image_type(data)
    return _Image(kind.removeprefix("image/"), data) if kind else _LeftOut("broken data")


# -- tracebacks --------------------------------------------------------------------------------------------

#: Of a longer traceback so many lines are shown of its beginning and of its end: some five frames, and some ten. A deep
#: recursion has thousands, which say the same.
_FIRST_LINES = 25
_LAST_LINES = 50

_SEPARATOR = re.compile(r"\A-{20,}+\n")
#: IPython puts the exception's name, which stands at the end again, far to the left of these words.
_NAME_ABOVE = re.compile(r"^\S++ {2,}+(?=Traceback \(most recent call last\)$)", re.MULTILINE)
#: A frame ends with an empty line; its own empty lines have numbers.
_INTERNAL_FRAME = re.compile(r"^File .*/(?:IPython|ipykernel)/.*\n(?:.++\n)*+\n?", re.MULTILINE)


def _tidy(traceback: str) -> str:
    text = plain(traceback)
    # With a line end after each line the patterns never look for one in vain, which would not be linear.
    text = _INTERNAL_FRAME.sub("", _NAME_ABOVE.sub("", _SEPARATOR.sub("", f"{text}\n"))).strip("\n")
    lines = text.split("\n")
    left_out = len(lines) - _FIRST_LINES - _LAST_LINES
    if left_out <= 1:
        return text
    return "\n".join([*lines[:_FIRST_LINES], f"[... {left_out:,} lines are left out ...]", *lines[-_LAST_LINES:]])
