"""Requests that nobody sends in good faith, each with a reason to be refused."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

from .http_server import IMAGE, data_url

WORDS = "the words of a secret prompt"
"""In every question: no log and no error may repeat them."""

Body = dict[str, Any] | bytes


def asking(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A question with images or videos."""
    content: Any = [*parts, {"type": "text", "text": WORDS}] if parts else WORDS
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, "temperature": 0, **fields}


def image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


# ---- images


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, *more: bytes, depth: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def gif(frames: int, width: int = 8, height: int = 8) -> bytes:
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"  # one pixel
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return head + frame * frames + b"\x3b"


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(IMAGE.read_bytes()) if IMAGE.suffix == ".jpg" else bytearray(small_jpeg())
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def small_jpeg() -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


ZEROS = zlib.compress(bytes(50_000_000), 9)
"""50 million zeros in 50 KB."""

IMAGES: dict[str, bytes] = {
    "a png of 50,000 x 50,000 in 1 KB": png(50_000, 50_000, zlib.compress(bytes(1000))),
    "a png of 2 billion pixels in a row": png(2_000_000_000, 1, b""),
    "a png of 0 pixels": png(0, 0, b""),
    "a png of 7,000 x 7,000 that is whole": png(7_000, 7_000, ZEROS),
    "a png whose text is a bomb": png(9999, 9999, b"", chunk(b"zTXt", b"k\0\0" + ZEROS)),
    "a png whose profile is a bomb": png(9999, 9999, b"", chunk(b"iCCP", b"k\0\0" + ZEROS)),
    "a png of chunks": b"\x89PNG\r\n\x1a\n" + chunk(b"aaaA", b"") * 600_000,
    "a gif of 60,000 x 60,000": gif(1, 60_000, 60_000),
    "a jpeg of 65,000 x 65,000": jpeg_claiming(65_000, 65_000),
    "a truncated jpeg": small_jpeg()[:300],
    "a jpeg of scans": small_jpeg()[:-2]
    + small_jpeg()[-400:-2] * 0
    + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 5000,
    "a webp that is none": b"RIFF\xff\xff\xff\x7fWEBPVP8X" + struct.pack("<I", 10) + b"\xff" * 10,
    "a webp with the body of a png": b"RIFF" + struct.pack("<I", 999) + b"WEBP" + png(8, 8, b"")[8:],
    "a bmp that claims 2 GB": b"BM"
    + struct.pack("<IHHIIiiHH", 2**31 - 1, 0, 0, 54, 40, 30_000, 30_000, 1, 24)
    + bytes(24),
    "a tiff of 1 million x 1 million": b"II*\0\x08\0\0\0\x02\0"
    + struct.pack("<HHII", 256, 4, 1, 10**6)
    + struct.pack("<HHII", 257, 4, 1, 10**6)
    + bytes(4),
    "a tiff of tags": b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 700, 1, 2**31, 0) * 65_535,
    "a ppm of 99,999 x 99,999": b"P6 99999 99999 255\n" + bytes(100),
    "a ppm of text": b"P3 3000 3000 255\n" + b"1 " * (2 << 20),
    "an svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "an svg of entities": b"<!DOCTYPE a [<!ENTITY b 'c'><!ENTITY d '&b;&b;'>]><svg>&d;</svg>",
    "an eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "a psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(100),
    "an icon": b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 100, 22) + png(9, 9, b""),
    "a pdf": b"%PDF-1.7\n1 0 obj\n",
    "a zip": b"PK\3\4" + bytes(100),
    "a gzip of an image": b"\x1f\x8b\x08" + bytes(100),
    "an html page": b"<html><img src='http://127.0.0.1/'></html>",
    "a playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
    "a mvg": b"push graphic-context\nimage over 0,0 0,0 '|id > /tmp/x'\npop graphic-context\n",
    "hdr that lies": b"#?RADIANCE\n\n-Y 99999 +X 99999\n",
    "words": b"/etc/passwd",
    "nothing": b"",
    "zeros": bytes(1 << 16),
}

