"""`docs/compatibility.md` is complete and true, by OpenAI's published schema and by what a running Florette does."""

import json
from collections.abc import Iterator, Mapping, Sequence

import httpx
import pytest

import compatibility_page
from beyond import TAKEN, answer_complaint, request_complaint
from carriers import CARRIERS, FUNCTIONS, HI, PLAIN, TOOLS, TRIALS, Trial
from compatibility_page import Row
from conftest import Florette
from openai_schema import (
    ANSWER,
    CHUNK,
    DEFINITIONS,
    ERROR,
    MODELS,
    REQUEST,
    Json,
    complaint,
    fields,
    parts,
    reached,
    resolved,
    split_path,
)
from openai_values import example
from probing import CALL, Path, Prober, Telling, answer_classes, request_classes, values
from proxy import wire
from scripted import ScriptedUpstream
from steps import Says
from witness import CHAT

ROWS = compatibility_page.rows()
ROOTS = {"Requests": (REQUEST,), "Answers": (ANSWER, CHUNK, ERROR, MODELS)}


#: Part of the page -> the definitions that have a table of their own in it.
APART = {part: {schema for row in ROWS if row.part == part for schema in row.schemas} for part in ROOTS}


def _fields() -> Iterator[tuple[str, str, str]]:
    for part, roots in ROOTS.items():
        for definition in sorted({name for root in roots for name in reached(root, APART[part])}):
            yield from ((part, definition, path) for path in fields(DEFINITIONS[definition], APART[part]))


#: Part of the page, definition and path of every field that the schema has.
FIELDS = list(_fields())

STREAMED = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def calling(prober: Prober) -> Prober:
    """The prober, whose parrot makes a call."""
    prober.parrot.calls()
    return prober


# -- every field has a row ---------------------------------------------------------------------------------


def rows_of(part: str, definition: str, path: str) -> list[Row]:
    return [row for row in ROWS if (row.part == part and definition in row.schemas) and row.covers(path)]


def test_every_field_of_the_schema_has_one_row() -> None:
    assert [(*field, len(rows_of(*field))) for field in FIELDS if len(rows_of(*field)) != 1] == []


def test_no_row_of_the_schema_is_made_up() -> None:
    for row in ROWS:
        for schema in row.schemas:
            paths = [path for part, definition, path in FIELDS if (part, definition) == (row.part, schema)]
            for name in row.fields:
                assert any(path == name or path.startswith(name.removesuffix("*")) for path in paths), (schema, name)


def _models(model: type[wire.Open]) -> Iterator[type[wire.Open]]:
    for inner in model.__subclasses__():
        yield inner
        yield from _models(inner)


@pytest.mark.parametrize("model", list(_models(wire.Open)), ids=lambda model: model.__name__)
def test_what_our_models_read_is_used_on_the_page(model: type[wire.Open]) -> None:
    acted_on = [row for row in ROWS if row.part == "Requests" and row.columns and row.columns[0] & {"used", "refused"}]
    assert model.model_fields.keys() <= {split_path(path)[-1] for row in acted_on for path in row.fields}


# -- and does what it says: requests -----------------------------------------------------------------------


def schema_of(schema: Json, field: str) -> Json | None:
    """That of a field of the schema's own, whatever it is made of."""
    inside = list(parts(resolved(schema)))
    found = [inner if step == field else schema_of(inner, field) for step, inner in inside if step in ("", field)]
    return next(filter(None, found), None)


def trials(definition: str, path: str) -> list[Trial]:
    field, *rest = split_path(path)
    told = [trial for trial in TRIALS.get((definition, field), ()) if values(trial.value, rest)]
    schema = schema_of(DEFINITIONS[definition], field)
    assert schema is not None
    return told or [Trial(example(schema, rest, field))]


