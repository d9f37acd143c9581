"""Which of a request's tools are run here: by the model's name, or by entries of `tools` that are no functions.

    models: {assistant: {upstream_model: Qwen2-7B-Instruct, tools: [weather]}}      any request to `assistant`
    "tools": [{"type": "weather", "timeout_s": 5}]                                  this request

Either way our tools become functions of the request beside the caller's own, and where two have one name, the caller's
is meant. What comes out is a request like any other; `agent` knows which calls are ours.
"""

from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from proxy.auth import Caller
from proxy.errors import InvalidRequest, ToolForbidden
from proxy.pending import Pending
from proxy.wire import ChatRequest, read_request
from tools.attached import AttachedFile
from tools.base import BaseTool
from tools.executor import Executor
from tools.files import FileError, FileStore
from tools.outcomes import Kernels
from tools.settings import Wishes
from tools.toolbox import Equipped

Json = dict[str, Any]

#: Types of tools that are the caller's own, or refused by `wire` in its own words.
_CALLERS = (None, "function", "custom")

#: What the request's field `florette`, and each field in it, must be.
_MUST_BE: Mapping[str, str] = MappingProxyType(
    {
        "florette": "it must be an object",
        "florette.events": "it must be true or false",
        "florette.messages": "it must be true or false",
        "florette.session": "it must be a string of 1 to 128 letters, digits, '_', '.' or '-'",
    }
)

#: Of an entry's fields, those that are no settings; `container` is OpenAI's way to hand files to an interpreter.
_NO_WISHES = ("type", "container", "file_ids")


@dataclass(frozen=True, slots=True)
class Alias:
    """A model that callers may name: what the upstream calls it, and the tools that come with it."""

    upstream_model: str
    tools: tuple[str, ...] = ()


class Setup:
    """The tools and aliases of one configuration, and the kernels, if a tool uses some.

    `retired`, it lasts until the last answer that runs by it has ended.

    Setups share tools, so a tool is closed when the last of the setups that hold it has gone.
    """

    def __init__(
        self,
        executor: Executor,
        aliases: Mapping[str, Alias],
        holders: Counter[BaseTool],
        kernels: Kernels | None = None,
    ) -> None:
        self.executor = executor
        self.aliases = aliases
        self.kernels = kernels
        self._holders = holders
        self._tools = [equipped.tool for equipped in executor.toolbox.tools.values()]
        self._holders.update(self._tools)
        # One of them is the configuration itself.
        self._users = 1

    @asynccontextmanager
    async def in_use(self) -> AsyncIterator[None]:
        """An answer runs by it."""
        self._users += 1
        try:
            yield
        finally:
            await self.retire()

    async def retire(self) -> None:
        """One user less; called once for the configuration itself, when another takes its place."""
        self._users -= 1
        if self._users == 0:
            self._holders.subtract(self._tools)
            with anyio.CancelScope(shield=True):
                await self.executor.close([tool for tool in self._tools if not self._holders[tool]])


class Tells(BaseModel):
    """The field `florette` of a request: what a caller wants to be told of tools that run here.

    `events`: each call, its progress and its result, as they come; `messages`: all messages of the answer, at its end.
    `session` names the conversation that tools go on with; None: a new one, whose name the answer tells.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    events: bool = False
    messages: bool = False
    session: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")] = None


@dataclass(frozen=True, slots=True)
class Hosted:
    """A request as a turn reads it. `ours` are the tools that are run here, with what the request sets of each.

    `tells` is what the caller wants to know of them. `body` names the model as the upstream does, `request` as the
    caller does.
    """

    request: ChatRequest
    body: Json
    ours: Mapping[str, Wishes]
    tells: Tells
    files: tuple[AttachedFile, ...]
    setup: Setup

    @property
    def keeps_sessions(self) -> bool:
        """True if one of its tools keeps the conversation's state here."""
        return any(self.setup.executor.toolbox.tools[name].tool.uses_kernels for name in self.ours)


