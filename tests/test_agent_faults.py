"""A thousand answers in which tools run, with faults by chance: each ends, and no call is lost or made twice.

An upstream plays a plan for each run; it finds the run by the user's words and the turn by counting. What it is sent in
a turn must hold every call of the turns before once, and a result for each.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from asking import tool
from conftest import Florette
from cutting import cut_text
from serving import HANG_S, LoopThread, serve_app
from steps import DONE, event
from tools.base import RetryableToolError, ToolContext, ToolError, register_tool

Json = dict[str, Any]

RUNS = 1000
CALLERS = 10

#: How a call of ours goes, and how often.
FAULTS = {"ok": 6, "error": 1, "again": 1, "bug": 1, "late": 1, "flood": 1, "chatter": 1, "unknown": 1, "invalid": 1}

#: How a turn of the upstream goes.
BREAKS = {"": 40, "status": 1, "cut": 1}

#: (run, number) -> how often the tool was called.
MADE: Counter[str] = Counter()


@register_tool("act_late")
async def act_late(call: str, how: str) -> str:
    """Never ends."""
    MADE[call] += 1
    await asyncio.Event().wait()
    return how


@register_tool("act")
async def act(call: str, how: str, context: ToolContext) -> str:
    """Acts as the plan says."""
    MADE[call] += 1
    match how:
        case "error":
            raise ToolError(f"no [{call}]")
        case "again":
            if MADE[call] == 1:
                raise RetryableToolError("busy")
        case "bug":
            raise KeyError(call)
        case "flood":
            return f"[{call}]" + "x" * 50_000
        case "chatter":
            for number in range(100):
                context.progress(f"{number}")
    return f"[{call}]"


@dataclass
class Plan:
    """What a model says in one run: for each turn its calls, (whose, which, how). Behind the last is an answer."""

    run: int
    turns: list[list[tuple[str, str, str]]]
    cut: int
    breaks: list[str]
    asked: int = 0
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, run: int) -> "Plan":
        chance = random.Random(run)  # noqa: S311 - a plan is no secret
        turns = []
        for turn in range(chance.randint(0, 4)):
            calls = []
            for number in range(chance.randint(1, 3)):
                whose = "mine" if chance.random() < 0.2 else "act"
                [how] = chance.choices(list(FAULTS), list(FAULTS.values()))
                calls.append((whose, f"{run}-{turn}-{number}", how))
            turns.append(calls)
        breaks = chance.choices(list(BREAKS), list(BREAKS.values()), k=len(turns) + 1)
        return cls(run, turns, chance.randint(1, 9), breaks)

    @property
    def breaks_down(self) -> bool:
        return any(self.breaks)

    def next(self, asked: Json) -> tuple[str, str]:
        """What the model says now, and how the upstream fails; what it was sent is looked at first."""
        turn, self.asked = self.asked, self.asked + 1
        self._look_at("".join(str(message["content"]) for message in asked["messages"]), turn)
        said = f"Turn {turn}.\n"  # a name that nobody has is a call at the start of a line only
        if turn < len(self.turns):
            said += "".join(_written(*call) for call in self.turns[turn]) + "✿RESULT✿"
        else:
            said = f"The end of {self.run}."
        return said, self.breaks[turn]

    def _look_at(self, prompt: str, turn: int) -> None:
        before = [call for calls in self.turns[:turn] for call in calls]
        for whose, call, how in before:
            if prompt.count(f'"call": "{call}"') != 1:
                self.complaints.append(f"{call} was told {prompt.count(call)} times in turn {turn}")
            if (how in ("ok", "again", "chatter", "error") or whose == "mine") and prompt.count(f"[{call}]") != 1:
                self.complaints.append(f"the result of {call} was told {prompt.count(f'[{call}]')} times")
        results = prompt.partition(f"run {self.run}.")[2].count("\n✿RESULT✿: ")
        if results != len(before):
            self.complaints.append(f"{results} results for {len(before)} calls in turn {turn}")


def _written(whose: str, call: str, how: str) -> str:
    name = {"unknown": "nobodys", "late": "act_late"}.get(how, whose) if whose == "act" else whose
    arguments: Json = {"call": call, "how": how}
    if how == "invalid" and whose == "act":
        arguments = {"call": call, "how": [1]}
    return f"✿FUNCTION✿: {name}\n✿ARGS✿: {json.dumps(arguments)}\n"


class Planned:
    """The upstream."""

    def __init__(self, plans: dict[int, Plan]) -> None:
        self._plans = plans
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "m", "max_model_len": 1_000_000}]})

    async def _answer(self, request: Request) -> Response:
        asked = await request.json()
        words = "".join(str(message["content"]) for message in asked["messages"])
        plan = self._plans[int(words.partition("This is run ")[2].partition(".")[0])]
        said, breaks = plan.next(asked)
        if breaks == "status":
            return JSONResponse({"error": {"message": "out of order"}}, 500)
        said = said.partition("✿RESULT✿")[0]
        if asked["stream"]:
            return StreamingResponse(_events(said, plan.cut, breaks), media_type="text/event-stream")
        if breaks == "cut":
            return Response(b'{"choices": [{"mess', media_type="application/json")
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "x", "model": "m", "choices": [choice], "usage": usage})


async def _events(said: str, cut: int, breaks: str) -> AsyncIterator[bytes]:
    pieces = cut_text(said, cut)
    for piece in pieces[: len(pieces) // 2] if breaks else pieces:
        yield event({"id": "x", "model": "m", "choices": [{"index": 0, "delta": {"content": piece}}]})
    if not breaks:
        yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        yield DONE


@dataclass
class Outcome:
    content: str = ""
    calls: list[Json] = field(default_factory=list)
    finish: str | None = None
    failed: bool = False


async def ask(http: httpx.AsyncClient, body: Json) -> Outcome:
    answer = await http.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return Outcome(failed=True)
    if not body["stream"]:
        [choice] = answer.json()["choices"]
        message = choice["message"]
        return Outcome(message["content"] or "", message.get("tool_calls") or [], choice["finish_reason"])
    outcome = Outcome(failed="data: [DONE]" not in answer.text)
    for line in answer.text.split("\n\n"):
        for choice in json.loads(line[6:]).get("choices", ()) if line.startswith("data: {") else ():
            delta = choice["delta"]
            outcome.content += delta.get("content") or ""
            outcome.finish = choice["finish_reason"] or outcome.finish
            for made in delta.get("tool_calls", ()):
                if "id" in made:
                    outcome.calls.append({"id": made["id"], "type": "function", "function": dict(made["function"])})
                else:
                    outcome.calls[made["index"]]["function"]["arguments"] += made["function"]["arguments"]
    return outcome


async def play(http: httpx.AsyncClient, plan: Plan) -> str:
    """One run, with as many requests as the caller's own tools need -> how it ended."""
    messages: list[Json] = [{"role": "user", "content": f"This is run {plan.run}."}]
    mine = tool("mine", {"type": "object", "properties": {"call": {"type": "string"}, "how": {"type": "string"}}})
    for _ in range(len(plan.turns) + 1):
        body = {"model": "assistant", "messages": messages, "tools": [mine], "stream": plan.run % 2 == 0}
        outcome = await ask(http, body)
        if outcome.failed:
            return "failed"
        if outcome.finish != "tool_calls":
            return outcome.content
        messages = [*messages, {"role": "assistant", "content": outcome.content, "tool_calls": outcome.calls}]
        for made in outcome.calls:
            named = json.loads(made["function"]["arguments"])["call"]
            messages.append({"role": "tool", "tool_call_id": made["id"], "content": f"[{named}]"})
    return "too many requests"


