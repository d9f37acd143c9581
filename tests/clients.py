"""What the tests of the clients share: a conversation in two rounds, as a model says it.

Clients that are heavy, or that want other versions than those locked for continuous integration, have a venv of their
own, which `make test-clients` sets up. Elsewhere the modules that need them are skipped.
"""

import importlib
import os
from typing import Any

import pytest
from pydantic import BaseModel

from cutting import Cut
from scripted import ScriptedUpstream
from steps import Chunks, Says
from vllm_shapes import chunk, error

QUESTION = "How is it in Rome?"
ANSWER = "21, at 9."

ROME = '✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Rome"}\n'
CET = '✿FUNCTION✿: get_time\n✿ARGS✿: {"zone": "CET"}\n'

#: The end of the prompt that asks for the answer.
ANSWERED_FROM = f"{QUESTION}\n\nLook.{ROME}{CET}✿RESULT✿: 21 degrees in Rome\n✿RESULT✿: 9:00 CET\n✿RETURN✿"

#: A call that `max_tokens` cuts off.
CUT_OFF = Says('✿FUNCTION✿: get_weather\n✿ARGS✿: {"city": "Ro', cut=4, finish="length")


def rounds(cut: Cut = None) -> tuple[Says, Says]:
    """Text and two calls in parallel, then the answer."""
    return Says("Look.\n" + ROME + CET, cut=cut), Says(f": {ANSWER}", cut=cut)


def breaks(text: str = "Look.") -> Chunks:
    """An upstream that fails behind its first words."""
    return Chunks([chunk({"role": "assistant", "content": ""}), chunk({"content": text}), error("boom")])


def last_prompt(upstream: ScriptedUpstream) -> str:
    """The end of it. Some clients write the arguments of a call anew, without blanks: they are put back."""
    content: str = upstream.received[-1].json["messages"][-1]["content"]
    return content.replace('":"', '": "')


def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"21 degrees in {city}"


def get_time(zone: str) -> str:
    """Tell the time in a zone."""
    return f"9:00 {zone}"


class City(BaseModel):
    """A city."""

    name: str
    people: int


CITY = City(name="Rome", people=3)
CITY_TEXT = '{"name": "Rome", "people": 3}'


def apart(needs: str) -> None:
    """Skips the test module that calls it, unless `make test-clients` runs it."""
    if not os.environ.get("FLORETTE_TEST_CLIENTS"):
        pytest.skip(f"needs {needs}: make test-clients", allow_module_level=True)


def heavy(module: str) -> Any:
    """The module of a client with a venv of its own; elsewhere the test module that asks for it is skipped."""
    apart(module)
    return importlib.import_module(module)
