"""Kernels for tools: what is in force here, a pool of those that are ready, and the sessions that use them."""

import asyncio
import contextlib
import math
import secrets
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
from tools.kernels.register import Register
from tools.kernels.sessions import Sessions
from tools.kernels.sharing import Alone, Shared, Sharing
from tools.kernels.starting import isolation_for, python_at, recipe_for
from tools.outcomes import Keep, Kernels, Outcome, kept_nowhere
from tools.sandbox.isolation import Found
from tools.sandbox.watching import Watch
from tools.storing import Store


def open_kernels(settings: KernelSettings, shared: Store | None = None) -> Kernels:
    """Kernels as the settings say. Nothing is started before the first use, or `start`.

    `shared` is a store of all servers with the same gateway: they have sessions in common by it.
    """
    return GatewayKernels(settings, shared) if settings.backend == "gateway" else EmbeddedKernels(settings)


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
                sharing=self._sharing(pool),
            )
            pool.start()
        return self._sessions

    async def _begin(self) -> Kernel:
        raise NotImplementedError

    def _sharing(self, pool: Pool) -> Sharing:
        return Alone()


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

    def __init__(self, settings: KernelSettings, shared: Store | None) -> None:
        super().__init__(settings)
        self._gateway = Gateway(settings)
        self._shared = shared

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

    def _sharing(self, pool: Pool) -> Sharing:
        if self._shared is None:
            return Alone()
        # A worker that is started anew is another one: what the old one held it does not know.
        holder = secrets.token_hex(8)
        register = Register(self._shared, holder=holder, ttl_s=self.settings.session_life_s)
        return Shared(register, self._gateway, pool)


def _limits(settings: KernelSettings) -> dict[str, Any]:
    told = settings.model_dump(mode="json", exclude={"backend", "url", "token", "kernel_name", "isolation", "python"})
    return {name: value for name, value in told.items() if isinstance(value, int | float)}
