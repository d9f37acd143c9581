"""Rules: what must hold for every answer, whatever was asked.

A Rule is a function that takes an answer and a part of it, and yields findings; `rule` makes one. Which part is told
by `unit`, and counted. The sentence of a finding is the same for all answers: what differs stands in its evidence.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from proxy.doctor.exchange import Answer
from proxy.doctor.findings import Finding, Result, Verdict, passed, skipped

Judge = Callable[[Answer, Any], Iterator[Finding]]


def _streams(answer: Answer) -> list[Any]:
    return [answer.stream] if answer.stream else []


def _completions(answer: Answer) -> list[Any]:
    return [answer.whole] if answer.status == 200 and answer.whole else []


def _answers(answer: Answer) -> list[Any]:
    return list(answer.choices)


def _calls(answer: Answer) -> list[Any]:
    return [call for said in answer.choices for call in said.whole_calls]


#: What a rule can be about -> the parts of an answer that are such.
_UNITS: dict[str, Callable[[Answer], list[Any]]] = {
    "streams": _streams,
    "completions": _completions,
    "answers": _answers,
    "calls": _calls,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the scorecard."""

    area: str
    name: str
    unit: str
    judge: Judge

    def result(self, answers: Sequence[Answer]) -> Result:
        """What all these answers come to: each complaint once, with how often it was made and one example."""
        parts = [(answer, part) for answer in answers for part in _UNITS[self.unit](answer)]
        made: dict[tuple[Verdict, str], list[Finding]] = {}
        for answer, part in parts:
            for finding in _first_of_each(self.judge(answer, part)):
                made.setdefault((finding.verdict, finding.said), []).append(finding)
        findings = [
            replace(same[0], said=f"{said} ({len(same)} of {len(parts)} {self.unit})")
            for (_, said), same in made.items()
        ]
        if not findings:
            findings = [passed(f"{len(parts)} {self.unit}") if parts else skipped(f"no {self.unit} came")]
        return Result(self.area, self.name, tuple(findings))


def rule(area: str, name: str, unit: str) -> Callable[[Judge], Rule]:
    """Makes a Rule of a function."""
    return lambda judge: Rule(area, name, unit, judge)


def _first_of_each(findings: Iterable[Finding]) -> list[Finding]:
    found: dict[str, Finding] = {}
    for finding in findings:
        found.setdefault(finding.said, finding)
    return list(found.values())
