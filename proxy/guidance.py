"""Making the upstream comply: when an answer gets a grammar, and what an upstream has shown that it can do.

    wanted?  no -> plain    yes -> known to work?  never asked -> probe once    no -> plain
                                                   yes -> this grammar refused before? -> plain

A probe asks for one fixed word: a server that takes structural tags says it, one that does not answers 400, and one
that ignores what it does not know says something else.
"""

import hashlib
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal
from weakref import WeakValueDictionary

import anyio

from proxy.errors import FloretteError, UpstreamRefused
from proxy.formats.base import ToolUse
from proxy.formats.grammar import Guided, structural_tag
from proxy.pieces import read_whole
from proxy.upstream import Upstream, to_json

#: Whether an upstream takes grammars; `unsure`: it took one, but said nothing by which to tell whether it kept to it.
Support = Literal["yes", "unsure", "no"]

logger = logging.getLogger(__name__)

#: What the upstream is made to say: nothing that a model would say of itself. It has so many tokens for it.
_WORD = "zq-florette-7"
_WORD_TOKENS = 16

#: A word is said within a second; who waits for it has a request of its own to make.
_PROBE_S = 10.0

#: An upstream that could not is asked again after so long: it may have been replaced.
_PROBE_AGAIN_S = 600.0
#: So it is if it was not there at all: until then its requests are made without.
_TROUBLED_S = 30.0

#: So many models and refused grammars are remembered.
_MODELS = 256
_GRAMMARS = 1024

#: An upstream's answers to a request that it does not understand; some grammars make vLLM fail where they should not.
_REFUSALS = (400, 422, 500)

#: Fields by which a caller constrains the answer itself; two constraints at once are refused.
_CONSTRAINTS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


def is_refusal(error: FloretteError) -> bool:
    """True if the upstream did not understand the request, so that a plainer one may do."""
    return isinstance(error, UpstreamRefused) and error.status in _REFUSALS


def is_wanted(guided: Guided, use: ToolUse, body: Mapping[str, Any]) -> bool:
    """True if the answer to this request should get a grammar."""
    if guided == "off" or not use.offered or any(body.get(field) for field in _CONSTRAINTS):
        return False
    answer_format = body.get("response_format")
    if isinstance(answer_format, dict) and answer_format.get("type") not in ("text", "json_object", "json_schema"):
        return False
    asked_for = use.bounded or use.forbidden or any(tool.strict for tool in use.tools)
    return bool(asked_for) or guided == "always"


class Guidance:
    """What one upstream can do, by model; `now` gives seconds."""

    def __init__(self, upstream: Upstream, now: Callable[[], float]) -> None:
        self._upstream = upstream
        self._now = now
        # One for each model that is being asked: behind one address there may be a model that is still loading.
        self._probing: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._supported: OrderedDict[str, tuple[Support, float]] = OrderedDict()
        self._refused: OrderedDict[bytes, float] = OrderedDict()

    async def support(self, grammar: Mapping[str, Any], body: Mapping[str, Any], headers: Mapping[str, str]) -> Support:
        """What the upstream can do with this grammar."""
        model = str(body.get("model"))
        if self._refused.get(_key(model, grammar), -math.inf) > self._now():
            return "no"
        if (known := self._known(model)) is not None:
            return known
        async with self._probing.setdefault(model, anyio.Lock()):
            # Another request may have found out meanwhile.
            return self._known(model) or await self._probe(model, body, headers)

    def refused(self, grammar: Mapping[str, Any], body: Mapping[str, Any]) -> None:
        """The upstream refused a request with this grammar, and took it without."""
        logger.info("the upstream refused a grammar: answers to such requests are checked instead")
        _remember(self._refused, _key(str(body.get("model")), grammar), self._now() + _PROBE_AGAIN_S, _GRAMMARS)

    def _known(self, model: str) -> Support | None:
        support, until = self._supported.get(model, (None, math.inf))
        return support if until > self._now() else None

    async def _probe(self, model: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Support:
        probe: dict[str, Any] = {
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": _WORD_TOKENS,
            "response_format": structural_tag({"type": "const_string", "value": _WORD}),
        }
        if "model" in body:
            probe["model"] = body["model"]
        support: Support = "no"
        lasts_s = _PROBE_AGAIN_S
        try:
            pieces, _ = read_whole(await self._upstream.complete(probe, headers, within_s=_PROBE_S))
        except FloretteError as error:
            if error.status < 500 and not is_refusal(error):
                # The caller's key, or its model: the request itself will meet it, and tell.
                return "no"
            if not is_refusal(error):
                lasts_s = _TROUBLED_S
        else:
            said = "".join(piece.content for piece in pieces).strip()
            if said and _WORD.startswith(said):
                support, lasts_s = "yes", math.inf
            elif not said:
                # A model that thinks may come to no word at all.
                support = "unsure"
        logger.info("the upstream's support of grammars for model %s: %s", model[:100], support)
        _remember(self._supported, model, (support, self._now() + lasts_s), _MODELS)
        return support


def _key(model: str, grammar: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(to_json({"model": model, "grammar": grammar})).digest()


def _remember(known: "OrderedDict[Any, Any]", key: str | bytes, value: Any, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
