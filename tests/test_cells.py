"""The messages of a cell become its outcome, whatever they are and however they are cut.

The messages with long texts were recorded from ipykernel 7.4 with IPython 9.18.
"""

import base64
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutting import cut_text
from misbehaving import PIXEL
from tools.kernels.cells import Cell, CellLimits
from tools.outcomes import Outcome, Picture, Piece, Raised, Shown, Written

OURS = "ours"

#: What begins like the others; a WebP's mark stands after its length.
JPEG = b"\xff\xd8\xff\xe0" + bytes(20)
GIF = b"GIF89a" + bytes(20)
WEBP = b"RIFF\x04\0\0\0WEBP"


def said(kind: str, /, parent: str = OURS, **content: Any) -> dict[str, Any]:
    """A message as jupyter_client hands it over."""
    header = {"msg_id": f"a {kind}", "msg_type": kind, "session": "s", "username": "u", "version": "5.4"}
    parents = {"msg_id": parent, "msg_type": "execute_request", "session": "s"}
    return {"header": header, "msg_type": kind, "parent_header": parents, "metadata": {}, "content": content}


BUSY = said("status", execution_state="busy")
INPUT = said("execute_input", code="1", execution_count=1)
IDLE = said("status", execution_state="idle")
REPLY = said("execute_reply", status="ok", execution_count=1, user_expressions={}, payload=[])


def stdout(text: Any) -> dict[str, Any]:
    return said("stream", name="stdout", text=text)


def stderr(text: Any) -> dict[str, Any]:
    return said("stream", name="stderr", text=text)


def display(display_id: str | None = None, kind: str = "display_data", **data: Any) -> dict[str, Any]:
    """`text_plain="a"` stands for the type text/plain."""
    bundle = {name.replace("_", "/", 1): value for name, value in data.items()}
    return said(kind, data=bundle, metadata={}, transient={"display_id": display_id} if display_id else {})


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def error(name: str = "ValueError", message: str = "bad", traceback: Any = ()) -> dict[str, Any]:
    return said("error", ename=name, evalue=message, traceback=list(traceback))


def cell_of(*messages: Mapping[str, Any], **limits: int) -> Cell:
    """A cell that has heard of these on iopub."""
    wide = {"output_bytes": 100_000, "messages": 1000, "images": 10, "image_bytes": 10_000}
    cell = Cell(OURS, CellLimits(**(wide | limits)))
    for message in messages:
        cell.iopub(message)
    return cell


def outcome_of(*messages: Mapping[str, Any], **limits: int) -> Outcome:
    return cell_of(*messages, **limits).outcome()


def pieces_of(*messages: Mapping[str, Any], **limits: int) -> tuple[Piece, ...]:
    return outcome_of(*messages, **limits).pieces


def seen(*parts: str) -> str:
    """What is to be seen of a text that a cell wrote in these parts."""
    pieces = pieces_of(*map(stdout, parts))
    assert all(isinstance(piece, Written) and piece.stream == "stdout" for piece in pieces)
    return "".join(piece.text for piece in pieces if isinstance(piece, Written))


def traceback_of(*lines: str) -> str:
    """The traceback that is told where IPython told these."""
    (raised,) = pieces_of(error(traceback=lines))
    assert isinstance(raised, Raised)
    return raised.traceback


# -- when a cell is done -----------------------------------------------------------------------------------


def test_a_cell_is_done_with_both_the_reply_and_idle() -> None:
    for first, second in (("iopub", "shell"), ("shell", "iopub")):
        cell = cell_of(BUSY, INPUT)
        assert not cell.is_done
        for channel in (first, second):
            assert not cell.is_done
            getattr(cell, channel)(IDLE if channel == "iopub" else REPLY)
            assert cell.has_reply == (channel == "shell" or first == "shell")
        assert cell.is_done


def test_what_comes_after_idle_is_told_and_leaves_the_cell_as_done() -> None:
    """Threads of the cell write on."""
    cell = cell_of(IDLE, stdout("late"))
    cell.shell(REPLY)
    assert cell.is_done
    assert cell.outcome().pieces == (Written("stdout", "late"),)


def test_what_belongs_to_another_cell_is_none_of_this_ones() -> None:
    cell = cell_of(
        said("status", "theirs", execution_state="idle"), said("stream", "theirs", name="stdout", text="late")
    )
    cell.shell(said("execute_reply", "theirs", status="error", ename="E", evalue="", traceback=[]))
    assert cell.outcome() == Outcome("ok")
    cell.iopub(IDLE)
    assert not cell.has_reply
    assert not cell.is_done


