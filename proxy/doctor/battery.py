"""All that is checked, in the order of the scorecard: an area's checks, then its rules."""

from types import ModuleType

from proxy.doctor import choices, legacy, limits, planted, refusals, rules, sameness, schemas, shapes, trips
from proxy.doctor.probe import Check
from proxy.doctor.rule import Rule

AREAS = (
    "wire form",
    "argument validity",
    "schema accuracy",
    "tool_choice",
    "parallel calls",
    "round trip",
    "legacy functions",
    "streaming equals non-streaming",
    "marker leaks",
    "finish reasons",
    "usage",
    "errors",
    "response_format",
)


def _checks(module: ModuleType) -> list[Check]:
    return [value for value in vars(module).values() if isinstance(value, Check)]


def _rules(module: ModuleType) -> list[Rule]:
    return [value for value in vars(module).values() if isinstance(value, Rule)]


CHECKS = (
    *_checks(choices),
    *_checks(schemas),
    *_checks(legacy),
    *_checks(trips),
    *sameness.COMPARED,
    *_checks(planted),
    *_checks(limits),
    *_checks(refusals),
    *refusals.FAULTS,
)
RULES = (*_rules(shapes), *_rules(rules))
