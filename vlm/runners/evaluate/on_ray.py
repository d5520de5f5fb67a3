"""``vlm generate --ray``: blocks of records answered by actors of Ray Data, which schedules and replaces them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.datasets.formats.table.read import AllRows
from vlm.runners.evaluate.blocks import Block, PartFolder, answer_block, blocks_of
from vlm.runners.evaluate.generate import SHOWN_RECORDS, Records, Request, Span, check_faults
from vlm.tasks.answers import model_key

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation

log = logging.getLogger(__name__)

PER_BLOCK = 16
"""Batches in a block: what is lost when an actor dies, and how often answers are waited for without a full batch."""

STARTS = 5
"""How often a block is started before it counts as one that kills whoever has it."""

OBJECT_STORE = 100 << 20
"""Bytes for objects of Ray on a machine where no Ray runs: only the numbers of blocks travel."""


@dataclass(frozen=True)
class Job:
    """What an actor needs to know."""

    config: Config
    request: Request
    generation: Generation
    folder: str
    suffix: str
    batch_size: int = 16
    device: str | None = None
    allow_random: bool = False


class Answering:
    """The actor: a model, loaded when there is something to ask, that answers one block after the other."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._engine: Engine | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """A batch with one block -> how many of its records cannot be used and why, or what ended the run."""
        job = self.job
        numbers = {name: int(batch[name][0]) for name in ("number", "start", "count", "first")}
        block = Block(file=str(batch["file"][0]), **numbers)
        result: dict[str, list[Any]] = {"records": [block.count], "bad": [0], "reason": [""], "failure": [""]}
        try:
            folder = PartFolder(job.folder, job.suffix)
            if folder.start(block.number) > STARTS:
                raise UserError(
                    f"records {block.first} to {block.first + block.count - 1} ({block.file}) ended {STARTS} actors",
                    fix="see Ray's log for the reason (memory?), and lower --batch-size or run.serving.kv_mib",
                )
            bad, reason = answer_block(block, job.request, folder, self._loaded, job.generation, job.batch_size)
            result |= {"bad": [bad], "reason": [reason]}
        except UserError as error:  # not a fault of the actor: another one would fail alike
            result["failure"] = [str(error)]
        return result

    def _loaded(self) -> Engine:
        from vlm.inference.engine import Engine

        if self._engine is None:
            self._engine = Engine.load(self.job.config, self.job.device, allow_random=self.job.allow_random)
        return self._engine


def run_on_ray(
    config: Config,
    request: Request,
    output: str,
    generation: Generation,
    *,
    address: str,
    actors: int = 1,
    gpus: float = 0.0,
    batch_size: int = 16,
    max_bad_share: float = 0.5,
    overwrite: bool = False,
    device: str | None = None,
    allow_random: bool = False,
) -> tuple[int, int, str]:
    """Answer every record by actors of Ray, exactly once each, and write the answers in the order of the records.

    An interrupted run goes on when it is started again, as one without Ray does. All machines must see the files, the
    weights and the output under the same paths.

    Args:
        config: the model, loaded as ``Engine.load`` does with ``device`` and ``allow_random``.
        request: what to ask about which records, of which a share of ``max_bad_share`` may be unusable.
        output: the file to write, see ``overwrite``; a name that ends with ``/`` is a folder of Parquet files.
        generation: the options of an answer.
        address: of a Ray cluster; ``auto``: one that this machine belongs to, else this machine alone.
        actors: models that answer at a time, ``batch_size`` records each.
        gpus: of each actor; 0: it runs on a CPU.

    Returns:
        Records, unusable ones, and why one of them is.

    Raises:
        UserError: the output exists, no cluster, too many unusable records, or whatever ends an answer.
    """
    target, merged = Path(output), not output.endswith("/")
    folder = _folder(target, merged, overwrite)
    blocks = blocks_of(request.files, PER_BLOCK * batch_size)
    _check_first(request, blocks[0])
    key = Records.fingerprint_of(request, model_key(config), asdict(generation))
    folder.begin(key, len(blocks), overwrite=overwrite)
    device = device or (None if gpus else "cpu")
    path = str(folder.path.resolve())
    job = Job(config, request, generation, path, folder.suffix, batch_size, device, allow_random)
    count, reasons, bad = sum(block.count for block in blocks), list[str](), 0
    with _connected(address, actors):
        for row in _answered(job, blocks, actors, gpus):
            bad += row["bad"]
            reasons += [row["reason"]] if row["bad"] else []
    check_faults(bad, count, max_bad_share, reasons[:SHOWN_RECORDS])
    if merged:
        folder.merge(target, len(blocks))
    if merged and not bad:
        folder.remove()
    else:
        folder.note(fingerprint=key, blocks=len(blocks), suffix=folder.suffix, finished=True, records=count, bad=bad)
    return count, bad, next(iter(reasons), "")


def _folder(target: Path, merged: bool, overwrite: bool) -> PartFolder:
    """Where the parts go: the output itself, or a folder beside it. Raises UserError: the output exists."""
    if not merged:
        return PartFolder(target, ".parquet")
    folder = PartFolder(target.with_name(f"{target.name}.parts"))
    if target.exists() and not folder.path.exists() and not overwrite:
        raise UserError(f"{target} exists", fix="name another file, or add --overwrite")
    return folder


def _check_first(request: Request, block: Block) -> None:
    """Check the first block, before a model is loaded anywhere. Raises DataError: none of its records can be used."""
    records = Records(request, 1.0, Span(AllRows([block.file]), block.start, block.count, 0))
    records.check(records.faults)
    records.check_fields()


def _answered(job: Job, blocks: list[Block], actors: int, gpus: float) -> Iterator[dict[str, Any]]:
    """What became of each block, as they end. Raises UserError: an actor could not go on."""
    import ray
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
    answered = rows.map_batches(
        Answering,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(blocks))),
        num_cpus=1,
        num_gpus=gpus,
    )  # by default Ray Data replaces actors that died and repeats what they had, without end
    done = 0
    try:
        for row in answered.iter_rows():
            if row["failure"]:
                raise UserError(row["failure"])
            done += row["records"]
            log.info("%d records answered", done)
            yield row
    except RayError as error:
        raise UserError(
            f"Ray could not go on after {done} records: {str(error).strip().splitlines()[-1]:.300}",
            fix="look at its log, and run the same command again: no answer is lost",
        ) from error


@contextmanager
def _connected(address: str, actors: int) -> Iterator[None]:
    """A connection to a cluster; one that was started here ends with the block."""
    try:
        import ray
    except ImportError:
        raise UserError("--ray needs the package ray", fix="pip install 'vlm-compose[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": True}
    known = address != "auto" or "RAY_ADDRESS" in os.environ
    try:
        ray.init(address="auto" if address == "auto" else address, **quiet)
    except ConnectionError as error:
        if known:
            raise UserError(f"no Ray cluster at {address} ({error})", fix="ray start --head, or --ray auto") from error
        log.info("no Ray cluster: one is started on this machine")
        own: dict[str, Any] = {"num_cpus": max(actors, os.cpu_count() or 1), "object_store_memory": OBJECT_STORE}
        ray.init(address="local", include_dashboard=False, **own, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