def test_only_a_reply_to_the_request_is_its_reply_and_none_comes_on_iopub() -> None:
    cell = cell_of(IDLE, REPLY)
    cell.shell(said("kernel_info_reply", status="ok"))
    assert not cell.is_done


def test_a_kind_may_be_told_beside_the_header_too() -> None:
    assert pieces_of({**stdout("a"), "header": None}) == (Written("stdout", "a"),)


# -- text --------------------------------------------------------------------------------------------------


def test_consecutive_text_of_one_stream_is_one_piece() -> None:
    written = [stdout("a\n"), stdout("b\n"), stderr("c\n"), stdout("d\n")]
    assert pieces_of(*written) == (Written("stdout", "a\nb\n"), Written("stderr", "c\n"), Written("stdout", "d\n"))


def test_text_of_which_nothing_is_seen_parts_and_clears_nothing() -> None:
    unseen = [stderr("\x1b[0m"), said("clear_output", wait=True), stderr("")]
    assert pieces_of(stdout("a"), unseen[0], stdout("b")) == (Written("stdout", "ab"),)
    assert pieces_of(stdout("a"), *unseen) == (Written("stdout", "a"),)


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("  0%|    |\r 50%|##  |\r100%|####|\n", "100%|####|\n"),
        ("abcdef\rXY", "XYcdef"),
        ("one\r\ntwo\r\n", "one\ntwo\n"),
        ("first\nabc\rx\nlast", "first\nxbc\nlast"),
        ("Loading 10%\r\x1b[KDone\n", "Done\n"),
        ("Loading 10%\x1b[2KDone\n", "Done\n"),
        ("abc\r\x1b[0Kx", "x"),
        ("abc\b\bX", "aXc"),
        ("a\b\b\b\bX", "X"),
        ("\r\b\x1b[K", ""),
        ("\x1b[1;31mred\x1b[0m, \x1b[38;5;28;01mgreen\x1b[39;00m", "red, green"),
        ("\x1b]8;;http://a.b\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1bPsixels\x1b\\a\x1b(Bb\x1b7c\x9b31md\x9dx\x9ce", "abcde"),
        ("\x1b]never ended\nall the rest", "\nall the rest"),
        ("\x1b[31\na", "\na"),
        ("nul\0 bell\a vt\v ff\f del\x7f c1\x85 tab\t.", "nul bell vt ff del c1 tab\t."),
        ("lone \ud83d surrogate", "lone \ufffd surrogate"),
        ("你好 😀 é", "你好 😀 é"),
        ("broken off \x1b[3", "broken off "),
    ],
)
def test_text_is_what_a_terminal_shows(written: str, shown: str) -> None:
    assert seen(written) == shown
    assert seen(*written) == shown


def unescaped(text: str) -> Iterator[str]:
    """The characters that no escape sequence takes, and "erase" or "erase line". Read one at a time."""
    state = ""
    parameters = ""
    for character in text:
        is_more = " " <= character <= "/"
        if state == "escape" and character in "[]PX^_":
            state, parameters = ("sequence" if character == "[" else "command"), ""
        elif state.startswith("escape") and is_more:
            state = "escape, more"
        elif state == "sequence" and "0" <= character <= "?":
            parameters += character
        elif state.startswith("sequence") and is_more:
            state = "sequence, more"
        elif state.startswith("escape") and "0" <= character <= "~":
            state = ""
        elif state.startswith("sequence") and "@" <= character <= "~":
            if state + character + parameters in ("sequenceK", "sequenceK0", "sequenceK2"):
                yield "erase line" if parameters == "2" else "erase"
            state = ""
        elif state == "command" and character not in "\n\x07\x18\x1a\x1b" and not "\x80" <= character <= "\x9f":
            pass
        elif character == "\x9b":
            # Of these no effect is known: nobody writes them.
            state, parameters = "sequence", "none"
        else:
            state = {"\x1b": "escape"}.get(character, "command" if character in "\x90\x98\x9d\x9e\x9f" else "")
            yield character


