"""A million answers through the parsers: no error, and no call whose arguments could not be parsed.

Run by `make soak`, on all processors; it takes some minutes. The ordinary suite reads some thousands.
"""

import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context

import pytest

from dialects import DIALECTS, Dialect
from fuzzing import Failure, Fuzzer

#: So many answers are a soak; FLORETTE_SOAK says how many.
SOAK = int(os.environ.get("FLORETTE_SOAK", "0"))

#: A process is given so many at a time: its seed tells them apart.
BATCH = 5_000

#: Enough to see each of the fuzzer's branches many times, in about a second.
QUICK = 1_500


@pytest.mark.parametrize("dialect", DIALECTS, ids=str)
def test_thousands_of_broken_answers_break_nothing(dialect: Dialect) -> None:
    calls, failures = Fuzzer(dialect, seed=0).run(QUICK)
    assert not failures
    assert calls > QUICK / 3


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="takes minutes: run `make soak`")
def test_a_million_broken_answers_break_nothing() -> None:
    batches = math.ceil(SOAK / (BATCH * len(DIALECTS)))
    started_s = time.monotonic()
    calls = 0
    failures: list[Failure] = []
    # Not forked: the tests' own threads would not be.
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        for number in range(len(DIALECTS)):
            for made, failed in processes.map(_batch, repeat(number, batches), range(1, batches + 1)):
                calls += made
                failures += failed
    answers = batches * BATCH * len(DIALECTS)
    print(f"{answers} answers with {calls} calls in {time.monotonic() - started_s:.0f} s")
    assert not failures, "\n".join(map(str, failures[:20]))


def _batch(dialect: int, seed: int) -> tuple[int, list[Failure]]:
    return Fuzzer(DIALECTS[dialect], seed).run(BATCH)
