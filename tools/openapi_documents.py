"""A file -> the OpenAPI 3 document in it, JSON or YAML.

Source: OpenAPI 3.0.4 and 3.1.1, "Format" and "OpenAPI Object".
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

#: GitHub's document, one of the largest there are, has 12 MB.
_MAX_DOCUMENT_BYTES = 20_000_000


#: In C where it can be: the other takes minutes for a long document.
_FASTEST: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_FASTEST):  # type: ignore[misc]
    """YAML as JSON has it: a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_document(path: Path) -> Any:
    """What is in a JSON or YAML file. ValueError if it is neither."""
    try:
        if path.stat().st_size > _MAX_DOCUMENT_BYTES:
            raise ValueError(f"{path} is longer than {_MAX_DOCUMENT_BYTES:,} bytes")
        text = path.read_text("utf-8")
        # JSON is YAML, too, and much faster to read as what it is.
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return yaml.load(text, _Loader)  # noqa: S506 - it is a safe one
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, RecursionError, yaml.YAMLError):
        raise ValueError(f"{path} is neither JSON nor YAML") from None


def check(document: Any) -> None:
    """ValueError if the document is none of OpenAPI 3."""
    if not isinstance(document, Mapping):
        raise ValueError("the document is no OpenAPI document")
    if "swagger" in document:
        raise ValueError(f"the document is of Swagger {document['swagger']}; convert it to OpenAPI 3")
    if not str(document.get("openapi", "")).startswith("3."):
        raise ValueError("the document is not of OpenAPI 3: its 'openapi' should be 3.0.x or 3.1.x")
    if not isinstance(document.get("paths"), Mapping):
        raise ValueError("the document has no 'paths'")
