"""Records of Parquet files and of Hugging Face datasets (home of pyarrow and datasets, both optional)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
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


def from_parquet(file: Path) -> StoredRecords:
    """The records of a Parquet file. Raises DataError: unreadable, or pyarrow is not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(f"table: {file} needs pyarrow", fix="pip install 'vlm-compose[tables]'") from None
    try:
        with open_regular(file) as stream:
            return StoredRecords(_bounded(pq.ParquetFile(stream), file))
    except FileNotFoundError:
        raise DataError(f"table: no file {file}", fix="check the path under build_info of the dataset") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"table: {file} cannot be read as Parquet ({error})") from None


def _bounded(parquet: Any, file: Path) -> Any:
    """The whole table, read in batches. Raises DataError once it takes far more memory than the file."""
    import pyarrow as pa

    most = max(MAX_EXPANDED, file.stat().st_size * MAX_RATIO)
    groups = [parquet.metadata.row_group(k) for k in range(parquet.metadata.num_row_groups)]
    declared = sum(g.column(c).total_uncompressed_size for g in groups for c in range(g.num_columns))
    batches, total = [], declared if declared > most else 0
    for batch in () if total else parquet.iter_batches(ROWS_PER_BATCH):
        batches.append(batch)
        total += batch.nbytes
        if total > most:
            break
    if total > most:
        raise DataError(
            f"table: {file} holds more than {most:,} bytes once expanded", fix="split it, or write it uncompressed"
        )
    return pa.Table.from_batches(batches, parquet.schema_arrow)


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
