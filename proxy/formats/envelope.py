"""The object that some formats put around a call: `{"name": ..., "arguments": {...}}`, read as it comes."""

import json

from proxy.formats.arguments import ObjectReader

#: What the arguments are called.
_ARGUMENTS = ("arguments", "parameters")

_DEPTHS = {"{": 1, "[": 1, "}": -1, "]": -1}


class Envelope:
    """Follows the object around a call, member by member; `end` is as in ObjectReader, `size` what was read so far.

    ObjectReader makes JSON of whatever the model writes; to tell the members of that apart takes no more than counting.
    """

    def __init__(self, end: str) -> None:
        self.size = 0
        self._reader = ObjectReader(end)
        self._depth = 0
        self._in_string = self._escaped = False
        self._token: list[str] = []
        self._key: str | None = None
        self._members: dict[str, str] = {}

    @property
    def repairs(self) -> int:
        """How often the text had to be mended."""
        return self._reader.repairs

    @property
    def at_arguments(self) -> bool:
        """True if the next value is the call's arguments."""
        return self._key in _ARGUMENTS and not any(map(str.strip, self._token))

    @property
    def name(self) -> str | None:
        """The name, once it is final."""
        written = self._members.get("name", "")
        return str(json.loads(written)).strip() if written.startswith('"') else None

    @property
    def arguments(self) -> str | None:
        """The JSON text of the arguments, once they are complete."""
        return next((self._members[key] for key in _ARGUMENTS if key in self._members), None)

    def feed(self, text: str) -> str | None:
        """Goes on by `text`; gives what follows the object once it is complete."""
        said, rest = self._reader.feed(text)
        self.size += len(text) - len(rest or "")
        self._follow(said)
        return rest

    def close(self) -> None:
        """Ends the object as if the model had."""
        self._follow(self._reader.close())

    def _follow(self, text: str) -> None:
        for char in text:
            if self._in_string:
                self._in_string = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            else:
                self._in_string = char == '"'
                self._depth += _DEPTHS.get(char, 0)
                if not self._depth or (self._depth == 1 and char in "{:,"):
                    self._end_token(char)
                    continue
            self._token.append(char)

    def _end_token(self, char: str) -> None:
        token = "".join(self._token).strip()
        self._token.clear()
        if char == ":":
            self._key = json.loads(token)
        elif self._key is not None:
            self._members.setdefault(self._key, token)
            self._key = None