async def test_none_hangs_none_loses_or_doubles_a_call_and_each_ends(
    florette: Florette, loop_thread: LoopThread
) -> None:
    plans = {run: Plan.of(run) for run in range(RUNS)}
    MADE.clear()
    with serve_app(Planned(plans).app, loop_thread) as upstream:
        url = florette(
            upstream=f"{upstream}/v1",
            retries=0,
            tools=["act", {"name": "act_late", "timeout_s": 0.1}],
            models={"assistant": {"upstream_model": "m", "tools": ["act", "act_late"]}},
        )
        waiting = list(plans.values())
        ended: dict[int, str] = {}

        async def caller(http: httpx.AsyncClient) -> None:
            while waiting:
                plan = waiting.pop()
                ended[plan.run] = await play(http, plan)

        async with httpx.AsyncClient(base_url=url, timeout=HANG_S) as http, asyncio.TaskGroup() as callers:
            for _ in range(CALLERS):
                callers.create_task(caller(http))

    wrong = {run: plan.complaints for run, plan in plans.items() if plan.complaints}
    assert wrong == {}
    for run, plan in plans.items():
        if plan.breaks_down:
            assert ended[run] == "failed"
        else:
            assert ended[run].endswith(f"The end of {run}.")
            calls = [call for turn in plan.turns for call in turn if call[0] == "act"]
            made = {call: {"unknown": 0, "invalid": 0, "again": 2}.get(how, 1) for _, call, how in calls}
            assert {call: MADE[call] for call in made} == made
    assert sum(plan.breaks_down for plan in plans.values()) > RUNS / 100
