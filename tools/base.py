"""Tools: `BaseTool` to derive from, and `register_tool` to make them known by name.

    from tools.base import BaseTool, register_tool

    @register_tool("roll_dice")
    def roll_dice(sides: int = 6) -> int:
        '''Rolls one die and tells what it shows.'''
        return random.randint(1, sides)

Source: Qwen-Agent's `qwen_agent/tools/base.py` for the names; a duplicate name is an error here.
"""

import inspect
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tools.attached import AttachedFile
from tools.context import ToolContext
from tools.errors import InvalidArguments, RetryableToolError, ToolError, ToolUnavailable
from tools.items import ContentItem, Details, FileItem, ImageItem, TextItem, ToolOutput
from tools.parameters import Parameters, as_schema, of_function, validated

__all__ = [
    "TOOL_REGISTRY",
    "AttachedFile",
    "BaseTool",
    "ContentItem",
    "Details",
    "FileItem",
    "ImageItem",
    "InvalidArguments",
    "RetryableToolError",
    "TextItem",
    "ToolContext",
    "ToolError",
    "ToolOptions",
    "ToolOutput",
    "ToolUnavailable",
    "register_tool",
]

#: The tools that were registered, by name.
TOOL_REGISTRY: dict[str, type["BaseTool"]] = {}

#: OpenAI allows [A-Za-z0-9_-]{1,64}; letters of other scripts are fine, too, as Qwen's own tools have Chinese names.
_NAME = re.compile(r"[\w-]{1,64}")

T = TypeVar("T", bound=type["BaseTool"] | Callable[..., Any])


class ToolOptions(BaseModel):
    """What an operator can set of a tool; a tool's own model derives from this."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseTool(ABC):
    """A tool. A subclass gives `description`, `parameters` and `call`; the rest has defaults.

    One instance answers all calls, many at once: whatever belongs to a call or a session comes in its ToolContext.
    """

    name: str = ""
    description: str = ""
    #: Qwen-Agent's list of {name, type, description, required}, or a JSON schema.
    parameters: Parameters = ()

    #: The longest that one call may take, with its retries.
    timeout_s: float = 30.0
    #: How often a RetryableToolError is tried again.
    max_retries: int = 3
    #: True if equal arguments give equal results, and nothing else happens.
    cacheable: bool = False
    #: How long a result stays good, if it is `cacheable`.
    cache_ttl_s: float = 3600.0
    #: True if the result depends on who asks, or on the session: then no other caller gets it from the cache.
    private: bool = True
    #: Part of the cache's key: a tool whose results have changed gets a new one.
    version: str = "1"
    #: So many calls of the tool run at the same time.
    max_concurrency: int = 16
    #: The longest result that the model is shown; a longer one is cut in its middle and kept as a file.
    max_output_chars: int = 20_000
    #: True if it runs code in kernels, and so keeps what the code makes for the session: it needs some in its context.
    uses_kernels: bool = False
    #: So much address space has the process that a synchronous call runs in; None: as much as there is.
    memory_bytes: int | None = 2 * 1024**3

    #: What an operator can set in the configuration; it is validated, and then found in `options`.
    Options: ClassVar[type[ToolOptions]] = ToolOptions

    def __init__(self, **options: Any) -> None:
        """`options` are those of `Options`. ValueError says what is wrong with them."""
        #: What the instance was made with, so that it can be made once more in another process.
        self.given_options = options
        try:
            self.options: Any = self.Options(**options)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            said = "there is no such option" if first["type"] == "extra_forbidden" else first["msg"]
            raise ValueError(f"'{'.'.join(map(str, first['loc']))}': {said}") from None

    @abstractmethod
    def call(self, params: Any, **kwargs: Any) -> Any:
        """Answers one call; may be `async def`.

        `params` is the JSON text of the arguments (or the object itself); `validate_parameters` reads either.
        `kwargs` holds `context`, the call's ToolContext, and `lang`. Returns text, ContentItems, or what JSON can
        hold. Raises ToolError or RetryableToolError for what the model is to be told.
        """

    @property
    def function(self) -> dict[str, Any]:
        """The tool as OpenAI's `function` object."""
        return {"name": self.name, "description": self.description, "parameters": self.schema}

    @property
    def told(self) -> dict[str, Any]:
        """The same with the parameters in the form that their author chose, which Qwen-Agent's prompt keeps."""
        listed = not isinstance(self.parameters, Mapping) and len(self.parameters) > 0
        return {**self.function, **({"parameters": list(self.parameters)} if listed else {})}

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The parameters as a JSON schema."""
        return as_schema(self.parameters)

    def validate_parameters(self, params: str | dict[str, Any]) -> dict[str, Any]:
        """The arguments as an object, with defaults filled in. InvalidArguments says what does not fit the schema."""
        return validated(params, self.schema)

    @property
    def is_async(self) -> bool:
        """True if `call` is `async def`: then it runs in the server's loop, else in a process that can be killed."""
        return inspect.iscoroutinefunction(self.call)

    def unavailable(self) -> str | None:
        """Why the tool cannot be used as it is configured, and what would help; None if it can."""
        return None

    def expands(self) -> Sequence["BaseTool"] | None:
        """The tools that this one stands for, where one entry of the configuration makes several; None: itself."""
        return None

    def origins(self) -> Sequence[str]:
        """The operator's own services that the tool calls, as URLs: these may be on private addresses."""
        return ()

    async def aclose(self) -> None:
        """Gives back what the tool holds; called once, after its last call."""
        return


def register_tool(name: str | None = None) -> Callable[[T], T]:
    """Makes a BaseTool, or a plain function with type hints and a docstring, known by `name` (or its own).

    The class or function itself stays as it is. ValueError if the name is taken or no tool's name.
    """

    def decorator(given: T) -> T:
        tool: type[BaseTool]
        if isinstance(given, type) and issubclass(given, BaseTool):
            tool = given
            tool.name = name or tool.name or tool.__name__
        else:
            tool = _of(given, name or given.__name__)
        if not _NAME.fullmatch(tool.name):
            raise ValueError(f"{tool.name!r} is no tool's name: use 1 to 64 letters, digits, '_' or '-'")
        if not tool.description:
            raise ValueError(f"the tool {tool.name!r} has no description: a model would not know when to use it")
        as_schema(tool.parameters)
        if tool.name in TOOL_REGISTRY:
            other = TOOL_REGISTRY[tool.name]
            where = getattr(sys.modules.get(other.__module__), "__file__", None) or other.__module__
            raise ValueError(f"there is a tool named {tool.name!r} already, in {where}")
        TOOL_REGISTRY[tool.name] = tool
        return given

    return decorator


def _of(function: Callable[..., Any], name: str) -> type[BaseTool]:
    description, model, schema = of_function(function)
    takes_context = "context" in inspect.signature(function).parameters

    def arguments(tool: BaseTool, params: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            given = model.model_validate(tool.validate_parameters(params))
        except ValidationError as error:
            raise InvalidArguments(f"Invalid arguments: {error.errors()[0]['msg']}.") from None
        values = {name: getattr(given, name) for name in model.model_fields}
        return values | {"context": kwargs.get("context") or ToolContext()} if takes_context else values

    def call(self: BaseTool, params: Any, **kwargs: Any) -> Any:
        return function(**arguments(self, params, kwargs))

    async def call_async(self: BaseTool, params: Any, **kwargs: Any) -> Any:
        return await function(**arguments(self, params, kwargs))

    return type(
        function.__name__,
        (BaseTool,),
        {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "name": name,
            "description": description,
            "parameters": schema,
            "call": call_async if inspect.iscoroutinefunction(function) else call,
        },
    )
