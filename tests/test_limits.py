"""The laws of the limits, each a property: nothing beyond them in any minute, and in again when it was told.

They are asked at the door, by the keys of `proxy.auth`; what callers see of them is in `test_auth`.
"""

import hashlib
import re
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clock import Clock
from proxy.auth import Caller, Key, Keys, Lease
from proxy.cost import Cost
from proxy.errors import RateLimited
from proxy.events import Text, Usage
from proxy.limits import Limits, Minute, duration

MINUTE = 60_000_000_000

#: How exactly time is remembered.
GRAIN = MINUTE // 600

#: Waits between requests: often none, or about as long as a grain or a minute, to the nanosecond.
waits = st.one_of(
    st.just(0),
    st.integers(0, GRAIN),
    st.integers(MINUTE - 2 * GRAIN, MINUTE),
    st.sampled_from([0, GRAIN, MINUTE]).flatmap(lambda near: st.integers(max(0, near - 2), near + 2)),
    st.integers(0, MINUTE),
)


def ada(clock: Clock, **limits: int) -> Callable[[], Lease]:
    """Asks with ada's key, who has these limits."""
    keys = Keys([Key(Caller("ada", Limits(**limits)), hashlib.sha256(b"sk-adas").digest())], clock)
    return lambda: keys.admit(b"Bearer sk-adas")


@given(limit=st.integers(1, 5), passing=st.lists(waits, max_size=60))
@example(limit=2, passing=[0, GRAIN - 1, MINUTE - GRAIN + 1, 0])
def test_no_minute_ever_holds_more_requests_than_it_may(limit: int, passing: list[int]) -> None:
    """And it holds as many, but for the grain in which time is remembered."""
    clock = Clock()
    ask = ada(clock, requests_per_minute=limit)
    let_in: list[int] = []
    for wait in passing:
        clock.now += wait
        try:
            ask().release()
            let_in.append(clock.now)
            assert sum(clock.now - then < MINUTE for then in let_in) <= limit
        except RateLimited:
            assert sum(clock.now - then < MINUTE + GRAIN for then in let_in) >= limit


@given(
    requests=st.integers(1, 5),
    tokens=st.integers(1, 50),
    asked=st.lists(st.tuples(waits, st.integers(0, 30)), max_size=60),
)
def test_who_waits_as_told_is_let_in(requests: int, tokens: int, asked: list[tuple[int, int]]) -> None:
    clock = Clock()
    ask = ada(clock, requests_per_minute=requests, tokens_per_minute=tokens)
    for wait, cost in asked:
        clock.now += wait
        try:
            lease = ask()
        except RateLimited as refused:
            wait_s = int(refused.headers["retry-after"])
            assert 1 <= wait_s <= 61
            clock.pass_s(wait_s)
            lease = ask()
        lease.cost = Cost({})
        lease.cost.events([(0, Usage({"total_tokens": cost}))])
        lease.release()


@given(limit=st.integers(1, 40), asked=st.lists(st.tuples(waits, st.integers(0, 30)), max_size=60))
def test_who_has_tokens_left_is_let_in_and_nobody_else(limit: int, asked: list[tuple[int, int]]) -> None:
    clock = Clock()
    ask = ada(clock, tokens_per_minute=limit)
    paid: list[tuple[int, int]] = []

    def paid_within(span: int) -> int:
        return sum(cost for then, cost in paid if clock.now - then < span)

    for wait, cost in asked:
        clock.now += wait
        try:
            lease = ask()
        except RateLimited:
            assert paid_within(MINUTE + GRAIN) >= limit
            continue
        assert paid_within(MINUTE) < limit
        lease.cost = Cost({})
        lease.cost.events([(0, Text("ignored, since it is told")), (0, Usage({"prompt_tokens": cost}))])
        lease.release()
        paid.append((clock.now, cost))


@given(passing=st.lists(waits, max_size=30))
def test_what_is_refused_costs_nothing(passing: list[int]) -> None:
    """Who is refused again and again is let in as soon as one who waits."""
    clock, patient = Clock(), Clock()
    ask, ask_patiently = ada(clock, requests_per_minute=1), ada(patient, requests_per_minute=1)
    ask().release()
    ask_patiently().release()
    for wait in passing:
        clock.now += wait
        if clock.now - Clock().now >= MINUTE:
            break
        with pytest.raises(RateLimited):
            ask()
    clock.now = patient.now = Clock().now + MINUTE
    ask().release()
    ask_patiently().release()


def test_a_lease_is_paid_once() -> None:
    ask = ada(Clock(), concurrent_requests=1, requests_per_minute=10)
    lease = ask()
    lease.release()
    lease.release()
    ask()
    with pytest.raises(RateLimited):
        ask()


def test_a_limit_takes_the_same_memory_whatever_it_is() -> None:
    minute = Minute(10**12)
    tracemalloc.start()
    try:
        for now in range(0, 3 * MINUTE, MINUTE // 20_000):
            minute.spend(now, 1)
        assert tracemalloc.get_traced_memory()[0] < 200_000
    finally:
        tracemalloc.stop()
    assert 20_000 <= minute.used(3 * MINUTE) <= 20_000 + 20_000 // 600


@given(ms=st.integers(0, 10**7))
def test_durations_are_gos(ms: int) -> None:
    """A client adds up what it reads: hours do not come, since no limit is longer than a minute."""
    said = duration(ms * 1_000_000)
    minutes, seconds, milliseconds = re.fullmatch(r"(?:(\d+)m(?!s))?(?:([\d.]+)s)?(?:(\d+)ms)?", said).groups("0")  # type: ignore[union-attr]
    assert round((int(minutes) * 60 + float(seconds)) * 1000) + int(milliseconds) == ms
