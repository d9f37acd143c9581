"""What an operator sets of kernels: where they run, how they are kept apart, and how much each may use.

kernels: {isolation: bwrap, memory_bytes: 2147483648, sessions: 50}
kernels: {backend: gateway, url: "http://kernels:8888"}
"""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

Isolation = Literal["auto", "bwrap", "landlock", "none"]


class KernelSettings(BaseModel):
    """How code is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: Annotated[
        Literal["embedded", "gateway"], Field(description="Where kernels run: here, or in a Jupyter Kernel Gateway.")
    ] = "embedded"
    url: Annotated[str | None, Field(description="The gateway.")] = None
    token: Annotated[SecretStr | None, Field(description="Shown to the gateway.")] = None
    kernel_name: Annotated[
        str, Field(pattern=r"^[\w.-]{1,128}$", description="The kernelspec that the gateway is to start.")
    ] = "florette"
    isolation: Annotated[Isolation, Field(description="What keeps a kernel from all else.")] = "auto"
    python: Annotated[Path | None, Field(description="The kernels' Python; none: the server's own.")] = None
    preload: Annotated[
        tuple[str, ...], Field(max_length=100, description="Modules that are imported before a kernel is needed.")
    ] = ("numpy", "pandas", "matplotlib.pyplot")
    cell_time_s: Annotated[float, Field(gt=0, le=86_400, description="Time of one cell.")] = 60.0
    interrupt_grace_s: Annotated[
        float, Field(gt=0, le=60, description="So long after the interrupt a cell's kernel is killed.")
    ] = 2.0
    memory_bytes: Annotated[
        int, Field(ge=256 << 20, le=1 << 44, description="Memory of a kernel, with all its processes.")
    ] = 1 << 30
    processes: Annotated[int, Field(ge=16, le=100_000, description="Processes and threads of a kernel.")] = 64
    disk_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 44, description="Room in the working directory.")] = 256 << 20
    file_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 44, description="Longest file.")] = 64 << 20
    output_bytes: Annotated[int, Field(ge=1000, le=1 << 30, description="Text of a cell; then it is interrupted.")] = (
        2_000_000
    )
    messages: Annotated[int, Field(ge=10, le=10**7, description="Messages of a cell; then it is interrupted.")] = 2000
    images: Annotated[int, Field(ge=0, le=1000, description="Images of a cell; the others are left out.")] = 10
    image_bytes: Annotated[int, Field(ge=1000, le=12_000_000, description="Longest image.")] = 5_000_000
    files: Annotated[int, Field(ge=0, le=1000, description="Files that are kept of one cell.")] = 20
    pool: Annotated[int, Field(ge=0, le=1000, description="Kernels that are kept ready.")] = 1
    sessions: Annotated[int, Field(ge=1, le=10_000, description="Sessions at the same time.")] = 16
    sessions_per_caller: Annotated[int, Field(ge=1, le=10_000, description="Sessions of one caller.")] = 4
    session_idle_s: Annotated[float, Field(gt=0, le=10**7, description="A session unused for so long ends.")] = 1200.0
    session_life_s: Annotated[float, Field(gt=0, le=10**7, description="A session ends after so long.")] = 21_600.0
    wait_s: Annotated[float, Field(ge=0, le=600, description="Wait for a free session.")] = 10.0

    @field_validator("url")
    @classmethod
    def _is_a_gateway(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise ValueError("must be a URL like http://kernels:8888")
        if url is not None and "@" in urlsplit(url).netloc:
            raise ValueError("must hold no name and no password, as it is shown; a token goes into 'token'")
        return url.rstrip("/") if url else None

    @model_validator(mode="after")
    def _fits_the_backend(self) -> Self:
        if (self.backend == "gateway") != (self.url is not None):
            raise ValueError("'backend: gateway' and 'url' belong together")
        return self
