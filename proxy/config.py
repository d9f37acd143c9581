"""Flags, environment, a YAML file and defaults -> one frozen Config.

Flags beat `FLORETTE_...` variables, which beat the file, which beats the defaults. Every key is listed, with its
bounds, in `config.example.yaml`. A ConfigError is one sentence that names the key.
"""

import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxy.prompting import Prompting
from tools.egress import Egress
from tools.kernel_settings import KernelSettings
from tools.settings import ToolEntry
from tools.stores import checked_url

_PREFIX = "FLORETTE_"

#: Options of tools that are paths.
_PATHS = ("file", "directory", "document")

#: Of kernels, what is a path.
_KERNEL_PATHS = ("python",)


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key and what is wrong with it."""


class ApiKey(BaseModel):
    """A key that callers may show, and what it may use. It stands here by its SHA-256 or by a variable's name only."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$", description="Whose it is; told in logs and errors.")]
    sha256: Annotated[str | None, Field(repr=False, description="The key's SHA-256 in hexadecimal digits.")] = None
    env: Annotated[str | None, Field(min_length=1, description="The environment variable that holds the key.")] = None
    requests_per_minute: Annotated[int | None, Field(ge=1, le=10**6, description="Requests in any minute.")] = None
    tokens_per_minute: Annotated[int | None, Field(ge=1, le=10**12, description="Tokens in any minute.")] = None
    concurrent_requests: Annotated[int | None, Field(ge=1, le=10**6, description="Answers at the same time.")] = None
    tools: Annotated[tuple[str, ...] | None, Field(description="The tools that it may use; none said: all.")] = None
    _digest: bytes = PrivateAttr(b"")

    @property
    def digest(self) -> bytes:
        """The key's SHA-256."""
        return self._digest

    @model_validator(mode="after")
    def _is_one_key(self, info: ValidationInfo) -> Self:
        if self._digest:
            # Validated once more, as a part of a Config that is made of it: the variable may be gone.
            return self
        if (self.sha256 is None) == (self.env is None):
            raise ValueError("must have either 'sha256' or 'env'")
        if self.env is None:
            self._digest = _digest_of(self.sha256 or "")
        else:
            self._digest = _digest_in(self.env, (info.context or {}).get("environment", os.environ))
        return self


def _digest_of(written: str) -> bytes:
    try:
        digest = bytes.fromhex(written)
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError("'sha256' must be the 64 digits that sha256sum prints; the key itself has no place here")
    return digest


def _digest_in(variable: str, environment: Mapping[str, str]) -> bytes:
    key = _bare(environment.get(variable, ""))
    if not key:
        raise ValueError(f"the variable '{variable}' is to hold a key, but is empty or not set")
    return hashlib.sha256(key.encode()).digest()


def _bare(key: str) -> str:
    # A key out of a file often ends in a line end.
    bare = key.strip()
    if not bare.isascii() or not bare.isprintable():
        raise ValueError("must be printable ASCII, as a header is")
    return bare


class Model(Prompting):
    """A model by the name that callers use: how it is talked to, what the upstream calls it, and its tools."""

    upstream_model: Annotated[
        str | None, Field(min_length=1, max_length=256, description="What the upstream calls it; none: the same.")
    ] = None
    tools: Annotated[tuple[str, ...], Field(max_length=128, description="Tools that come with it, by name.")] = ()


#: Where small values are kept: in memory, in a file of SQLite's, or in Redis.
_StoreUrl = Annotated[str, AfterValidator(checked_url)]