def tried(definition: str, path: str, trial: Trial, *, tools: bool) -> tuple[Json, Path]:
    """A request with the field, and where it stands."""
    carrier = CARRIERS[definition]
    body = {**PLAIN, **carrier.request, **trial.request}
    if tools:
        body = {**(carrier.tools if trial.tools is None else trial.tools), **body}
    body = json.loads(json.dumps(body))
    first, *_ = split_path(path)
    [owner] = values(body, carrier.path)
    owner[first] = trial.value
    return body, (*carrier.path, *split_path(path))


@pytest.mark.parametrize(
    ("definition", "path"), [field[1:] for field in FIELDS if field[0] == "Requests"], ids=lambda value: value
)
def test_a_field_of_a_request_becomes_what_the_page_says(calling: Prober, definition: str, path: str) -> None:
    [row] = rows_of("Requests", definition, path)
    for column, tools in zip(row.columns, (True, False), strict=True):
        found: set[str] = set()
        for trial in trials(definition, path):
            body, where = tried(definition, path, trial, tools=tools)
            found |= becomes(calling, row, body, where, tools=tools)
        assert found == column, f"{'with' if tools else 'without'} tools"


def becomes(prober: Prober, row: Row, body: Json, where: Path, *, tools: bool) -> set[str]:
    found, seen = request_classes(prober, body, where, rewritten=tools and where[0] == "messages")
    if "refused" in found:
        assert any(quote in seen.error["message"] for quote in row.quotes), seen.error
        assert seen.error["param"].startswith(str(where[0]))
    elif not tools and seen.sent is not None and seen.sent["messages"] != body["messages"]:
        return {"-"}
    return found


# -- fields that the schema does not have ------------------------------------------------------------------

#: The tables of the page that follow no schema: field -> a request with it.
FURTHER: Mapping[str, Mapping[str, Json]] = {
    "vLLM's own fields": {
        "structured_outputs": {"structured_outputs": {"regex": "(yes|no)"}},
        "chat_template_kwargs": {"chat_template_kwargs": {"enable_thinking": False}},
        "chat_template": {"chat_template": "{{ messages }}"},
        "continue_final_message": {"continue_final_message": True, "add_generation_prompt": False},
        "echo": {"echo": True},
        "add_generation_prompt": {"add_generation_prompt": False},
        "include_stop_str_in_output": {"include_stop_str_in_output": True, "stop": [*"abc", "Well."]},
        "stop_token_ids": {"stop_token_ids": [7]},
        "min_tokens": {"min_tokens": 1},
        "ignore_eos": {"ignore_eos": True},
        "skip_special_tokens": {"skip_special_tokens": False},
        "top_k": {"top_k": 20},
        "min_p": {"min_p": 0.1},
        "repetition_penalty": {"repetition_penalty": 1.1},
        "bad_words": {"bad_words": ["bad"]},
        "thinking_token_budget": {"thinking_token_budget": 100},
        "include_reasoning": {"include_reasoning": False},
        "truncate_prompt_tokens": {"truncate_prompt_tokens": 100},
        "priority": {"priority": 1},
        "cache_salt": {"cache_salt": "salt"},
        "return_token_ids": {"return_token_ids": True},
        "return_prompt_text": {"return_prompt_text": True},
        "stream_options.continuous_usage_stats": {
            "stream": True,
            "stream_options": {"include_usage": False, "continuous_usage_stats": True},
        },
        "messages[].reasoning_content": {"messages": [HI, {"role": "assistant", "reasoning_content": "Hm."}, HI]},
    },
    "Florette's own fields": {
        f"tools[].function.{name}": {"tools": [{"type": "function", "function": {"name": "f", name: "f_in_prompts"}}]}
        for name in ("name_for_model", "name_for_human", "args_format")
    }
    | {"florette": {"florette": {"events": True}}},
}


@pytest.mark.parametrize("section", FURTHER)
def test_what_no_schema_tells_is_tried_all_the_same(section: str) -> None:
    told = [name for row in ROWS if row.section == section for name in row.fields]
    assert sorted(told) == sorted(FURTHER[section])