def terminal(text: str) -> str:
    """What a terminal shows of a text."""
    lines: list[list[str]] = [[]]
    column = 0
    for character in unescaped(text):
        if character in ("\r", "\n", "erase line"):
            column = 0
        if character == "\n":
            lines.append([])
        elif character == "\b":
            column = max(0, column - 1)
        elif character.startswith("erase"):
            del lines[-1][column:]
        elif character == "\t" or not (character < " " or "\x7f" <= character <= "\x9f"):
            lines[-1][column : column + 1] = "\ufffd" if "\ud800" <= character <= "\udfff" else character
            column += 1
    return "\n".join("".join(line) for line in lines)


#: Texts made of what matters to a terminal.
terminal_texts = st.lists(
    st.sampled_from(
        [
            *"abc你\n\t\r\r\b\x1b\x1b[]P012;Km( \\\0\x07\x18\x7f\x85\x90\x9b\x9c\x9d\ud800",
            *("\r\n", "abc\r", "\x1b[31m", "\x1b[K", "\x1b[0K", "\x1b[2K", "\x1b[00K", "\x1b[12345", "\x1b[0 K"),
            *("\x1b]0;t\x07", "\x1b]8;;u\x1b\\"),
        ]
    ),
    max_size=30,
).map("".join)


@given(terminal_texts, st.data())
def test_text_is_what_a_terminal_shows_however_it_is_cut(text: str, data: st.DataObject) -> None:
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    assert seen(*cut_text(text, places)) == terminal(text)


@given(terminal_texts)
def test_text_comes_out_the_same_when_it_is_cut_everywhere(text: str) -> None:
    assert seen(*text) == seen(text)


@given(terminal_texts)
def test_nothing_that_is_told_holds_what_a_terminal_obeys(text: str) -> None:
    outcome = outcome_of(stdout(text), display(text_plain=text), error(text, text, [text]))
    told = "".join(texts_of(outcome))
    assert not [character for character in told if character < " " and character not in "\n\t"]
    assert not [character for character in told if "\x7f" <= character <= "\x9f"]
    assert told.encode()


def test_a_sequence_goes_on_where_the_other_stream_came_between() -> None:
    written = [stdout("a\x1b[3"), stderr("b\x1b[3"), stdout("1mc"), stderr("2md")]
    told = (Written("stdout", "a"), Written("stderr", "b"), Written("stdout", "c"), Written("stderr", "d"))
    assert pieces_of(*written) == told


@pytest.mark.parametrize(
    "unit",
    [
        "\r",
        "\rx",
        "x\b",
        "\x1b",
        "\x1b[",
        "\x1b]",
        "\x9d",
        "\x9b1",
        "x\x1b[2K",
        "x\r\x1b[K",
        "\n",
        "\0a",
        "\x1b[1",
        "x",
    ],
)
def test_time_is_linear_in_hostile_text(unit: str) -> None:
    """Were it not, so many characters would take minutes."""
    text = "x" * 1000 + unit * (200_000 // len(unit))
    began = time.process_time()
    cell = cell_of(
        *(stdout(text[at : at + 100]) for at in range(0, len(text), 100)), output_bytes=10**7, messages=10**5
    )
    cell.iopub(stdout(text + "\n"))
    cell.iopub(error(traceback=[text, text]))
    assert cell.outcome().status == "error"
    assert time.process_time() - began < 20


@pytest.mark.parametrize("hostile", ["File " + "/IPython/" * 30_000, "File " + "/" * 300_000, "x" + " " * 300_000])
def test_time_is_linear_in_a_hostile_traceback(hostile: str) -> None:
    began = time.process_time()
    traceback_of(hostile)
    traceback_of(hostile, "the end")
    assert time.process_time() - began < 20


# -- what is displayed -------------------------------------------------------------------------------------


def test_a_result_and_a_display_are_told_as_plain_text() -> None:
    frame = display(kind="execute_result", text_plain="   a\n0  1", text_html="<table><tr><td>1</td></tr></table>")
    assert pieces_of(display(text_plain="shown"), frame) == (Shown("shown"), Shown("   a\n0  1", is_result=True))


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"text_plain": "<IPython.core.display.Markdown object>", "text_markdown": "# t"}, "# t"),
        ({"text_plain": "<IPython.core.display.Math object>", "text_latex": "$x$"}, "$x$"),
        ({"text_plain": "x**2", "text_latex": "$x^2$"}, "x**2"),
        ({"text_markdown": "# t", "text_latex": "$x$"}, "# t"),
        (
            {"text_plain": "<IPython.core.display.HTML object>", "text_html": "<b>x</b>"},
            "[text/html output, which is not shown]",
        ),
        ({"image_svg+xml": "<svg/>", "text_html": "<b/>"}, "[image/svg+xml output, which is not shown]"),
        (
            {"text_plain": "<IPython.core.display.Javascript object>", "application_javascript": "1"},
            "<IPython.core.display.Javascript object>",
        ),
        ({"text_plain": "\x1b[31mred\x1b[0m"}, "red"),
    ],
)
def test_of_several_forms_the_one_that_says_most_in_text_is_told(data: dict[str, str], text: str) -> None:
    assert pieces_of(display(**data)) == (Shown(text),)


