"""OpenAI's chat-completion request, as far as Florette reads it; every other field is kept as it came.

Source: OpenAI's OpenAPI document 2.3.0, CreateChatCompletionRequest; the older `functions` form included.
`read_request` turns the parsed JSON of a body into a ChatRequest or raises InvalidRequest with one sentence.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from proxy.errors import InvalidRequest

#: OpenAI allows [A-Za-z0-9_-]{1,64}; letters of other scripts are fine, too: Qwen's own tools have Chinese names.
_NAME = re.compile(r"[\w-]{1,64}")

#: What a tool without `parameters` takes: nothing (OpenAI: "Omitting parameters defines ... an empty parameter list").
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class Open(BaseModel):
    """A model that keeps the fields it does not know."""

    model_config = ConfigDict(extra="allow", frozen=True)


class FunctionCall(Open):
    """A call in the history. `arguments` is whatever text the model once wrote, JSON or not."""

    name: str
    arguments: str = ""

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, given: Any) -> Any:
        # Some clients keep the parsed object in their history.
        if given is None:
            return ""
        return json.dumps(given, ensure_ascii=False) if isinstance(given, dict | list) else given


class ToolCall(Open):
    """A tool call in the history. One of a custom tool, which another model made, reads as that of a function."""

    id: str | None = None
    function: FunctionCall

    @model_validator(mode="before")
    @classmethod
    def _of_a_custom_tool(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("function") or not isinstance(given.get("custom"), dict):
            return given
        custom = given["custom"]
        return {**given, "function": {**custom, "arguments": custom.get("input")}}


class Message(Open):
    """One message of the conversation."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _say_the_refusal(cls, given: Any) -> Any:
        # An assistant's words beside its content: without them the model would see that it said nothing.
        if not isinstance(given, dict) or given.get("content") or not isinstance(given.get("refusal"), str):
            return given
        return {**given, "content": given["refusal"]}

    @property
    def calls(self) -> Sequence[ToolCall]:
        """The calls of an assistant message in either form; the older form has no id."""
        if self.tool_calls:
            return self.tool_calls
        return [ToolCall(function=self.function_call)] if self.function_call else ()


class Tool(Open):
    """A function the model may call, as OpenAI's FunctionObject.

    `parameters` is a JSON schema, or Qwen-Agent's list of {name, type, description, required}. The fields
    `name_for_human`, `name_for_model` and `args_format` are Qwen-Agent's, and go into its prompt.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | list[dict[str, Any]] | None = None
    strict: bool | None = None
    name_for_human: str | None = None
    name_for_model: str | None = None
    args_format: str | None = None

    @property
    def model_name(self) -> str:
        """The name that the model reads and writes."""
        return self.name_for_model or self.name

    @property
    def schema_for_model(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The parameters as they are shown to the model."""
        return _NO_PARAMETERS if self.parameters is None else self.parameters

    @property
    def json_schema(self) -> dict[str, Any]:
        """The parameters as a JSON schema, from either form."""
        if not isinstance(self.parameters, list):
            return self.parameters or _NO_PARAMETERS
        known = ("name", "required")
        properties = {
            name: {field: value for field, value in entry.items() if field not in known}
            for name, entry in self.properties.items()
        }
        return {"type": "object", "properties": properties, "required": self.required}

    @property
    def properties(self) -> dict[str, Any]:
        """Name -> schema of each parameter, from either form; a schema that is none gives nothing."""
        if isinstance(self.parameters, list):
            return {str(entry["name"]): entry for entry in self.parameters if "name" in entry}
        found = (self.parameters or {}).get("properties")
        return found if isinstance(found, dict) else {}

    @property
    def required(self) -> list[str]:
        """The names of the parameters that must be given."""
        if isinstance(self.parameters, list):
            return [name for name, entry in self.properties.items() if entry.get("required")]
        found = (self.parameters or {}).get("required")
        return found if isinstance(found, list) else []


def _not_custom(given: Any) -> Any:
    if given == "custom":
        raise PydanticCustomError(
            "custom_tool", "Custom tools are not supported; declare a function with one string parameter instead"
        )
    return given


