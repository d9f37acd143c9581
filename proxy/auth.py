"""Bearer keys -> who asks, and leases: one for each request that was let in, until its answer has ended.

Keys are known by their SHA-256 alone. Without any, everyone is the same anonymous caller, whom nothing limits.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proxy.cost import Cost
from proxy.errors import InvalidKey
from proxy.limits import Allowance, Limits


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and how much at most. `tools`: the names of those of our tools that it may use; None: all."""

    name: str
    limits: Limits = field(default_factory=Limits)
    tools: frozenset[str] | None = None

    def may_use(self, tool: str) -> bool:
        """True if the tool may be run for this caller."""
        return self.tools is None or tool in self.tools


@dataclass(frozen=True, slots=True)
class Key:
    """What a caller shows: `digest` is the SHA-256 of the key's bytes."""

    caller: Caller
    digest: bytes = field(repr=False)


ANONYMOUS = Caller("anonymous")


class Lease:
    """The right to one answer. Give it back by `release`, whatever became of the answer."""

    def __init__(self, caller: Caller, allowance: Allowance) -> None:
        self.caller = caller
        #: Counts what the answer costs; to be set by whoever gives it, if `counts_tokens`.
        self.cost: Cost | None = None
        self._allowance = allowance
        self._refused = False
        self._released = False

    @property
    def is_limited(self) -> bool:
        """True if the caller is told of limits, and the end of its answer matters."""
        return self.caller.limits != Limits()

    @property
    def counts_tokens(self) -> bool:
        """True if it matters what the answer costs."""
        return self.caller.limits.tokens_per_minute is not None

    def begin(self, status: int) -> dict[str, str]:
        """The answer begins with this HTTP status -> what its headers tell of the limits."""
        self._refused = status >= 400
        return self._allowance.headers()

    def release(self) -> None:
        """Ends the lease and pays for the answer; once, however often it is called."""
        if not self._released:
            self._released = True
            self._allowance.give_back(self.cost.tokens(refused=self._refused) if self.cost else 0)


class Keys:
    """The door. `clock` gives nanoseconds and never goes back."""

    def __init__(self, keys: Sequence[Key], clock: Callable[[], int]) -> None:
        self._keys = keys
        callers = [key.caller for key in keys] or [ANONYMOUS]
        self._allowances = {caller: Allowance(caller.name, caller.limits, clock) for caller in callers}

    def admit(self, authorization: bytes | None) -> Lease:
        """Lets a request in, by its header. InvalidKey or RateLimited if it may not enter."""
        caller = self._caller(authorization) if self._keys else ANONYMOUS
        allowance = self._allowances[caller]
        allowance.take()
        return Lease(caller, allowance)

    def _caller(self, authorization: bytes | None) -> Caller:
        scheme, _, given = (authorization or b"").strip().partition(b" ")
        if scheme.lower() != b"bearer" or not given.strip():
            raise InvalidKey("You didn't provide an API key. Send it in the header 'Authorization: Bearer YOUR_KEY'.")
        digest = hashlib.sha256(given.strip()).digest()
        found: Caller | None = None
        # Of digests, each in constant time, and all of them: how long it takes tells nothing of any key.
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key.caller
        if found is None:
            raise InvalidKey("Incorrect API key provided.")
        return found
