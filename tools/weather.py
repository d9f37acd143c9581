"""The weather anywhere, from Open-Meteo: no key is needed.

Licence: the data is CC BY 4.0 (the results name their source); api.open-meteo.com is free for non-commercial use only,
with less than 10,000 calls a day. For more, set `base_url` and `geocoding_url` to a server of your own (AGPL-3.0).

Source: open-meteo.com/en/docs and /en/docs/geocoding-api.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from tools.base import BaseTool, ToolContext, ToolError, ToolOptions, register_tool
from tools.services import ServiceUrl
from tools.weather_report import Report

_FORECAST = "https://api.open-meteo.com/v1"
_GEOCODING = "https://geocoding-api.open-meteo.com/v1"

#: The fields that are asked for, and read in this order.
_CURRENT = (
    "weather_code,temperature_2m,apparent_temperature,relative_humidity_2m,precipitation,"
    "wind_speed_10m,wind_direction_10m"
)
_DAILY = (
    "weather_code,temperature_2m_min,temperature_2m_max,precipitation_sum,precipitation_probability_max,"
    "wind_speed_10m_max"
)

#: A name has seldom more places that people mean.
_MAX_PLACES = 5

_PARAMETERS = {
    "type": "object",
    "properties": {
        "location": {
            "type": "string",
            "minLength": 1,
            "maxLength": 100,
            "description": "The name of a city or town in any language, for example '北京' or 'Paris'; where several"
            " have it, with the country or region behind a comma, for example 'Paris, Texas'.",
        },
        "days": {
            "type": "integer",
            "minimum": 1,
            "maximum": 7,
            "default": 3,
            "description": "The number of days of the forecast, today included.",
        },
    },
    "required": ["location"],
    "additionalProperties": False,
}


class WeatherOptions(ToolOptions):
    """Where Open-Meteo's two services are."""

    base_url: ServiceUrl = Field(_FORECAST, description="The forecast's URL, up to and with '/v1'.")
    geocoding_url: ServiceUrl = Field(_GEOCODING, description="That of the places, up to and with '/v1'.")


@register_tool("weather")
class Weather(BaseTool):
    """The weather of now and of the next days."""

    description = (
        "Tells the current weather and the forecast of up to 7 days for a place anywhere in the world."
        " 查询世界各地的实时天气和最多7天的天气预报。"
    )
    parameters = _PARAMETERS
    cacheable = True
    # Open-Meteo's current weather changes every 15 minutes.
    cache_ttl_s = 600.0
    private = False
    Options = WeatherOptions

    def origins(self) -> Sequence[str]:
        """See BaseTool."""
        return [
            url for url in (self.options.base_url, self.options.geocoding_url) if url not in (_FORECAST, _GEOCODING)
        ]

    async def call(self, params: Any, **kwargs: Any) -> str:
        """See BaseTool."""
        arguments = self.validate_parameters(params)
        context: ToolContext = kwargs.get("context") or ToolContext()
        place, *others = await self._places(arguments["location"], context)
        asked = {
            "latitude": place["latitude"],
            "longitude": place["longitude"],
            "current": _CURRENT,
            "daily": _DAILY,
            "timezone": "auto",
            "forecast_days": arguments["days"],
        }
        forecast = await _asked(context, f"{self.options.base_url}/forecast", asked)
        try:
            return Report(in_chinese=context.language == "zh").of(place, others, forecast)
        except (KeyError, TypeError, ValueError):
            raise ToolError("The weather service sent a forecast that cannot be read.") from None

    async def _places(self, name: str, context: ToolContext) -> list[dict[str, Any]]:
        asked = {"name": name.replace("，", ","), "count": _MAX_PLACES, "language": context.language}
        found = await _asked(context, f"{self.options.geocoding_url}/search", asked)
        places = [place for place in found.get("results") or () if "latitude" in place and "longitude" in place]
        if not places:
            raise ToolError(
                f"There is no place named {name!r}; write the name of a city, at least two letters of it, and nothing"
                " else but its country or region behind a comma."
            )
        return places


async def _asked(context: ToolContext, url: str, params: Mapping[str, Any]) -> dict[str, Any]:
    answer = await context.egress.get(url, params=params)
    answer.raise_for_status()
    found = answer.json()
    if not isinstance(found, dict):
        raise ToolError("The weather service sent an answer that cannot be read.")
    return found
