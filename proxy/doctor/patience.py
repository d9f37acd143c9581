"""How long a doctor lets itself be refused: what was waited is counted, and waited for by others.

Source: RFC 9110, 10.2.3 (Retry-After). Its other form, a date, is not read: no such server sends one, and who is told
nothing waits longer each time.
"""

import re

#: The battery is 150 requests. Ten a minute, as free tiers allow, make a quarter of an hour of them.
IN_ALL_S = 20 * 60

#: Limits count by the minute: who is not let in after two is refused for another reason, such as an empty account.
IN_A_ROW_S = 2 * 60

#: A server that says 0 would be asked without a pause.
_LEAST_S = 1

_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


class Patience:
    """What is left of it. `is_tried` once there was a refusal, `is_over` when too much would have to be waited.

    `wait_s` is to be waited before the next request, `waits` counts the waits that have begun.
    """

    def __init__(self) -> None:
        self.is_tried = False
        self.is_over = False
        self.wait_s = 0.0
        self.waits = 0
        self._in_all_s = 0.0
        self._in_a_row_s = 0.0

    def refused(self, asked_s: float | None, waits: int) -> None:
        """A request was, which went out after so many waits; the endpoint asks to wait so long, or does not say."""
        self.is_tried = True
        if waits < self.waits:
            # Whoever was refused at the same time as others has waited with them.
            return
        # As long again as was waited in vain: 1, 1, 2, 4, ... seconds.
        wait_s = self._in_a_row_s if asked_s is None else asked_s
        self.wait_s = max(self.wait_s, wait_s, _LEAST_S)
        if self._in_a_row_s + self.wait_s > IN_A_ROW_S or self._in_all_s + self.wait_s > IN_ALL_S:
            self.is_over = True

    def let_in(self) -> None:
        """A request was not refused."""
        self._in_a_row_s = 0.0

    def begin_wait(self) -> float:
        """The seconds to wait now."""
        wait_s, self.wait_s = self.wait_s, 0.0
        self._in_all_s += wait_s
        self._in_a_row_s += wait_s
        self.waits += 1
        return wait_s


def retry_after_s(told: str) -> float | None:
    """The seconds that a `Retry-After` tells; None if it tells none.

    >>> retry_after_s("20"), retry_after_s("soon")
    (20.0, None)
    """
    return float(told) if _SECONDS.fullmatch(told) else None
