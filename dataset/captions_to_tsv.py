"""JSON lists of addresses and captions -> one table for img2dataset.

    python dataset/captions_to_tsv.py ccs_synthetic_filtered_large.json ccs.tsv
    python dataset/captions_to_tsv.py a.json b.json both.tsv --url image_url --caption text

The lists are read piece by piece, so that their size does not matter. A record without address or caption, and an
address that came before with --unique, is left out and counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

PIECE = 1 << 20
BLANK = re.compile(r"\s*")


def records(stream: TextIO, name: str, piece: int = PIECE) -> Iterator[Any]:
    """The elements of a JSON list, one after another; ``piece`` characters are read at a time.

    Raises:
        SystemExit: the file holds no list, or is damaged or cut off; says after how many records.
    """
    decoder, text, at, count = json.JSONDecoder(), "", 0, 0
    opened = ended = False
    while True:
        at = BLANK.match(text, at).end()  # type: ignore[union-attr]
        mark = text[at : at + 1]
        if mark and not opened:
            if mark != "[":
                raise SystemExit(f"error: {name}: expected a JSON list, found {text[:20]!r}")
            opened, at = True, at + 1
            continue
        if mark == "]":
            return
        start = BLANK.match(text, at + 1).end() if mark == "," else at  # type: ignore[union-attr]
        try:
            record, end = decoder.raw_decode(text, start)
            if end == len(text) and not ended:
                raise ValueError("a number may go on in the next piece")
        except ValueError:
            more = stream.read(piece)
            if ended or not (more or text):
                raise SystemExit(f"error: {name}: damaged or cut off after {count} records") from None
            text, at, ended = text[at:] + more, 0, not more
            continue
        yield record
        at, count = end, count + 1


def convert(files: Sequence[Path], out: Path, url: str, caption: str, unique: bool) -> tuple[int, int]:
    """Write ``url`` and ``caption`` of all records to ``out``; (rows, records left out)."""
    rows = left = 0
    seen: set[int] = set()
    part = out.with_name(out.name + ".part")
    with part.open("w", encoding="utf-8", newline="") as target:
        table = csv.writer(target, delimiter="\t", lineterminator="\n")
        table.writerow(["url", "caption"])
        for file in files:
            with file.open(encoding="utf-8") as stream:
                for record in records(stream, str(file)):
                    row = [record.get(url), record.get(caption)] if isinstance(record, dict) else [None]
                    texts = [" ".join(text.split()) for text in row if isinstance(text, str)]
                    if len(texts) < 2 or not all(texts) or (unique and hash(texts[0]) in seen):
                        left += 1
                        continue
                    if unique:
                        seen.add(hash(texts[0]))
                    table.writerow(texts)
                    rows += 1
    if not rows:
        part.unlink()
        raise SystemExit(f"error: no record has text in both {url!r} and {caption!r}; see --url and --caption")
    part.replace(out)
    return rows, left


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="IN.json", help="JSON lists of objects")
    parser.add_argument("out", type=Path, metavar="OUT.tsv")
    parser.add_argument("--url", default="url", help="field of the address (url)")
    parser.add_argument("--caption", default="caption", help="field of the caption (caption)")
    parser.add_argument("--unique", action="store_true", help="keep an address once")
    args = parser.parse_args(argv)
    missing = [str(f) for f in args.files if not f.is_file()]
    if missing:
        raise SystemExit(f"error: no file {missing[0]}")
    rows, left = convert(args.files, args.out, args.url, args.caption, args.unique)
    sys.stdout.write(f"{args.out}: {rows} rows, {left} records left out\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
