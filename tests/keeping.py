"""Keeps files as callers' files are kept, and gives URLs at which nobody listens."""

from collections.abc import AsyncIterator


class Kept:
    """`files` are the latest of each name; no piece that came was longer than `longest_piece` bytes."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.longest_piece = 0

    async def __call__(self, name: str, data: bytes | AsyncIterator[bytes]) -> str:
        if isinstance(data, bytes):
            whole = data
        else:
            whole = b""
            async for piece in data:
                self.longest_piece = max(self.longest_piece, len(piece))
                whole += piece
        self.files[name] = whole
        return f"https://files.example/{name}"