@pytest.mark.parametrize("data", [{}, {"text_plain": ""}, {"application_json": {"a": 1}}, {"text_plain": ["a"]}])
def test_what_has_no_text_is_not_told(data: dict[str, Any]) -> None:
    assert outcome_of(display(**data)) == Outcome("ok")


def test_an_image_is_told_without_the_text_beside_it() -> None:
    figure = display(image_png=encoded(PIXEL), text_plain="<Figure size 640x480 with 1 Axes>")
    assert pieces_of(stdout("a\n"), figure, stdout("b\n")) == (
        Written("stdout", "a\n"),
        Picture("image-1.png", PIXEL),
        Written("stdout", "b\n"),
    )


def test_images_are_named_in_order_by_what_they_are() -> None:
    shown = [
        display(image_png=encoded(PIXEL)),
        display(image_jpeg=encoded(JPEG), kind="execute_result"),
        display(image_gif=encoded(GIF)),
        display(image_webp=encoded(WEBP)),
        display(image_png=encoded(JPEG)),
    ]
    assert pieces_of(*shown) == (
        Picture("image-1.png", PIXEL),
        Picture("image-2.jpeg", JPEG),
        Picture("image-3.gif", GIF),
        Picture("image-4.webp", WEBP),
        Picture("image-5.jpeg", JPEG),
    )


def test_an_image_in_several_forms_is_one_image_in_the_first_that_can_be_read() -> None:
    both = display(image_png=encoded(PIXEL), image_jpeg=encoded(JPEG))
    broken = display(image_png="!", image_jpeg=encoded(JPEG))
    assert pieces_of(both, broken) == (Picture("image-1.png", PIXEL), Picture("image-2.jpeg", JPEG))


def test_line_ends_in_base64_are_no_part_of_the_image() -> None:
    assert pieces_of(display(image_png=base64.encodebytes(PIXEL * 2).decode())) == (Picture("image-1.png", PIXEL * 2),)


@pytest.mark.parametrize(
    "broken", ["!", f"{encoded(PIXEL)}!", "A", encoded(PIXEL)[:-1], f"{encoded(PIXEL)}é", encoded(b"<svg/>"), "=" * 9]
)
def test_a_broken_image_is_left_out_and_a_note_says_so(broken: str) -> None:
    figure = display(image_png=broken, text_plain="<Figure>")
    assert outcome_of(figure) == Outcome("ok", notes=("1 image is left out: broken data.",))
    assert outcome_of(figure, figure).notes == ("2 images are left out: broken data.",)


def test_too_long_an_image_is_left_out_and_a_note_says_so() -> None:
    size = len(PIXEL)
    assert pieces_of(display(image_png=encoded(PIXEL)), image_bytes=size) == (Picture("image-1.png", PIXEL),)
    for long in (PIXEL + b"x", PIXEL * 100):
        assert outcome_of(display(image_png=encoded(long)), image_bytes=size) == Outcome(
            "ok", notes=(f"1 image is left out: longer than {size} bytes.",)
        )


def test_images_beyond_the_limit_are_left_out_and_do_not_stop_the_cell() -> None:
    cell = cell_of(*[display(image_png=encoded(PIXEL))] * 5, images=2)
    assert cell.over is None
    assert cell.outcome() == Outcome(
        "ok",
        (Picture("image-1.png", PIXEL), Picture("image-2.png", PIXEL)),
        notes=("3 images are left out: more than 2 in one cell.",),
    )


def test_an_update_replaces_what_was_displayed_in_its_place() -> None:
    update = display("d", "update_display_data", text_plain="2")
    assert pieces_of(display("d", text_plain="1"), stdout("a"), update) == (Shown("2"), Written("stdout", "a"))
    result = display("d", "execute_result", text_plain="1")
    assert pieces_of(result, update) == (Shown("2", is_result=True),)