#: The one type of tools there is.
_Function = Annotated[Literal["function"], BeforeValidator(_not_custom)]


class _ToolEntry(Open):
    type: _Function = "function"
    function: Tool


class _Named(Open):
    name: str


class _NamedChoice(Open):
    type: _Function = "function"
    function: _Named


class _Allowed(Open):
    mode: Literal["auto", "required"]
    tools: list[_NamedChoice]


class _AllowedChoice(Open):
    allowed_tools: _Allowed


def _form(given: Any) -> str:
    # The caller is told of the form that he meant. Capitals keep a tag out of the path that `_sentence` tells.
    if not isinstance(given, dict):
        return "Mode"
    return "Allowed" if given.get("type") == "allowed_tools" else "Named"


_ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("Mode")]
    | Annotated[_NamedChoice, Tag("Named")]
    | Annotated[_AllowedChoice, Tag("Allowed")],
    Discriminator(_form),
]


#: OpenAI takes 4 stop strings and says nothing of their length; these bounds keep what looks for them small.
_Stop = Annotated[str, Field(min_length=1, max_length=256)]
_Stops = Annotated[list[_Stop], Field(max_length=32)]


class StreamOptions(Open):
    """What a streamed answer carries beside its text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """`tool_choice`: auto, none, required, or the tool that must be called (mode `named`)."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    name: str | None = None


