"""What one caller may use: requests and tokens in any minute, and answers at the same time.

Time is given in whole nanoseconds of a clock that never goes back, so that the limits hold exactly.

Source: OpenAI's guide "Rate limits": the headers, and durations as Go writes them (`1s`, `6m0s`, `120ms`).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from proxy.errors import RateLimited

_MS = 1_000_000
_S = 1000 * _MS
_MINUTE = 60 * _S

#: What comes within so much time is remembered as one, as if all of it had come last. So there are 600 entries to a
#: minute, whatever the limit, and none is forgotten too early, nor later than by this.
_GRAIN = _MINUTE // 600

#: Nobody knows when a running answer ends; this is the least that `Retry-After` can say.
_SOON = _S

#: How OpenAI's error messages call the limits.
_SHORT = {"requests": "RPM", "tokens": "TPM"}


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that a caller may use; None: as much as it likes."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None


@dataclass(slots=True)
class _Spent:
    began: int
    ended: int
    amount: int


class Minute:
    """What was spent in the last 60 s, and what of `limit` is left."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._spent: deque[_Spent] = deque()

    def spend(self, now: int, amount: int) -> None:
        """Counts also what is beyond the limit."""
        self._forget(now)
        last = self._spent[-1] if self._spent else None
        if last and now - last.began < _GRAIN:
            last.ended, last.amount = now, last.amount + amount
        else:
            self._spent.append(_Spent(now, now, amount))
        self._used += amount

    def used(self, now: int) -> int:
        """How much counts now; it may be more than the limit."""
        self._forget(now)
        return self._used

    def wait(self, now: int) -> int:
        """The time until something may be spent again; 0 if it may be now."""
        used, wait = self.used(now), 0
        for spent in self._spent:
            if used < self.limit:
                break
            used, wait = used - spent.amount, spent.ended + _MINUTE - now
        return wait

    def reset(self, now: int) -> int:
        """The time until nothing counts any more."""
        self._forget(now)
        return self._spent[-1].ended + _MINUTE - now if self._spent else 0

    def _forget(self, now: int) -> None:
        while self._spent and self._spent[0].ended + _MINUTE <= now:
            self._used -= self._spent.popleft().amount


class Allowance:
    """What the caller `name` has left of its limits. `clock` gives nanoseconds."""

    def __init__(self, name: str, limits: Limits, clock: Callable[[], int]) -> None:
        self._name = name
        self._clock = clock
        self._places = limits.concurrent_requests
        self._running = 0
        per_minute = {"requests": limits.requests_per_minute, "tokens": limits.tokens_per_minute}
        self._minutes = {kind: Minute(limit) for kind, limit in per_minute.items() if limit is not None}

    def take(self) -> None:
        """Takes a request and a place among the running ones; RateLimited, and nothing is taken, if a limit forbids."""
        now = self._clock()
        waits = {kind: minute.wait(now) for kind, minute in self._minutes.items()}
        waits["places"] = _SOON if self._places is not None and self._running >= self._places else 0
        # The longest: who has waited for that is let in.
        longest = max(waits, key=waits.__getitem__)
        if waits[longest]:
            raise self._refusal(now, longest, waits[longest])
        self._running += 1
        self._spend("requests", now, 1)

    def give_back(self, tokens: int) -> None:
        """Gives the place back; the answer cost so many tokens."""
        self._running -= 1
        self._spend("tokens", self._clock(), tokens)

    def headers(self) -> dict[str, str]:
        """OpenAI's `x-ratelimit-*` of the limits that there are."""
        return self._headers(self._clock())

    def _spend(self, kind: str, now: int, amount: int) -> None:
        if amount and kind in self._minutes:
            self._minutes[kind].spend(now, amount)

    def _headers(self, now: int) -> dict[str, str]:
        headers: dict[str, str] = {}
        for kind, minute in self._minutes.items():
            headers[f"x-ratelimit-limit-{kind}"] = str(minute.limit)
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, minute.limit - minute.used(now)))
            headers[f"x-ratelimit-reset-{kind}"] = duration(minute.reset(now))
        return headers

    def _refusal(self, now: int, kind: str, wait: int) -> RateLimited:
        if minute := self._minutes.get(kind):
            said = f"{kind} per min ({_SHORT[kind]}): Limit {minute.limit}, Used {minute.used(now)}"
        else:
            said = f"concurrent requests: Limit {self._places}, Used {self._running}"
        wait_s = -(-wait // _S)
        return RateLimited(
            f"Rate limit reached for the key '{self._name}' on {said}. Please try again in {wait_s}s.",
            of="tokens" if kind == "tokens" else "requests",
            headers={"retry-after": str(wait_s), **self._headers(now)},
        )


def duration(nanoseconds: int) -> str:
    """As Go writes it, in whole milliseconds, rounded up.

    >>> duration(90_500_000_000), duration(1_000_000_000), duration(119_500_000), duration(0)
    ('1m30.5s', '1s', '120ms', '0s')
    """
    ms = -(-nanoseconds // _MS)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    return (f"{minutes}m" if minutes else "") + f"{ms / 1000:g}s"
