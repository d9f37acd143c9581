"""What an operator sets of a tool, in layers: the tool's own defaults < the file < the environment < the request.

    tools: [weather, {name: image_gen, timeout_s: 120, base_url: "http://images:9000/v1"}, {file: my_tool.py}]
    TOOL_TIMEOUT=20  TOOL_IMAGE_GEN_TIMEOUT=180  TOOL_MAX_RETRIES=0  TOOL_CACHE_ENABLED=false

A request can only tighten what it may set: a shorter time, fewer retries, no cache.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from tools.base import BaseTool

_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_Retries = Annotated[int, Field(ge=0, le=20)]


class Settings(BaseModel):
    """How a tool's calls are run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: _Seconds = 30.0
    max_retries: _Retries = 3
    cache_enabled: bool = True
    cache_ttl_s: Annotated[float, Field(gt=0, le=10**8)] = 3600.0
    max_concurrency: Annotated[int, Field(ge=1, le=10_000)] = 16
    max_output_chars: Annotated[int, Field(ge=200, le=10**8)] = 20_000

    def overridden(self, by: Mapping[str, Any]) -> Self:
        """This, but for what `by` says. ValueError names what cannot be."""
        try:
            return type(self).model_validate({**self.model_dump(), **by})
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None


class Wishes(BaseModel):
    """What a request may set of a tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: _Seconds | None = None
    max_retries: _Retries | None = None
    cache_enabled: bool | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Those in a request's fields. ValueError names what cannot be."""
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ValueError(_sentence(error)) from None

    def within(self, seconds: float) -> Self:
        """The same, in so many seconds at most."""
        return self.model_copy(update={"timeout_s": min(self.timeout_s or seconds, seconds)})

    def tightened(self, settings: Settings) -> Settings:
        """The settings, as far as these wishes leave them."""
        return settings.model_copy(
            update={
                "timeout_s": min(settings.timeout_s, self.timeout_s or settings.timeout_s),
                "max_retries": settings.max_retries
                if self.max_retries is None
                else min(settings.max_retries, self.max_retries),
                "cache_enabled": settings.cache_enabled and self.cache_enabled is not False,
            }
        )


class ToolEntry(BaseModel):
    """One entry of `tools`: a tool by `name`, or those in a `file`; its settings, and the tool's own options."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str | None, Field(pattern=r"^[\w-]{1,64}$")] = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.name is None and self.file is None:
            raise ValueError("must have a 'name' or a 'file'")
        self.settings(Settings())
        return self

    def settings(self, defaults: Settings) -> Settings:
        """The settings of this entry, over `defaults`. ValueError names what cannot be."""
        given = {name: value for name, value in self._extra.items() if name in Settings.model_fields}
        return defaults.overridden(given)

    @property
    def options(self) -> dict[str, Any]:
        """What the tool itself is to read."""
        return {name: value for name, value in self._extra.items() if name not in Settings.model_fields}

    @property
    def _extra(self) -> Mapping[str, Any]:
        return self.model_extra or {}


#: Variable -> setting.
_VARIABLES = {"TIMEOUT": "timeout_s", "MAX_RETRIES": "max_retries", "CACHE_ENABLED": "cache_enabled"}


def defaults_of(tool: BaseTool) -> Settings:
    """What the tool's author set."""
    return Settings(
        **{name: getattr(tool, name) for name in Settings.model_fields if name != "cache_enabled"},
    )


def from_environment(settings: Settings, name: str, environment: Mapping[str, str]) -> Settings:
    """The settings, with what the variables say: of all tools, and then of this one. ValueError names a bad one."""
    own = re.sub(r"\W", "_", name).upper()
    for prefix in ("TOOL", f"TOOL_{own}"):
        for variable, setting in _VARIABLES.items():
            text = environment.get(f"{prefix}_{variable}", "")
            if text:
                try:
                    settings = settings.overridden({setting: text})
                except ValueError as error:
                    raise ValueError(f"the variable {prefix}_{variable}: {error}") from None
    return settings


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    said = "there is no such setting" if first["type"] == "extra_forbidden" else first["msg"]
    return f"'{'.'.join(map(str, first['loc']))}': {said}"


#: A list of entries as a configuration has it.
ENTRIES: TypeAdapter[tuple[ToolEntry, ...]] = TypeAdapter(tuple[ToolEntry, ...])
