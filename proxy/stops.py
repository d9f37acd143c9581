"""The caller's stop strings that did not fit into the upstream's request, applied to its text here.

Source: vLLM's behaviour (`stop`, `include_stop_str_in_output`): at most 4 strings (0.27 and later), and of several
the one that is complete first.
"""

from collections.abc import Sequence
from functools import lru_cache

#: vLLM's VLLM_MAX_STOP_STRINGS; a fifth string is answered with 400.
UPSTREAM_LIMIT = 4


@lru_cache(maxsize=64)
def _prefixes(strings: tuple[str, ...]) -> frozenset[str]:
    # Shared by the choices of an answer; `wire` bounds how many and how long the strings are.
    return frozenset(string[:size] for string in strings for size in range(1, len(string)))


class StopStrings:
    """Ends one choice's text at the first of the strings, however it is cut; holds back what may become one."""

    def __init__(self, strings: Sequence[str], *, include: bool = False) -> None:
        self._strings = strings
        self._prefixes = _prefixes(tuple(strings))
        self._longest = max(map(len, strings)) - 1
        self._include = include
        self._held = ""
        self.stopped_by: str | None = None

    def feed(self, text: str) -> str:
        """The text that can be passed on; nothing once a string has been found."""
        if self.stopped_by is not None:
            return ""
        text = self._held + text
        found = [(text.index(string) + len(string), -len(string), string) for string in self._strings if string in text]
        if found:
            end, _, self.stopped_by = min(found)
            self._held = ""
            return text[: end if self._include else end - len(self.stopped_by)]
        sizes = range(min(self._longest, len(text)), 0, -1)
        keep = next((size for size in sizes if text[-size:] in self._prefixes), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held
