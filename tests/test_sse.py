"""Server-sent events: bytes to payloads and back. Source: WHATWG HTML, "Server-sent events"."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamBroken
from proxy.sse import Decoder, encode, encode_done

payloads = st.binary(max_size=12).map(lambda data: data.translate(None, b"\r\n")).filter(bool)
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])


def decode(data: bytes, places: set[int]) -> list[bytes]:
    decoder = Decoder()
    cuts = sorted(place for place in places if place < len(data))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return [payload for piece in pieces for payload in decoder.feed(piece)] + decoder.close()


@given(st.lists(payloads, max_size=5), line_ends, st.sets(st.integers(0, 99)), st.booleans())
def test_payloads_come_out_however_the_bytes_are_cut(
    sent: list[bytes], line_end: bytes, places: set[int], blank: bool
) -> None:
    prefix = b"data: " if blank else b"data:"
    # Without a blank, a payload's own first blank would be taken for it.
    sent = [payload.lstrip(b" ") or b"x" for payload in sent]
    data = b"".join(prefix + payload + line_end * 2 for payload in sent)
    assert decode(data, places) == sent
    assert decode(data, set(range(len(data)))) == sent


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(-9, 9), max_size=3))
def test_what_is_encoded_is_decoded(value: dict[str, str | int]) -> None:
    data = encode(value) + encode_done()
    assert [json.loads(payload) for payload in decode(data, set())[:-1]] == [value]
    assert decode(data, set())[-1] == b"[DONE]"


def test_line_separators_inside_json_end_no_line() -> None:
    """U+2028, U+2029 and U+0085 stand in JSON unescaped; `str.splitlines` cuts there."""
    text = "a\u2028b\u2029c\u0085d"
    assert decode(b"data: " + text.encode() + b"\n\n", set()) == [text.encode()]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b": comment\n\ndata: x\n\n", [b"x"]),
        (b"event: e\nid: 1\nretry: 3\ndata: x\n\n", [b"x"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: x\r\rdata: y\r\r", [b"x", b"y"]),
        (b"data: x\r\n\n\rdata: y\n\r\n", [b"x", b"y"]),
        (b"data: x", [b"x"]),
        (b"\n\n\n", []),
        (b"database: x\n\n", []),
    ],
)
def test_only_data_counts(data: bytes, expected: list[bytes]) -> None:
    assert decode(data, set()) == expected
    assert decode(data, set(range(len(data)))) == expected


@pytest.mark.parametrize("data", [b"data: " + b"x" * 100, b"data: xxxxxxxxxx\n" * 10])
def test_an_event_without_end_is_refused(data: bytes) -> None:
    decoder = Decoder(max_event_bytes=50)
    with pytest.raises(UpstreamBroken, match="too long"):
        for start in range(0, len(data), 10):
            decoder.feed(data[start : start + 10])


def test_many_events_may_be_longer_together() -> None:
    decoder = Decoder(max_event_bytes=50)
    for _ in range(20):
        assert decoder.feed(b"data: xxxxxxxxxx\n\n") == [b"xxxxxxxxxx"]
