"""What all stores have in common: what one can do, what a key may be, and what can go wrong."""

from typing import Protocol

#: So many characters may a key have: enough for a purpose, two hashes and a path, and short enough for any index.
_MAX_KEY = 512

#: What an entry takes beside its key and its value, about; without it a million empty values would be no bytes.
_ENTRY_BYTES = 256


class StoreError(Exception):
    """The store cannot be reached or used. The message is one sentence for the log, without passwords."""


class Store(Protocol):
    """Small values by key, each for as long as it is told; who asks for them is the same to it.

    Every method raises StoreError if the store fails, and ValueError for a key that is empty, longer than 512
    characters or no text that UTF-8 can write.
    """

    async def get(self, key: str) -> bytes | None:
        """The value; None if there is none, or its time is over."""
        ...

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> None:
        """Keeps the value, in place of an older one; with a `ttl_s` of 0 or less nothing is kept."""
        ...

    async def add(self, key: str, value: bytes, *, ttl_s: float | None = None) -> bool:
        """Keeps the value, as `put` does, if there is none; True if it is kept.

        Of all who add at the same time one does, in whichever process they are.
        """
        ...

    async def replace(self, key: str, old: bytes, value: bytes, *, ttl_s: float | None = None) -> bool:
        """Keeps the value, as `put` does, if `old` is there; True if it was. Nobody else's comes in between."""
        ...

    async def delete(self, key: str, *, only: bytes | None = None) -> bool:
        """Forgets the value, or, if `only` is given, forgets it only if it is that; True if it was there."""
        ...

    async def scan(self, prefix: str, *, after: str = "", limit: int = 100) -> list[str]:
        """The first `limit` keys that begin with the prefix and come behind `after`, by their code points."""
        ...

    async def aclose(self) -> None:
        """Gives back what the store holds open. It is asked nothing after that."""
        ...


def key_bytes(key: str) -> bytes:
    """The key in UTF-8, which sorts as its characters do. ValueError for what is no key."""
    if not 0 < len(key) <= _MAX_KEY:
        raise ValueError(f"a key has 1 to {_MAX_KEY} characters, and not {len(key)}")
    return key.encode()


def cost_bytes(key: bytes, value: bytes) -> int:
    """How much of a store's room an entry takes."""
    return len(key) + len(value) + _ENTRY_BYTES
