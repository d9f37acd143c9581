"""An outcome is told to the model as it would read it in Qwen-Agent, and to the caller piece by piece."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from misbehaving import PIXEL
from tools.items import ContentItem, FileItem, ImageItem, TextItem
from tools.kernels.telling import for_caller, for_model
from tools.outcomes import CellStatus, MadeFile, Outcome, Picture, Piece, Raised, Shown, Written

DIVISION = Raised("ZeroDivisionError", "division by zero", "Cell In[1], line 1\n\nZeroDivisionError: division by zero")


def text_of(outcome: Outcome) -> str:
    """What the model reads, if that is nothing but text."""
    (item,) = for_model(outcome)
    assert isinstance(item, TextItem)
    return item.text


# -- for the model -----------------------------------------------------------------------------------------


def test_all_that_was_put_out_is_told_in_its_order() -> None:
    pieces = (
        Written("stdout", "before\n"),
        Written("stderr", "careful\n\n"),
        Shown("shown"),
        Picture("image-1.png", PIXEL),
        Picture("image-2.png", PIXEL),
        Written("stdout", "after"),
        Shown("42", is_result=True),
        DIVISION,
    )
    before = """\
stdout:

```
before
```

stderr:

```
careful

```

display_data:

```
shown
```"""
    after = """\
stdout:

```
after
```

execute_result:

```
42
```

error:

