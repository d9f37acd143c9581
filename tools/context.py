"""What a tool is told about the call that it answers. Tools keep no globals: all of a conversation's state is here."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tools.attached import AttachedFile
from tools.egress import Egress
from tools.outcomes import Keep, Kernels, kept_nowhere

Language = Literal["zh", "en"]

#: So much of a report of progress is told: it is a line for somebody who waits.
MAX_PROGRESS_CHARS = 1000


def _silent(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class ToolContext:
    """One call's surroundings.

    `session_id` names the conversation, `caller` whose it is. `workdir` is a directory of the session's own. `files`
    are those that the caller handed over. `language` is that of the conversation. `deadline` is the moment, on the
    clock of `time.monotonic`, at which the call is ended; `cancelled` is set when its result is no longer wanted.
    `progress` tells whoever waits what is being done. `egress` is the way to the network, for asynchronous tools;
    `kernels` run Python code for them, if there are any, and `keep` stores files for the caller: neither is for tools
    whose results are cached.
    """

    session_id: str = ""
    caller: str = ""
    workdir: Path = field(default_factory=Path.cwd)
    files: tuple[AttachedFile, ...] = ()
    language: Language = "en"
    deadline: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    progress: Callable[[str], None] = _silent
    egress: Egress = field(default_factory=Egress)
    kernels: Kernels | None = None
    keep: Keep = kept_nowhere

    def remaining_s(self) -> float | None:
        """The seconds until the deadline, none of them negative; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def file(self, name_or_id: str) -> AttachedFile | None:
        """The file of this id or name, if the conversation has it."""
        return next((file for file in self.files if name_or_id in (file.id, file.name)), None)
