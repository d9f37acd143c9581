"""Stop strings that did not fit into the upstream's request. Source: vLLM's `stop` on the wire."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.stops import StopStrings

strings = st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=4)


def cut_at(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    scanner = StopStrings(stops, include=include)
    said = "".join(scanner.feed(piece) for piece in pieces)
    return said + scanner.close(), scanner.stopped_by


@given(strings, st.text("abE ", max_size=30))
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(stops: list[str], text: str) -> None:
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    said, stopped_by = cut_at(stops, [text])
    assert cut_at(stops, list(text)) == (said, stopped_by)
    if not ends:
        assert (said, stopped_by) == (text, None)
        return
    assert stopped_by in stops
    assert said + stopped_by == text[: min(ends)]
    assert cut_at(stops, list(text), include=True) == (said + stopped_by, stopped_by)


def test_a_text_that_ends_like_the_first_half_of_a_stop_string_keeps_it() -> None:
    """Qwen-Agent drops the word `Observation` for the stop string `Observation:`."""
    assert cut_at(["Observation:"], ["The final Observation"]) == ("The final Observation", None)


def test_what_cannot_become_a_stop_string_leaves_at_once() -> None:
    scanner = StopStrings(["END"])
    assert [scanner.feed(piece) for piece in ("abc", "E", "x", "EN")] == ["abc", "", "Ex", ""]


def test_nothing_comes_behind_a_stop_string() -> None:
    scanner = StopStrings(["END"])
    assert [scanner.feed(piece) for piece in ("aEND", "b")] == ["a", ""]