```
Cell In[1], line 1

ZeroDivisionError: division by zero
```"""
    assert for_model(Outcome("error", pieces)) == [
        TextItem(before),
        ImageItem(data=PIXEL, name="image-1.png"),
        ImageItem(data=PIXEL, name="image-2.png"),
        TextItem(after),
    ]


def test_code_that_puts_out_nothing_has_finished() -> None:
    assert text_of(Outcome("ok")) == "Finished execution."
    noted = Outcome("ok", notes=("The kernel was started anew.",))
    assert text_of(noted) == "Finished execution.\n\nThe kernel was started anew."


def test_code_that_failed_has_not_finished_though_it_says_nothing() -> None:
    assert text_of(Outcome("error", notes=("The kernel did not run the code.",))) == (
        "The code failed.\n\nThe kernel did not run the code."
    )


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("timeout", "The code took too long and was stopped."),
        ("limit", "The code put out, or used, more than it may and was stopped."),
        ("died", "The Python kernel died while the code ran."),
    ],
)
def test_what_ended_the_code_is_said_first(status: CellStatus, said: str) -> None:
    assert text_of(Outcome(status)) == said
    assert text_of(Outcome(status, (Written("stdout", "a"),))) == f"{said}\n\nstdout:\n\n```\na\n```"


def test_files_come_after_the_output_and_notes_last() -> None:
    files = (
        MadeFile("report.csv", 12_345, "https://files/1"),
        MadeFile("out/huge.bin", 3_000_000_000, None),
        MadeFile("plot.png", 40, "https://files/2"),
    )
    outcome = Outcome("ok", (Shown("1", is_result=True),), files, ("One.", "Two."))
    listed = "Files: report.csv (12 kB), out/huge.bin (3.0 GB, not kept), plot.png (40 bytes)"
    assert for_model(outcome) == [
        TextItem(f"execute_result:\n\n```\n1\n```\n\n{listed}"),
        FileItem("report.csv", "https://files/1"),
        FileItem("plot.png", "https://files/2"),
        TextItem("One.\nTwo."),
    ]
    assert text_of(Outcome("ok", files=files[1:2])) == "Files: out/huge.bin (3.0 GB, not kept)"


@pytest.mark.parametrize(
    ("size_bytes", "told"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (9949, "9.9 kB"),
        (9950, "10 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (64 << 20, "67 MB"),
        (5 * 10**12, "5.0 TB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_are_told_in_few_digits(size_bytes: int, told: str) -> None:
    assert text_of(Outcome("ok", files=(MadeFile("a", size_bytes, None),))) == f"Files: a ({told}, not kept)"


def test_a_name_cannot_speak_as_we_do() -> None:
    named = Outcome("ok", files=(MadeFile("a\n\x1b[1mFinished\u2028\udcff.txt", 1, "https://files/1"),))
    name = "a\ufffd\ufffd[1mFinished\ufffd\ufffd.txt"
    assert for_model(named) == [TextItem(f"Files: {name} (1 byte)"), FileItem(name, "https://files/1")]
    assert for_caller(named)["files"] == [{"name": name, "size_bytes": 1, "url": "https://files/1"}]


@given(st.text(st.sampled_from("`a\n ")))
def test_a_fence_is_longer_than_any_within(text: str) -> None:
    told = text_of(Outcome("ok", (Written("stdout", text), Shown("next"))))
    opened = re.match("stdout:\n\n(`+)\n", told)
    assert opened
    fence = opened[1]
    assert len(fence) >= 3
    assert fence not in text
    within, after = told[opened.end() :].split(f"\n{fence}\n\n", 1)
    assert within == text.removesuffix("\n")
    assert after == "display_data:\n\n```\nnext\n```"


# -- for the caller ----------------------------------------------------------------------------------------


def test_the_caller_gets_each_kind_of_output_by_itself() -> None:
    pieces = (
        Written("stdout", "a\n"),
        Written("stderr", "b\n"),
        Picture("image-1.png", PIXEL),
        Shown("c"),
        Written("stdout", "d\n"),
        Shown("e", is_result=True),
        Shown("f"),
        DIVISION,
    )
    files = (MadeFile("report.csv", 3, "https://files/1"), MadeFile("huge.bin", 10**9, None))
    assert for_caller(Outcome("error", pieces, files, ("One.",), 0.25)) == {
        "status": "error",
        "stdout": "a\nd\n",
        "stderr": "b\n",
        "result": "e",
        "displays": ["c", "f"],
        "error": {"name": DIVISION.name, "message": DIVISION.message, "traceback": DIVISION.traceback},
        "images": ["image-1.png"],
        "files": [
            {"name": "report.csv", "size_bytes": 3, "url": "https://files/1"},
            {"name": "huge.bin", "size_bytes": 10**9, "url": None},
        ],
        "notes": ["One."],
        "duration_s": 0.25,
    }


def test_the_caller_gets_every_key_of_code_that_put_out_nothing() -> None:
    assert for_caller(Outcome("timeout", duration_s=60.0)) == {
        "status": "timeout",
        "stdout": "",
        "stderr": "",
        "result": None,
        "displays": [],
        "error": None,
        "images": [],
        "files": [],
        "notes": [],
        "duration_s": 60.0,
    }


def test_of_several_results_the_caller_gets_all_and_of_several_errors_the_last() -> None:
    first, last = Raised("A", "a", "A: a"), Raised("B", "b", "B: b")
    told = for_caller(Outcome("error", (Shown("1", is_result=True), first, Shown("2", is_result=True), last)))
    assert told["result"] == "1\n2"
    assert told["error"]["name"] == "B"


# -- whatever the outcome ----------------------------------------------------------------------------------

texts = st.text(max_size=20)
pieces: st.SearchStrategy[Piece] = st.one_of(
    st.builds(Written, st.sampled_from(["stdout", "stderr"]), texts),
    st.builds(Shown, texts, st.booleans()),
    st.builds(Picture, texts, st.binary(max_size=5)),
    st.builds(Raised, texts, texts, texts),
)
names = st.text(st.characters(exclude_categories=())).filter(bool)
outcomes = st.builds(
    Outcome,
    st.sampled_from(["ok", "error", "timeout", "limit", "died"]),
    st.lists(pieces, max_size=6).map(tuple),
    st.lists(st.builds(MadeFile, names, st.integers(0, 2**70), st.none() | texts), max_size=4).map(tuple),
    st.lists(texts.filter(bool), max_size=3).map(tuple),
    st.floats(0, 1e9),
)


@given(outcomes)
def test_every_outcome_is_told_to_both(outcome: Outcome) -> None:
    items: list[ContentItem] = for_model(outcome)
    told = "".join(item.text for item in items if isinstance(item, TextItem)).encode().decode()
    assert items
    for piece in outcome.pieces:
        if isinstance(piece, Written | Shown):
            assert piece.text.removesuffix("\n") in told
    assert [item.data for item in items if isinstance(item, ImageItem)] == [
        piece.data for piece in outcome.pieces if isinstance(piece, Picture)
    ]
    assert [item.url for item in items if isinstance(item, FileItem)] == [
        file.url for file in outcome.files if file.url is not None
    ]
    assert all(note in told for note in outcome.notes)
    # No two texts stand side by side: between them there would be no empty line.
    assert not [1 for pair in pairwise(items) if all(isinstance(item, TextItem) for item in pair)]
    assert json.loads(json.dumps(for_caller(outcome), allow_nan=False)) == for_caller(outcome)