class Config(Prompting):
    """Everything that an operator can set."""

    upstream: Annotated[str | None, Field(description="URL of the vLLM to use, ending in /v1; none: the demo.")] = None
    upstream_key: Annotated[SecretStr | None, Field(description="Sent to the upstream instead of the caller's.")] = None
    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")] = 8080
    api_keys: Annotated[tuple[ApiKey, ...], Field(max_length=1000, description="Keys to ask callers for.")] = ()
    allow_unauthenticated: Annotated[
        bool, Field(description="Without api_keys, serve also those who are not on this machine.")
    ] = False
    grace_s: Annotated[float, Field(ge=0, le=3600, description="Time for running answers after SIGTERM.")] = 30.0
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30, description="Longest request body.")] = 10_000_000
    connect_timeout_s: Annotated[float, Field(gt=0, le=60, description="Time to connect to the upstream.")] = 5.0
    idle_timeout_s: Annotated[float, Field(gt=0, le=3600, description="Longest silence of a streaming upstream.")] = (
        120.0
    )
    answer_timeout_s: Annotated[
        float, Field(gt=0, le=86400, description="Longest silence of an answer that is not streamed.")
    ] = 600.0
    retries: Annotated[int, Field(ge=0, le=10, description="New tries before the first byte.")] = 2
    retry_backoff_s: Annotated[float, Field(ge=0, le=10, description="Wait before the first new try; doubles.")] = 0.2
    models: Annotated[
        dict[str, Model], Field(max_length=1000, description="What differs for a model, by its name.")
    ] = {}  # noqa: RUF012 - pydantic copies it
    reasoning_field: Annotated[str, Field(pattern="^[a-z_]{1,64}$", description="Field for the model's thinking.")] = (
        "reasoning_content"
    )
    files_dir: Annotated[Path | None, Field(description="Where files are kept; none: until the end only.")] = None
    files_ttl_s: Annotated[
        int | None, Field(ge=60, le=10**9, description="How long a file is kept; none: for ever.")
    ] = 604_800
    files_quota_bytes: Annotated[int, Field(ge=1, le=1 << 50, description="Most bytes of files that a key keeps.")] = (
        1 << 30
    )
    file_max_bytes: Annotated[int, Field(ge=1, le=10 << 30, description="Longest file.")] = 100_000_000
    tools: Annotated[
        tuple[ToolEntry, ...], Field(max_length=1000, repr=False, description="The tools that run here.")
    ] = ()
    kernels: Annotated[KernelSettings, Field(description="How tools run code.")] = KernelSettings()
    tool_concurrency: Annotated[int, Field(ge=1, le=10_000, description="Calls that run at the same time.")] = 64
    tool_cache: Annotated[_StoreUrl, Field(repr=False, description="Where results of cacheable tools are kept.")] = (
        "memory:"
    )
    tool_cache_max_bytes: Annotated[int, Field(ge=1024, le=1 << 40, description="Most bytes of results.")] = 64_000_000
    tool_state: Annotated[
        _StoreUrl, Field(repr=False, description="Where our calls are kept until the caller brings its results.")
    ] = "memory:"
    tool_state_ttl_s: Annotated[int, Field(ge=1, le=10**8, description="How long they are kept.")] = 86_400
    egress_allow: Annotated[
        tuple[str, ...], Field(max_length=1000, description="Private addresses that tools may reach.")
    ] = ()
    agent_rounds: Annotated[int, Field(ge=1, le=1000, description="Rounds of calls in one answer.")] = 10
    agent_calls: Annotated[int, Field(ge=1, le=100_000, description="Calls in one answer.")] = 100
    agent_time_s: Annotated[float, Field(gt=0, le=86_400, description="Time of an answer in which tools run.")] = 600.0
    agent_tool_time_s: Annotated[float, Field(gt=0, le=86_400, description="Time of it for tools.")] = 300.0
    agent_tokens: Annotated[int, Field(ge=1, le=10**12, description="Tokens of all turns of an answer.")] = 1_000_000
    agent_repeats: Annotated[int, Field(ge=1, le=1000, description="Rounds in which the same call is run.")] = 3
    heartbeat_s: Annotated[float, Field(gt=0, le=3600, description="Silence behind which the caller is told.")] = 10.0
    public_url: Annotated[str | None, Field(description="Where callers reach us, for links to files.")] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe line that is logged.")
    ] = "info"
    # Behind all else: it is held against what workers would have to share.
    workers: Annotated[int, Field(ge=1, le=64, description="Processes that serve, on the same port.")] = 1

    @field_validator("tools", mode="before")
    @classmethod
    def _hold_no_secrets(cls, entries: Any, info: ValidationInfo) -> Any:
        # An option that is {env: NAME} is the variable's value.
        if not isinstance(entries, list | tuple):
            raise ValueError("must be a list of names and entries, such as [weather, {file: my_tool.py}]")
        return [_resolved(entry, info) for entry in entries]

    @field_validator("kernels", mode="before")
    @classmethod
    def _holds_no_secret(cls, kernels: Any, info: ValidationInfo) -> Any:
        if not isinstance(kernels, dict | KernelSettings):
            raise ValueError("must be a mapping, such as {isolation: bwrap, sessions: 50}")
        return _resolved(kernels, info)

    @field_validator("workers")
    @classmethod
    def _share_all(cls, workers: int, info: ValidationInfo) -> int:
        # What one of them keeps for itself the others would not find: the next request may be theirs.
        if workers > 1 and info.data.get("files_dir") is None:
            raise ValueError("more than one keep files in a directory that they share: set 'files_dir'")
        if workers > 1 and info.data.get("tools") and info.data.get("tool_state") == "memory:":
            raise ValueError(
                "more than one share what our tools did: set 'tool_state' to sqlite:///PATH or redis://HOST"
            )
        return workers

    @field_validator("egress_allow")
    @classmethod
    def _can_be_allowed(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        Egress(entries)
        return entries

    @field_validator("public_url")
    @classmethod
    def _is_reachable(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("must be a URL like https://florette.example.com")
        return url.rstrip("/") if url else None

    @field_validator("upstream")
    @classmethod
    def _is_base_url(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError("must name a port from 1 to 65535, or none")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("must be a URL like http://host:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("must hold no password and no query; a key goes into 'upstream_key'")
        return url.rstrip("/") + ("" if parts.path.strip("/") else "/v1")

    @field_validator("upstream_key")
    @classmethod
    def _fits_into_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        bare = _bare(key.get_secret_value()) if key else ""
        return SecretStr(bare) if bare else None

    @field_validator("api_keys", mode="before")
    @classmethod
    def _are_listed(cls, keys: Any) -> Any:
        if not isinstance(keys, list | tuple):
            raise ValueError("must be a list of entries with 'name' and either 'sha256' or 'env'")
        return keys

    @field_validator("api_keys")
    @classmethod
    def _differ(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two entries have the same name")
        if len({key.digest for key in keys}) < len(keys):
            raise ValueError("two entries hold the same key")
        return keys

    @classmethod
    def load(cls, flags: Mapping[str, Any], file: Path | None, environment: Mapping[str, str] = os.environ) -> Self:
        """The config that these make together; a flag that is None and an empty variable are not given."""
        given = _beside(file, _read(file)) if file else {}
        given |= {name: value for name in cls.model_fields if (value := _variable(name, environment)) is not None}
        given |= {name: value for name, value in flags.items() if value is not None}
        try:
            return cls.model_validate(given, context={"environment": environment})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(map(str, first["loc"]))
            said = (
                "there is no such key"
                if first["type"] == "extra_forbidden"
                else first["msg"].removeprefix("Value error, ")
            )
            raise ConfigError(f"Config key '{key}': {said}.") from None


def kernels_of(config: Config) -> KernelSettings:
    """How tools run code. ValueError if as many workers cannot."""
    if config.workers > 1 and config.kernels.backend == "embedded":
        raise ValueError(
            f"kernels would be known to one of the {config.workers} workers only; run one worker, or set "
            "kernels: {backend: gateway, url: ...}"
        )
    return config.kernels


@dataclass(frozen=True, slots=True)
class ToolEnvironment:
    """The environment as tools meet it: the variables that set something of them, and what their processes see.

    `for_processes` None: all there is.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    for_processes: Mapping[str, str] | None = None


def tool_environment(config: Config, environment: Mapping[str, str] = os.environ) -> ToolEnvironment:
    """What tools get of the environment: `TOOL_TIMEOUT` and the like, and for their processes none of our own keys."""
    secret = {key.env for key in config.api_keys}
    return ToolEnvironment(
        {name: value for name, value in environment.items() if name.startswith("TOOL_")},
        {name: value for name, value in environment.items() if not name.startswith(_PREFIX) and name not in secret},
    )


def _resolved(options: Any, info: ValidationInfo) -> Any:
    if not isinstance(options, dict):
        return options
    environment = (info.context or {}).get("environment", os.environ)
    return {option: _value(value, environment) for option, value in options.items()}


def _value(value: Any, environment: Mapping[str, str]) -> Any:
    if not isinstance(value, dict) or value.keys() != {"env"}:
        return value
    if found := environment.get(str(value["env"])):
        return found.strip()
    raise ValueError(f"the variable '{value['env']}' is empty or not set")


def doctor_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """What `florette doctor` shows the endpoint: on a command line every user of the machine could read it."""
    return environment.get(f"{_PREFIX}DOCTOR_KEY", "").strip() or None


#: The keys that hold a list or a mapping: an environment variable has it as YAML, or JSON, which is YAML, too.
_PLURAL = frozenset(
    name
    for name, field in Config.model_fields.items()
    if field.annotation is KernelSettings or get_origin(field.annotation) in (tuple, list, dict)
)


def _variable(name: str, environment: Mapping[str, str]) -> Any:
    text = environment.get(_PREFIX + name.upper(), "")
    # Kubernetes sets FLORETTE_PORT=tcp://... beside a service of that name: that is not ours.
    if not text or text.startswith("tcp://"):
        return None
    return _yaml(text, _PREFIX + name.upper()) if name in _PLURAL else text


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Config file {file}: {error.strerror or error}.") from None
    except ValueError:
        raise ConfigError(f"Config file {file} is not valid YAML: it is not UTF-8.") from None
    content = _yaml(text, f"Config file {file}")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"Config file {file} must hold keys and values, as config.example.yaml does.")
    return {str(key): value for key, value in content.items()}


def _beside(file: Path, given: dict[str, Any]) -> dict[str, Any]:
    # Paths of tools, and of the kernels' Python, are meant as seen from the file, wherever the server is started.
    entries, kernels = given.get("tools"), given.get("kernels")
    if isinstance(entries, list):
        given = given | {"tools": [_with_paths(entry, file.parent, _PATHS) for entry in entries]}
    return given | {"kernels": _with_paths(kernels, file.parent, _KERNEL_PATHS)} if "kernels" in given else given


def _with_paths(options: Any, directory: Path, paths: Collection[str]) -> Any:
    if not isinstance(options, dict):
        return options
    return {
        option: str(directory / value) if option in paths and isinstance(value, str) else value
        for option, value in options.items()
    }


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a key.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{source} is not valid YAML: line {line}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        # PyYAML lets the errors of its constructors through.
        raise ConfigError(f"{source} is not valid YAML: it holds a value that cannot be read.") from None