@pytest.mark.parametrize(
    ("section", "path"), [(section, path) for section in FURTHER for path in FURTHER[section]], ids=str
)
def test_a_further_field_of_a_request_becomes_what_the_page_says(calling: Prober, section: str, path: str) -> None:
    [row] = [row for row in ROWS if row.section == section and row.covers(path)]
    for column, tools in zip(row.columns, (True, False), strict=True):
        body = {**PLAIN, **({"tools": TOOLS} if tools else {}), **FURTHER[section][path]}
        assert becomes(calling, row, body, split_path(path), tools=tools) == column, (
            f"{'with' if tools else 'without'} tools"
        )


def test_a_field_that_nobody_knows_is_passed_on(calling: Prober) -> None:
    for tools in ({}, {"tools": TOOLS}):
        assert request_classes(calling, {**PLAIN, **tools, "zq": 1}, ("zq",), rewritten=False)[0] == {"passed on"}


def test_a_model_that_sees_is_passed_the_whole_part(florette: Florette, upstream: ScriptedUpstream) -> None:
    part = example(DEFINITIONS["ChatCompletionRequestMessageContentPartImage"], ())
    upstream.script(Says("A cat."))
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}], "tools": TOOLS}
    httpx.post(florette(vision=True) + CHAT, json=body)
    assert part in upstream.received[0].json["messages"][-1]["content"]


# -- what is taken although OpenAI's schema does not allow it ----------------------------------------------


def test_what_is_taken_besides_is_on_the_page() -> None:
    assert [row.first for row in ROWS if row.section == "More than OpenAI takes"] == list(TAKEN)


@pytest.mark.parametrize("what", TAKEN)
def test_what_is_taken_besides_is_taken_and_is_not_openais(calling: Prober, what: str) -> None:
    request = TAKEN[what].request
    assert complaint(REQUEST, request)
    assert request_complaint(request) is None
    assert calling.ask(request).status == 200


# -- answers -----------------------------------------------------------------------------------------------

#: vLLM's fields of an answer, beside OpenAI's.
OF_THE_ANSWER = {"prompt_token_ids": [1, 2], "prompt_logprobs": [{"1": {"logprob": -1.0}}], "prompt_text": "hi"}
OF_THE_CHOICE = {"token_ids": [3, 4], "stop_reason": "END"}

WORDS = "It is 21 degrees."
THOUGHT = "<think>Hm.</think>It rains."

#: What a caller asks; what an upstream says that sends every field there is, and one that sends next to none; and a
#: field that the first has in the place of others that exclude it.
SAYINGS: list[tuple[Json, str, str, str]] = [
    ({"tools": TOOLS}, WORDS, THOUGHT, "id"),
    ({"tools": TOOLS}, CALL, CALL, "moderation.input.code"),
    ({"functions": FUNCTIONS}, CALL, CALL, "moderation.output.code"),
    ({"tools": TOOLS, "parallel_tool_calls": False}, CALL, CALL + CALL, "id"),
]


def answer_with_all(text: str, having: str = "id") -> Json:
    """An answer with every field."""
    made: Json = example(DEFINITIONS[ANSWER], split_path(having))
    [choice] = made["choices"]
    choice |= {"index": 0, "finish_reason": "content_filter", **OF_THE_CHOICE}
    choice["message"] |= {"content": text, "reasoning": "Hm?"}
    return {**made, **OF_THE_ANSWER}


def chunks_with_all(text: str, having: str = "id") -> list[Json]:
    """The chunks of an answer with every field."""
    made: Json = {**example(DEFINITIONS[CHUNK], split_path(having)), **OF_THE_ANSWER}
    [choice] = made["choices"]
    usage = made.pop("usage")
    choice |= {"index": 0, "finish_reason": None, **OF_THE_CHOICE}
    choice["delta"] |= {"content": text, "reasoning": "Hm?"}
    last = {"index": 0, "delta": {}, "finish_reason": "content_filter"}
    return [made, {**made, "choices": [last], "usage": usage}]


