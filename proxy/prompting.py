"""The part of the configuration that can differ from model to model: how a model is talked to."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from proxy.formats.registry import FORMATS


class Prompting(BaseModel):
    """How a model is told of its tools, and how far its answers are trusted.

    Which formats there are the validation's context may say (`formats`); else it is those of the registry.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[str, Field(description="How tools are written into the prompt and read back.")] = "qwen"
    history: Annotated[
        Literal["merge", "continue"],
        Field(description="Where the current turn's calls and results stand: in the user's message, or the model's."),
    ] = "merge"
    control_tokens: Annotated[
        Literal["results", "all", "none"],
        Field(description="Where <|im_start|> and the like are made harmless: results, users' words and tools too."),
    ] = "results"
    guided: Annotated[
        Literal["auto", "always", "off"],
        Field(description="When the upstream is given a grammar of what the answer may be."),
    ] = "auto"
    repairs: Annotated[int, Field(ge=0, le=5, description="How often a wrong call is asked for again.")] = 0
    default_system: Annotated[
        str, Field(max_length=100_000, description="System message of requests with tools that have none.")
    ] = "You are a helpful assistant."
    language: Annotated[
        Literal["auto", "zh", "en"],
        Field(description="Language of the tool prompt; auto: that of the caller."),
    ] = "auto"
    vision: Annotated[bool, Field(description="The model sees: images are passed on.")] = False
    thinking_begun: Annotated[bool, Field(description="The chat template ends in <think>.")] = False

    @field_validator("guided", mode="before")
    @classmethod
    def _as_written(cls, guided: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if guided is False else guided

    @field_validator("format")
    @classmethod
    def _is_known(cls, name: str, info: ValidationInfo) -> str:
        formats = (info.context or {}).get("formats", FORMATS)
        if name not in formats:
            raise ValueError(f"must be one of: {', '.join(formats)}")
        return name

    def overridden(self, by: "Prompting") -> Self:
        """This, but for what `by` says of its own accord."""
        said = by.model_fields_set & Prompting.model_fields.keys()
        return self.model_copy(update={name: getattr(by, name) for name in said})
