"""Kernels that run nothing: they note what they are asked, and say what they are told to. And a tool that asks them."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misbehaving import PIXEL
from tools.attached import AttachedFile
from tools.base import BaseTool, Details, FileItem, ImageItem, TextItem, ToolContext, register_tool
from tools.errors import ToolUnavailable
from tools.kernel_settings import KernelSettings
from tools.outcomes import Keep, MadeFile, Outcome, Picture, Shown, kept_nowhere
from tools.stores import Store

#: What is in force, as real ones would tell it.
DESCRIBED: Mapping[str, Any] = {
    "isolation": "bwrap",
    "layers": {"namespaces": "own processes, no network", "seccomp": "no mounts"},
    "python": "/opt/kernels/bin/python",
    "limits": {"memory_bytes": 1 << 30, "preload": ("numpy", "pandas")},
}


class PretendKernels:
    """Answers each cell with its code, a picture and a file. `missing` is why they cannot be used."""

    def __init__(self, settings: KernelSettings, missing: str | None = None) -> None:
        self.settings = settings
        self.ran: list[Mapping[str, Any]] = []
        self.starts = 0
        self.closed = threading.Event()
        self._missing = missing

    def unavailable(self) -> str | None:
        return self._missing

    def described(self) -> Mapping[str, Any]:
        return DESCRIBED

    async def start(self) -> None:
        self.starts += 1

    async def run(
        self,
        code: str,
        *,
        caller: str,
        session: str | None,
        files: Sequence[AttachedFile] = (),
        time_s: float | None = None,
        keep: Keep = kept_nowhere,
    ) -> Outcome:
        self.ran.append({"code": code, "caller": caller, "session": session, "files": [file.name for file in files]})
        pieces = (Shown(code.upper(), is_result=True), Picture("figure-1.png", PIXEL))
        return Outcome("ok", pieces, (MadeFile("out.csv", 4, await keep("out.csv", b"a,b\n")),))

    async def aclose(self) -> None:
        self.closed.set()


class Opener:
    """Opens pretended kernels and keeps them in `opened`; `missing` as theirs, `library` is one that is not there."""

    def __init__(self, missing: str | None = None, library: str | None = None) -> None:
        self.opened: list[PretendKernels] = []
        self._missing = missing
        self._library = library

    def __call__(self, settings: KernelSettings, shared: Store | None = None) -> PretendKernels:
        if self._library:
            raise ToolUnavailable(f"the library '{self._library}' is not installed: install florette[kernels]")
        self.opened.append(PretendKernels(settings, self._missing))
        return self.opened[-1]

    @property
    def only(self) -> PretendKernels:
        """The kernels, opened once."""
        [kernels] = self.opened
        return kernels


@register_tool("run_code")
class RunCode(BaseTool):
    """Runs a cell and tells all of it."""

    description = "Runs Python code."
    parameters = ({"name": "code", "type": "string", "description": "The code", "required": True},)
    uses_kernels = True

    async def call(self, params: Any, **kwargs: Any) -> list[Any]:
        context: ToolContext = kwargs["context"]
        assert context.kernels
        outcome = await context.kernels.run(
            self.validate_parameters(params)["code"],
            caller=context.caller,
            session=context.session_id,
            files=context.files,
            keep=context.keep,
        )
        told: list[Any] = [Details({"status": outcome.status, "files": [file.name for file in outcome.files]})]
        written: Mapping[type, Callable[[Any], Any]] = {
            Shown: lambda shown: TextItem(shown.text),
            Picture: lambda picture: ImageItem(data=picture.data, name=picture.name),
        }
        told += [written[type(piece)](piece) for piece in outcome.pieces]
        return [*told, *(FileItem(file.name, file.url) for file in outcome.files)]
