"""The report: all sections, one file, numbers placed right."""

import base64
import io
import json
import math
import re
import signal
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vlm.checkpoint.provenance import make_provenance
from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import DataError
from vlm.pages.charts import Series, chart, number, smooth, thin, ticks
from vlm.pages.parts import AnswerCard, image_uri
from vlm.runners.train import run as run_module
from vlm.runners.train.report import write_report
from vlm.runners.train.trainer import RunResult


@pytest.fixture
def run(tmp_path):
    folder = RunDir(tmp_path / "stage<1>")
    folder.prepare()
    rows = [
        {
            "kind": "train", "step": s, "epoch": 0, "loss": 3 / s, "lr": 1e-4, "grad_norm": 1.0, "targets": 9,
            "tokens": 30, "samples": 4, "seconds": 0.5, "data_seconds": 0.1, "memory_mib": 512.0, "skipped": 0,
        }
        for s in range(1, 101)
    ]  # fmt: skip
    rows.append({"kind": "valid", "step": 50, "loss": 0.125, "tokens": 9.0})
    folder.log_file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    folder.write_config("run:\n  seed: 7 # <b>\n")
    provenance = make_provenance(step=100, config={}, metrics={"loss": 0.03}, fingerprints={"llm": {"sha256": "cafe"}})
    folder.save(100, {"w": torch.zeros(1)}, {}, provenance, "run: {}\n")
    return folder


def test_data_by_dataset(run):
    assert '<section id="data"><h2>Data</h2><p class="none">none</p>' in write_report(run).read_text()
    counts = {"samples": 40, "bad": 1, "tokens": 900, "share": 1.0, "wanted": 1.0}
    with run.log_file.open("a") as out:
        row = {**json.loads(run.log_file.read_text().splitlines()[99]), "step": 101, "padding": 0.1}
        out.write(json.dumps(row | {f"data/a<b/{k}": v for k, v in counts.items()}) + "\n")
    text = write_report(run).read_text()
    assert "a&lt;b" in text and "padding: 10.00% of 1,000 positions" in text


class Structure(HTMLParser):
    """Section ids, balance of tags, external addresses."""

    VOID = {"meta", "img", "br", "line", "circle", "path"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.external = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.external += [v for k, v in attrs.items() if k in ("src", "href") and not v.startswith("data:")]

    def handle_startendtag(self, tag, attrs):
        assert tag in self.VOID

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_has_all_sections_and_needs_nothing_else(run):
    red = Image.new("RGB", (8, 4), "red")
    samples = [AnswerCard("What <color>?", "red", "red", [red], "s1"), AnswerCard("Hello?", "")]
    path = write_report(run, samples, table="part  parameters\nllm   12", status="early_stop")
    text = path.read_text()
    page = Structure()
    page.feed(text)
    assert page.open == [] and page.external == []
    assert page.ids == ["curves", "samples", "data", "trained", "config", "provenance"]
    assert text.count("<svg") == 5
    for part in ("Loss", "Learning rate", "Gradient norm", "Throughput", "Peak memory", "stopped early", "(empty)"):
        assert part in text
    for part in ("stage&lt;1&gt;", "What &lt;color&gt;?", "seed: 7 # &lt;b&gt;", "cafe", "0.125", "llm   12"):
        assert part in text
    assert "http://" not in text and "https://" not in text


def test_report_of_an_empty_run_does_not_fail(tmp_path):
    run = RunDir(tmp_path / "empty")
    run.prepare()
    assert "none" in write_report(run).read_text()


def test_images_are_embedded_and_small_ones_enlarged():
    image = Image.new("RGB", (10, 20), (200, 30, 40))
    data = base64.b64decode(image_uri(image).split(",")[1])
    found = Image.open(io.BytesIO(data))
    assert found.size == (160, 320)
    assert all(abs(a - b) < 4 for a, b in zip(found.getpixel((80, 160)), (200, 30, 40), strict=True))
    big = Image.open(io.BytesIO(base64.b64decode(image_uri(Image.new("RGB", (900, 300))).split(",")[1])))
    assert big.size == (320, 107)


def test_corrupt_image_is_a_user_error(run, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad\.png"):
        write_report(run, [AnswerCard("?", "", images=[str(tmp_path / "bad.png")])])


def test_ticks_are_round_and_inside():
    assert ticks(0, 10) == [0, 2.5, 5.0, 7.5, 10.0]
    assert ticks(0.13, 0.87) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert ticks(1e-6, 1e-4, 5) == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert ticks(3, 3) == [3]


@pytest.mark.parametrize("value, text", [
    (0, "0"), (0.25, "0.25"), (123.4, "123"), (2500, "2500"), (51200, "51.2k"), (3e6, "3M"), (3e-5, "3e-5"),
])  # fmt: skip
def test_number(value, text):
    assert number(value) == text


def test_thinning_keeps_the_mean_and_the_last_point():
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    few = thin(points, 101)
    assert len(few) <= 101 and few[-1] == points[-1]
    assert sum(y for _, y in few) / len(few) == pytest.approx(0.5, abs=0.02)
    assert thin([(1, math.nan), (2, 1.0)]) == [(2, 1.0)]


def test_smoothing_is_centred():
    line = [(float(i), 2.0 * i) for i in range(50)]
    assert [y for _, y in smooth(line, 10)] == pytest.approx([y for _, y in line])
    assert smooth([(0, 0.0), (1, 3.0), (2, 0.0)], 3)[1] == (1, 1.0)


def test_chart_places_points_by_value():
    svg = chart([Series("a", [(0, 0.0), (10, 1.0)]), Series("none", [])], from_zero=True)
    (path,) = re.findall(r'<path class="line" d="M([^"]+)"', svg)
    (x0, y0), (x1, y1) = [tuple(map(float, p.split())) for p in path.split("L")]
    assert (x0, y0) == (58.0, 210.0) and x1 == 544.0 and y1 < 30
    assert "no data" in chart([Series("none", [])])


@pytest.mark.parametrize("received", [None, signal.SIGTERM])
def test_a_run_that_a_signal_stopped_asks_no_samples(tmp_path, monkeypatch, received):
    asked, written = [], []
    monkeypatch.setattr(run_module, "sample_answers", lambda *_: asked.append(1) or [])
    monkeypatch.setattr(run_module, "trainable_table", lambda _: "")
    monkeypatch.setattr(run_module, "write_report", lambda *_, **more: written.append(more["status"]))
    result = RunResult(tmp_path, "stopped" if received else "finished", 3, 0.1, received=received)
    cfg = SimpleNamespace(run=SimpleNamespace(job_name="x"))
    run_module.report(cfg, None, None, RunDir(tmp_path), result, None)
    assert written == [result.status] and bool(asked) is (received is None)


def test_a_report_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_module, "sample_answers", lambda *_: [])
    monkeypatch.setattr(run_module, "trainable_table", lambda _: "")
    monkeypatch.setattr(run_module, "write_report", full)
    cfg = SimpleNamespace(run=SimpleNamespace(job_name="x"))
    run_module.report(cfg, None, None, RunDir(tmp_path), RunResult(tmp_path, "finished", 3, 0.1), None)
    assert "the report cannot be written: [Errno 28]" in caplog.text
