"""Which tools there are: built-in ones, those of installed packages (entry points), and those in files.

A tool's module is imported when the tool is wanted, so that nothing is loaded for tools that nobody uses.
"""

import hashlib
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType, ModuleType

from tools.base import TOOL_REGISTRY, BaseTool
from tools.errors import ToolUnavailable

#: Name -> the module that registers it.
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "amap_weather": "tools.amap_weather",
        "api_connector": "tools.api_connector",
        "image_gen": "tools.image_gen",
        "math_solver": "tools.math_solver",
        "storage": "tools.storage",
        "text_generator": "tools.text_generator",
        "weather": "tools.weather",
    }
)

#: A package offers its tools with `[project.entry-points."florette.tools"]`, a tool's name = its module.
ENTRY_POINTS = "florette.tools"

#: Modules of files have names that no package has.
_FILE_MODULES = "florette_tool_file_"


class UnknownTool(ValueError):
    """There is no such tool; the message lists those that there are."""


def offered() -> Mapping[str, EntryPoint]:
    """The tools that installed packages offer, by name."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def get_tool(name: str) -> type[BaseTool]:
    """The class of that name. UnknownTool if there is none, ToolUnavailable if a library is missing."""
    if name not in TOOL_REGISTRY and (module := _module_of(name)):
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            raise ToolUnavailable(f"the library '{error.name}' is not installed") from None
    if name not in TOOL_REGISTRY:
        known = ", ".join(sorted({*BUILT_IN, *offered(), *TOOL_REGISTRY}))
        raise UnknownTool(f"there is no tool named {name!r}; there are: {known}")
    return TOOL_REGISTRY[name]


def _module_of(name: str) -> str | None:
    point = offered().get(name)
    return BUILT_IN.get(name) or (point.module if point else None)


def load_file(path: Path) -> list[type[BaseTool]]:
    """Runs a Python file and gives the tools that it registers; run again, what it registered before is forgotten.

    ValueError if it cannot be read, raises, or registers none.
    """
    module_name = _FILE_MODULES + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    before = {name: tool for name, tool in TOOL_REGISTRY.items() if tool.__module__ == module_name}
    for name in before:
        del TOOL_REGISTRY[name]
    try:
        _run(path, module_name)
        registered = [tool for tool in TOOL_REGISTRY.values() if tool.__module__ == module_name]
        if not registered:
            raise ValueError(f"{path} registers no tool: is there a @register_tool?")
    except Exception as error:
        _forget(module_name)
        TOOL_REGISTRY.update(before)
        if isinstance(error, OSError):
            raise ValueError(f"{path}: {error.strerror or error}") from None
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    return registered


def _run(path: Path, module_name: str) -> None:
    spec = spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError("is no Python file")
    module = module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)


def _forget(module_name: str) -> None:
    for name in [name for name, tool in TOOL_REGISTRY.items() if tool.__module__ == module_name]:
        del TOOL_REGISTRY[name]


def source_of(tool: type[BaseTool]) -> tuple[str, str | None]:
    """Where another process finds the class: its module, and its file if the module cannot be imported by name."""
    module: ModuleType | None = sys.modules.get(tool.__module__)
    by_file = tool.__module__ == "__main__" or tool.__module__.startswith(_FILE_MODULES)
    return tool.__module__, str(getattr(module, "__file__", "")) if by_file else None


def find(name: str, module: str, file: str | None) -> type[BaseTool]:
    """The class that `source_of` told of, in another process. UnknownTool if it is not there."""
    if file is not None:
        load_file(Path(file))
    elif name not in TOOL_REGISTRY:
        import_module(module)
    if name not in TOOL_REGISTRY:
        raise UnknownTool(f"{module} does not register {name!r} when it is imported")
    return TOOL_REGISTRY[name]
