"""Symbolic mathematics by sympy: exact results, and their decimals.

Synchronous, so that what takes too long or too much memory is ended with the process it runs in.

Source: sympy's documentation; `tools.formulas` for what can be written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from types import MappingProxyType
from typing import Any

import sympy  # type: ignore[import-untyped]
from sympy.polys.polyerrors import BasePolynomialError  # type: ignore[import-untyped]

from tools.base import BaseTool, InvalidArguments, ToolError, register_tool
from tools.formulas import MAX_CHARS, SYMPY_ERRORS, Formula, read_expression, read_formula, read_variable
from tools.math_results import decimal, exact, told, told_value

#: Nobody reads more solutions.
_MAX_SOLUTIONS = 50

#: Where Newton's method begins, when nobody says; and how many steps it may take: each doubles the digits, or
#: gives one more bit where a root is a double one.
_BEGINNINGS = (0.5, -0.5, 2, -2, 10, -10)
_STEPS = 100

#: So exactly are numbers worked out there, with digits to spare.
_DIGITS = 30
_NEAR = 1e-18

#: Two roots that are nearer to each other are one.
_SAME = 1e-9

_PARAMETERS = {
    "type": "object",
    "properties": {
        "operation": {
            "type": "string",
            "enum": [
                *("evaluate", "simplify", "expand", "factor", "solve"),
                *("differentiate", "integrate", "limit", "series", "sum"),
            ],
            "description": "'integrate' and 'sum' take 'lower' and 'upper'; 'limit' and 'series', a 'point'.",
        },
        "expression": {
            "type": "string",
            "maxLength": MAX_CHARS,
            "description": "For example 2*x**2 + sin(pi/3). For 'solve' an equation such as x^2 = 4, or several,"
            " separated by ';'. log is the natural logarithm, log10 the decimal one; e, pi, I and oo are constants.",
        },
        "variable": {
            "type": "string",
            "maxLength": 200,
            "description": "The variable, or several as 'x, y'; it can be left out where there is only one.",
        },
        "lower": {"type": ["string", "number"], "description": "The lower bound of an integral or a sum."},
        "upper": {"type": ["string", "number"], "description": "The upper bound; oo is infinity."},
        "point": {
            "type": ["string", "number"],
            "description": "Where the limit is taken, or around what the series is (0 if left out); for 'evaluate' the"
            " variable's value; for 'solve' about where a numerical solution is sought, if there is no exact one.",
        },
        "order": {
            "type": "integer",
            "minimum": 1,
            "maximum": 30,
            "description": "Of a derivative (1 if left out), or up to which a series goes (6 if left out).",
        },
        "direction": {
            "type": "string",
            "enum": ["both", "+", "-"],
            "description": "Of a limit: '+' from above, '-' from below ('both' if left out).",
        },
    },
    "required": ["operation", "expression"],
    "additionalProperties": False,
}


@register_tool("math_solver")
class MathSolver(BaseTool):
    """Solves one problem."""

    description = (
        "Does exact mathematics: evaluates, simplifies, expands and factors expressions, solves equations and systems"
        " of them, and finds derivatives, integrals, limits, series and sums. Tells the exact result and its decimals."
    )
    parameters = _PARAMETERS
    cacheable = True
    private = False

    def call(self, params: Any, **kwargs: Any) -> str:
        """See BaseTool."""
        arguments = self.validate_parameters(params)
        try:
            return _OPERATIONS[arguments["operation"]](_Problem.of(arguments))
        except SYMPY_ERRORS as error:
            said = " ".join(str(error).split())[:200]
            raise ToolError(f"This could not be worked out{f': {said}' if said else ''}.") from None


@dataclass(frozen=True, slots=True)
class _Problem:
    """The arguments, read."""

    formulas: Sequence[Formula]
    variables: Sequence[Any]
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "_Problem":
        parts = [part for part in arguments["expression"].replace("；", ";").split(";") if part.strip()]
        names = arguments.get("variable", "").replace("，", ",").split(",")
        variables = [read_variable(name) for name in names if name.strip()]
        return cls([read_formula(part) for part in parts or [""]], variables, arguments)

    def expression(self) -> Any:
        """The one expression. InvalidArguments if it is an equation, or more than one."""
        if len(self.formulas) > 1 or self.formulas[0].is_equation:
            raise InvalidArguments("Only 'solve' takes equations; give one expression without '='.")
        return self.formulas[0].left

    def variable(self) -> Any:
        """The one variable. InvalidArguments if it has to be told."""
        if len(self.variables) == 1:
            return self.variables[0]
        free = self.free()
        if len(free) > 1 or self.variables:
            raise InvalidArguments(f"Give one 'variable' of {', '.join(map(str, free))}.")
        return free[0] if free else sympy.Symbol("x")

    def free(self) -> list[Any]:
        """The variables that occur, by name."""
        sides = [side for formula in self.formulas for side in (formula.left, formula.right) if side is not None]
        return sorted(set[Any]().union(*(side.free_symbols for side in sides)), key=str)

    def value(self, name: str) -> Any:
        """A parameter that is an expression; None if it is not given."""
        return read_expression(str(self.arguments[name])) if name in self.arguments else None

    def bounds(self) -> tuple[Any, Any] | None:
        """`lower` and `upper`; None without either. InvalidArguments if one is missing."""
        lower, upper = self.value("lower"), self.value("upper")
        if (lower is None) != (upper is None):
            raise InvalidArguments("Give both 'lower' and 'upper', or neither.")
        return None if lower is None else (lower, upper)


# -- operations --------------------------------------------------------------------------------------------


def _evaluate(problem: _Problem) -> str:
    expression, point = problem.expression(), problem.value("point")
    return told(expression if point is None else expression.subs(problem.variable(), point))


def _simplify(problem: _Problem) -> str:
    return told(sympy.simplify(problem.expression()))


def _expand(problem: _Problem) -> str:
    return told(sympy.expand(problem.expression()))


def _factor(problem: _Problem) -> str:
    expression = problem.expression()
    if expression.is_Integer and expression != 0:
        primes = sympy.factorint(expression).items()
        return "*".join(f"{prime}**{power}" if power > 1 else str(prime) for prime, power in primes) or "1"
    return told(sympy.factor(expression))


def _differentiate(problem: _Problem) -> str:
    expression, order = problem.expression(), problem.arguments.get("order", 1)
    if len(problem.variables) > 1:
        if order > 1:
            raise InvalidArguments("Repeat a variable instead of giving an 'order', as in 'x, x, y'.")
        return told(sympy.diff(expression, *problem.variables))
    return told(sympy.diff(expression, problem.variable(), order))


def _integrate(problem: _Problem) -> str:
    bounds, variable = problem.bounds(), problem.variable()
    if bounds is None:
        return f"{told(sympy.integrate(problem.expression(), variable))}\n(up to a constant)"
    return told(sympy.integrate(problem.expression(), (variable, *bounds)))


def _sum(problem: _Problem) -> str:
    bounds = problem.bounds()
    if bounds is None:
        raise InvalidArguments("A sum needs 'lower' and 'upper'.")
    return told(sympy.summation(problem.expression(), (problem.variable(), *bounds)))


def _limit(problem: _Problem) -> str:
    point = problem.value("point")
    if point is None:
        raise InvalidArguments("A limit needs a 'point'; oo is infinity.")
    direction = problem.arguments.get("direction", "both")
    try:
        found = sympy.limit(problem.expression(), problem.variable(), point, "+-" if direction == "both" else direction)
    except ValueError as error:  # sympy's word for two sides with a limit each
        return f"{error}."
    if isinstance(found, sympy.AccumBounds):
        return f"There is no limit: the values stay between {exact(found.min)} and {exact(found.max)}."
    if found is sympy.zoo:
        return "There is no limit: the values grow without bound."
    return told(found)


def _series(problem: _Problem) -> str:
    point = problem.value("point")
    around = sympy.Integer(0) if point is None else point
    return told(sympy.series(problem.expression(), problem.variable(), around, problem.arguments.get("order", 6)))


def _solve(problem: _Problem) -> str:
    equations = [formula.difference for formula in problem.formulas]
    variables = problem.variables or problem.free()
    if not variables:
        raise InvalidArguments("There is no variable in it; use 'evaluate' for what has none.")
    if not problem.variables and len(variables) > max(1, len(equations)):
        raise InvalidArguments(f"Say in 'variable' for which of {', '.join(map(str, variables))} to solve.")
    if all(sympy.simplify(equation) == 0 for equation in equations):
        return "This holds for every value."
    try:
        # One equation by itself: as a system of one, sympy misses the roots that radicals cannot write.
        solutions = sympy.solve(equations if len(equations) > 1 else equations[0], variables, dict=True)
    except NotImplementedError:
        if len(equations) > 1 or problem.free() != list(variables):
            raise
        return _solve_by_steps(equations[0], variables[0], problem.value("point"))
    if not solutions:
        return _without_solution(equations, variables)
    more = len(solutions) - _MAX_SOLUTIONS
    told = [", ".join(starmap(told_value, solution.items())) for solution in solutions[:_MAX_SOLUTIONS]]
    return "\n".join([*told, f"(and {more} more)"] if more > 0 else told)


def _without_solution(equations: Sequence[Any], variables: Sequence[Any]) -> str:
    # Of a system, sympy also finds none where it cannot write it down. Hilbert's Nullstellensatz: if 1 is a sum of
    # multiples of the polynomials, there is none, and otherwise there is one.
    try:
        is_sure = len(equations) == 1 or sympy.groebner(equations, *variables).exprs == [1]
    except BasePolynomialError:
        is_sure = False
    return "There is no solution." if is_sure else "No solution was found, which does not mean that there is none."


_OPERATIONS: Mapping[str, Callable[[_Problem], str]] = MappingProxyType(
    {
        "evaluate": _evaluate,
        "simplify": _simplify,
        "expand": _expand,
        "factor": _factor,
        "solve": _solve,
        "differentiate": _differentiate,
        "integrate": _integrate,
        "limit": _limit,
        "series": _series,
        "sum": _sum,
    }
)


# -- numerical solutions -----------------------------------------------------------------------------------


def _solve_by_steps(equation: Any, variable: Any, point: Any) -> str:
    beginnings = _BEGINNINGS if point is None else (point,)
    roots: list[Any] = []
    for beginning in beginnings:
        root = _newton(equation, variable, beginning)
        if root is not None and all(abs(root - other) > _SAME for other in roots):
            roots.append(root)
    if not roots:
        raise ToolError("No exact solution is known, and no numerical one was found; give a 'point' near one.")
    told = [f"{variable} ≈ {decimal(root)}" for root in sorted(roots)]
    return "\n".join([*told, "(No exact solution is known. These are numerical; there may be others.)"])


def _newton(equation: Any, variable: Any, beginning: Any) -> Any:
    # The real root to which it leads from there; None if to none.
    step = equation / sympy.diff(equation, variable)
    place = sympy.N(beginning, _DIGITS)
    for _ in range(_STEPS):
        change = sympy.N(step.subs(variable, place), _DIGITS)
        if not (change.is_Float or change.is_zero):
            return None
        place -= change
        if abs(change) <= _NEAR * (1 + abs(place)):
            return place if abs(place) > _NEAR else sympy.Integer(0)
    return None
