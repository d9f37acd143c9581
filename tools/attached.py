"""A file that a caller handed over."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AttachedFile:
    """A file of the conversation. `path` is where its bytes are; it is not to be written to."""

    id: str
    name: str
    size_bytes: int
    sha256: str
    path: Path
