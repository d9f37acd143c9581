"""An Outcome -> what the model is to read, and what the caller gets.

The model's words are Qwen-Agent's, which Qwen models know: `stdout:`, `execute_result:`, `error:`, each with its text
in a fence. Source: qwen_agent/tools/code_interpreter.py, `_execute_code`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from tools.items import ContentItem, FileItem, ImageItem, TextItem
from tools.outcomes import CellStatus, MadeFile, Outcome, Picture, Piece, Raised, Shown, Written

#: What a model has to know before it reads on. An error tells itself.
_ENDED: Mapping[CellStatus, str] = {
    "timeout": "The code took too long and was stopped.",
    "limit": "The code put out, or used, more than it may and was stopped.",
    "died": "The Python kernel died while the code ran.",
}


def for_model(outcome: Outcome) -> list[ContentItem]:
    """The outcome as text, with images where the code showed them, and files after it."""
    items: list[ContentItem] = []
    for part in _parts(outcome):
        last = items[-1] if items else None
        if isinstance(part, str) and isinstance(last, TextItem):
            items[-1] = TextItem(f"{last.text}\n\n{part}")
        else:
            items.append(TextItem(part) if isinstance(part, str) else part)
    return items


def for_caller(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON can hold it: each kind of output by itself; images and files by their names."""
    shown = [piece for piece in outcome.pieces if isinstance(piece, Shown)]
    results = [piece.text for piece in shown if piece.is_result]
    errors = [piece for piece in outcome.pieces if isinstance(piece, Raised)]
    return {
        "status": outcome.status,
        "stdout": _written(outcome.pieces, "stdout"),
        "stderr": _written(outcome.pieces, "stderr"),
        "result": "\n".join(results) if results else None,
        "displays": [piece.text for piece in shown if not piece.is_result],
        "error": _error(errors[-1]) if errors else None,
        "images": [piece.name for piece in outcome.pieces if isinstance(piece, Picture)],
        "files": [
            {"name": _in_one_line(file.name), "size_bytes": file.size_bytes, "url": file.url} for file in outcome.files
        ],
        "notes": list(outcome.notes),
        "duration_s": outcome.duration_s,
    }


def _parts(outcome: Outcome) -> Iterable[str | ContentItem]:
    if outcome.status in _ENDED:
        yield _ENDED[outcome.status]
    elif outcome.status == "error" and not any(isinstance(piece, Raised) for piece in outcome.pieces):
        yield "The code failed."
    elif not outcome.pieces and not outcome.files:
        yield "Finished execution."
    yield from map(_part, outcome.pieces)
    if outcome.files:
        yield f"Files: {', '.join(map(_listed, outcome.files))}"
        yield from (FileItem(_in_one_line(file.name), url=file.url) for file in outcome.files if file.url is not None)
    if outcome.notes:
        yield "\n".join(outcome.notes)


def _part(piece: Piece) -> str | ContentItem:
    match piece:
        case Written():
            return _fenced(piece.stream, piece.text)
        case Shown():
            return _fenced("execute_result" if piece.is_result else "display_data", piece.text)
        case Picture():
            return ImageItem(data=piece.data, name=piece.name)
        case _:
            return _fenced("error", piece.traceback)


def _fenced(label: str, text: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join((f"{label}:", "", fence, text.removesuffix("\n"), fence))


def _listed(file: MadeFile) -> str:
    lost = ", not kept" if file.url is None else ""
    return f"{_in_one_line(file.name)} ({_sized(file.size_bytes)}{lost})"


_UNITS = ("kB", "MB", "GB", "TB")


def _sized(size_bytes: int) -> str:
    if size_bytes < 1000:
        return "1 byte" if size_bytes == 1 else f"{size_bytes} bytes"
    size, unit = size_bytes / 1000, 0
    # What would be rounded to 1000 of a unit is 1 of the next.
    while size >= 999.5 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.{int(size < 9.95)}f} {_UNITS[unit]}"


def _in_one_line(name: str) -> str:
    # A name may be made of any bytes, and what they are is not told to the model as if it were our words.
    return re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\ufffd", name)


def _written(pieces: Iterable[Piece], stream: str) -> str:
    return "".join(piece.text for piece in pieces if isinstance(piece, Written) and piece.stream == stream)


def _error(raised: Raised) -> dict[str, str]:
    return {"name": raised.name, "message": raised.message, "traceback": raised.traceback}
