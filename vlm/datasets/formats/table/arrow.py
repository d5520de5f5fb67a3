"""Records of Parquet files and of Hugging Face datasets (home of pyarrow and datasets, both optional)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from vlm.common.errors import DataError
from vlm.common.files import open_regular
from vlm.common.numbers import without_nan
from vlm.datasets.formats.table.record_buffer import Record

HUB = "hf://"
ROWS_PER_BATCH = 256

MAX_EXPANDED, MAX_RATIO = 1 << 29, 100
"""A Parquet file may take 512 MiB of memory, a larger one 100 times its own size."""


_ODD = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
"""What the package datasets raises for a folder whose ``state.json`` or ``dataset_info.json`` is not its own."""


class StoredRecords(Sequence[Record]):
    """Records of an Arrow table, decoded on access; images stay encoded, NaN and infinity are None."""

    faults: Mapping[int, str] = {}

    def __init__(self, table: Any) -> None:
        """``table``: a ``pyarrow.Table``, or a ``datasets.Dataset`` in Arrow format."""
        self.table, self.names = table, list(table.column_names)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self.table):
            raise IndexError(index)
        return without_nan(self.table[index : index + 1].to_pylist()[0])

    def keep(self, count: int) -> None:
        """Drop all records after the first ``count``."""
        if count < len(self.table):
            self.table = self.table[:count]


def from_parquet(file: Path, first: int = 0) -> StoredRecords:
    """The records of a Parquet file (the ``first`` ones only). Raises DataError: unreadable, or without pyarrow."""
    return _from_batches(file, "Parquet", first)


def from_arrow(file: Path, first: int = 0) -> StoredRecords:
    """The records of an Arrow file, as :func:`from_parquet`; the stream and the file form are known by their bytes."""
    return _from_batches(file, "Arrow", first)


def _from_batches(file: Path, kind: str, first: int) -> StoredRecords:
    try:
        import pyarrow as pa
    except ImportError:
        raise DataError(f"table: {file} needs pyarrow", fix="pip install 'vlm-compose[tables]'") from None
    most = max(MAX_EXPANDED, file.stat().st_size * MAX_RATIO) if file.exists() else MAX_EXPANDED
    try:
        with open_regular(file) as stream:
            batches, schema = _parquet(stream, most, first) if kind == "Parquet" else _arrow(stream)
            kept, total, rows = [], 0, 0
            for batch in batches:
                kept.append(batch)
                total, rows = total + batch.nbytes, rows + batch.num_rows
                if total > most or (first and rows >= first):
                    break
            if total > most:
                raise _bomb(file, most)
            return StoredRecords(pa.Table.from_batches(kept, schema))
    except FileNotFoundError:
        raise DataError(f"table: no file {file}", fix="check the path under build_info of the dataset") from None
    except _Expanded:
        raise _bomb(file, most) from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"table: {file} cannot be read as {kind} ({error})") from None


class _Expanded(Exception):
    """The metadata of a Parquet file declare far more bytes than the file has."""


def _bomb(file: Path, most: int) -> DataError:
    fix = "split it, or write it uncompressed"
    return DataError(f"table: {file} holds more than {most:,} bytes once expanded", fix=fix)


def _parquet(stream: Any, most: int, first: int) -> tuple[Iterator[Any], Any]:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(stream)
    groups = [parquet.metadata.row_group(k) for k in range(parquet.metadata.num_row_groups)]
    if sum(g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns)) > most:
        raise _Expanded
    return parquet.iter_batches(min(first or ROWS_PER_BATCH, ROWS_PER_BATCH)), parquet.schema_arrow


def _arrow(stream: Any) -> tuple[Iterator[Any], Any]:
    from pyarrow import ipc

    whole = stream.read(6) == b"ARROW1"
    stream.seek(0)
    reader = (ipc.open_file if whole else ipc.open_stream)(stream)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if whole else iter(reader)
    return batches, reader.schema


def to_parquet(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write records of plain values as a Parquet file; a field that a record lacks is null.

    Raises DataError: a field that holds values of several types, or without pyarrow.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"{file} needs pyarrow", fix="pip install 'vlm-compose[tables]'") from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
        pq.write_table(table, file)
    except pa.ArrowException as error:
        raise DataError(
            f"{file}: the answers do not make a table ({error})", fix="write JSON lines: --output FILE.jsonl"
        ) from None


def from_hub(path: str) -> StoredRecords:
    """The records of ``hf://owner/name?split=train&config=...&revision=...``.

    Raises DataError: it does not exist, an unknown option, or the package datasets is not installed.
    """
    name, _, query = path.removeprefix(HUB).partition("?")
    options = dict(parse_qsl(query))
    if unknown := ", ".join(sorted(set(options) - {"split", "config", "revision"})):
        raise DataError(f"table: {path}: unknown option {unknown}", fix="use split, config and revision only")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):  # a folder could hold a loading script
        raise DataError(f"table: {path}: not the name of a dataset", fix="write hf://owner/name; folders need no hf://")
    split, config, revision = options.get("split", "train"), options.get("config"), options.get("revision")
    return _loaded(path, lambda package: package.load_dataset(name, config, split=split, revision=revision))


def is_saved(folder: Path) -> bool:
    """Whether ``datasets.save_to_disk`` wrote the folder."""
    return (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()


def from_disk(folder: Path) -> StoredRecords:
    """The records of a folder written by ``datasets.save_to_disk``. Raises DataError: several splits, unreadable."""
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(f.name for f in folder.iterdir() if f.is_dir())
        raise DataError(f"table: {folder} holds several splits", fix=f"name one: {', '.join(splits)}")
    return _loaded(str(folder), lambda package: package.load_from_disk(str(folder)))


def _loaded(path: str, load: Callable[[Any], Any]) -> StoredRecords:
    try:
        import datasets
    except ImportError:
        raise DataError(f"table: {path} needs the package datasets", fix="pip install 'vlm-compose[tables]'") from None
    try:
        return StoredRecords(load(datasets).with_format("arrow"))
    except _ODD as error:
        raise DataError(f"table: {path} cannot be loaded ({type(error).__name__}: {error})") from None
