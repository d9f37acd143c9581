"""OpenAI's published schema: what of it is relaxed, and that whatever it allows is answered."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from beyond import NULL_IN_CHUNKS, answer_complaint
from openai_schema import CHUNK, DEFINITIONS, ERROR, REQUEST, Json, complaint, fields, split_path
from openai_values import example, instances
from probing import Prober, values, without

#: Values that fit together, as arbitrary ones hardly ever do.
_NAMES = st.sampled_from("fgh")
PREFERRED = {
    "name": _NAMES,
    "id": _NAMES,
    "tool_call_id": _NAMES,
    "stream": st.booleans(),
    "n": st.integers(1, 3),
    # Defined three times, once without null, and all of them hold.
    "top_logprobs": st.integers(0, 20),
}


@given(body=instances(DEFINITIONS[REQUEST], PREFERRED))
@settings(max_examples=200)
def test_no_request_that_openai_would_take_breaks_us(prober: Prober, body: Json) -> None:
    assert complaint(REQUEST, body) is None
    prober.parrot.calls()
    seen = prober.ask(body)
    if seen.status == 502:
        # The parrot says one thing, whatever is demanded and of however many choices.
        assert seen.error["code"] in ("tool_choice_not_met", "answer_not_met", "upstream_broken")
    else:
        assert seen.status in (200, 400)


def chunk() -> Json:
    made: Json = example(DEFINITIONS[CHUNK], ())
    return made


@pytest.mark.parametrize("definition", [name for name in DEFINITIONS if "allOf" not in DEFINITIONS[name]])
def test_an_example_has_the_field_that_is_wanted_and_is_valid(definition: str) -> None:
    for path in map(split_path, fields(DEFINITIONS[definition])):
        made = example(DEFINITIONS[definition], path)
        assert values(made, path)
        assert complaint(definition, made) is None


@pytest.mark.parametrize("path", NULL_IN_CHUNKS)
def test_only_what_the_schema_does_not_allow_is_relaxed(path: str) -> None:
    made = chunk()
    *before, field = split_path(path)
    for owner in values(made, before):
        owner[field] = None
    assert complaint(CHUNK, made)
    assert answer_complaint(CHUNK, made) is None


@pytest.mark.parametrize("path", ["id", "object", "created", "choices", "choices[].delta", "choices[].index"])
def test_a_chunk_that_lacks_a_field_is_found(path: str) -> None:
    """Or a schema that allows anything would pass all tests."""
    assert answer_complaint(CHUNK, without(chunk(), split_path(path)))


def test_other_breaches_of_the_schema_are_found() -> None:
    assert answer_complaint(CHUNK, {**chunk(), "usage": {"prompt_tokens": 1}})
    assert answer_complaint(CHUNK, {**chunk(), "created": "now"})
    assert answer_complaint(ERROR, {"error": {"message": "x", "type": "y", "param": None}})
    assert complaint(REQUEST, {"model": "m", "messages": []})


def spoilt(value: Any, chance: random.Random) -> Any:
    """The value, with something inside that is missing or another."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice([None, True, -1, 10**9, 0.5, "", "x" * 1000, [], [{}], {}, {"type": "function"}])
    at: Any = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
    made: Any = value.copy()
    if chance.random() < 0.2:
        del made[at]
    else:
        made[at] = spoilt(value[at], chance)
    return made


@given(body=instances(DEFINITIONS[REQUEST], PREFERRED), chance=st.randoms(use_true_random=False))
def test_the_code_made_from_the_schema_lets_nothing_pass_that_the_schema_does_not(
    body: Json, chance: random.Random
) -> None:
    made = spoilt(body, chance)
    allowed = Draft202012Validator({"$ref": f"#/$defs/{REQUEST}", "$defs": DEFINITIONS}).is_valid(made)
    assert (complaint(REQUEST, made) is None) == allowed
