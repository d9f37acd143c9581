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
        ("solve", "x = 1; x = 2", {}, "There is no solution."),
        ("solve", "x^5 - x + y = 0; y = 1", {}, "No solution was found, which does not mean that there is none."),
        ("solve", "exp(x) + y = 0; y = 1; x = 5", {}, "No solution was found, which does not mean that there is none."),
        ("solve", "x^2 + 2", {}, "x = -sqrt(2)*I (≈ -1.4142135623731*I)\nx = sqrt(2)*I (≈ 1.4142135623731*I)"),
        ("solve", "10**5000*x = 7", {}, "x ≈ 7e-5000"),
        ("solve", "ax = b", {"variable": "ax"}, "ax = b"),
        ("evaluate", "(1 + 2I)*3.5", {}, "7/2 + 7*I\n≈ 3.5 + 7*I"),
        ("evaluate", "(1 - 2I)*pi", {}, "pi*(1 - 2*I)\n≈ 3.14159265358979 - 6.28318530717959*I"),
        ("evaluate", "10**20/3", {}, "100000000000000000000/3\n≈ 3.33333333333333e+19"),
        ("evaluate", "0.1 + 0.2", {}, "3/10\n≈ 0.3"),
        ("evaluate", "2**100", {}, "1267650600228229401496703205376\n≈ 1.26765060022823e+30"),
        ("evaluate", "-oo", {}, "-oo"),
        (
            "evaluate",
            "1/0",
            {},
            "This is undefined: there is a division by zero in it, or a difference of infinities.",
        ),
        ("factor", "1", {}, "1"),
        (
            "limit",
            "abs(x)/x",
            {"point": 0},
            "The limit does not exist since left hand limit = -1 and right hand limit = 1.",
        ),
        ("limit", "sin(x)", {"point": "oo"}, "There is no limit: the values stay between -1 and 1."),
        ("limit", "1/x", {"point": 0}, "There is no limit: the values grow without bound."),
        ("integrate", "x^x", {}, "No closed form was found.\nIntegral(x**x, x)\n(up to a constant)"),
        (
            "integrate",
            "sin(sin(x))",
            {"lower": 0, "upper": 1},
            "No closed form was found.\nIntegral(sin(sin(x)), (x, 0, 1))\n≈ 0.430606103120691",
        ),
        ("integrate", "3", {}, "3*x\n(up to a constant)"),
        ("series", "1/x", {"point": 1, "order": 2}, "2 - x + O((x - 1)**2, (x, 1))"),
        ("differentiate", "x^3", {"order": 2}, "6*x"),
        ("differentiate", "x*y", {"variable": "x, y"}, "1"),
        ("differentiate", "x*y^2", {"variable": "y", "order": 2}, "2*x"),
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


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2x^2 + 3(x+1)(x-2)", "2*x**2 + (x - 2)*(3*x + 3)"),
        ("6 × 2 ÷ 4 − 1", "2"),
        ("√(4)·π", "2*pi"),
        ("（x＋1）²", "(x + 1)**2"),
        ("[x y]^3", "x**3*y**3"),
        ("e^(I*pi)", "-1"),
        ("2exp(0) + 1e3x + .5", "1000*x + 5/2"),
        ("007 + 0", "7"),
        ("+x - -1", "x + 1"),
        ("2**3**2 % 7", "1"),
        ("log(8, 2) + log10(100) + ln(e)", "6"),
        ("arcsin(1) + atan2(0, 1) + root(8, 3) + cbrt(27)", "pi/2 + 5"),
        ("gcd(12, 18, 4) + lcm(4, 6) + max(1, 2) + min(3, 4)", "19"),
        ("binomial(5, 2) + factorial(3) + gamma(4) + mod(7, 4)", "25"),
        ("factorial(n) + binomial(n, k)", "binomial(n, k) + factorial(n)"),
        ("abs(-3) + Abs(2) + ceil(1.2) + floor(1.8)", "8"),
        ("1**(10**50) + (-1)**(10**9)", "2"),
        ("alpha_1 + 变量", "alpha_1 + 变量"),
        ("1" + "+1" * 900, "901"),
    ],
)
def test_it_is_read_as_it_is_meant(written: str, meant: str) -> None:
    assert solve("evaluate", written).splitlines()[0] == meant


