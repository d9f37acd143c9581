"""The caller's stop strings that did not fit into the upstream's request, applied to its text here.

Source: vLLM's behaviour (`stop`, `include_stop_str_in_output`), which takes at most 4 strings (0.27 and later).
"""

import re
from collections.abc import Sequence

#: vLLM's VLLM_MAX_STOP_STRINGS; a fifth string is answered with 400.
UPSTREAM_LIMIT = 4


class StopStrings:
    """Cuts one choice's text at the first of the strings, however it is cut; holds back what may become one."""

    def __init__(self, strings: Sequence[str], *, include: bool = False) -> None:
        self._pattern = re.compile("|".join(map(re.escape, sorted(strings, key=len, reverse=True))))
        self._prefixes = {string[:size] for string in strings for size in range(1, len(string))}
        self._longest = max(map(len, strings)) - 1
        self._include = include
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, text: str) -> str:
        """The text that can be passed on; nothing once a string has been found."""
        if self.stopped_by is not None:
            return ""
        text = self._held + text
        if found := self._pattern.search(text):
            self._held, self.stopped_by = "", found.group()
            return text[: found.end() if self._include else found.start()]
        sizes = range(min(self._longest, len(text)), 0, -1)
        keep = next((size for size in sizes if text[-size:] in self._prefixes), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held
