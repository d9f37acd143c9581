"""The whole examination: all checks side by side, then the rules over all answers, then the scorecard."""

import asyncio
from collections.abc import Sequence

from proxy.doctor.battery import AREAS, CHECKS, RULES
from proxy.doctor.client import Endpoint, Unfit, connect
from proxy.doctor.probe import Check, open_probe
from proxy.doctor.report import Scorecard, hide
from proxy.doctor.rule import Rule


async def examine(
    base_url: str,
    model: str,
    key: str | None = None,
    timeout_s: float = 60,
    checks: Sequence[Check] = CHECKS,
    rules: Sequence[Rule] = RULES,
) -> Scorecard:
    """The scorecard of an endpoint; Unfit, a sentence without the key in it, if it gives no answer at all."""
    try:
        async with connect(base_url, key, timeout_s) as endpoint:
            return await _examine(endpoint, model, key, checks, rules)
    except Unfit as unfit:
        raise Unfit(hide(str(unfit), key)) from None


async def _examine(
    endpoint: Endpoint, model: str, key: str | None, checks: Sequence[Check], rules: Sequence[Rule]
) -> Scorecard:
    probe = await open_probe(endpoint, model)
    found = await asyncio.gather(*(check.result(probe) for check in checks))
    found += [rule.result(probe.answers) for rule in rules]
    results = sorted(found, key=lambda result: AREAS.index(result.area))
    return Scorecard(endpoint.base_url, model, tuple(results), key)