class Hosting:
    """Reads requests by the setup in force, which `setup` may be set to anew at any time."""

    def __init__(self, setup: Setup, files: FileStore, pending: Pending) -> None:
        self.setup = setup
        self._files = files
        self._pending = pending

    def renamed(self, body: Json) -> Json:
        """The body of any request, its model named as the upstream does; the very same if it is no alias."""
        alias = self._alias(body)
        return body if alias is None else {**body, "model": alias.upstream_model}

    def aliases_for(self, caller: Caller) -> Mapping[str, Alias]:
        """The aliases that the caller may use."""
        return {
            name: alias for name, alias in self.setup.aliases.items() if all(map(caller.may_use, self._usable(alias)))
        }

    async def of(self, body: Json, caller: Caller) -> Hosted | None:
        """The request with our tools in it; None if it is none of ours. InvalidRequest for what cannot be run here."""
        setup, alias = self.setup, self._alias(body)
        entries = _entries(body)
        if alias is None and not entries:
            return None
        wanted = {name: Wishes() for name in self._usable(alias)} if alias else {}
        wanted |= {entry["type"]: self._wishes(entry, place, caller) for place, entry in entries.items()}
        callers = _names(body)
        ours = {name: wishes for name, wishes in wanted.items() if name not in callers}
        for name in ours:
            if not caller.may_use(name):
                raise ToolForbidden(f"The key '{caller.name}' may not use the tool '{name}'.", param="tools")
        sent = self.renamed(_declared(body, [setup.executor.toolbox.tools[name] for name in ours]))
        files: dict[str, AttachedFile] = {}
        if ours and isinstance(body.get("messages"), list):
            sent["messages"] = await self._pending.restored(caller.name, sent["messages"])
            sent["messages"] = await self._attached(sent["messages"], entries, caller.name, files)
        request = read_request({**sent, "model": body.get("model")})
        if ours and (request.n or 1) > 1:
            raise InvalidRequest("'n' must be 1 where tools are run here: each choice would run them.", param="n")
        return Hosted(request, sent, ours, _tells(body), tuple(files.values()), setup)

    def _alias(self, body: Json) -> Alias | None:
        model = body.get("model")
        return self.setup.aliases.get(model) if isinstance(model, str) else None

    def _usable(self, alias: Alias) -> list[str]:
        # One that lacks a key or a library is left out; the log told so at the start.
        return [name for name in alias.tools if name in self.setup.executor.toolbox.tools]

    def _wishes(self, entry: Json, place: int, caller: Caller) -> Wishes:
        toolbox, name = self.setup.executor.toolbox, entry["type"]
        if name not in toolbox.tools:
            known = ", ".join(filter(caller.may_use, toolbox.tools)) or "none"
            why = "cannot be used now" if name in toolbox.unavailable else "is not run by this server"
            raise InvalidRequest(f"The tool {name!r} {why}; those that are: {known}.", param=f"tools[{place}].type")
        try:
            return Wishes.of({field: value for field, value in entry.items() if field not in _NO_WISHES})
        except ValueError as error:
            raise InvalidRequest(f"Invalid value for 'tools[{place}]': {error}.", param=f"tools[{place}]") from None

    # -- files ---------------------------------------------------------------------------------------------

    async def _attached(
        self, messages: Sequence[Any], entries: Mapping[int, Json], caller: str, files: dict[str, AttachedFile]
    ) -> list[Any]:
        # Finds the files that the caller handed over, and tells the model their names.
        for place, entry in entries.items():
            for where, given in _file_ids(entry):
                param = f"tools[{place}].{where}"
                if not isinstance(given, list):
                    raise InvalidRequest(
                        f"Invalid value for '{param}': it must be a list of ids of files.", param=param
                    )
                for file_id in given:
                    await self._attach(file_id, param, caller, files)
        return [await self._with_names(message, caller, files) for message in messages]

    async def _with_names(self, message: Any, caller: str, files: dict[str, AttachedFile]) -> Any:
        content = message.get("content") if isinstance(message, dict) else None
        if not isinstance(content, list):
            return message
        parts = [await self._named(part, caller, files) for part in content]
        return {**message, "content": parts}

    async def _named(self, part: Any, caller: str, files: dict[str, AttachedFile]) -> Any:
        told = part.get("file") if isinstance(part, dict) and part.get("type") == "file" else None
        if not isinstance(told, dict) or not isinstance(told.get("file_id"), str):
            return part
        file = await self._attach(told["file_id"], "messages", caller, files)
        return {**part, "file": {"filename": file.name, **told}}

    async def _attach(self, file_id: Any, param: str, caller: str, files: dict[str, AttachedFile]) -> AttachedFile:
        if not isinstance(file_id, str):
            raise InvalidRequest(f"Invalid value for '{param}': the id of a file must be a string.", param=param)
        if file_id not in files:
            try:
                stored = await self._files.get(caller, file_id)
                path = await self._files.path(caller, stored.id)
            except FileError as error:
                raise InvalidRequest(error.message, param=param) from None
            files[stored.id] = AttachedFile(stored.id, stored.name, stored.size_bytes, stored.sha256, path)
        return files[file_id]


