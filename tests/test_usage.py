"""Token counts add up over the turns of an answer, and say so when a part of them is a guess.

Source: OpenAI's CompletionUsage, and vLLM's, which has null for details that it did not count.
"""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from proxy.usage import Tally

COUNTS = st.integers(0, 10**9)
DETAILS = st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": COUNTS, "audio_tokens": COUNTS})
USAGES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"prompt_tokens": COUNTS, "completion_tokens": COUNTS, "total_tokens": COUNTS},
    optional={"prompt_tokens_details": DETAILS},
)


def tallied(*usages: dict[str, Any] | None) -> dict[str, Any] | None:
    tally = Tally()
    for usage in usages:
        tally.add(usage)
    return tally.usage


@given(usage=USAGES)
def test_one_usage_is_itself(usage: dict[str, Any]) -> None:
    assert tallied(usage) == tallied(None, usage) == tallied(usage, None) == usage


@given(usages=st.lists(USAGES, min_size=1, max_size=4))
def test_every_count_is_the_sum_of_those_that_were_told(usages: list[dict[str, Any]]) -> None:
    total = tallied(*usages)
    assert total is not None
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert total[name] == sum(usage[name] for usage in usages)
    told = [usage["prompt_tokens_details"] for usage in usages if usage.get("prompt_tokens_details")]
    for name in ("cached_tokens", "audio_tokens"):
        assert (total.get("prompt_tokens_details") or {}).get(name, 0) == sum(details.get(name, 0) for details in told)


@given(usages=st.lists(USAGES, max_size=4))
def test_what_was_told_is_not_changed(usages: list[dict[str, Any]]) -> None:
    before = repr(usages)
    tallied(*usages)
    assert repr(usages) == before


def test_without_any_there_is_none() -> None:
    assert tallied() is tallied(None) is None


def test_what_is_no_count_is_told_once() -> None:
    """A server's own fields; what it changes its mind about is counted where it can be."""
    first = {"tier": "gold", "cached": True, "rate": 0.5, "odd": 1, "even": {"a": 1}}
    second = {"tier": "lead", "cached": False, "rate": 0.25, "odd": {"a": 2}, "even": 2}
    assert tallied(first, second) == {"tier": "gold", "cached": True, "rate": 0.75, "odd": {"a": 2}, "even": 2}


@given(characters=st.integers(0, 10**6), chunks=st.integers(0, 10**4))
def test_an_estimate_adds_up_and_says_that_it_is_one(characters: int, chunks: int) -> None:
    tally = Tally()
    tally.estimate(characters, chunks)
    usage = tally.usage
    assert usage is not None
    assert usage["prompt_tokens"] == max(1, characters // 4)
    assert usage["completion_tokens"] == chunks
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["estimated"] is True


@given(usage=USAGES)
def test_a_sum_with_an_estimate_in_it_is_one(usage: dict[str, Any]) -> None:
    tally = Tally()
    tally.estimate(40, 5)
    tally.add(usage)
    assert tally.usage is not None
    assert tally.usage["estimated"] is True
    assert tally.usage["total_tokens"] == usage["total_tokens"] + 15
