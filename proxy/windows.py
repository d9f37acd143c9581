"""How much room an upstream's model has for results, and results cut so that they fit.

The context's length is asked from `/v1/models` (`max_model_len`), tokens are counted by `/tokenize`, both vLLM's. Where
either is not to be had, a token is taken for three bytes: fewer than most texts have, so that it rather cuts too much.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from proxy.errors import FloretteError
from proxy.upstream import Call, Upstream, to_json

logger = logging.getLogger(__name__)

#: A model's length is asked for again after so long: the server behind the address may have been replaced.
_ASK_AGAIN_S = 600.0

#: So long counting may take; it is done in milliseconds, and an answer waits for it.
_COUNT_S = 10.0

#: Where nobody counts. Chinese has three bytes in a character, and about a token for each.
BYTES_PER_TOKEN = 3

#: Of the context so much is left for the model's own words, and for what the next calls bring.
_RESERVED_SHARE = 0.25

#: A result is never cut below this, however little room there is: a model that sees nothing asks again.
_LEAST_TOKENS = 64


class Windows:
    """The context lengths of one upstream's models; `now` gives seconds."""

    def __init__(self, upstream: Upstream, now: Callable[[], float]) -> None:
        self._upstream = upstream
        self._now = now
        self._lengths: dict[str, int] = {}
        self._until = -math.inf

    async def room(self, model: str | None, used: int, headers: Mapping[str, str]) -> int | None:
        """The tokens that results may take behind `used` ones; None if nobody knows."""
        length = await self._length(model, headers)
        return None if length is None else max(0, length - int(length * _RESERVED_SHARE) - used)

    async def cut(self, texts: Sequence[str], room: int, model: str | None, headers: Mapping[str, str]) -> list[int]:
        """How many characters of each text fit, all together, into `room` tokens; short ones stay whole."""
        if sum(len(text.encode("utf-8", "replace")) for text in texts) <= room:
            # A token has at least a byte.
            return [len(text) for text in texts]
        counts = [await self._count(text, model, headers) for text in texts]
        return [
            len(text) if count <= share else int(len(text) * share / count)
            for text, count, share in zip(texts, counts, shares(counts, room), strict=True)
        ]

    async def _length(self, model: str | None, headers: Mapping[str, str]) -> int | None:
        if self._until <= self._now():
            self._until = self._now() + _ASK_AGAIN_S
            try:
                told = await self._upstream.ask(Call("GET", "/models", b"", _COUNT_S), headers)
                self._lengths = _lengths(told)
            except FloretteError as error:
                logger.warning("the upstream does not tell how long its context is: %s", error.message)
        return self._lengths.get(model or "", next(iter(self._lengths.values()), None) if not model else None)

    async def _count(self, text: str, model: str | None, headers: Mapping[str, str]) -> int:
        estimate = max(1, len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)
        body: dict[str, Any] = {"prompt": text, "add_special_tokens": False}
        if model:
            body["model"] = model
        try:
            told = await self._upstream.ask(Call("POST", "/tokenize", to_json(body), _COUNT_S, root=True), headers)
        except FloretteError:
            return estimate
        count = told.get("count") if isinstance(told, dict) else None
        return count if isinstance(count, int) and count > 0 else estimate


def _lengths(told: Any) -> dict[str, int]:
    models = told.get("data") if isinstance(told, dict) else None
    found = [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return {str(model.get("id")): length for model in found if isinstance(length := model.get("max_model_len"), int)}


def shares(sizes: Sequence[int], room: int) -> list[int]:
    """What each of the sizes gets of the room: the small ones all they want, the large ones the rest in equal parts.

    >>> shares([10, 500, 900], 410)
    [10, 200, 200]
    """
    given = [0] * len(sizes)
    left = room
    in_order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for place, index in enumerate(in_order):
        fair = max(_LEAST_TOKENS, left // (len(sizes) - place))
        given[index] = min(sizes[index], fair)
        left = max(0, left - given[index])
    return given
