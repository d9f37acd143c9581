"""Texts from the operator's templates, filled with what the model gives.

The templates are the operator's own; the values are the model's, and only data: they are never read as templates.
Jinja2's sandbox keeps what a template does with them from reaching anything else. Synchronous, so that a loop that
does not end is ended with the process it runs in.

Source: Jinja2's documentation, "Sandbox" and "Template Designer Documentation".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from jinja2 import DictLoader, StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from tools.base import BaseTool, InvalidArguments, ToolError, ToolOptions, register_tool

_SUFFIXES = frozenset({".txt", ".md", ".j2"})

#: Templates are written by hand; a longer file is something else.
_MAX_TEMPLATE_BYTES = 1_000_000

#: The model is told of each in every request: where there are more, it is the wrong directory.
_MAX_TEMPLATES = 1_000

#: What values of the wrong kind lead to inside a template, beside Jinja2's own errors.
_VALUE_ERRORS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


class TextGeneratorOptions(ToolOptions):
    """The templates: here by name, or as files in a directory."""

    templates: dict[str, str] = Field(
        default_factory=dict, description="Name -> the template's text, in Jinja2's language."
    )
    directory: Path | None = Field(
        None,
        description="A directory: each file in it that ends with .txt, .md or .j2 is a template, named like it without"
        " its ending.",
    )
    max_chars: Annotated[int, Field(gt=0, le=10**7)] = Field(
        200_000, description="A text that becomes longer is an error."
    )

    @model_validator(mode="after")
    def _names_are_names(self) -> Self:
        if not all(self.templates):
            raise ValueError("a template must have a name")
        return self


@register_tool("text_generator")
class TextGenerator(BaseTool):
    """Fills one template."""

    description = "Writes a text from a template, filled with values."
    parameters: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    Options = TextGeneratorOptions

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        sources = _read(self.options.directory) if self.options.directory else {}
        if both := sorted(sources.keys() & self.options.templates.keys()):
            raise ValueError(f"the template {both[0]!r} is in 'templates' and in 'directory'")
        sources |= self.options.templates
        # The texts are for people to read and no HTML; a missing value is told and not left out.
        self._jinja = ImmutableSandboxedEnvironment(
            loader=DictLoader(sources),
            autoescape=False,
            undefined=StrictUndefined,
            keep_trailing_newline=True,
        )
        self._needs = {name: self._needed(name, source) for name, source in sorted(sources.items())}
        if self._needs:
            self.parameters = _parameters(self._needs)

    def unavailable(self) -> str | None:
        """See BaseTool."""
        return None if self._needs else "it has no templates: set the option 'templates' or 'directory'"

    def call(self, params: Any, **kwargs: Any) -> str:
        """See BaseTool."""
        arguments = self.validate_parameters(params)
        name = arguments["template"]
        try:
            return self._filled(name, arguments["values"])
        except TemplateError as error:
            said = error.message or type(error).__name__
        except _VALUE_ERRORS as error:
            said = f"{type(error).__name__}: {error}"
        raise InvalidArguments(
            f"The template {name!r} cannot be filled with these values: {said[:200]}."
            f" Its values are: {', '.join(self._needs[name]) or 'none'}."
        )

    def _filled(self, name: str, values: Mapping[str, Any]) -> str:
        parts: list[str] = []
        left = self.options.max_chars
        for part in self._jinja.get_template(name).generate(values):
            left -= len(part)
            if left < 0:
                raise ToolError(f"The text is longer than the {self.options.max_chars:,} characters that it may have.")
            parts.append(part)
        return "".join(parts)

    def _needed(self, name: str, source: str) -> list[str]:
        try:
            return sorted(meta.find_undeclared_variables(self._jinja.parse(source)) - self._jinja.globals.keys())
        except TemplateSyntaxError as error:
            raise ValueError(f"the template {name!r}, line {error.lineno}: {error.message}") from None


def _parameters(needs: Mapping[str, list[str]]) -> Mapping[str, Any]:
    known = "; ".join(f"{name}: {', '.join(values) or 'none'}" for name, values in needs.items())
    return {
        "type": "object",
        "properties": {
            "template": {"type": "string", "enum": list(needs), "description": "The template's name."},
            "values": {
                "type": "object",
                "default": {},
                "description": f"The template's values, by name. Those of each template: {known}.",
            },
        },
        "required": ["template"],
        "additionalProperties": False,
    }


def _read(directory: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in _files(directory):
        if path.stem in found:
            raise ValueError(f"'directory': there are two templates named {path.stem!r}")
        found[path.stem] = _text(path)
    if not found:
        raise ValueError(f"'directory': {directory} holds no templates")
    return found


def _files(directory: Path) -> list[Path]:
    # Only the files in it: none below, and none elsewhere that a link leads to.
    try:
        inside = directory.resolve(strict=True)
        paths = [path for path in sorted(inside.iterdir()) if path.suffix in _SUFFIXES]
        if len(paths) > _MAX_TEMPLATES:
            raise ValueError(f"'directory': {directory} holds more than {_MAX_TEMPLATES} templates")
        return [path for path in paths if path.is_file() and path.resolve().parent == inside]
    except OSError as error:
        raise ValueError(f"'directory': {error.strerror or error}") from None


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise ValueError(f"the template {path.name} is too long: it may have {_MAX_TEMPLATE_BYTES:,} bytes")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the template {path.name} is not in UTF-8") from None