def test_an_updated_image_takes_the_place_of_the_old_one() -> None:
    update = display("d", "update_display_data", image_jpeg=encoded(JPEG))
    shown = [display("d", image_png=encoded(PIXEL)), update, display(image_gif=encoded(GIF)), update]
    assert outcome_of(*shown, images=2) == Outcome("ok", (Picture("image-1.jpeg", JPEG), Picture("image-2.gif", GIF)))


def test_an_update_of_what_an_earlier_cell_displayed_is_shown_where_it_comes() -> None:
    updates = [display("d", "update_display_data", text_plain=text) for text in "12"]
    assert pieces_of(stdout("a"), *updates) == (Written("stdout", "a"), Shown("2"))
    nameless = display(None, "update_display_data", text_plain="3")
    assert pieces_of(nameless, nameless) == (Shown("3"), Shown("3"))


def test_output_is_cleared_at_once_or_when_the_next_comes() -> None:
    now, later = said("clear_output", wait=False), said("clear_output", wait=True)
    assert pieces_of(stdout("a"), now) == ()
    assert pieces_of(stdout("a"), later) == (Written("stdout", "a"),)
    for output, piece in ((stdout("b"), Written("stdout", "b")), (display(text_plain="b"), Shown("b"))):
        assert pieces_of(stdout("a"), later, output, stdout("c")) == pieces_of(output, stdout("c"))
        assert piece in pieces_of(stdout("a"), later, output)
    assert pieces_of(stdout("a"), later, now, stdout("b"), stdout("c")) == (Written("stdout", "bc"),)


def test_an_animation_that_clears_its_output_is_its_last_image() -> None:
    frames = [said("clear_output", wait=True), display("d", image_png=encoded(PIXEL))] * 20
    assert outcome_of(*frames, images=1) == Outcome("ok", (Picture("image-1.png", PIXEL),))


def test_an_update_after_clearing_is_shown_anew() -> None:
    cleared = [display("d", text_plain="1"), said("clear_output", wait=False)]
    assert pieces_of(*cleared, display("d", "update_display_data", text_plain="2")) == (Shown("2"),)


# -- errors ------------------------------------------------------------------------------------------------

DASHES = "\x1b[31m---------------------------------------------------------------------------\x1b[39m"
DIVISION = [
    DASHES,
    "\x1b[31mZeroDivisionError\x1b[39m                         Traceback (most recent call last)",
    "\x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[1]\x1b[39m\x1b[32m, line 2\x1b[39m\n"
    "\x1b[32m      1\x1b[39m \x1b[38;5;28;01mimport\x1b[39;00m math\n"
    "\x1b[32m----> \x1b[39m\x1b[32m2\x1b[39m \x1b[32m1\x1b[39m/\x1b[32m0\x1b[39m\n",
    "\x1b[31mZeroDivisionError\x1b[39m: division by zero",
]
INPUT_REFUSED = [
    DASHES,
    "\x1b[31mStdinNotImplementedError\x1b[39m                  Traceback (most recent call last)",
    "\x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[13]\x1b[39m\x1b[32m, line 1\x1b[39m\n"
    "\x1b[32m----> \x1b[39m\x1b[32m1\x1b[39m input()\n",
    "\x1b[36mFile \x1b[39m\x1b[32m/venv/lib/python3.11/site-packages/ipykernel/kernelbase.py:1514\x1b[39m, in "
    "\x1b[36mKernel.raw_input\x1b[39m\x1b[34m(self, prompt)\x1b[39m\n"
    "\x1b[32m   1512\x1b[39m \x1b[38;5;28;01mif\x1b[39;00m \x1b[38;5;129;01mnot\x1b[39;00m self._allow_stdin:\n"
    "\x1b[32m-> \x1b[39m\x1b[32m1514\x1b[39m     \x1b[38;5;28;01mraise\x1b[39;00m StdinNotImplementedError(msg)\n",
    "\x1b[31mStdinNotImplementedError\x1b[39m: raw_input was called, but this frontend does not support it.",
]
SYNTAX = [
    "  \x1b[36mCell\x1b[39m\x1b[36m \x1b[39m\x1b[32mIn[2]\x1b[39m\x1b[32m, line 1\x1b[39m\n\x1b[31m    \x1b[39m"
    "\x1b[31mx = = 1\x1b[39m\n        ^\n\x1b[31mSyntaxError\x1b[39m\x1b[31m:\x1b[39m invalid syntax\n"
]


