"""The weather of Open-Meteo and of AMap, from servers on loopback that answer as theirs do (by their documentation)."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from recorded_services import Services
from serving import LoopThread, serve_app
from tools.amap_weather import AmapWeather
from tools.base import ToolContext
from tools.context import Language
from tools.egress import Egress
from tools.errors import InvalidArguments, RetryableToolError, ToolError
from tools.weather import Weather

Served = tuple[Services, str]

PLACE = {"name": "Paris", "country": "France", "admin1": "Île-de-France", "latitude": 48.9, "longitude": 2.3}
CURRENT = {
    "time": "2026-11-29T12:00",
    "weather_code": 61,
    "temperature_2m": 8.4,
    "apparent_temperature": 6.0,
    "relative_humidity_2m": 81,
    "precipitation": 0.2,
    "wind_speed_10m": 12.0,
    "wind_direction_10m": 225,
}
DAILY = {
    "time": ["2026-11-29", "2026-11-30"],
    "weather_code": [61, 0],
    "temperature_2m_min": [5.0, 3.0],
    "temperature_2m_max": [9.0, 11.0],
    "precipitation_sum": [1.5, 0.0],
    "precipitation_probability_max": [80, 5],
    "wind_speed_10m_max": [20.0, 10.0],
}
LIVE = {
    "province": "浙江",
    "city": "杭州市",
    "adcode": "330100",
    "weather": "多云",
    "temperature": "12",
    "winddirection": "东北",
    "windpower": "≤3",
    "humidity": "57",
    "reporttime": "2026-11-29 12:00:00",
}


@pytest.fixture
async def served(loop_thread: LoopThread) -> AsyncIterator[Served]:
    services = Services()
    with serve_app(services.app, loop_thread) as url:
        yield services, url


async def told(tool: Weather | AmapWeather, language: Language = "en", **arguments: Any) -> str:
    egress = Egress()
    try:
        context = ToolContext(language=language, egress=egress.allowing(tool.origins()))
        return await tool.call(arguments, context=context)
    finally:
        await egress.aclose()


# -- Open-Meteo --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "words"),
    [
        (
            "en",
            ["Weather in Paris", "slight rain", "8.4", "clear sky", "southwest", "Source: Open-Meteo.com"],
        ),
        ("zh", ["Paris", "小雨", "8.4", "晴", "西南", "数据来源：Open-Meteo.com"]),
    ],
)
async def test_the_weather_is_told_in_the_language_of_the_conversation(
    served: Served, language: Language, words: list[str]
) -> None:
    services, url = served
    services.answers = {"v1/search": {"results": [PLACE]}, "v1/forecast": {"current": CURRENT, "daily": DAILY}}
    said = await told(Weather(base_url=f"{url}/v1", geocoding_url=f"{url}/v1/"), language, location="Paris", days=2)
    assert [word for word in words if word not in said] == []
    (_, searched, _), (_, asked, _) = services.asked
    assert (searched["name"], searched["language"]) == ("Paris", language)
    assert (asked["latitude"], asked["longitude"], asked["forecast_days"]) == ("48.9", "2.3", "2")


async def test_other_places_of_the_name_are_told(served: Served) -> None:
    services, url = served
    other = {**PLACE, "country": "United States", "admin1": "Texas"}
    services.answers = {"v1/search": {"results": [PLACE, other]}, "v1/forecast": {"current": CURRENT, "daily": DAILY}}
    said = await told(Weather(base_url=f"{url}/v1", geocoding_url=f"{url}/v1"), location="Paris")
    assert "Texas" in said


@pytest.mark.parametrize(
    ("language", "told_now"),
    [("en", "WMO code 42, temperature 8.4°C, humidity 81%"), ("zh", "天气代码 42，气温 8.4°C，湿度 81%")],
)
async def test_what_no_model_knows_is_left_out(served: Served, language: Language, told_now: str) -> None:
    services, url = served
    missing = dict.fromkeys(["apparent_temperature", "precipitation", "wind_speed_10m", "wind_direction_10m"])
    day = {name: [None] for name in DAILY} | {"time": ["2026-11-29"], "temperature_2m_max": [9.0]}
    services.answers = {
        "v1/search": {"results": [PLACE]},
        "v1/forecast": {"current": {**CURRENT, **missing, "weather_code": 42}, "daily": day},
    }
    said = await told(Weather(base_url=f"{url}/v1", geocoding_url=f"{url}/v1"), language, location="Paris")
    assert said.splitlines()[1] == told_now
    assert said.splitlines()[3] == "- 2026-11-29: "


@pytest.mark.parametrize(("degrees", "wind"), [(0, "north"), (337.5, "north"), (22.6, "northeast"), (180, "south")])
async def test_the_wind_is_told_by_where_it_comes_from(served: Served, degrees: float, wind: str) -> None:
    services, url = served
    current = {**CURRENT, "wind_direction_10m": degrees}
    services.answers = {"v1/search": {"results": [PLACE]}, "v1/forecast": {"current": current, "daily": DAILY}}
    said = await told(Weather(base_url=f"{url}/v1", geocoding_url=f"{url}/v1"), location="Paris")
    assert f"wind from the {wind} at 12.0 km/h" in said


@pytest.mark.parametrize(
    ("answers", "kind", "said"),
    [
        ({"v1/search": {}}, ToolError, "no place named 'Atlantis'"),
        ({"v1/search": 503}, RetryableToolError, ""),
        ({"v1/search": []}, ToolError, ""),
        ({"v1/search": {"results": [PLACE]}, "v1/forecast": {"current": {}}}, ToolError, "cannot be read"),
    ],
)
async def test_what_goes_wrong_is_told(served: Served, answers: Any, kind: type[ToolError], said: str) -> None:
    services, url = served
    services.answers = {path: [answer] if answer == [] else answer for path, answer in answers.items()}
    with pytest.raises(kind, match=said or None) as caught:
        await told(Weather(base_url=f"{url}/v1", geocoding_url=f"{url}/v1"), location="Atlantis")
    assert type(caught.value) is kind


def test_the_services_of_the_internet_need_no_allowance() -> None:
    assert list(Weather().origins()) == []
    with pytest.raises(InvalidArguments):
        Weather().validate_parameters({"location": "Paris", "days": 8})
    with pytest.raises(ValueError, match="base_url"):
        Weather(base_url="ftp://x")
    with pytest.raises(ValueError, match="without a query"):
        Weather(geocoding_url="https://x.example/v1?key=1")


# -- AMap --------------------------------------------------------------------------------------------------


def amap(url: str) -> AmapWeather:
    return AmapWeather(key="amap-key", base_url=f"{url}/v3")


async def test_the_weather_of_a_city_now(served: Served) -> None:
    services, url = served
    services.answers = {"v3/weather/weatherInfo": {"status": "1", "infocode": "10000", "lives": [LIVE]}}
    said = await told(amap(url), "zh", location="杭州市")
    assert said == ("浙江杭州市的实时天气（2026-11-29 12:00:00 发布）：多云，气温 12°C，东北风≤3级，湿度 57%。")
    [(_, asked, _)] = services.asked
    assert (asked["city"], asked["extensions"], asked["key"]) == ("杭州市", "base", "amap-key")


async def test_the_forecast_of_a_city(served: Served) -> None:
    services, url = served
    cast = {"date": "2026-11-30", "dayweather": "晴", "nightweather": "阴", "daytemp": "15", "nighttemp": "6"}
    cast |= {"daywind": "北", "nightwind": "无风向", "daypower": "4", "nightpower": "1"}
    forecast = {"province": "北京", "city": "北京市", "reporttime": "now", "casts": [cast]}
    services.answers = {"v3/weather/weatherInfo": {"status": "1", "forecasts": [forecast]}}
    said = await told(amap(url), "zh", location="110000", forecast=True)
    assert said.splitlines() == [
        "北京市的天气预报（now 发布）：",
        "- 2026-11-30：白天 晴 15°C 北风4级；夜间 阴 6°C 无风向1级",
    ]


async def test_a_name_that_several_places_have_is_asked_back(served: Served) -> None:
    services, url = served
    other = {**LIVE, "province": "广东", "city": "中山市", "adcode": "442000"}
    services.answers = {"v3/weather/weatherInfo": {"status": "1", "lives": [LIVE, other]}}
    with pytest.raises(ToolError, match=r"广东中山市 \(442000\)"):
        await told(amap(url), "zh", location="中山")


async def test_a_name_that_amap_does_not_know_is_looked_up_as_an_address(served: Served) -> None:
    services, url = served
    services.answers = {
        "v3/weather/weatherInfo": [{"status": "1", "lives": []}, {"status": "1", "lives": [LIVE]}],
        "v3/geocode/geo": {"status": "1", "geocodes": [{"adcode": "330100", "province": "浙江", "district": []}]},
    }
    assert "杭州市" in await told(amap(url), "zh", location="西湖边上")
    assert [path for path, _, _ in services.asked] == [
        "v3/weather/weatherInfo",
        "v3/geocode/geo",
        "v3/weather/weatherInfo",
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ({"status": "0", "info": "INVALID_USER_KEY", "infocode": "10001"}, ToolError, "INVALID_USER_KEY"),
        ({"status": "0", "info": "CUQPS_HAS_EXCEEDED_THE_LIMIT", "infocode": "10021"}, RetryableToolError, "EXCEEDED"),
        ({"status": "0", "infocode": "30001"}, ToolError, "knows no place"),
        ({"status": "0"}, ToolError, "AMap refused: it does not say why"),
        ({"status": "1", "lives": []}, ToolError, "knows no place"),
        ({"status": "1", "lives": [[]]}, ToolError, "knows no place"),
        ([1], ToolError, "cannot be read"),
        (503, RetryableToolError, "503"),
    ],
)
async def test_what_amap_refuses_is_told_without_the_key(
    served: Served, answer: Any, kind: type[ToolError], said: str
) -> None:
    services, url = served
    services.answers = {"v3/weather/weatherInfo": [answer], "v3/geocode/geo": {"status": "1", "geocodes": []}}
    with pytest.raises(kind, match=said or None) as caught:
        await told(amap(url), "zh", location="杭州")
    assert type(caught.value) is kind
    assert "amap-key" not in caught.value.message


async def test_an_adcode_is_no_address(served: Served) -> None:
    services, url = served
    services.answers = {"v3/weather/weatherInfo": {"status": "1", "lives": []}}
    with pytest.raises(ToolError, match="knows no place named '999999'"):
        await told(amap(url), "zh", location=" 999999 ")
    assert len(services.asked) == 1


async def test_an_address_that_several_places_have_is_asked_back(served: Served) -> None:
    services, url = served
    geocodes = [
        {"adcode": "210202", "province": "辽宁省", "city": "大连市", "district": "中山区"},
        {"adcode": "442000", "province": "广东省", "city": "中山市", "district": []},
    ]
    services.answers = {
        "v3/weather/weatherInfo": {"status": "1", "lives": []},
        "v3/geocode/geo": {"status": "1", "geocodes": geocodes},
    }
    with pytest.raises(ToolError, match=r"辽宁省大连市中山区 \(210202\); 广东省中山市 \(442000\)\. Call again"):
        await told(amap(url), "zh", location="中山")


async def test_a_forecast_without_days_is_told_as_it_is(served: Served) -> None:
    services, url = served
    forecast = {"province": "北京", "city": "北京市", "reporttime": "now", "casts": None}
    services.answers = {"v3/weather/weatherInfo": {"status": "1", "forecasts": [forecast]}}
    assert await told(amap(url), "zh", location="北京", forecast=True) == "北京市的天气预报（now 发布）："


def test_amap_needs_a_key() -> None:
    assert AmapWeather().unavailable() is not None
    assert AmapWeather(key="k").unavailable() is None
    assert AmapWeather(key="").unavailable() is not None
    assert "secret" not in repr(AmapWeather(key="secret-key").options)
    assert list(AmapWeather(key="k").origins()) == []
