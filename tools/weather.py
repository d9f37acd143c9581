"""The weather anywhere, from Open-Meteo: no key is needed.

Licence: the data is CC BY 4.0 (the results name their source); api.open-meteo.com is free for non-commercial use only,
with less than 10,000 calls a day. For more, set `base_url` and `geocoding_url` to a server of your own (AGPL-3.0).

Source: open-meteo.com/en/docs and /en/docs/geocoding-api; WMO code table 4677, as far as Open-Meteo uses it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pydantic import Field

from tools.base import BaseTool, ToolContext, ToolError, ToolOptions, register_tool

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

#: WMO code -> what it says in Chinese and in English.
_SKIES: Mapping[int, tuple[str, str]] = MappingProxyType(
    {
        0: ("晴", "clear sky"),
        1: ("大部晴朗", "mainly clear"),
        2: ("局部多云", "partly cloudy"),
        3: ("阴", "overcast"),
        45: ("雾", "fog"),
        48: ("雾凇", "depositing rime fog"),
        51: ("小毛毛雨", "light drizzle"),
        53: ("毛毛雨", "moderate drizzle"),
        55: ("大毛毛雨", "dense drizzle"),
        56: ("轻度冻毛毛雨", "light freezing drizzle"),
        57: ("强冻毛毛雨", "dense freezing drizzle"),
        61: ("小雨", "slight rain"),
        63: ("中雨", "moderate rain"),
        65: ("大雨", "heavy rain"),
        66: ("轻度冻雨", "light freezing rain"),
        67: ("强冻雨", "heavy freezing rain"),
        71: ("小雪", "slight snow"),
        73: ("中雪", "moderate snow"),
        75: ("大雪", "heavy snow"),
        77: ("米雪", "snow grains"),
        80: ("小阵雨", "slight rain showers"),
        81: ("阵雨", "moderate rain showers"),
        82: ("强阵雨", "violent rain showers"),
        85: ("小阵雪", "slight snow showers"),
        86: ("大阵雪", "heavy snow showers"),
        95: ("雷暴", "thunderstorm"),
        96: ("雷暴伴小冰雹", "thunderstorm with slight hail"),
        99: ("雷暴伴大冰雹", "thunderstorm with heavy hail"),
    }
)

#: From where the wind comes, an eighth of the circle each.
_WINDS = (
    *(("北", "north"), ("东北", "northeast"), ("东", "east"), ("东南", "southeast")),
    *(("南", "south"), ("西南", "southwest"), ("西", "west"), ("西北", "northwest")),
)


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

    base_url: str = Field(_FORECAST, pattern="^https?://", description="The forecast's URL, up to and with '/v1'.")
    geocoding_url: str = Field(
        _GEOCODING, pattern="^https?://", description="That of the places, up to and with '/v1'."
    )


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
        forecast = await _asked(context, f"{self.options.base_url.rstrip('/')}/forecast", asked)
        try:
            return _Told(context.language == "zh").report(place, others, forecast)
        except (KeyError, TypeError, ValueError):
            raise ToolError("The weather service sent a forecast that cannot be read.") from None

    async def _places(self, name: str, context: ToolContext) -> list[dict[str, Any]]:
        asked = {"name": name.replace("，", ","), "count": _MAX_PLACES, "language": context.language}
        found = await _asked(context, f"{self.options.geocoding_url.rstrip('/')}/search", asked)
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


class _Told:
    """What was found, as text in one of the two languages."""

    def __init__(self, in_chinese: bool) -> None:
        self._zh = in_chinese

    def report(self, place: Mapping[str, Any], others: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
        """The whole. KeyError, TypeError or ValueError for what is no forecast."""
        daily = found["daily"]
        days = [dict(zip(daily, values, strict=True)) for values in zip(*daily.values(), strict=True)]
        where, when = _name(place), str(found["current"]["time"]).replace("T", " ")
        lines = [
            self._in(f"{where}的天气（当地时间 {when}）：", f"Weather in {where} (local time {when}):"),
            self._now(found["current"]),
            self._in("预报：", "Forecast:"),
            *(f"- {day['time']}: {self._day(day)}" for day in days),
        ]
        if others:
            names = "; ".join(map(_name, others))
            lines.append(self._in(f"其他同名地点：{names}", f"Other places of that name: {names}"))
        return "\n".join(
            [*lines, self._in("数据来源：Open-Meteo.com (CC BY 4.0)", "Source: Open-Meteo.com (CC BY 4.0)")]
        )

    def _now(self, now: Mapping[str, Any]) -> str:
        return self._joined(
            self._sky(now["weather_code"]),
            self._value("气温", "temperature", now["temperature_2m"], "°C"),
            self._value("体感", "feels like", now["apparent_temperature"], "°C"),
            self._value("湿度", "humidity", now["relative_humidity_2m"], "%"),
            self._value("降水", "precipitation", now["precipitation"], " mm"),
            self._wind(now["wind_speed_10m"], now["wind_direction_10m"]),
        )

    def _day(self, day: Mapping[str, Any]) -> str:
        low, high = day["temperature_2m_min"], day["temperature_2m_max"]
        return self._joined(
            self._sky(day["weather_code"]),
            None if None in (low, high) else self._in(f"{low} 至 {high}°C", f"{low} to {high}°C"),
            self._value("降水", "precipitation", day["precipitation_sum"], " mm"),
            self._value("降水概率", "chance of it", day["precipitation_probability_max"], "%"),
            self._value("最大风速", "wind up to", day["wind_speed_10m_max"], " km/h"),
        )

    def _sky(self, code: int | None) -> str | None:
        return None if code is None else self._in(*_SKIES.get(code, (f"天气代码 {code}", f"WMO code {code}")))

    def _wind(self, speed: float | None, degrees: float | None) -> str | None:
        if speed is None or degrees is None:
            return None
        zh, en = _WINDS[round(degrees / 45) % len(_WINDS)]
        return self._in(f"{zh}风 {speed} km/h", f"wind from the {en} at {speed} km/h")

    def _value(self, zh: str, en: str, value: float | None, unit: str) -> str | None:
        # Some values are missing where no model has them, as precipitation's probability is in many places.
        return None if value is None else f"{self._in(zh, en)} {value}{unit}"

    def _joined(self, *parts: str | None) -> str:
        return self._in("，", ", ").join(part for part in parts if part)

    def _in(self, zh: str, en: str) -> str:
        return zh if self._zh else en


def _name(place: Mapping[str, Any]) -> str:
    # A city is often its own region: "北京, 北京, 中国".
    parts = dict.fromkeys(str(place[part]) for part in ("name", "admin1", "country") if place.get(part))
    return ", ".join(parts)
