"""The scorecard: results -> text for people, or JSON for programs.

What came over the wire is shown with nothing in it that a terminal would act on, nothing invisible, and no key.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from proxy.doctor.findings import Finding, Result, Verdict, worst

_WORDS = {Verdict.PASS: "pass", Verdict.FAIL: "FAIL", Verdict.WARNING: "warn", Verdict.SKIPPED: "skip"}

#: Evidence longer than this is for the JSON report.
_SHOWN_CHARACTERS = 400
_WIDTH = 120
_INDENT = " " * 8


@dataclass(frozen=True, slots=True)
class Scorecard:
    """All results of one endpoint, in the order in which they are shown; `secret` is never shown."""

    base_url: str
    model: str
    results: tuple[Result, ...]
    secret: str | None = field(default=None, repr=False)

    @property
    def verdict(self) -> Verdict:
        """The worst one."""
        return worst(result.verdict for result in self.results)

    def count(self, verdict: Verdict) -> int:
        """How many checks came to this."""
        return sum(result.verdict is verdict for result in self.results)


def as_text(card: Scorecard) -> str:
    """A line for each check, and below it the evidence of what it found wrong."""
    lines = [f"{card.model} at {card.base_url}"]
    for area, results in groupby(card.results, key=lambda result: result.area):
        lines += ["", area]
        for result in results:
            lines += _result_lines(result, card.secret)
    counts = ", ".join(f"{card.count(verdict)} {word.lower()}" for verdict, word in _WORDS.items())
    return "\n".join([*lines, "", f"{len(card.results)} checks: {counts}", ""])


def as_json(card: Scorecard) -> str:
    """The same with the whole evidence: each request as it was sent, without headers."""
    told = {
        "base_url": card.base_url,
        "model": card.model,
        "verdict": _WORDS[card.verdict].lower(),
        "counts": {word.lower(): card.count(verdict) for verdict, word in _WORDS.items()},
        "checks": [
            {
                "area": result.area,
                "name": result.name,
                "verdict": _WORDS[result.verdict].lower(),
                "findings": [_fields(finding, card.secret) for finding in result.findings],
            }
            for result in card.results
        ],
    }
    return json.dumps(told, indent=2) + "\n"


def hide(text: str, secret: str | None) -> str:
    """The text without the key: servers quote it in their errors."""
    return text.replace(secret, "[key]") if secret else text


def one_line(text: str, secret: str | None) -> str:
    """The beginning of the text, in one line and without the key: servers answer whole pages."""
    return visible(_shown(hide(text, secret)))


def visible(text: str) -> str:
    """The text in one line, with escapes for what cannot be seen or would move the cursor."""
    return "".join(each if each.isprintable() else json.dumps(each).strip('"') for each in text)


def _result_lines(result: Result, secret: str | None) -> list[str]:
    word, findings = _WORDS[result.verdict], result.findings
    notes = [finding for finding in findings if finding.verdict in (Verdict.PASS, Verdict.SKIPPED) and finding.said]
    # On one line what was seen is short; what was found wrong has lines of its own.
    note = f"  ({'; '.join(visible(hide(finding.said, secret)) for finding in notes)})" if notes else ""
    lines = [f"  {word}  {result.name}{note}"]
    wrong: dict[tuple[Verdict, str], list[Finding]] = {}
    for finding in findings:
        if finding.verdict > Verdict.PASS:
            wrong.setdefault((finding.verdict, finding.said), []).append(finding)
    for same in wrong.values():
        lines += _evidence(same, secret)
    return lines


def _evidence(same: Sequence[Finding], secret: str | None) -> list[str]:
    """The first of findings that say the same, and how many there are."""
    said = hide(same[0].said, secret) + (f" ({len(same)} times, at first here)" if len(same) > 1 else "")
    asked, came, due = (_shown(hide(text, secret)) for text in _told(same[0]))
    parts = [("", said), ("asked: ", asked), ("came:  ", came), ("due:   ", due)]
    return [line for label, text in parts if text for line in _wrapped(label, visible(text))]


def _told(finding: Finding) -> tuple[str, str, str]:
    answer = finding.answer
    return (answer.request.told() if answer else "", finding.came or (answer.told() if answer else ""), finding.due)


def _fields(finding: Finding, secret: str | None) -> dict[str, Any]:
    said, asked, came, due = (hide(text, secret) for text in (finding.said, *_told(finding)))
    told = {"verdict": _WORDS[finding.verdict].lower(), "said": said, "asked": asked, "came": came, "due": due}
    request = finding.answer.request if finding.answer else None
    return {**told, "path": request.path, "request": request.fields or None} if request else told


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _wrapped(label: str, text: str) -> Sequence[str]:
    # Blanks are evidence, too: nothing is dropped where a line is broken.
    width = _WIDTH - len(_INDENT) - len(label)
    lines = textwrap.wrap(text, width, drop_whitespace=False, break_on_hyphens=False)
    blank = " " * len(label)
    return [f"{_INDENT}{blank if number else label}{line}".rstrip() for number, line in enumerate(lines)]
