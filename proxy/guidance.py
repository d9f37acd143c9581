"""Making the upstream comply: when an answer gets a grammar, and what an upstream has shown that it can do.

    wanted?  no -> plain    yes -> known to work?  never asked -> probe once    no -> plain
                                                   yes -> this grammar refused before? -> plain

A probe asks for one fixed word: a server that takes structural tags says it, one that does not answers 400, and one
that ignores what it does not know says something else.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Literal
from weakref import WeakValueDictionary

import anyio

from proxy.errors import FloretteError, UpstreamRefused
from proxy.formats.base import ToolUse
from proxy.pieces import read_whole
from proxy.upstream import Upstream, to_json

Guided = Literal["auto", "always", "off"]

logger = logging.getLogger(__name__)

#: What the upstream is made to say: nothing that a model would say of itself. It has so many tokens for it.
_WORD = "zq-florette-7"
_WORD_TOKENS = 16

#: An upstream that could not is asked again after so long: it may have been replaced.
_PROBE_AGAIN_S = 600.0

#: So many models and refused grammars are remembered.
_MODELS = 256
_GRAMMARS = 1024

#: An upstream's answers to a request that it does not understand.
_REFUSALS = (400, 422)

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
    demanded = use.demands or use.answer is not None or any(tool.strict for tool in use.tools)
    return demanded or guided == "always"


class Guidance:
    """What one upstream can do, by model; `now` gives seconds."""

    def __init__(self, upstream: Upstream, now: Callable[[], float]) -> None:
        self._upstream = upstream
        self._now = now
        # One for each model that is being asked: behind one address there may be a model that is still loading.
        self._probing: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._supported: OrderedDict[str, tuple[bool, float]] = OrderedDict()
        self._refused: OrderedDict[bytes, None] = OrderedDict()

    async def allows(self, grammar: Mapping[str, Any], body: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
        """True if the upstream takes grammars, and has not refused this one."""
        if _key(grammar) in self._refused:
            return False
        model = str(body.get("model"))
        if (known := self._known(model)) is not None:
            return known
        async with self._probing.setdefault(model, anyio.Lock()):
            # Another request may have found out meanwhile.
            known = self._known(model)
            return await self._probe(model, body, headers) if known is None else known

    def refused(self, grammar: Mapping[str, Any]) -> None:
        """The upstream refused a request with this grammar, and took it without."""
        logger.info("the upstream refused a grammar: answers to such requests are checked instead")
        _remember(self._refused, _key(grammar), None, _GRAMMARS)

    def _known(self, model: str) -> bool | None:
        supported, asked_at = self._supported.get(model, (None, 0.0))
        stale = supported is False and self._now() - asked_at > _PROBE_AGAIN_S
        return None if stale else supported

    async def _probe(self, model: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bool:
        probe: dict[str, Any] = {
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": _WORD_TOKENS,
            "response_format": structural_tag({"type": "const_string", "value": _WORD}),
        }
        if "model" in body:
            probe["model"] = body["model"]
        try:
            pieces, _ = read_whole(await self._upstream.complete(probe, headers))
        except FloretteError as error:
            if not is_refusal(error):
                # Whatever it is, the request itself will meet it, and tell.
                return False
            supported = False
        else:
            said = "".join(piece.content for piece in pieces)
            # A model that thinks may come to no word at all.
            supported = _WORD.startswith(said.strip())
        if not supported:
            logger.info("the upstream takes no grammar for model %s: answers are checked instead", model[:100])
        _remember(self._supported, model, (supported, self._now()), _MODELS)
        return supported


def structural_tag(grammar: Mapping[str, Any]) -> dict[str, Any]:
    """The `response_format` of a grammar."""
    return {"type": "structural_tag", "format": grammar}


def _key(grammar: Mapping[str, Any]) -> bytes:
    return hashlib.sha256(to_json(grammar)).digest()


def _remember(known: "OrderedDict[Any, Any]", key: str | bytes, value: Any, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)