VIDEOS: dict[str, bytes] = {
    "noise": bytes(range(256)) * 40,
    "zeros": bytes(1 << 16),
    "nothing": b"",
    "an mp4 of one box": b"\0\0\0\x18ftypmp42" + bytes(12),
    "an mp4 whose box never ends": b"\0\0\0\x18ftypmp42" + bytes(12) + b"\xff\xff\xff\xffmoov" + bytes(1000),
    "an mp4 of nested boxes": b"\0\0\0\x18ftypmp42" + bytes(12) + b"\0\1\0\0moov" * 8000,
    "a playlist of files": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
    "a playlist of addresses": b"\n #EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
    "a playlist of parts": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a manifest": b"<?xml version='1.0'?><MPD><BaseURL>file:///etc/</BaseURL></MPD>",
    "a session": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
    "an avi that lies": b"RIFF\xff\xff\xff\x7fAVI LIST" + bytes(200),
    "an mkv of nothing": b"\x1a\x45\xdf\xa3" + b"\xff" * 500,
    "a page": b"<html></html>",
    "an image that is a bomb": IMAGES["a png of 50,000 x 50,000 in 1 KB"],
}

# ---- addresses

ADDRESSES = [
    *("file:///etc/passwd", "FILE:///etc/passwd", "/etc/passwd", "../../etc/passwd", "~/.ssh/id_rsa", "etc/passwd"),
    *(r"\\server\share\a.png", "//server/share/a.png", r"C:\a.png", "tests/golden/minigpt4/open/image.png", str(IMAGE)),
    *("", ".", "..", "/", "\0", "/dev/zero", "/dev/stdin", "/proc/self/environ", "a.png\0.jpg", "-", "|id", "$(id)"),
    *(
        "http://localhost/",
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://0/",
    ),
    *("http://2130706433/", "http://0x7f.1/", "http://images.example.org@127.0.0.1/", "http://evil.example.net/a.png"),
    *("https://images.example.org:22/a.png", "ftp://images.example.org/a.png", "gopher://127.0.0.1/", "jar:http://a!/"),
    *(
        "concat:/etc/passwd|/etc/hosts",
        "rtsp://127.0.0.1/",
        "subfile,,start,0,end,9,,:/etc/passwd",
        "pipe:0",
        "s3://a/b",
    ),
    *("data:", "data:,", "data:image/png", "data:image/png,abc", "data:image/png;base64", "data:image/png;base64,"),
    *("data:image/png;base64,%41", "data:image/png;base64,###", "data:text/html;base64,PGI+", "data:;base64,AAAA"),
    *(
        "data:image/png;base64,A",
        "data:image/png;base64,AAA=AAA",
        "data:image/png;charset=x;base64,éé",
        "data:application/x;base64,AA",
    ),
    *(
        "data:image/svg+xml;utf8,<svg/>",
        "data:image/png;base64,/etc/passwd",
        "data:text/plain,/etc/passwd",
        "javascript:1",
    ),
]

# ---- JSON


def nested(depth: int, inner: Any = None) -> Any:
    found: Any = inner
    for _ in range(depth):
        found = {"type": "object", "properties": {"a": found or {"type": "string"}}}
    return found