def with_aliases(told: Any, aliases: Mapping[str, Alias]) -> Any:
    """The upstream's list of models, and behind them the aliases, each with what the upstream tells of its model."""
    models = _list(told.get("data")) if isinstance(told, dict) else []
    known = {model.get("id"): model for model in models if isinstance(model, dict)}
    added = [
        {**known.get(alias.upstream_model, {"created": 0}), "id": name, "object": "model", "owned_by": "florette"}
        for name, alias in aliases.items()
        if name not in known
    ]
    return {**(told if isinstance(told, dict) else {"object": "list"}), "data": [*models, *added]}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _file_ids(entry: Json) -> Iterator[tuple[str, Any]]:
    container = entry.get("container")
    if "file_ids" in entry:
        yield "file_ids", entry["file_ids"]
    if isinstance(container, dict) and container.get("file_ids") is not None:
        yield "container.file_ids", container["file_ids"]


def _tells(body: Json) -> Tells:
    try:
        return Tells.model_validate({} if body.get("florette") is None else body["florette"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(("florette", *map(str, first["loc"])))
        known = "there are 'events' and 'messages', true or false, and 'session', a name"
        raise InvalidRequest(f"Invalid value for '{param}': {_MUST_BE.get(param, known)}.", param=param) from None


def _entries(body: Json) -> dict[int, Json]:
    # Place in `tools` -> an entry that is no function.
    return {
        place: entry
        for place, entry in enumerate(_list(body.get("tools")))
        if isinstance(entry, dict) and isinstance(entry.get("type"), str) and entry["type"] not in _CALLERS
    }


def _names(body: Json) -> set[str]:
    # Those of the caller's functions, in either form.
    functions = [entry.get("function") for entry in _list(body.get("tools")) if isinstance(entry, dict)]
    functions += _list(body.get("functions"))
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return {name for name in names if isinstance(name, str)}


def _declared(body: Json, ours: Sequence[Equipped]) -> Json:
    # Our tools behind the caller's, in the form that the caller uses.
    functions = [equipped.tool.told for equipped in ours]
    own = _entries(body)
    callers = [entry for place, entry in enumerate(_list(body.get("tools"))) if place not in own]
    if body.get("functions") and not callers:
        bare = {name: value for name, value in body.items() if name != "tools"}
        return {**bare, "functions": [*_list(body["functions"]), *functions]}
    declared = [*callers, *({"type": "function", "function": function} for function in functions)]
    sent = {**body, "tools": declared} if declared else {name: value for name, value in body.items() if name != "tools"}
    choice = body.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") in [function["name"] for function in functions]:
        sent["tool_choice"] = {"type": "function", "function": {"name": choice["type"]}}
    return sent
