"""What the command line tells of tools and of the machine.

`florette tools`: every tool there is, whether it can be used, why not if not, and its schema.
`florette doctor --config`: whether tools can run code here, and what keeps that code from all else.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tools.base import TOOL_REGISTRY
from tools.errors import ToolUnavailable
from tools.outcomes import Kernels
from tools.registry import BUILT_IN, get_tool, offered
from tools.settings import Settings
from tools.toolbox import OpenKernels, Toolbox

State = Literal["enabled", "unavailable", "off"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One tool. `reason` says why it is not enabled; `function` is how OpenAI's API declares it.

    `kernels` is what is in force where it runs code.
    """

    name: str
    state: State
    reason: str
    function: Mapping[str, Any] | None
    settings: Settings | None = None
    kernels: Mapping[str, Any] | None = None


def listed(toolbox: Toolbox, kernels: OpenKernels) -> list[Listed]:
    """The tools of the toolbox, then those that could be in it. `kernels` gives those that its tools use."""
    enabled = [
        Listed(
            name,
            "enabled",
            "",
            equipped.tool.function,
            equipped.settings,
            kernels().described() if equipped.tool.uses_kernels else None,
        )
        for name, equipped in toolbox.tools.items()
    ]
    missing = [Listed(name, "unavailable", why, None) for name, why in toolbox.unavailable.items()]
    known = {*toolbox.tools, *toolbox.unavailable}
    others = [name for name in sorted({*BUILT_IN, *offered(), *TOOL_REGISTRY}) if name not in known]
    return [*enabled, *missing, *map(_off, others)]


def _off(name: str) -> Listed:
    try:
        tool = get_tool(name)
    except ToolUnavailable as error:
        return Listed(name, "unavailable", str(error), None)
    except Exception as error:  # noqa: BLE001 - an installed package may raise anything when it is imported
        return Listed(name, "unavailable", f"its package cannot be loaded: {error}", None)
    try:
        function = tool().function
    except Exception:  # noqa: BLE001 - some tools are nothing before they are configured
        function = {"name": name, "description": tool.description}
    return Listed(name, "off", "it is not in 'tools'", function)


def as_json(tools: Sequence[Listed]) -> str:
    """The list for programs."""
    told = [
        {
            "name": tool.name,
            "state": tool.state,
            "reason": tool.reason or None,
            "function": tool.function,
            "settings": tool.settings.model_dump() if tool.settings else None,
            **({} if tool.kernels is None else {"kernels": tool.kernels}),
        }
        for tool in tools
    ]
    return _json(told)


def _json(told: Any) -> str:
    return json.dumps(told, ensure_ascii=False, indent=2, default=str) + "\n"


def as_text(tools: Sequence[Listed]) -> str:
    """The list for people."""
    width = max((len(tool.name) for tool in tools), default=0)
    return "".join(_lines(tool, width) for tool in tools)


def _lines(tool: Listed, width: int) -> str:
    head = f"{tool.name.ljust(width)}  {tool.state}{f': {tool.reason}' if tool.reason else ''}\n"
    if tool.function is None:
        return head
    about = f"    {tool.function['description']}\n"
    schema = tool.function.get("parameters")
    parameters = f"    {json.dumps(schema, ensure_ascii=False)}\n" if schema else ""
    if tool.settings is None:
        return head + about + parameters
    settings = " ".join(f"{name}={value}" for name, value in tool.settings.model_dump().items())
    kernels = "".join(_described(tool.kernels, "    ")) if tool.kernels else ""
    return f"{head}{about}{parameters}    {settings}\n{kernels}"


def _described(told: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    # A line for each thing, and one for all that is numbers.
    for name, value in told.items():
        if not isinstance(value, Mapping):
            yield f"{indent}{name}: {', '.join(map(str, value)) if isinstance(value, list | tuple) else value}\n"
        elif all(isinstance(part, int | float) for part in value.values()):
            yield f"{indent}{name}: {' '.join(f'{part}={number}' for part, number in value.items())}\n"
        else:
            yield f"{indent}{name}:\n"
            yield from _described(value, f"{indent}  ")


# -- this machine ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Machine:
    """Whether tools can run code on this machine: why not, and what would help, if they cannot; what is in force."""

    unavailable: str | None
    kernels: Mapping[str, Any]


def examined(kernels: OpenKernels) -> Machine:
    """This machine, as its kernels see it."""
    try:
        opened: Kernels = kernels()
    except (ToolUnavailable, ValueError) as missing:
        return Machine(str(missing), {})
    return Machine(opened.unavailable(), opened.described())


def machine_as_json(machine: Machine) -> str:
    """The machine for programs."""
    return _json({"usable": machine.unavailable is None, "reason": machine.unavailable, "kernels": machine.kernels})


def machine_as_text(machine: Machine) -> str:
    """The machine for people."""
    if machine.unavailable is None:
        return "Tools can run code here.\n" + "".join(_described(machine.kernels))
    return f"Tools can run no code here: {machine.unavailable}\n"
