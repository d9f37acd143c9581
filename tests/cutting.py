"""Where a text, a body and an answer are cut. Pure functions."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

#: How a text is cut into deltas: not at all, every so many characters, at these places or into these pieces.
Cut = None | int | Literal["char"] | Sequence[int] | Sequence[str]

#: How a body is cut into network writes: one for each event, one in all, one for each byte or at places.
Writes = Literal["event", "whole", "byte"] | Sequence[int]


def cut_text(text: str, cut: Cut) -> list[str]:
    """The pieces of `text`; a text cut at no place is one piece, and an empty one then is none."""
    places = _places(text, cut)
    if not text and not places:
        return []
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def _places(text: str, cut: Cut) -> list[int]:
    if cut is None:
        return []
    if cut == "char" or isinstance(cut, int):
        step = 1 if cut == "char" else int(cut)
        return list(range(step, len(text), step))
    places = [part if isinstance(part, int) else len(part) for part in cut]
    if any(isinstance(part, str) for part in cut):
        places = list(accumulate(places))[:-1]
    return [min(place, len(text)) for place in places]


def cut_writes(events: Sequence[bytes], writes: Writes) -> list[bytes]:
    """The same bytes in the network writes that are asked for."""
    if writes == "event":
        return list(events)
    body = b"".join(events)
    places = {"whole": [], "byte": range(1, len(body))}[writes] if isinstance(writes, str) else writes
    return [body[start:end] for start, end in pairwise([0, *places, len(body)])]


def cut_at_stop(text: str, stops: Sequence[str], include: bool) -> tuple[str, str | None]:
    """The text as vLLM ends it at the stop that is complete first, and that stop."""
    found = [(text.index(stop) + len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, stop = min(found, key=lambda hit: hit[0])
    return text[: end if include else end - len(stop)], stop