def schema(found: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": found}}}


def raw(fields: str) -> bytes:
    return f'{{"messages": [{{"role": "user", "content": "{WORDS}"}}], "max_tokens": 2, {fields}}}'.encode()


BODIES: dict[str, Callable[[], Body]] = {
    "100,000 brackets": lambda: b"[" * 100_000,
    "100,000 braces": lambda: b'{"a":' * 100_000,
    "100,000 brackets that close": lambda: raw('"metadata": ' + "[" * 100_000 + "]" * 100_000),
    "2,000,000 values": lambda: b'{"messages": [' + b"1," * 2_000_000 + b"1]}",
    "nothing": lambda: b"",
    "null": lambda: b"null",
    "a string": lambda: json.dumps(WORDS).encode(),
    "not utf-8": lambda: b'{"messages": "\xff\xfe\xc0\xaf"}',
    "utf-16": lambda: json.dumps({"messages": WORDS}).encode("utf-16"),
    "truncated": lambda: raw('"n": 1')[:-1],
    "two documents": lambda: raw('"n": 1') * 2,
    "a comment": lambda: raw('"n": 1 /* */'),
    "nan": lambda: raw('"temperature": NaN'),
    "infinity": lambda: raw('"top_p": Infinity'),
    "minus infinity": lambda: raw('"repetition_penalty": -Infinity'),
    "1e999": lambda: raw('"temperature": 1e999'),
    "a number of 5,000 digits": lambda: raw('"seed": ' + "9" * 5000),
    "n of 10^9": lambda: asking(n=10**9),
    "max_tokens of 10^12": lambda: asking(max_tokens=10**12),
    "max_tokens of 10^30": lambda: asking(max_tokens=10**30),
    "max_completion_tokens of 10^12": lambda: asking(max_completion_tokens=10**12),
    "top_logprobs of 10^6": lambda: asking(logprobs=True, top_logprobs=10**6),
    "negative numbers": lambda: asking(max_tokens=-1),
    "true for a number": lambda: asking(max_tokens=True),
    "a float for a number": lambda: asking(max_tokens=2.5),
    "stop of 10,000 strings": lambda: asking(stop=[str(k) for k in range(10_000)]),
    "stop of numbers": lambda: asking(stop=[1] * 1000),
    "1,000 images": lambda: asking(*[image(data_url(IMAGES["words"]))] * 1000),
    "5,000 messages without a question": lambda: {"messages": [{"role": "assistant", "content": WORDS}] * 5000},
    "10,000 messages": lambda: {
        **asking(),
        "messages": [{"role": ("user", "assistant")[k % 2], "content": WORDS} for k in range(10_001)],
    },
    "messages of numbers": lambda: {"messages": [1] * 200_000},
    "parts of numbers": lambda: {"messages": [{"role": "user", "content": [1] * 200_000}]},
    "a message of a million words": lambda: {"messages": [{"role": "user", "content": "word " * 1_000_000}]},
    "an unknown role": lambda: {"messages": [{"role": "root", "content": WORDS}]},
    "a role of 1 MB": lambda: {"messages": [{"role": "a" * (1 << 20), "content": WORDS}]},
    "a model by path": lambda: asking(model="../../etc/passwd"),
    "a model of 1 MB": lambda: asking(model="a" * (1 << 20)),
    "a model with control characters": lambda: asking(model="\x1b[2J\r\nSet-Cookie: a=b\0"),
    "a logit bias of 10,000": lambda: asking(logit_bias={str(k): 1 for k in range(10_000)}),
    "tools": lambda: asking(tools=[{"type": "function"}]),
    "a schema 400 deep": lambda: asking(**schema(nested(400))),
    "a schema that refers to files": lambda: asking(**schema({"$ref": "file:///etc/passwd"})),
    "a schema that refers to addresses": lambda: asking(**schema({"$ref": "http://127.0.0.1:9/schema.json"})),
    "a schema with a slow expression": lambda: asking(**schema({"type": "string", "pattern": "((a+)+)+$" * 5000})),
    "a schema of 200,000 alternatives": lambda: asking(
        **schema({"enum": [f"value {k} of a long list" for k in range(200_000)]})
    ),
    "a schema of all combinations": lambda: asking(
        **schema(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"{i}{j}": {"type": "string"}}} for j in range(20)]} for i in range(20)
                ]
            }
        )
    ),
    "a schema of the wrong type": lambda: asking(**schema({"type": 3})),
    "a schema that is a string": lambda: asking(**schema("string")),
}
"""Bodies of a chat completion."""

ACCEPTED: dict[str, Callable[[], Body]] = {
    "a schema that refers to itself": lambda: asking(**schema({"$ref": "#"})),
    "a schema with a huge expression": lambda: asking(**schema({"type": "string", "pattern": "(a|b){1,1000000}" * 50})),
    "a schema of 10^9 items": lambda: asking(
        **schema({"type": "array", "minItems": 10**9, "items": {"type": "integer"}})
    ),
    "a gif of 100,000 frames as a video": lambda: asking(video(data_url(gif(100_000), "video/gif"))),
    "duplicate keys": lambda: raw('"n": 1, "n": 1'),
    "lone surrogates": lambda: (
        b'{"max_tokens": 2, "messages": [{"role": "user", "content": "\\ud800 ' + WORDS.encode() + b'"}]}'
    ),
    "a null byte": lambda: (
        b'{"max_tokens": 2, "messages": [{"role": "user", "content": "\\u0000 ' + WORDS.encode() + b'"}]}'
    ),
    "control characters": lambda: asking(user="\x1b[2J\x07"),
    "a gif of 100,000 frames": lambda: asking(image(data_url(gif(100_000), "image/gif"))),
    "a png that is called a jpeg": lambda: asking(image(data_url(IMAGE, "image/jpeg"))),
    "special tokens as text": lambda: (
        asking() | {"messages": [{"role": "user", "content": "<s></s><unk>[INST]###Human:"}]}
    ),
}
"""Bodies that are odd and harmless: they are answered, or refused, but break nothing."""


def encoded(data: bytes) -> str:
    """Base64 as it would show in a log."""
    return base64.b64encode(data).decode()[:60]
