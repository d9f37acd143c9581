"""Kernels for tools: what is in force here, a pool of those that are ready, and the sessions that use them."""

import asyncio
import contextlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from tools.attached import AttachedFile
from tools.errors import ToolError, ToolUnavailable
from tools.kernel_settings import KernelSettings
from tools.kernels.embedded import Surroundings, begin, sockets_of
from tools.kernels.gateway import Gateway
from tools.kernels.kernel import Kernel
from tools.kernels.pool import Pool
from tools.kernels.sessions import Sessions
from tools.kernels.starting import isolation_for, python_at, recipe_for
from tools.outcomes import Keep, Kernels, Outcome, kept_nowhere
from tools.sandbox.isolation import Found
from tools.sandbox.watching import Watch


def open_kernels(settings: KernelSettings) -> Kernels:
    """Kernels as the settings say. Nothing is started before the first use, or `start`."""
    return GatewayKernels(settings) if settings.backend == "gateway" else EmbeddedKernels(settings)


class _Kernels:
    """What is the same wherever kernels run: sessions over a pool."""

    def __init__(self, settings: KernelSettings) -> None:
        self.settings = settings
        self._sessions: Sessions | None = None

    async def start(self) -> None:
        """As `Kernels` says."""
        self._opened()

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
        """As `Kernels` says."""
        return await self._opened().run(
            code,
            caller=caller,
            session=session,
            files=files,
            time_s=self.settings.cell_time_s,
            within_s=math.inf if time_s is None else time_s,
            keep=keep,
        )

    async def aclose(self) -> None:
        """As `Kernels` says."""
        if self._sessions is not None:
            await self._sessions.aclose()

    def _opened(self) -> Sessions:
        if self._sessions is None:
            settings = self.settings
            pool = Pool(self._begin, settings.pool)
            self._sessions = Sessions(
                pool,
                sessions=settings.sessions,
                sessions_per_caller=settings.sessions_per_caller,
                session_idle_s=settings.session_idle_s,
                session_life_s=settings.session_life_s,
                wait_s=settings.wait_s,
            )
            pool.start()
        return self._sessions

    async def _begin(self) -> Kernel:
        raise NotImplementedError


class EmbeddedKernels(_Kernels):
    """Kernels in sandboxes of this machine, as `Kernels` says."""

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings)
        self._surroundings: asyncio.Task[Surroundings] | None = None

    @cached_property
    def _isolation(self) -> Found | str:
        # Tried once: it takes some 50 ms, and what a machine allows seldom changes under a running server.
        try:
            return isolation_for(self.settings)
        except ToolUnavailable as reason:
            return str(reason)

    def unavailable(self) -> str | None:
        """As `Kernels` says."""
        return self._isolation if isinstance(self._isolation, str) else None

    def described(self) -> Mapping[str, Any]:
        """As `Kernels` says."""
        found = self._isolation
        if isinstance(found, str):
            return {"backend": "embedded", "unavailable": found}
        return {
            "backend": "embedded",
            "isolation": found.name,
            "layers": dict(found.layers),
            "python": str(python_at(self.settings.python).executable),
            "limits": _limits(self.settings),
        }

    async def aclose(self) -> None:
        """As `Kernels` says."""
        await super().aclose()
        if self._surroundings is not None:
            with contextlib.suppress(ToolError):
                surroundings = await self._surroundings
                surroundings.watch.close()
                surroundings.context.destroy()

    async def _begin(self) -> Kernel:
        if self._surroundings is None:
            self._surroundings = asyncio.create_task(self._surround())
        try:
            return await begin(await asyncio.shield(self._surroundings))
        except ToolError:
            if self._surroundings.done() and self._surroundings.exception():
                self._surroundings = None
            raise

    async def _surround(self) -> Surroundings:
        found = self._isolation
        if isinstance(found, str):
            raise ToolError(f"No code can be run here: {found}.")
        return Surroundings(
            found.launcher,
            await recipe_for(self.settings, found),
            sockets_of(self.settings),
            Watch(),
            found.launcher.owner,
        )


class GatewayKernels(_Kernels):
    """Kernels of a Jupyter Kernel Gateway, as `Kernels` says."""

    def __init__(self, settings: KernelSettings) -> None:
        super().__init__(settings)
        self._gateway = Gateway(settings)

    def unavailable(self) -> str | None:
        """Always None: a gateway may come and go."""
        return None

    def described(self) -> Mapping[str, Any]:
        """As `Kernels` says."""
        return {
            "backend": "gateway",
            "url": self.settings.url,
            "kernel": self.settings.kernel_name,
            "isolation": "that of the gateway's kernels",
            "limits": _limits(self.settings),
        }

    async def aclose(self) -> None:
        """As `Kernels` says."""
        await super().aclose()
        await self._gateway.aclose()

    async def _begin(self) -> Kernel:
        return await self._gateway.begin()


def _limits(settings: KernelSettings) -> dict[str, Any]:
    told = settings.model_dump(mode="json", exclude={"backend", "url", "token", "kernel_name", "isolation", "python"})
    return {name: value for name, value in told.items() if isinstance(value, int | float)}
