"""Which tools there are: built-in ones, those of installed packages (entry points), and those in files.

A tool's module is imported when the tool is wanted, so that nothing is loaded for tools that nobody uses.
"""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType, ModuleType

from tools.base import TOOL_REGISTRY, BaseTool
from tools.errors import ToolUnavailable
from tools.kernel_settings import KernelSettings
from tools.outcomes import Kernels
from tools.storing import Store

#: Name -> the module that registers it.
BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "amap_weather": "tools.amap_weather",
        "api_connector": "tools.api_connector",
        "code_interpreter": "tools.code_interpreter",
        "image_gen": "tools.image_gen",
        "math_solver": "tools.math_solver",
        "python_executor": "tools.python_executor",
        "storage": "tools.storage",
        "text_generator": "tools.text_generator",
        "weather": "tools.weather",
    }
)

#: A package offers its tools with `[project.entry-points."florette.tools"]`, a tool's name = its module.
ENTRY_POINTS = "florette.tools"

#: Modules of files have names that no package has.
_FILE_MODULES = "florette_tool_file_"

#: What stood in the files, by their modules' names: a process that starts later runs the same code.
_SOURCES: dict[str, str] = {}


#: The module that opens kernels. Their libraries are loaded with it, and only then.
_KERNELS = "tools.kernels.service"


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
        except SystemExit as error:
            raise ToolUnavailable(f"its module {module} ends the program when it is imported") from error
    if name not in TOOL_REGISTRY:
        known = ", ".join(sorted({*BUILT_IN, *offered(), *TOOL_REGISTRY}))
        raise UnknownTool(f"there is no tool named {name!r}; there are: {known}")
    return TOOL_REGISTRY[name]


def open_kernels(settings: KernelSettings, shared: Store | None = None, module: str = _KERNELS) -> Kernels:
    """Kernels by these settings, as the module opens them. ToolUnavailable if a library is missing.

    `shared` is a store of all servers that are to have sessions in common.
    """
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        raise ToolUnavailable(f"the library '{error.name}' is not installed: install florette[kernels]") from None
    kernels: Kernels = loaded.open_kernels(settings, shared)
    return kernels


def _module_of(name: str) -> str | None:
    point = offered().get(name)
    return BUILT_IN.get(name) or (point.module if point else None)


@contextmanager
def files_anew() -> Iterator[None]:
    """Inside, the tools of files are forgotten, so that files can be read again; all is as it was if it fails."""
    before = dict(TOOL_REGISTRY)
    for name in [name for name, tool in before.items() if tool.__module__.startswith(_FILE_MODULES)]:
        del TOOL_REGISTRY[name]
    try:
        yield
    except BaseException:
        TOOL_REGISTRY.clear()
        TOOL_REGISTRY.update(before)
        raise


def load_file(path: Path) -> list[type[BaseTool]]:
    """Runs a Python file and gives the tools that it registers.

    ToolUnavailable if it wants a library that is not installed; ValueError if it cannot be read, raises, or registers
    none.
    """
    try:
        return load_source(path, path.read_text("utf-8"))
    except ModuleNotFoundError as error:
        raise ToolUnavailable(f"{path}: the library '{error.name}' is not installed") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error


def load_source(path: Path, source: str) -> list[type[BaseTool]]:
    """The same for a text that once stood in the file. What it raises is raised, and nothing is registered then."""
    before = dict(TOOL_REGISTRY)
    # A name for each text: what is read anew does not change what is in use.
    module_name = _FILE_MODULES + hashlib.sha256(f"{path.resolve()}\0{source}".encode()).hexdigest()[:16]
    module = ModuleType(module_name)
    module.__file__ = str(path)
    _SOURCES[module_name] = source
    sys.modules[module_name] = module
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)  # noqa: S102 - it is the operator's own code
        registered = [tool for name, tool in TOOL_REGISTRY.items() if name not in before]
        if not registered:
            raise ValueError("it registers no tool: is there a @register_tool?")
    except BaseException:
        TOOL_REGISTRY.clear()
        TOOL_REGISTRY.update(before)
        raise
    return registered


@dataclass(frozen=True, slots=True)
class Source:
    """Where another process finds a class: a module that can be imported, or a file and what stood in it."""

    module: str
    file: str | None = None
    text: str | None = None


def source_of(tool: type[BaseTool]) -> Source:
    """Where the class comes from."""
    module: ModuleType | None = sys.modules.get(tool.__module__)
    file = str(getattr(module, "__file__", ""))
    if tool.__module__ == "__main__":
        return Source(tool.__module__, file, Path(file).read_text("utf-8"))
    text = _SOURCES.get(tool.__module__)
    return Source(tool.__module__, file if text is not None else None, text)


def find(name: str, source: Source) -> type[BaseTool]:
    """The class that `source_of` told of, in another process. UnknownTool if it is not there."""
    if source.file is not None and source.text is not None:
        load_source(Path(source.file), source.text)
    elif name not in TOOL_REGISTRY:
        import_module(source.module)
    if name not in TOOL_REGISTRY:
        raise UnknownTool(f"{source.module} does not register {name!r} when it is imported")
    return TOOL_REGISTRY[name]
