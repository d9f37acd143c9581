"""What our tools did in an answer that handed calls back to the caller, until it comes back with their results.

The caller's history holds its own calls only. By the id of any of them the whole dialog of that answer is found and
put in the place of the assistant's message, so that the model sees what it called, and what came of it. It is kept
until its time is over, not until it is asked for: the caller sends the same history with every further question.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from tools.stores import Store, StoreError

Json = Mapping[str, Any]

logger = logging.getLogger(__name__)


class Pending:
    """Dialogs by the caller's name and the ids of the calls that it was handed, each for `ttl_s`."""

    def __init__(self, store: Store, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s

    async def keep(self, caller: str, handed_back: Sequence[str], dialog: Sequence[Json]) -> None:
        """Remembers the messages of an answer; `handed_back` are the ids of the caller's calls in it."""
        content = json.dumps(dialog).encode()
        try:
            for call_id in handed_back:
                await self._store.put(_key(caller, call_id), content, ttl_s=self._ttl_s)
        except StoreError as error:
            # The answer is right all the same; only the next one will know less.
            logger.warning("what our tools did cannot be kept for the next request: %s", error)

    async def restored(self, caller: str, messages: Sequence[Any]) -> list[Any]:
        """The caller's messages with those dialogs put in; a message that is none stays as it is."""
        present = {call_id for message in messages for call_id in _ids(message)}
        whole: list[Any] = []
        for message in messages:
            dialog = await self._dialog(caller, _ids(message))
            ours = {call_id for each in dialog for call_id in _ids(each)} - set(_ids(message))
            # A caller that keeps `florette.messages` has them already.
            whole += dialog if dialog and not ours & present else [message]
        return whole

    async def _dialog(self, caller: str, call_ids: Sequence[str]) -> list[Json]:
        try:
            found = await self._store.get(_key(caller, call_ids[0])) if call_ids else None
        except StoreError as error:
            logger.warning("what our tools did in earlier answers cannot be read: %s", error)
            return []
        dialog: list[Json] = json.loads(found) if found else []
        return dialog


def _ids(message: Any) -> list[str]:
    calls = message.get("tool_calls") if isinstance(message, Mapping) and message.get("role") == "assistant" else None
    given = [call.get("id") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    return [call_id for call_id in given if isinstance(call_id, str) and call_id]


def _key(caller: str, call_id: str) -> str:
    # Hashed, since both are whatever somebody chose.
    return f"pending/{hashlib.sha256(f'{caller}/{call_id}'.encode('utf-8', 'replace')).hexdigest()}"
