"""The URL of a service, as an operator writes it among a tool's options."""

from typing import Annotated

import httpx
from pydantic import AfterValidator

from tools.destinations import read_url
from tools.errors import ToolError


def service_url(text: str) -> str:
    """The URL without a slash at its end, ready for a path. ValueError for one that no request could go to.

    >>> service_url("http://images:9000/v1/")
    'http://images:9000/v1'
    """
    try:
        url: httpx.URL = read_url(text)
    except ToolError as error:
        raise ValueError(error.message) from None
    if url.query or url.fragment:
        raise ValueError("must be a URL without a query or a fragment")
    return text.rstrip("/")


#: For the models of options.
ServiceUrl = Annotated[str, AfterValidator(service_url)]