def test_an_error_is_told_with_a_tidy_traceback() -> None:
    outcome = outcome_of(stdout("before\n"), error("ZeroDivisionError", "division by zero", DIVISION))
    assert outcome.status == "error"
    traceback = """\
Traceback (most recent call last)
Cell In[1], line 2
      1 import math
----> 2 1/0

ZeroDivisionError: division by zero"""
    assert outcome.pieces == (
        Written("stdout", "before\n"),
        Raised("ZeroDivisionError", "division by zero", traceback),
    )


def test_frames_of_the_kernel_itself_are_left_out_of_a_traceback() -> None:
    told = """\
Traceback (most recent call last)
Cell In[13], line 1
----> 1 input()

StdinNotImplementedError: raw_input was called, but this frontend does not support it."""
    assert traceback_of(*INPUT_REFUSED) == told


def test_a_frame_of_the_kernel_itself_is_left_out_at_the_end_too() -> None:
    assert traceback_of("E: bad", "File /lib/IPython/core/a.py:1, in f()\n----> 1 f()") == "E: bad"


def test_frames_of_libraries_stay_in_a_traceback() -> None:
    library = "File /usr/lib/python3.11/json/decoder.py:355, in raw_decode(self, s, idx)\n--> 355     raise\n"
    assert library in traceback_of(library, "ValueError: bad")


def test_a_syntax_error_keeps_its_mark() -> None:
    told = "  Cell In[2], line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax"
    assert traceback_of(*SYNTAX) == told


def test_a_long_traceback_is_shortened_in_the_middle() -> None:
    lines = [f"line {n}" for n in range(1000)]
    told = traceback_of("\n".join(lines)).split("\n")
    assert told == [*lines[:25], "[... 925 lines are left out ...]", *lines[-50:]]
    assert traceback_of(*lines[:76]) == "\n".join(lines[:76])
    assert traceback_of(*lines[:77]).split("\n")[25] == "[... 2 lines are left out ...]"


def test_an_error_without_a_traceback_is_told_by_its_name_and_message() -> None:
    for nothing in (None, "x", 3, [], [3, None]):
        message = said("error", ename="E", evalue="m", traceback=nothing)
        assert pieces_of(message) == (Raised("E", "m", "E: m"),)
    assert pieces_of(said("error")) == (Raised("Error", "", "Error: "),)


def test_what_comes_after_an_error_is_told_too() -> None:
    pieces = pieces_of(error(), stderr("late\n"))
    assert [type(piece) for piece in pieces] == [Raised, Written]


def test_an_error_that_only_the_reply_tells_is_told() -> None:
    """IPython prints an ExceptionGroup to stderr, and sends no error on iopub."""
    cell = cell_of(stderr("  + Exception Group Traceback (most recent call last):\n"), IDLE)
    cell.shell(
        said("execute_reply", status="error", ename="ExceptionGroup", evalue="g (2 sub-exceptions)", traceback=[])
    )
    outcome = cell.outcome()
    assert outcome.status == "error"
    assert outcome.pieces[1:] == (
        Raised("ExceptionGroup", "g (2 sub-exceptions)", "ExceptionGroup: g (2 sub-exceptions)"),
    )
    assert cell.outcome() == outcome


def test_an_error_that_both_tell_is_told_once() -> None:
    cell = cell_of(error())
    cell.shell(said("execute_reply", status="error", ename="ValueError", evalue="bad", traceback=[]))
    assert [type(piece) for piece in cell.outcome().pieces] == [Raised]


def test_code_that_the_kernel_did_not_run_has_failed() -> None:
    cell = cell_of(IDLE)
    cell.shell(said("execute_reply", status="aborted"))
    assert cell.outcome() == Outcome("error", notes=("The kernel did not run the code.",))


# -- how it ended ------------------------------------------------------------------------------------------

INTERRUPTED = error("KeyboardInterrupt", "", ["KeyboardInterrupt: "])


def test_what_the_driver_knows_is_told() -> None:
    outcome = cell_of(stdout("a")).outcome("died", 1.5, ["It took its files along."])
    assert outcome == Outcome("died", (Written("stdout", "a"),), (), ("It took its files along.",), 1.5)


