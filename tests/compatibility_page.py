"""The tables of `docs/compatibility.md`.

## Requests                                part
### User messages                          section
Schema: `ChatCompletionRequestUserMessage`
| field | with tools | without | |
| `name`, `name.*` | ignored | passed on | a note |
"""

import re
from dataclasses import dataclass
from pathlib import Path

_PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"


@dataclass(frozen=True)
class Row:
    """One row: its first cell and the fields in that, what stands in the columns before the note, and the note."""

    part: str
    section: str
    schemas: tuple[str, ...]
    first: str
    fields: tuple[str, ...]
    columns: tuple[frozenset[str], ...]
    note: str

    def covers(self, path: str) -> bool:
        """True if the row is that of the field at the path; `a.*` is all that is in `a`."""
        return any(
            path.startswith(name.removesuffix("*")) if name.endswith(".*") else path == name for name in self.fields
        )

    @property
    def quotes(self) -> list[str]:
        """The sentences that the note quotes."""
        return re.findall('"([^"]+)"', self.note)


def rows() -> list[Row]:
    """All rows of all tables below a section."""
    found: list[Row] = []
    part = section = ""
    schemas: tuple[str, ...] = ()
    for line in _PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            part = line.removeprefix("## ")
        elif line.startswith("### "):
            section, schemas = line.removeprefix("### "), ()
        elif line.startswith("Schema: "):
            schemas = tuple(_quoted(line))
        elif section and line.startswith("| `"):
            first, *columns, note = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
            classes = tuple(frozenset(filter(None, re.split(", ?", column))) for column in columns)
            found.append(Row(part, section, schemas, first, tuple(_quoted(first)), classes, note))
    return found


def _quoted(text: str) -> list[str]:
    return re.findall("`([^`]+)`", text)
