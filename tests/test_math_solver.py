"""Symbolic mathematics: what is worked out, what is refused before it is tried, and that no text is run as code."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.base import ToolContext
from tools.errors import InvalidArguments, ToolError
from tools.executor import Call, Executor
from tools.math_solver import MathSolver
from tools.settings import Wishes
from tools.toolbox import Toolbox
from tools.workers import Workers


def solve(operation: str, expression: str, **more: Any) -> str:
    return MathSolver().call({"operation": operation, "expression": expression, **more})


@pytest.mark.parametrize(
    ("operation", "expression", "more", "told"),
    [
        ("evaluate", "2^10 + sqrt(2)", {}, "sqrt(2) + 1024\n≈ 1025.41421356237"),
        ("evaluate", "x^2 + 1", {"point": 3}, "10"),
        ("simplify", "sin(x)**2 + cos(x)**2", {}, "1"),
        ("expand", "(x+1)^2", {}, "x**2 + 2*x + 1"),
        ("factor", "x^2 - 1", {}, "(x - 1)*(x + 1)"),
        ("factor", "360", {}, "2**3*3**2*5"),
        ("solve", "x^2 = 4", {}, "x = -2\nx = 2"),
        ("solve", "x + y = 3; x - y = 1", {"variable": "x, y"}, "x = 2, y = 1"),
        ("solve", "x = x", {}, "This holds for every value."),
        ("solve", "x = x + 1", {}, "There is no solution."),
        ("differentiate", "x^3", {"order": 2}, "6*x"),
        ("differentiate", "x*y", {"variable": "x, y"}, "1"),
        ("integrate", "x^2", {"lower": 0, "upper": "3"}, "9"),
        ("integrate", "2x", {}, "x**2\n(up to a constant)"),
        ("limit", "sin(x)/x", {"point": 0}, "1"),
        ("limit", "1/x", {"point": 0, "direction": "+"}, "oo"),
        ("series", "exp(x)", {"order": 4}, "1 + x + x**2/2 + x**3/6 + O(x**4)"),
        ("sum", "1/k^2", {"lower": 1, "upper": "oo"}, "pi**2/6\n≈ 1.64493406684823"),
    ],
)
def test_it_is_worked_out(operation: str, expression: str, more: dict[str, Any], told: str) -> None:
    assert solve(operation, expression, **more) == told


def test_what_has_no_exact_solution_is_solved_by_steps() -> None:
    assert "x ≈ 0.739085133215" in solve("solve", "cos(x) = x")


@pytest.mark.parametrize(
    ("operation", "expression", "more", "said"),
    [
        ("evaluate", "9**9**9**9", {}, "a power in it that is too large"),
        ("evaluate", "factorial(10**6)", {}, "Factorials"),
        ("evaluate", "", {}, "xpression"),
        ("evaluate", "x = 1", {}, "Only 'solve' takes equations"),
        ("sum", "k", {}, "needs 'lower' and 'upper'"),
        ("integrate", "x", {"lower": 0}, "Give both"),
        ("limit", "x", {}, "needs a 'point'"),
        ("differentiate", "x*y", {}, "Give one 'variable' of x, y"),
        ("solve", "1 = 2", {}, "no variable"),
        ("cube", "x", {}, "'cube' is not one of"),
        ("evaluate", "1" * 3000, {}, "too long"),
    ],
)
def test_what_cannot_be_worked_out_says_why(operation: str, expression: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArguments, match=said):
        solve(operation, expression, **more)


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('id')",
        "x.__class__",
        "().__class__.__mro__",
        "open('x')",
        "exec('1')",
        "lambda: 1",
        "[x for x in (1,)]",
        "f'{1}'",
        "x := 1",
        "sqrt.__globals__",
        "eval(1)",
        "globals()",
    ],
)
def test_a_text_is_never_run(expression: str) -> None:
    with pytest.raises(InvalidArguments):
        solve("evaluate", expression)


@given(st.text(alphabet="x1+-*/^(), =.;'_[]{}:eλ\n", max_size=30))
def test_whatever_is_written_there_is_a_result_or_a_sentence(expression: str) -> None:
    try:
        assert solve("expand", expression)
    except ToolError as error:
        assert error.message


async def test_what_takes_too_long_is_ended() -> None:
    workers = Workers()
    try:
        executor = Executor(Toolbox.holding(MathSolver()), workers)
        hard = '{"operation": "factor", "expression": "' + "1" + "0" * 120 + '7"}'
        wishes = Wishes(timeout_s=3, cache_enabled=False)
        result = await executor.execute(Call("call_1", "math_solver", hard), ToolContext(), wishes=wishes)
        assert result.status == "timeout"
    finally:
        await workers.aclose()
