"""What a check finds: a verdict, a sentence, and the evidence for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from proxy.doctor.exchange import Answer


class Verdict(IntEnum):
    """From best to worst, but that a check which passed in part has passed.

    A WARNING is what is odd without being wrong, or what the model did not do, so that nobody can tell.
    """

    SKIPPED = 0
    PASS = 1
    WARNING = 2
    FAIL = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence with its evidence. `came` is what the answer held, `due` what it should have held."""

    verdict: Verdict
    said: str
    answer: Answer | None = None
    came: str = ""
    due: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check."""

    area: str
    name: str
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst finding's; a check that found nothing has passed."""
        return worst(finding.verdict for finding in self.findings)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of them, PASS if there are none."""
    return max(verdicts, default=Verdict.PASS)


def fail(said: str, answer: Answer | None = None, came: str = "", due: str = "") -> Finding:
    """Something is wrong."""
    return Finding(Verdict.FAIL, said, answer, came, due)


def warn(said: str, answer: Answer | None = None, came: str = "", due: str = "") -> Finding:
    """Something is odd, or cannot be told."""
    return Finding(Verdict.WARNING, said, answer, came, due)


def lack(said: str, answer: Answer, due: str) -> Finding:
    """Something is missing: wrong, unless the answer was cut before it could come."""
    if answer.said.is_cut:
        return warn("The answer was cut short, so nobody can tell.", answer, due=due)
    return fail(said, answer, due=due)


def passed(said: str) -> Finding:
    """Something is right; a word on how much of it was seen."""
    return Finding(Verdict.PASS, said)


def skipped(said: str, answer: Answer | None = None) -> Finding:
    """Something was not tried, and why."""
    return Finding(Verdict.SKIPPED, said, answer)
