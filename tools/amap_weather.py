"""The weather in China, from AMap (高德): by a city's or district's name, or by its adcode.

    a name -> the weather of the places that have it -> one: told; several: asked which
                                                     -> none: its adcode is looked up as an address, and asked again
    an adcode -> the weather

Source: lbs.amap.com/api/webservice/guide/api-advanced/weatherinfo, .../guide/api/georegeo, .../guide/tools/info for the
codes of errors; Qwen-Agent's `amap_weather` for the name and the parameter.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, SecretStr

from tools.base import BaseTool, RetryableToolError, ToolContext, ToolError, ToolOptions, register_tool
from tools.services import ServiceUrl

_AMAP = "https://restapi.amap.com/v3"

_ADCODE = re.compile(r"[0-9]{6}")

#: Too many calls in this second, or the servers are busy; all other codes say what stays so.
_PASSING = frozenset({"10004", "10014", "10015", "10016", "10017", "10019", "10020", "10021"})

#: What AMap answers to an address that is nowhere (ENGINE_RESPONSE_DATA_ERROR).
_NO_DATA = "30001"

#: So many places are told of a name that several have; no name has more.
_MAX_CANDIDATES = 20


_PARAMETERS = {
    "type": "object",
    "properties": {
        "location": {
            "type": "string",
            "minLength": 1,
            "maxLength": 100,
            "description": "城市或区县的名称，例如`杭州市`、`海淀区`；重名时请用六位行政区划代码（adcode），"
            "例如`110108`",
        },
        "forecast": {
            "type": "boolean",
            "default": False,
            "description": "true：今天起四天的天气预报；false：实时天气",
        },
    },
    "required": ["location"],
    "additionalProperties": False,
}


class AmapWeatherOptions(ToolOptions):
    """The key, and where the service is."""

    key: SecretStr | None = Field(None, description="A key for AMap's web services (Web服务), from console.amap.com.")
    base_url: ServiceUrl = Field(_AMAP, description="The service's URL, up to and with '/v3'.")


@register_tool("amap_weather")
class AmapWeather(BaseTool):
    """The current weather or the forecast of a Chinese city or district; told in Chinese, as AMap does."""

    description = "获取中国城市或区县的实时天气或四天的天气预报"
    parameters = _PARAMETERS
    cacheable = True
    # AMap renews the current weather several times an hour.
    cache_ttl_s = 600.0
    private = False
    Options = AmapWeatherOptions

    def unavailable(self) -> str | None:
        """See BaseTool."""
        if self.options.key and self.options.key.get_secret_value():
            return None
        return "it needs AMap's key: set the option 'key' to one from console.amap.com"

    def origins(self) -> Sequence[str]:
        """See BaseTool."""
        return [] if self.options.base_url == _AMAP else [self.options.base_url]

    async def call(self, params: Any, **kwargs: Any) -> str:
        """See BaseTool."""
        arguments = self.validate_parameters(params)
        context: ToolContext = kwargs.get("context") or ToolContext()
        location, forecast = arguments["location"].strip(), arguments["forecast"]
        places = await self._weather(context, location, forecast)
        if not places and not _ADCODE.fullmatch(location):
            places = await self._weather(context, await self._adcode(context, location), forecast)
        if not places:
            raise _unknown(location)
        place = _only(location, places)
        return _told_forecast(place) if forecast else _told_now(place)

    async def _weather(self, context: ToolContext, city: str, forecast: bool) -> list[dict[str, Any]]:
        asked = {"city": city, "extensions": "all" if forecast else "base"}
        return await self._asked(context, "weather/weatherInfo", asked, "forecasts" if forecast else "lives")

    async def _adcode(self, context: ToolContext, address: str) -> str:
        found = await self._asked(context, "geocode/geo", {"address": address}, "geocodes")
        if not found:
            raise _unknown(address)
        return _text(_only(address, found), "adcode")

    async def _asked(
        self, context: ToolContext, path: str, params: Mapping[str, str], field: str
    ) -> list[dict[str, Any]]:
        # Objects only: what AMap has not, it writes as [].
        given = {**params, "key": self.options.key.get_secret_value(), "output": "JSON"}
        answer = await context.egress.get(f"{self.options.base_url}/{path}", params=given)
        answer.raise_for_status()
        found = answer.json()
        if not isinstance(found, dict):
            raise ToolError("AMap sent an answer that cannot be read.")
        if found.get("status") != "1" and (refused := _refused(found)):
            raise refused
        entries = found.get(field)
        return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _refused(found: Mapping[str, Any]) -> ToolError | None:
    code = _text(found, "infocode")
    if code == _NO_DATA:
        return None
    said = f"AMap refused: {_text(found, 'info') or 'it does not say why'}{f' ({code})' if code else ''}."
    return RetryableToolError(said) if code in _PASSING else ToolError(said)


def _only(name: str, places: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    by_code = {_text(place, "adcode"): place for place in places}
    if len(by_code) > 1:
        known = "; ".join(f"{_where(place)} ({code})" for code, place in list(by_code.items())[:_MAX_CANDIDATES])
        raise ToolError(
            f"Several places are named {name!r}: {known}. Call again with the adcode of one of them as 'location'."
        )
    return places[0]


def _unknown(name: str) -> ToolError:
    return ToolError(f"AMap knows no place named {name!r}; write the name of a Chinese city or district.")


def _told_now(live: Mapping[str, Any]) -> str:
    return (
        f"{_where(live)}的实时天气（{_text(live, 'reporttime')} 发布）：{_text(live, 'weather')}，"
        f"气温 {_text(live, 'temperature')}°C，{_wind(live, '')}，湿度 {_text(live, 'humidity')}%。"
    )


def _told_forecast(forecast: Mapping[str, Any]) -> str:
    casts = forecast.get("casts")
    days = [_told_day(cast) for cast in casts if isinstance(cast, dict)] if isinstance(casts, list) else []
    return "\n".join([f"{_where(forecast)}的天气预报（{_text(forecast, 'reporttime')} 发布）：", *days])


def _told_day(cast: Mapping[str, Any]) -> str:
    by_day, by_night = (
        f"{_text(cast, f'{time}weather')} {_text(cast, f'{time}temp')}°C {_wind(cast, time)}"
        for time in ("day", "night")
    )
    return f"- {_text(cast, 'date')}：白天 {by_day}；夜间 {by_night}"


def _wind(told: Mapping[str, Any], time: str) -> str:
    # At times there is none from anywhere: "无风向", "旋转不定".
    direction = _text(told, f"{time}wind" if time else "winddirection")
    return f"{direction}{'' if '风' in direction else '风'}{_text(told, f'{time}power' if time else 'windpower')}级"


def _where(place: Mapping[str, Any]) -> str:
    # A city may be named like its province (吉林吉林市), or be one itself (北京市北京市): once is enough.
    where = ""
    for part in ("province", "city", "district"):
        name = _text(place, part)
        where = name if name.startswith(where) else where + name
    return where


def _text(told: Mapping[str, Any], field: str) -> str:
    value = told.get(field)
    return value if isinstance(value, str) else ""