@pytest.fixture(scope="module")
def tellings(prober: Prober) -> dict[str, list[Telling]]:
    """What upstreams send and callers are told, for each kind of answer."""
    parrot = prober.parrot
    found: dict[str, list[Telling]] = {ANSWER: [], CHUNK: []}
    for asked, text, bare_text, having in SAYINGS:
        bodies = {ANSWER: {**PLAIN, **asked}, CHUNK: {**PLAIN, **asked, **STREAMED}}
        parrot.whole, parrot.chunks, parrot.ends = answer_with_all(text, having), chunks_with_all(text, having), True
        sent = {ANSWER: [parrot.whole], CHUNK: parrot.chunks}
        told = {kind: prober.told(body) for kind, body in bodies.items()}
        parrot.whole = {"choices": [{"message": {"content": bare_text}}]}
        parrot.chunks = [{"choices": [{"delta": {"content": bare_text}}]}, {"choices": [{"finish_reason": "stop"}]}]
        # What is not wanted behind one call is not waited for: then its usage is not known.
        parrot.ends = "parallel_tool_calls" not in asked
        bare_sent = {ANSWER: [parrot.whole], CHUNK: parrot.chunks}
        for kind, body in bodies.items():
            found[kind].append(Telling(sent[kind], told[kind], bare_sent[kind], prober.told(body)))
    return {**found, ERROR: [_errors(prober)], MODELS: [_list_of_models(prober)]}


def _errors(prober: Prober) -> Telling:
    parrot = prober.parrot
    sent: list[Json] = [example(DEFINITIONS[ERROR], ()), {}]
    parrot.whole, parrot.status = sent[0], 404
    told = prober.told(PLAIN)
    parrot.whole, parrot.status = sent[1], 500
    bare_told = prober.told(PLAIN)
    parrot.status = 200
    return Telling(sent[:1], told, sent[1:], bare_told)


def _list_of_models(prober: Prober) -> Telling:
    prober.parrot.whole = example(DEFINITIONS[MODELS], ())
    told = prober.http.get("/v1/models").json()
    assert answer_complaint(MODELS, told) is None
    return Telling([prober.parrot.whole], [told], [], [])


#: Where each definition of an answer stands in which kind of answer.
PLACES = [
    (definition, root, before)
    for root in ROOTS["Answers"]
    for definition, places in reached(root, APART["Answers"]).items()
    for before in places
]


@pytest.mark.parametrize(("definition", "path"), [field[1:] for field in FIELDS if field[0] == "Answers"], ids=str)
def test_a_field_of_an_answer_is_what_the_page_says(
    tellings: Mapping[str, Sequence[Telling]], definition: str, path: str
) -> None:
    [row] = rows_of("Answers", definition, path)
    found = {
        word
        for standing, root, before in PLACES
        if standing == definition
        for telling in tellings[root]
        for word in answer_classes(telling, split_path(f"{before}.{path}"))
    }
    assert (found or {"left out"}) == row.columns[0]


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.section.startswith("Fields of the answer")], ids=lambda row: row.first
)
def test_a_further_field_of_an_answer_is_what_the_page_says(
    tellings: Mapping[str, Sequence[Telling]], row: Row
) -> None:
    [path] = row.fields
    told = [telling for root in (ANSWER, CHUNK) for telling in tellings[root]]
    assert {word for telling in told for word in answer_classes(telling, split_path(path))} == row.columns[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_without_tools_an_answer_is_told_as_it_came(calling: Prober, streamed: bool) -> None:
    calling.parrot.whole, calling.parrot.chunks = answer_with_all(WORDS), chunks_with_all(WORDS)
    told = calling.told({**PLAIN, "stream": streamed})
    assert told == (calling.parrot.chunks if streamed else [calling.parrot.whole])