def test_a_timeout_is_told_without_the_interrupt_that_it_caused() -> None:
    cell = cell_of(stdout("a"), INTERRUPTED)
    assert cell.outcome("timeout") == Outcome("timeout", (Written("stdout", "a"),))
    assert cell_of(error()).outcome("timeout").pieces == (Raised("ValueError", "bad", "ValueError: bad"),)


def test_a_limit_is_told_without_the_interrupt_that_it_caused() -> None:
    cell = cell_of(BUSY, INPUT, stdout("a"), stdout("b"), stdout("c"), INTERRUPTED, IDLE, messages=2)
    cell.shell(said("execute_reply", status="error", ename="KeyboardInterrupt", evalue="", traceback=[]))
    assert cell.is_done
    note = "The code put out more than 2 messages; left out beyond that: 2."
    assert cell.outcome() == Outcome("limit", (Written("stdout", "ab"),), notes=(note,))


def test_an_interrupt_that_the_code_raised_is_its_error() -> None:
    outcome = outcome_of(INTERRUPTED)
    assert outcome == Outcome("error", (Raised("KeyboardInterrupt", "", "KeyboardInterrupt: "),))


# -- limits ------------------------------------------------------------------------------------------------


def test_text_beyond_the_limit_is_dropped_and_counted() -> None:
    cell = cell_of(stdout("12345"), stderr("678901"), display(text_plain="all lost"), output_bytes=10)
    assert cell.over == "more than 10 bytes of text"
    assert cell.outcome() == Outcome(
        "limit",
        (Written("stdout", "12345"), Written("stderr", "67890")),
        notes=("The code put out more than 10 bytes of text; left out beyond that: 9.",),
    )


def test_so_much_text_as_is_allowed_is_within_the_limit() -> None:
    cell = cell_of(stdout("12345"), display(text_plain="67890"), output_bytes=10)
    assert cell.over is None
    assert cell.outcome().status == "ok"


def test_a_character_is_not_cut_at_the_limit() -> None:
    assert pieces_of(stdout("你好"), stdout("a"), output_bytes=5) == (Written("stdout", "你"),)


def test_what_a_progress_bar_wrote_counts_though_it_is_not_seen() -> None:
    cell = cell_of(*[stdout("\r12345")] * 10, output_bytes=20)
    assert cell.over == "more than 20 bytes of text"
    assert cell.outcome().pieces == (Written("stdout", "12345"),)


def test_an_error_that_is_beyond_the_limit_is_dropped() -> None:
    assert outcome_of(stdout("123"), error(), output_bytes=3).pieces == (Written("stdout", "123"),)


def test_messages_beyond_the_limit_are_dropped_and_counted_whatever_their_kind() -> None:
    cell = cell_of(BUSY, INPUT, *[said("comm_msg")] * 4, stdout("a"), output_bytes=10, messages=5)
    assert cell.over is None
    cell.iopub(stdout("b"))
    assert cell.over == "more than 5 messages"
    cell.iopub(display(text_plain="c" * 100))
    cell.iopub(IDLE)
    assert cell.over == "more than 5 messages"
    assert cell.outcome() == Outcome(
        "limit",
        (Written("stdout", "a"),),
        notes=("The code put out more than 5 messages; left out beyond that: 2.",),
    )


def test_the_limit_that_was_passed_first_is_the_one_that_is_told() -> None:
    most = {"output_bytes": 10, "messages": 3}
    text_first = cell_of(stdout("a" * 11), *[said("comm_msg")] * 3, **most)
    assert text_first.over == "more than 10 bytes of text"
    messages_first = cell_of(*[said("comm_msg")] * 4, **most)
    messages_first.shell(said("execute_reply", status="error", ename="a" * 11, evalue="", traceback=[]))
    assert len(messages_first.outcome().notes) == 2
    assert messages_first.over == "more than 3 messages"


def test_that_a_kernel_is_busy_and_idle_counts_but_once() -> None:
    cell = cell_of(BUSY, IDLE, *[BUSY, IDLE] * 5, messages=10)
    assert cell.over is None
    cell.iopub(IDLE)
    assert cell.over == "more than 10 messages"


# -- whatever comes ----------------------------------------------------------------------------------------