class ChatRequest(Open):
    """The fields of a chat request that Florette reads. `choice` and `declared` hold for both forms of tools."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)]
    tools: list[_ToolEntry] | None = None
    tool_choice: _ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Tool] | None = None
    function_call: Literal["none", "auto"] | _Named | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: _Stop | _Stops | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    include_stop_str_in_output: bool | None = None
    modalities: Any = None
    response_format: Any = None

    @cached_property
    def declared(self) -> list[Tool]:
        """The tools that the model may call, whichever form they came in: of all tools those that the choice allows."""
        allowed = self.allowed
        return [tool for tool in self.all_tools if allowed is None or tool.name in allowed]

    @cached_property
    def all_tools(self) -> list[Tool]:
        """The tools of the request, whichever form they came in."""
        return [entry.function for entry in self.tools or ()] or list(self.functions or ())

    @property
    def allowed(self) -> frozenset[str] | None:
        """The names that `tool_choice` allows (`allowed_tools`); None if it does not restrict them."""
        if self.legacy or not isinstance(self.tool_choice, _AllowedChoice):
            return None
        return frozenset(tool.function.name for tool in self.tool_choice.allowed_tools.tools)

    @property
    def legacy(self) -> bool:
        """True if the caller uses `functions`, and is answered in `function_call`."""
        return bool(self.functions)

    @property
    def parallel(self) -> bool:
        """True if the model may make several calls in one turn."""
        return not self.legacy and self.parallel_tool_calls is not False

    @cached_property
    def choice(self) -> Choice:
        """What the caller demands of the model, from either form."""
        given = self.function_call if self.legacy else self.tool_choice
        match given:
            case None:
                return Choice("auto")
            case _NamedChoice():
                return Choice("named", given.function.name)
            case _AllowedChoice():
                return Choice(given.allowed_tools.mode)
            case _Named():
                return Choice("named", given.name)
            case mode:
                return Choice(mode)

    @property
    def stops(self) -> list[str]:
        """The caller's own stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema that `response_format` demands of an answer; None if it demands none."""
        wanted = self.response_format if isinstance(self.response_format, dict) else {}
        match wanted:
            case {"type": "json_object"}:
                return {"type": "object"}
            case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
                return schema
            case {"type": "json_schema"}:
                return {}
            case _:
                return None

    @property
    def wants_usage(self) -> bool:
        """True if a streamed answer is to end with its usage."""
        return bool(self.stream and self.stream_options and self.stream_options.include_usage)

    @property
    def wants_each_usage(self) -> bool:
        """True if each chunk is to carry the usage so far (vLLM's own option)."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def going_on(self, messages: Sequence[Message], mode: Literal["auto", "none"]) -> "ChatRequest":
        """The same request with other messages, and none of its demands for a call: the model has made one."""
        fields = {name: value for name, value in self if name not in ("messages", "tool_choice", "function_call")}
        choice = "function_call" if self.legacy else "tool_choice"
        kept: Any = mode
        if mode == "auto" and not self.legacy and isinstance(self.tool_choice, _AllowedChoice):
            allowed = _Allowed(mode="auto", tools=self.tool_choice.allowed_tools.tools)
            kept = _AllowedChoice(allowed_tools=allowed)
        return ChatRequest.model_construct(**{**fields, "messages": list(messages), choice: kept})

    @property
    def has_calls(self) -> bool:
        """True if the history holds a call or a result."""
        return any(message.calls or message.role in ("tool", "function") for message in self.messages)


def read_request(body: Mapping[str, Any]) -> ChatRequest:
    """The validated request. InvalidRequest names the field at fault and what to write instead."""
    try:
        request = ChatRequest.model_validate(body)
    except ValidationError as error:
        raise _sentence(error) from None
    _check_tools(request)
    _check_choice(request)
    _check_modalities(request)
    return request


def _sentence(error: ValidationError) -> InvalidRequest:
    # Of a union's complaints the deepest is about the form that the caller meant.
    worst = max(error.errors(include_url=False, include_input=False), key=lambda entry: len(entry["loc"]))
    # Pydantic puts the names of a union's members ("str", "_NamedChoice", "list[...]") into the path; ours start a-z.
    path = [str(part) for part in worst["loc"] if isinstance(part, int) or re.fullmatch("(?!str$)[a-z_]+", part)]
    param = re.sub(r"\.(\d+)", r"[\1]", ".".join(path))
    # Pydantic would name our classes.
    message = "Input should be an object" if worst["type"].startswith("model_") else worst["msg"]
    where = f"Invalid value for '{param}'" if param else "Invalid request body"
    return InvalidRequest(f"{where}: {message}.", param=param or None)


def _check_tools(request: ChatRequest) -> None:
    if request.tools and request.functions:
        raise InvalidRequest("Send 'tools' or the older 'functions', not both.", param="functions")
    field = "functions" if request.legacy else "tools"
    seen: set[str] = set()
    for tool in request.all_tools:
        for name in {tool.name, tool.model_name}:
            if not _NAME.fullmatch(name):
                raise InvalidRequest(
                    f"Invalid tool name {name[:80]!r}: use 1 to 64 letters, digits, '_' or '-'.", param=field
                )
            if name in seen:
                raise InvalidRequest(f"The tool name {name!r} is declared twice; names must differ.", param=field)
        seen |= {tool.name, tool.model_name}


def _check_choice(request: ChatRequest) -> None:
    if isinstance(request.function_call, _Named) and not request.functions:
        raise InvalidRequest("'function_call' names a function, but 'functions' is missing.", param="function_call")
    field = "function_call" if request.legacy else "tool_choice"
    names = {tool.name for tool in request.all_tools}
    for name in sorted(request.allowed or ()):
        if name not in names:
            raise _undeclared(field, "allows", name, names)
    choice = request.choice
    if choice.mode in ("required", "named") and not request.declared:
        lack = "allows no tools" if names else "the request declares no tools"
        raise InvalidRequest(f"'{field}' demands a call, but {lack}.", param=field)
    if choice.name is not None and choice.name not in names:
        raise _undeclared(field, "names", choice.name, names)


def _undeclared(field: str, verb: str, name: str, names: set[str]) -> InvalidRequest:
    known = ", ".join(sorted(names)) or "there are none"
    return InvalidRequest(f"'{field}' {verb} {name!r}, which is not among the declared tools: {known}.", param=field)


def _check_modalities(request: ChatRequest) -> None:
    # A model's speech holds no markers: the answer would lack either the calls or the sound.
    speaks = isinstance(request.modalities, list) and "audio" in request.modalities
    if speaks and (request.declared or request.has_calls):
        raise InvalidRequest(
            "A request with tools is answered in text: 'modalities' must not ask for audio.", param="modalities"
        )
