"""The tools that the checks declare, questions that call for them, and the calls and results of a history.

Each tool of TASKS has one kind of argument that models and parsers get wrong.
"""

from dataclasses import dataclass
from typing import Any

from proxy.doctor.said import Call
from proxy.doctor.sse import Json


def tool(called: str, about: str, /, **properties: Json) -> Json:
    """A function that takes exactly these; those with a `default` may be left out."""
    needed = [field for field, schema in properties.items() if "default" not in schema]
    schema = {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}
    return {"name": called, "description": about, "parameters": schema}


def named(tool: Json) -> Json:
    """The `tool_choice` that demands this tool."""
    return {"type": "function", "function": {"name": tool["name"]}}


def _text(**more: Any) -> Json:
    return {"type": "string", **more}


WEATHER = tool("get_weather", "The current weather in a city", city=_text(description="Name of the city"))
CLOCK = tool("get_time", "The time of day in a city", city=_text(description="Name of the city"))
NOTE = tool("save_note", "Save a note word for word", text=_text(description="The text of the note"))

WEATHER_QUESTION = "What is the weather in Paris?"
TWO_CITIES = "What is the weather in Paris and in Rome?"
SMALL_TALK = "Say hello."

#: What is said of a model that did not call what it might have called.
NO_CALL = "The model made no call, so nobody can tell."

ADDRESS = {
    "type": "object",
    "properties": {"street": _text(), "city": _text(), "zip": _text()},
    "required": ["street", "city", "zip"],
    "additionalProperties": False,
}
DRINK = {
    "type": "object",
    "properties": {"name": _text(), "count": {"type": "integer", "minimum": 1}},
    "required": ["name", "count"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Task:
    """A tool, and what a user says who needs it."""

    tool: Json
    question: str


TASKS = (
    Task(
        tool(
            "set_light",
            "Turn the light of a room on or off",
            room=_text(enum=["kitchen", "bedroom", "office"]),
            state=_text(enum=["on", "off"]),
        ),
        "Turn the light in the kitchen on.",
    ),
    Task(
        tool("create_contact", "Create a contact", name=_text(), address=ADDRESS),
        "Create a contact for Ada Lovelace, 12 Park Street, London, NW1 6XE.",
    ),
    Task(
        tool("add_to_cart", "Add items to the cart", items={"type": "array", "items": _text(), "minItems": 1}),
        "Add milk, bread and eggs to the cart.",
    ),
    Task(
        tool("order_drinks", "Order drinks", drinks={"type": "array", "items": DRINK, "minItems": 1}),
        "Order drinks: two teas and one coffee.",
    ),
    Task(
        tool("set_volume", "Set the volume in percent", level={"type": "integer", "minimum": 0, "maximum": 100}),
        "Set the volume to 35 percent.",
    ),
    Task(
        tool(
            "convert_currency",
            "Convert an amount of money into another currency",
            amount={"type": "number"},
            source=_text(enum=["EUR", "USD", "JPY"]),
            target=_text(enum=["EUR", "USD", "JPY"]),
        ),
        "Convert 12.50 EUR into USD, please: which currency amount is that?",
    ),
    Task(
        tool(
            "set_alarm",
            "Set an alarm",
            time=_text(description="Like 18:05"),
            weekdays={"type": "boolean", "description": "Whether it repeats on all weekdays"},
        ),
        "Set an alarm for 07:30 that repeats on all weekdays.",
    ),
    Task(
        tool(
            "search_flights",
            "Search for flights",
            origin=_text(),
            destination=_text(),
            max_price={"type": ["number", "null"], "default": None},
            direct={"type": "boolean", "default": False},
        ),
        "Search for flights from Oslo to Rome.",
    ),
)

#: Nobody guesses these.
HAIL = "Hail at 17 degrees."
FROST = "Frost at 43 below zero."


def called(*calls: Call) -> Json:
    """The assistant's message that made these calls."""
    made = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(call: Call, content: str) -> Json:
    """What the tool answered."""
    return {"role": "tool", "tool_call_id": call.id, "content": content}


PARIS = Call("call_paris", "get_weather", '{"city": "Paris"}')
ROME = Call("call_rome", "get_weather", '{"city": "Rome"}')
