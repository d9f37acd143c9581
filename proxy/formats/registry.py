"""The formats by the name that the configuration gives them. A new one is a module, and its line here."""

from collections.abc import Callable, Mapping

from proxy.formats.base import Format, Options
from proxy.formats.nous import Nous
from proxy.formats.qwen import Qwen

Formats = Mapping[str, Callable[[Options], Format]]

FORMATS: Formats = {"qwen": Qwen, "nous": Nous}
