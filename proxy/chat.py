"""One turn: a chat request -> the prompt -> the upstream -> the model's text -> events.

    request -> Format.render -> Prompt -> Upstream -> pieces -> StopStrings -> Parser -> Review -> (choice, Event) ...
                    ^                                                             |
                    `-------------- the model is told of its mistake -------------'

Streamed or not, the upstream's text goes through the same parser; what is not streamed is one piece.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from proxy.errors import UpstreamRefused
from proxy.events import Usage
from proxy.formats.base import Grammar
from proxy.guidance import Guidance, Support, is_refusal, is_wanted
from proxy.pieces import PieceReader, read_whole
from proxy.turns import Ask, Profile, Said, Turn
from proxy.upstream import Upstream
from proxy.wire import ChatRequest


class Chat:
    """Runs turns against one upstream; `profile` tells how to talk to a model, `new_id` gives each call its id.

    `now` gives seconds; they only have to go forward.
    """

    def __init__(
        self,
        upstream: Upstream,
        profile: Callable[[str | None], Profile],
        new_id: Callable[[], str],
        now: Callable[[], float],
    ) -> None:
        self._upstream = upstream
        self._profile = profile
        self._new_id = new_id
        self._guidance = Guidance(upstream, now)

    async def turn(
        self, request: ChatRequest, body: Mapping[str, Any], headers: Mapping[str, str], *, counted: bool = False
    ) -> AsyncGenerator[list[Said], None]:
        """The events of one answer, those that came together as one list.

        A Usage ends it if the caller wants to see it, or if it is `counted`. Raises what `Upstream` raises,
        UpstreamBroken, ChoiceNotMet, AnswerNotMet and RunawayArguments.
        """
        turn = Turn(request, body, self._profile(request.model), self._new_id, counted=counted)
        refused: Grammar | None = None
        grammar, support = await self._grammar(turn, body, headers)
        ask: Ask | None = turn.first(grammar, sure=support == "yes")
        try:
            while ask is not None:
                reader = PieceReader(each_usage=request.wants_each_usage)
                try:
                    if ask.streamed:
                        async with aclosing(self._upstream.stream(ask.body, headers)) as reads:
                            async for payloads in reads:
                                yield turn.go_on(reader.feed(payloads))
                                if failed := turn.failed or reader.failed:
                                    raise failed
                                if not reader.done and turn.is_over():
                                    break
                        yield turn.end(reader.usage, None if reader.done else reader.chunks)
                    else:
                        pieces, usage = read_whole(await self._upstream.complete(ask.body, headers))
                        yield turn.go_on(pieces)
                        yield turn.end(usage)
                except UpstreamRefused as error:
                    if ask.grammar is None or turn.heard or not is_refusal(error):
                        raise
                    refused, ask = ask.grammar, turn.first(None, sure=False)
                    continue
                if turn.failed:
                    raise turn.failed
                ask = turn.next()
        finally:
            if refused is not None and turn.heard:
                self._guidance.refused(refused, body)
        if usage := turn.usage:
            yield [(0, Usage(usage))]

    async def _grammar(
        self, turn: Turn, body: Mapping[str, Any], headers: Mapping[str, str]
    ) -> tuple[Grammar | None, Support]:
        if not is_wanted(turn.profile.guided, turn.use, body):
            return None, "no"
        grammar = turn.grammar()
        support = await self._guidance.support(grammar, body, headers)
        return (None if support == "no" else grammar), support