def test_what_has_no_exact_solution_is_solved_by_steps() -> None:
    note = "(No exact solution is known. These are numerical; there may be others.)"
    assert solve("solve", "cos(x) = x") == f"x ≈ 0.739085133215161\n{note}"
    assert solve("solve", "sin(x) = x/3") == f"x ≈ -2.27886266007583\nx ≈ 0\nx ≈ 2.27886266007583\n{note}"
    assert solve("solve", "sin(x) = x/3", point=2) == f"x ≈ 2.27886266007583\n{note}"


def test_roots_that_radicals_cannot_write_are_found() -> None:
    found = solve("solve", "x^5 - x + 1 = 0").splitlines()
    assert len(found) == 5
    assert found[0] == "x = CRootOf(x**5 - x + 1, 0) (≈ -1.16730397826142)"


def test_what_is_very_long_is_cut() -> None:
    digits = solve("evaluate", "-factorial(5000)").splitlines()
    assert digits[0].startswith("-42285779266055435222010642002335844053907866746266")
    assert digits[0].endswith("... (the first 1,000 of 16,326 digits)")
    assert len(digits[0]) < 1100
    assert digits[1] == "≈ -4.22857792660554e+16325"
    assert solve("evaluate", "10**5000 - 1").startswith("9" * 1000 + "... (the first 1,000 of 5,000 digits)")
    assert solve("evaluate", "10**5000").startswith("1" + "0" * 999 + "... (the first 1,000 of 5,001 digits)")
    assert solve("evaluate", "1.0001**365") == "≈ 1.03717241130255\n(The exact number is too long to be told.)"
    assert solve("expand", "(a+b+c)^50").endswith(" more characters)")
    assert solve("solve", "x^60 = 1").endswith("(and 10 more)")


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
        ("evaluate", "x", {"variable": "x", "point": "1" * 3000}, "longer than 2,000 characters"),
        ("evaluate", "pi**(10**8)", {}, "a power in it that is too large"),
        ("evaluate", "2**(10**400)", {}, "a power in it that is too large"),
        ("evaluate", "binomial(10**50, 10**5)", {}, "a binomial coefficient in it that is too large"),
        ("evaluate", "gamma(10**6)", {}, "Factorials"),
        ("evaluate", "1e401", {}, "exponent of 1e401 is too large"),
        ("evaluate", "sin x", {}, "'sin' is a function"),
        ("evaluate", "f(x)", {}, "There is no function 'f'"),
        ("evaluate", "sin(1, 2)", {}, r"sin\(\) has 1 arguments"),
        ("evaluate", "log()", {}, r"log\(\) has 1 to 2 arguments"),
        ("evaluate", "1, 2", {}, "Only numbers, variables"),
        ("evaluate", "1 000", {}, "'1 000' is no expression"),
        ("evaluate", "7 % 0", {}, "cannot be worked out: Modulo by zero"),
        ("evaluate", "(" * 500 + "x" + ")" * 500, {}, "is no expression"),
        ("evaluate", "-" * 1500 + "1", {}, "nested too deeply"),
        ("evaluate", "x", {"point": "y = 1"}, "'y = 1' is an equation"),
        ("solve", "x = 1", {"variable": "pi"}, "'pi' is no variable"),
        ("solve", "x = y = 1", {}, "one '=' in an equation"),
        ("solve", "x + y = 1", {}, "Say in 'variable' for which of x, y"),
        ("solve", ";", {}, "The expression is empty"),
        ("expand", "x; y", {}, "Only 'solve' takes equations"),
        ("differentiate", "x*y", {"variable": "x, y", "order": 2}, "Repeat a variable"),
    ],
)
def test_what_cannot_be_worked_out_says_why(operation: str, expression: str, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArguments, match=said):
        solve(operation, expression, **more)


@pytest.mark.parametrize(
    ("operation", "expression", "said"),
    [
        ("solve", "exp(x) = -x^2 - 5", "no numerical one was found; give a 'point'"),
        ("solve", "x = cos(x) + a", "could not be worked out: multiple generators"),
        ("solve", "sqrt(x) = cos(x)", "no numerical one was found"),
        ("expand", "(x + 10**5000)^2", "too long to be told"),
    ],
)
def test_what_sympy_cannot_do_is_told(operation: str, expression: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        solve(operation, expression, variable="x", point=-5)


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
