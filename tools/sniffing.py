"""The first bytes of a file -> what image it is.

A name or a declared type can say anything; what begins like this is shown as an image or not at all.

Source: WHATWG MIME Sniffing, "Matching an image type pattern".
"""

#: So many bytes tell: WebP's mark is the longest.
TELLING_BYTES = 12

_STARTS = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)


def image_type(first_bytes: bytes) -> str | None:
    """The media type of a PNG, JPEG, GIF or WebP; None for all else, and for SVG, which can hold scripts.

    >>> image_type(b"GIF89a..."), image_type(b"<svg>")
    ('image/gif', None)
    """
    if first_bytes[:4] == b"RIFF" and first_bytes[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _STARTS if first_bytes.startswith(start)), None)
