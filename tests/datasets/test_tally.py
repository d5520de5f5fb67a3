from __future__ import annotations

import json
from itertools import islice

import pytest

from vlm.common.errors import DataError
from vlm.common.types import Cut, Example
from vlm.config.run import Packing
from vlm.datasets.loading.cuts import report_cuts
from vlm.datasets.loading.data_stats import DataStats, combine, from_metrics, padding_share, report_table, to_metrics
from vlm.datasets.loading.sources import Source
from vlm.datasets.loading.train_loader import TrainLoader
from vlm.datasets.loading.worker import EncodedSample
from vlm.processors.collate import VisualTokens
from vlm.processors.processor import Processor

from .tools import Table, Tape

FRESH = {"sources": {"a": {"samples": 0, "bad": 0, "tokens": 0, "wanted": 1.0}}, "positions": 0}


def report(samples: int, bad: int = 0) -> dict:
    one = {"samples": samples, "bad": bad, "tokens": samples * 10, "wanted": 0.75}
    two = {"samples": 100, "bad": 0, "tokens": 1000, "wanted": 0.25}
    return {"sources": {"align": one, "web": two}, "positions": 5000}


def test_reports_of_processes_add_up() -> None:
    total = combine([report(100, 1), report(200, 2)])
    assert total["sources"]["align"] == {"samples": 300, "bad": 3, "tokens": 3000, "wanted": 0.75}
    assert padding_share(total) == pytest.approx(0.5)
    flat = to_metrics(total)
    assert flat["padding"] == pytest.approx(0.5)
    assert (flat["data/align/share"], flat["data/web/share"]) == (0.6, 0.4)
    assert flat["data/align/wanted"] == 0.75
    assert from_metrics(flat) == total
    assert report_table(total).splitlines() == [
        "dataset  samples  bad  tokens   share  wanted",
        "align        300    3   3,000  60.00%  75.00%",
        "web          200    0   2,000  40.00%  25.00%",
        "padding: 50.00% of 10,000 positions",
    ]


def test_cut_samples_are_counted_by_dataset_and_end_a_run_above_the_bound() -> None:
    total = combine([report(100), report(200)])
    total["sources"]["web"] |= {"cut": 20, "cut_answers": 15, "cut_turns": 9, "cut_images": 2, "cut_questions": 0}
    assert from_metrics(to_metrics(total)) == total
    said = "web: cut 20 of 200 samples (10.0%): 15 answers shortened, 9 answers lost, 2 images lost"
    assert said in report_table(total).splitlines()
    stats, cut = DataStats(), Cut(answers=1, limit="256 positions")
    rows = [[EncodedSample((0, 0, k), Example([1], [1], id=str(k), cut=cut if k < 4 else None), 1)] for k in range(20)]
    stats.add(rows, ["a"])
    assert stats.cuts["a"].verdict("a", 1.0) == ""
    with pytest.raises(DataError, match=r"dataset a: cut 4 of 20 samples \(20.0%\): 4 answers.*run.max_cut_share"):
        report_cuts(rows, stats.cuts, ["a"], 0.01)
    resumed = DataStats()
    resumed.load_state_dict(json.loads(json.dumps(stats.state_dict())))
    assert resumed.cuts == stats.cuts


def test_nothing_to_report() -> None:
    assert combine([{}, {}]) == {}
    assert to_metrics({}) == from_metrics({}) == {}
    assert padding_share(FRESH) == 0.0
    assert "0.00%" in report_table(FRESH)


def test_counts_go_on_from_a_state() -> None:
    def row(*samples: tuple[int, int]) -> list[EncodedSample]:
        return [EncodedSample((source, 0, 0), Example([], []), tokens) for source, tokens in samples]

    one, two = DataStats(), DataStats()
    one.add([row((0, 20)), row((0, 10))], ["a", "b"])
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    two.add([row((0, 5)), row((1, 6))], ["a", "b"])
    assert two.state_dict() == {"samples": {"a": 3, "b": 1}, "tokens": {"a": 35, "b": 6}, "positions": 52}
    assert one.positions == 40


@pytest.mark.parametrize("form", [{}, {"group_by_length": 2}, {"packing": Packing(100, open_rows=3)}])
def test_counted_is_what_the_batches_hold(processor: Processor, form: dict) -> None:
    sources = [Source("table", Table(20), 3), Source("tape", Tape(20), 3)]
    loader = TrainLoader(sources, processor, seed=1, visual_tokens=VisualTokens(per_frame=4), **form)
    tokens = positions = samples = 0
    for batch in islice(loader, 9):
        fused = (batch.segments > 0).sum(1)
        fused += 3 * (batch.media_row[None] == fused.new_tensor(range(len(fused)))[:, None]).sum(1)
        tokens, samples = tokens + int(fused.sum()), samples + batch.num_samples
        positions += int(fused.max()) * len(fused)
    found = loader.report()
    assert sum(s["tokens"] for s in found["sources"].values()) == tokens
    assert sum(s["samples"] for s in found["sources"].values()) == samples
    assert found["positions"] == positions