def texts_of(outcome: Outcome) -> Iterable[str]:
    """All text of the pieces."""
    for piece in outcome.pieces:
        match piece:
            case Written() | Shown():
                yield piece.text
            case Raised():
                yield from (piece.name, piece.message, piece.traceback)


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=5),
    terminal_texts,
    st.sampled_from([encoded(PIXEL), encoded(JPEG), encoded(PIXEL * 3), "stdout", "stderr", "d", "idle", "error"]),
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
mime_types = st.sampled_from(
    ["text/plain", "text/html", "text/markdown", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "a/b"]
)
bundles = st.dictionaries(mime_types, scalars, max_size=3)
contents = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["stdout", "stderr"]) | anything,
        "text": terminal_texts | anything,
        "data": bundles | anything,
        "transient": st.just({"display_id": "d"}) | anything,
        "wait": st.booleans() | anything,
        "execution_state": st.sampled_from(["busy", "idle"]) | anything,
        "status": st.sampled_from(["ok", "error", "aborted"]) | anything,
        "ename": scalars,
        "evalue": scalars,
        "traceback": st.lists(scalars, max_size=3) | anything,
    },
)
kinds = st.sampled_from(
    [
        *("stream", "display_data", "execute_result", "update_display_data", "clear_output", "error", "status"),
        *("execute_input", "execute_reply", "comm_open"),
    ]
)
likely = st.fixed_dictionaries(
    {
        "parent_header": st.just({"msg_id": OURS}),
        "header": st.fixed_dictionaries({"msg_type": kinds}),
        "content": contents,
    }
)
unlikely = st.fixed_dictionaries(
    {}, optional={"parent_header": anything, "header": anything, "msg_type": anything, "content": anything}
)
feeds = st.lists(st.tuples(st.sampled_from(["iopub", "iopub", "iopub", "shell"]), likely | unlikely | anything))


@given(feeds)
def test_no_message_raises_and_what_is_kept_is_within_the_limits(messages: list[tuple[str, Any]]) -> None:
    limits = CellLimits(output_bytes=60, messages=8, images=2, image_bytes=100)
    cell = Cell(OURS, limits)
    is_idle = has_reply = False
    for channel, message in messages:
        getattr(cell, channel)(message)
        ours = isinstance(message, dict) and message.get("parent_header") == {"msg_id": OURS}
        if ours and channel == "iopub" and message["header"]["msg_type"] == "status":
            is_idle = is_idle or message["content"].get("execution_state") == "idle"
        if ours and channel == "shell" and message["header"]["msg_type"] == "execute_reply":
            has_reply = True
        assert (cell.has_reply, cell.is_done) == (has_reply, has_reply and is_idle)
    outcome = cell.outcome()
    assert sum(len(text.encode()) for text in texts_of(outcome)) <= limits.output_bytes
    pictures = [piece for piece in outcome.pieces if isinstance(piece, Picture)]
    assert len(pictures) <= limits.images
    assert all(len(picture.data) <= limits.image_bytes for picture in pictures)
    # One more: the error that the reply tells.
    assert len(outcome.pieces) <= limits.messages + 1
    assert (outcome.status == "limit") == (cell.over is not None)
    assert cell.outcome() == outcome


def test_deep_nesting_and_huge_numbers_are_ignored() -> None:
    deep: Any = {}
    for _ in range(100_000):
        deep = {"data": deep}
    huge = 10**10_000
    hostile = [
        deep,
        {**stdout("a"), "content": deep},
        said("display_data", data=deep, transient=deep),
        said("stream", name=huge, text=huge),
        said("error", ename=huge, evalue=deep, traceback=[deep, huge]),
        said("status", execution_state=deep),
    ]
    assert pieces_of(*hostile) == (Raised("Error", "", "Error: "),)


@pytest.mark.parametrize("control", ["a\r", "ab\b", "\x1b[", "\x9b", "\x1b[Ka"])
def test_of_very_many_control_characters_those_at_the_end_have_no_effect(control: str) -> None:
    """Each takes time, in which a server would do nothing else."""
    cell = Cell(OURS, CellLimits(output_bytes=10_000_000, messages=10, images=1, image_bytes=1000))
    cell.iopub(said("stream", name="stdout", text=control * 500_000 + "\nend"))
    [written] = cell.outcome().pieces
    assert isinstance(written, Written)
    assert written.text.endswith("\nend")
    assert not set(written.text) & set("\r\b\x1b\x9b")
