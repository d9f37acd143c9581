"""Entries of a configuration -> the tools that may be called, each with its settings, and why others may not."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Self

from tools.base import BaseTool
from tools.errors import ToolUnavailable
from tools.outcomes import Kernels
from tools.registry import UnknownTool, files_anew, get_tool, load_file
from tools.settings import Settings, ToolEntry, defaults_of, from_environment

#: Gives the kernels that code runs in; ToolUnavailable says why there are none.
OpenKernels = Callable[[], Kernels]


class ToolboxError(ValueError):
    """The entries cannot be used; the message names the tool and what is wrong."""


@dataclass(frozen=True, slots=True)
class Equipped:
    """A tool that may be called. `entry` is what it was made of, `digest` stands for its options in cache keys."""

    tool: BaseTool
    settings: Settings
    entry: ToolEntry
    digest: str


@dataclass(frozen=True, slots=True)
class Toolbox:
    """The tools by name, and for those that were configured and cannot be used, why."""

    tools: Mapping[str, Equipped] = field(default_factory=lambda: MappingProxyType({}))
    unavailable: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(
        cls,
        entries: Sequence[ToolEntry],
        environment: Mapping[str, str] | None = None,
        before: "Toolbox | None" = None,
        *,
        kernels: OpenKernels | None = None,
    ) -> Self:
        """The tools of the entries; what is configured as in the toolbox `before` is taken over from there.

        `kernels` is asked for when a tool uses them, and not before.
        ToolboxError for an entry that names nothing, or something twice, or has wrong settings or options.
        """
        tools: dict[str, Equipped] = {}
        unavailable: dict[str, str] = {}
        with files_anew():
            for entry in entries:
                for equipped, reason in _equip(entry, environment or {}, unavailable, before, kernels):
                    name = equipped.tool.name
                    if name in tools or name in unavailable:
                        raise ToolboxError(f"the tool {name!r} stands in 'tools' twice")
                    if reason:
                        unavailable[name] = reason
                    else:
                        tools[name] = equipped
        return cls(tools, unavailable)

    @classmethod
    def holding(cls, *tools: BaseTool, environment: Mapping[str, str] | None = None) -> Self:
        """A toolbox of these very tools, with their own defaults."""
        entries = [ToolEntry(name=tool.name, **tool.given_options) for tool in tools]
        return cls(
            {
                tool.name: Equipped(
                    tool, from_environment(defaults_of(tool), tool.name, environment or {}), entry, _digest(entry)
                )
                for tool, entry in zip(tools, entries, strict=True)
            }
        )


def _equip(
    entry: ToolEntry,
    environment: Mapping[str, str],
    unavailable: dict[str, str],
    before: Toolbox | None,
    kernels: OpenKernels | None,
) -> Iterator[tuple[Equipped, str | None]]:
    where = entry.name or str(entry.file)
    try:
        for tool in _made(entry, before):
            settings = from_environment(entry.settings(defaults_of(tool)), tool.name, environment)
            yield Equipped(tool, settings, entry, _digest(entry)), tool.unavailable() or _without(tool, kernels)
    except ToolUnavailable as missing:
        unavailable[where] = str(missing)
    except UnknownTool as unknown:
        raise ToolboxError(str(unknown)) from None
    except ToolboxError:
        # Of the one who takes what is yielded here.
        raise
    except ValueError as error:
        raise ToolboxError(f"the tool {where!r}: {error}") from error
    except Exception as error:
        # Whatever is wrong with a tool, its name is told.
        raise ToolboxError(f"the tool {where!r}: {type(error).__name__}: {error}") from error


def _without(tool: BaseTool, kernels: OpenKernels | None) -> str | None:
    # Why the tool has no kernels, if it needs some.
    if not tool.uses_kernels:
        return None
    if kernels is None:
        return "it runs code in kernels, and there are none here"
    try:
        return kernels().unavailable()
    except ToolUnavailable as missing:
        return str(missing)


def _made(entry: ToolEntry, before: Toolbox | None) -> list[BaseTool]:
    # A file may have changed, so its tools are always made anew.
    same = [each.tool for each in before.tools.values() if each.entry == entry] if before and not entry.file else []
    return same or [
        tool for kind in _kinds(entry) for made in (kind(**entry.options),) for tool in (made.expands() or [made])
    ]


def _kinds(entry: ToolEntry) -> list[type[BaseTool]]:
    if entry.file is None:
        assert entry.name is not None
        return [get_tool(entry.name)]
    registered = load_file(entry.file)
    kinds = [kind for kind in registered if entry.name in (None, kind.name)]
    if not kinds:
        raise ValueError(f"{entry.file} registers {', '.join(kind.name for kind in registered)}, and not {entry.name}")
    return kinds


def _digest(entry: ToolEntry) -> str:
    written = json.dumps(entry.options, sort_keys=True, default=str)
    return hashlib.sha256(written.encode()).hexdigest()
