"""The whole examination: all checks side by side, then the rules over all answers, then the scorecard."""

import asyncio
from collections.abc import Callable, Sequence
from itertools import count

from proxy.doctor.battery import AREAS, CHECKS, RULES
from proxy.doctor.client import Endpoint, Sleep, Unfit, connect
from proxy.doctor.findings import Result
from proxy.doctor.probe import Check, Probe, open_probe
from proxy.doctor.progress import Tell, tell_nobody
from proxy.doctor.report import Scorecard, one_line
from proxy.doctor.rule import Rule


async def examine(
    base_url: str,
    model: str,
    key: str | None = None,
    timeout_s: float = 60,
    checks: Sequence[Check] = CHECKS,
    rules: Sequence[Rule] = RULES,
    *,
    tell: Tell = tell_nobody,
    sleep: Sleep = asyncio.sleep,
) -> Scorecard:
    """The scorecard of an endpoint, and on the way there how many of its lines are done, told to `tell`.

    Unfit, a sentence in one line without the key in it, if it gives no answer at all, or refuses for its limits for
    longer than is waited (`patience`); `sleep` does the waiting.
    """
    try:
        async with connect(base_url, key, timeout_s, sleep) as endpoint:
            results = await _results(endpoint, model, checks, rules, tell)
            return Scorecard(endpoint.base_url, model, results, key)
    except Unfit as unfit:
        raise Unfit(one_line(str(unfit), key)) from None


async def _results(
    endpoint: Endpoint, model: str, checks: Sequence[Check], rules: Sequence[Rule], tell: Tell
) -> tuple[Result, ...]:
    done = _counted(tell, len(checks) + len(rules))
    done()
    probe = await open_probe(endpoint, model)
    found = await asyncio.gather(*(_result(check, probe, done) for check in checks))
    endpoint.check_patience()
    for rule in rules:
        found.append(rule.result(probe.answers))
        done()
    return tuple(sorted(found, key=lambda result: AREAS.index(result.area)))


async def _result(check: Check, probe: Probe, done: Callable[[], object]) -> Result:
    result = await check.result(probe)
    done()
    return result


def _counted(tell: Tell, of: int) -> Callable[[], object]:
    """Each call tells one more, from 0."""
    numbers = count()
    return lambda: tell(next(numbers), of)
