"""A forecast of Open-Meteo's -> text in Chinese or English.

Source: open-meteo.com/en/docs; WMO code table 4677, as far as Open-Meteo uses it.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

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


class Report:
    """What was found, as text in one of the two languages."""

    def __init__(self, *, in_chinese: bool) -> None:
        self._zh = in_chinese

    def of(self, place: Mapping[str, Any], others: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
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
