"""Token counts of an answer that took several turns of the upstream, or of which the upstream was cut off.

Counted as far as known: an upstream that is dropped has told its count so far at most. What is not known is
estimated, and a usage with an estimate in it says so: `estimated: true`.
"""

from collections.abc import Mapping
from typing import Any

from proxy.events import CHARACTERS_PER_TOKEN


class Tally:
    """Adds up the usages of an answer's turns."""

    def __init__(self) -> None:
        self._sum: dict[str, Any] = {}

    def add(self, usage: Mapping[str, Any] | None) -> None:
        """Goes on by a usage that the upstream told; by None nothing is known."""
        self._sum = _added(self._sum, usage or {})

    def estimate(self, prompt_characters: int, chunks: int) -> None:
        """Goes on by a turn that was dropped behind so many chunks, before its usage was told."""
        prompt = max(1, prompt_characters // CHARACTERS_PER_TOKEN)
        # A chunk has at least a token; most have no more.
        counted = {"prompt_tokens": prompt, "completion_tokens": chunks, "total_tokens": prompt + chunks}
        self._sum = {**_added(self._sum, counted), "estimated": True}

    @property
    def usage(self) -> dict[str, Any] | None:
        """The sum, or None if no turn told any."""
        return self._sum or None


def _added(total: Mapping[str, Any], usage: Mapping[str, Any]) -> dict[str, Any]:
    added = dict(total)
    for name, value in usage.items():
        before = added.get(name)
        if isinstance(value, dict):
            added[name] = _added(before if isinstance(before, dict) else {}, value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            added[name] = value + before if isinstance(before, int | float) else value
        elif before is None:
            added[name] = value
    return added
