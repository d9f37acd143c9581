"""A request on its way out, and what becomes of it when the answer says to go elsewhere.

Source: RFC 9110, 15.4 for redirects; the Fetch standard, "HTTP-redirect fetch", for what is dropped on the way.
"""

import json as json_module
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx

from tools.destinations import Origin, read_url
from tools.errors import ToolError

USER_AGENT = "florette-tools"

#: What OpenAPI has operations for, but TRACE, which sends keys back.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

#: A request's frame is made here: one of the caller's, perhaps a model's, could hide a second request in the first.
_OURS = frozenset({
    "host", "content-length", "transfer-encoding", "connection", "keep-alive", "te", "trailer", "upgrade", "expect",
    "accept-encoding", "proxy-authorization", "proxy-connection",
})  # fmt: skip

#: All that another site is told: any other header may carry a key, and there is no telling which.
_FOR_ANYONE = frozenset({"accept", "accept-language", "user-agent"})

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class OutgoingRequest:
    """One request; header names are lower-case. `url` is one of `read_url`."""

    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    content: bytes | None

    @classmethod
    def of(
        cls,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None,
        json: Any,
        content: bytes | None,
    ) -> "OutgoingRequest":
        """Raises ToolError for a URL or a method that is none."""
        if method.upper() not in _METHODS:
            raise ToolError("There is no such HTTP method.")
        given = {name.lower(): value for name, value in (headers or {}).items() if name.lower() not in _OURS}
        defaults = {"accept": "*/*", "user-agent": USER_AGENT}
        if json is not None:
            content = json_module.dumps(json).encode()
            defaults["content-type"] = "application/json"
        return cls(method.upper(), read_url(url, params), defaults | given, content)

    @property
    def origin(self) -> Origin:
        """Where it goes."""
        return Origin.of(self.url)

    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers as they are sent, with those of the frame. ToolError for one that cannot be."""
        frame = {"host": self.url.netloc.decode("ascii"), "accept-encoding": "gzip"}
        if self.content is not None or self.method in ("POST", "PUT", "PATCH"):
            frame["content-length"] = str(len(self.content or b""))
        try:
            return [(name.encode("ascii"), value.encode()) for name, value in (frame | dict(self.headers)).items()]
        except UnicodeError:
            raise ToolError(f"The request to {self.origin} has a header that cannot be sent.") from None

    def redirected(self, status: int, location: str | None) -> "OutgoingRequest | None":
        """The request to send next, if the answer was a redirect. ToolError for one that is not to be followed."""
        if status not in _REDIRECTS or location is None:
            return None
        url = read_url(location, base=self.url)
        there = Origin.of(url)
        if self.url.scheme == "https" and url.scheme == "http":
            raise ToolError(f"{self.origin} redirects to {there}, which is not encrypted.")
        onward = replace(self, url=url)
        if (status == 303 and self.method != "HEAD") or (status in (301, 302) and self.method == "POST"):
            onward = onward._asking_only()
        return onward if _same_site(self.origin, there) else onward._for_anyone()

    def _asking_only(self) -> "OutgoingRequest":
        headers = {name: value for name, value in self.headers.items() if not name.startswith("content-")}
        return replace(self, method="GET", headers=headers, content=None)

    def _for_anyone(self) -> "OutgoingRequest":
        if self.content is not None:
            # It may hold keys as headers may, and without it the request would be another one.
            raise ToolError(f"The request's body is not sent to {self.origin}, to which another site redirects.")
        return replace(self, headers={name: value for name, value in self.headers.items() if name in _FOR_ANYONE})


def _same_site(here: Origin, there: Origin) -> bool:
    # The usual way from http to https counts as none.
    return here == there or (here == Origin("http", there.host, 80) and there == Origin("https", there.host, 443))
