"""What `florette tools` prints: every tool there is, whether it can be used, why not if not, and its schema."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tools.base import TOOL_REGISTRY
from tools.errors import ToolUnavailable
from tools.registry import BUILT_IN, get_tool, offered
from tools.settings import Settings
from tools.toolbox import Toolbox

State = Literal["enabled", "unavailable", "off"]


@dataclass(frozen=True, slots=True)
class Listed:
    """One tool. `reason` says why it is not enabled; `function` is how OpenAI's API declares it."""

    name: str
    state: State
    reason: str
    function: Mapping[str, Any] | None
    settings: Settings | None = None


def listed(toolbox: Toolbox) -> list[Listed]:
    """The tools of the toolbox, then those that could be in it."""
    enabled = [
        Listed(name, "enabled", "", equipped.tool.function, equipped.settings)
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
        }
        for tool in tools
    ]
    return json.dumps(told, ensure_ascii=False, indent=2) + "\n"


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
    return f"{head}{about}{parameters}    {settings}\n"
