"""What a terminal makes of a sixel sequence."""

from __future__ import annotations

import re

from PIL import Image

TOKEN = re.compile(r'"(\d+);(\d+);(\d+);(\d+)|#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])')


def read_sixel(sequence: str) -> Image.Image:
    """The image; every pixel must be set, and nothing outside of it."""
    found = re.fullmatch(r"\x1bP[\d;]*q(.*)\x1b\\", sequence, re.DOTALL)
    assert found, sequence[:80]
    data, at = found.group(1), 0
    palette: dict[str, tuple[int, ...]] = {}
    pixels: dict[tuple[int, int], tuple[int, ...]] = {}
    size, colour, x, y = (0, 0), "", 0, 0
    while at < len(data):
        token = TOKEN.match(data, at)
        assert token, data[at : at + 20]
        at = token.end()
        _, _, width, height, defined, r, g, b, chosen, count, repeated, single, move = token.groups()
        if width:
            size = int(width), int(height)
        elif defined:
            palette[defined] = tuple(round(int(v) * 255 / 100) for v in (r, g, b))
        elif chosen:
            colour = chosen
        elif move:
            x, y = 0, y + (6 if move == "-" else 0)
        else:
            bits = ord(repeated or single) - 63
            columns = range(x, x + int(count or 1))
            for place in ((column, y + row) for column in columns for row in range(6) if bits >> row & 1):
                assert place not in pixels, "two colours at one place"
                pixels[place] = palette[colour]
            x = columns.stop
    image = Image.new("RGB", size)
    assert set(pixels) == {(x, y) for x in range(size[0]) for y in range(size[1])}
    for place, value in pixels.items():
        image.putpixel(place, value)
    return image
