"""Flags, environment, a YAML file and defaults -> one frozen Config.

Flags beat `FLORETTE_...` variables, which beat the file, which beats the defaults. Every key is listed, with its
bounds, in `config.example.yaml`. A ConfigError is one sentence that names the key.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

_PREFIX = "FLORETTE_"


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key and what is wrong with it."""


class Config(BaseModel):
    """Everything that an operator can set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    upstream: Annotated[str | None, Field(description="URL of the vLLM to use, ending in /v1; none: the demo.")] = None
    upstream_key: Annotated[SecretStr | None, Field(description="Sent to the upstream instead of the caller's.")] = None
    host: Annotated[str, Field(min_length=1, description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 picks a free one.")] = 8080
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
    default_system: Annotated[
        str, Field(max_length=100_000, description="System message of requests with tools that have none.")
    ] = "You are a helpful assistant."
    language: Annotated[
        Literal["auto", "zh", "en"],
        Field(description="Language of the tool prompt; auto: that of the caller."),
    ] = "auto"
    vision: Annotated[bool, Field(description="The model sees: images are passed on.")] = False
    reasoning_field: Annotated[str, Field(pattern="^[a-z_]{1,64}$", description="Field for the model's thinking.")] = (
        "reasoning_content"
    )
    thinking_begun: Annotated[bool, Field(description="The chat template ends in <think>.")] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Field(description="Least severe line that is logged.")
    ] = "info"

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
        # A key out of a file often ends in a line end.
        bare = key.get_secret_value().strip() if key else ""
        if not bare.isascii() or not bare.isprintable():
            raise ValueError("must be printable ASCII, as a header is")
        return SecretStr(bare) if bare else None

    @classmethod
    def load(cls, flags: Mapping[str, Any], file: Path | None, environment: Mapping[str, str] = os.environ) -> Self:
        """The config that these make together; a flag that is None and an empty variable are not given."""
        given = _read(file) if file else {}
        found = {name: environment.get(_PREFIX + name.upper(), "") for name in cls.model_fields}
        # Kubernetes sets FLORETTE_PORT=tcp://... beside a service of that name: that is not ours.
        given |= {name: value for name, value in found.items() if value and not value.startswith("tcp://")}
        given |= {name: value for name, value in flags.items() if value is not None}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(map(str, first["loc"]))
            said = (
                "there is no such key"
                if first["type"] == "extra_forbidden"
                else first["msg"].removeprefix("Value error, ")
            )
            raise ConfigError(f"Config key '{key}': {said}.") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Config file {file}: {error.strerror or error}.") from None
    except yaml.MarkedYAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a key.
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"Config file {file} is not valid YAML: line {line}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        # PyYAML lets the errors of its constructors through.
        raise ConfigError(f"Config file {file} is not valid YAML: it holds a value that cannot be read.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"Config file {file} must hold keys and values, as config.example.yaml does.")
    return {str(key): value for key, value in content.items()}
