"""Structured output as a user of Instructor sees it. Run by `make test-clients`.

Source: instructor 1.17, which forces a call of a tool made of the pydantic model, and asks again when the arguments do
not fit it.
"""

from collections.abc import Iterable
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from clients import CITY, CITY_TEXT, QUESTION, City, breaks, heavy, last_prompt
from scripted import ScriptedUpstream
from steps import Says

instructor = heavy("instructor")
core = heavy("instructor.core")

pytestmark = pytest.mark.clients

ROME = CITY.model_dump()
CALL = f"✿FUNCTION✿: City\n✿ARGS✿: {CITY_TEXT}\n"
REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "max_retries": 0}

MODES = {"TOOLS": CALL, "JSON_SCHEMA": CITY_TEXT, "JSON": CITY_TEXT, "MD_JSON": f"```json\n{CITY_TEXT}\n```"}


def told(model: BaseModel) -> dict[str, Any]:
    """Its fields: the classes are of Instructor's own making."""
    return model.model_dump()


@pytest.mark.parametrize(("mode", "says"), MODES.items(), ids=list(MODES))
def test_a_model_comes_in_each_of_its_modes(
    client: openai.OpenAI, upstream: ScriptedUpstream, mode: str, says: str
) -> None:
    upstream.script(Says(says, cut=5))
    asking = instructor.from_openai(client, mode=instructor.Mode[mode])
    assert told(asking.create(**REQUEST, response_model=City)) == ROME


def test_a_streamed_model_fills_up_piece_by_piece(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(CALL.replace("City", "PartialCity"), cut=4))
    seen = list(instructor.from_openai(client).create_partial(**REQUEST, response_model=City))
    assert {each.name for each in seen} > {None, "Rome"}, "the name was meant to come in pieces"
    assert told(seen[-1]) == ROME


def test_a_streamed_list_comes_item_by_item(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(f'✿FUNCTION✿: IterableCity\n✿ARGS✿: {{"tasks": [{CITY_TEXT}, {CITY_TEXT}]}}\n', cut=4))
    seen = instructor.from_openai(client).create_iterable(**REQUEST, response_model=City)
    assert [told(each) for each in seen] == [ROME, ROME]


class Weather(BaseModel):
    """The weather in a city."""

    city: str


def test_parallel_calls_are_models_of_several_kinds(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(CALL + '✿FUNCTION✿: Weather\n✿ARGS✿: {"city": "Rome"}\n'))
    asking = instructor.from_openai(client, mode=instructor.Mode.PARALLEL_TOOLS)
    made = asking.create(**REQUEST, response_model=Iterable[City | Weather])
    assert [told(each) for each in made] == [ROME, {"city": "Rome"}]


def test_a_mistake_is_told_to_the_model_in_a_second_round(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(CALL.replace("3", '"many"')), Says(CALL))
    asking = instructor.from_openai(client)
    assert told(asking.create(**{**REQUEST, "max_retries": 1}, response_model=City)) == ROME
    assert "✿RESULT✿: Validation Error found:\n1 validation error for City" in last_prompt(upstream)


async def test_the_async_client_gets_the_same(async_client: openai.AsyncOpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(CALL), Says(CALL.replace("City", "PartialCity"), cut=4))
    asking = instructor.from_openai(async_client)
    assert told(await asking.create(**REQUEST, response_model=City)) == ROME
    seen = [each async for each in asking.create_partial(**REQUEST, response_model=City)]
    assert told(seen[-1]) == ROME


def test_a_call_cut_by_max_tokens_is_incomplete(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(Says(CALL[:-8], finish="length"))
    with pytest.raises(core.IncompleteOutputException):
        instructor.from_openai(client).create(**REQUEST, response_model=City)


def test_a_stream_that_breaks_is_an_error(client: openai.OpenAI, upstream: ScriptedUpstream) -> None:
    upstream.script(breaks('{"name"'))
    asking = instructor.from_openai(client, mode=instructor.Mode.JSON)
    with pytest.raises(core.InstructorRetryException, match="boom"):
        list(asking.create_partial(**REQUEST, response_model=City))
