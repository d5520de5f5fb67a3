"""YAML files and options that nobody writes by mistake: one message that names the place.

Without the limits some of these take hours.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vlm.cli.main import main
from vlm.common.errors import ConfigError
from vlm.config.api import load_config
from vlm.config.tree import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_file

HEAD = "model: {arch: tiny, model_type: minigpt4}\n"
REFERENCES = "\n".join(f'  t{i}: "${{run.benchmark.t{i - 1}}}${{run.benchmark.t{i - 1}}}"' for i in range(1, 40))
LAUGHS = "\n".join([f"k{i}: &k{i} [{', '.join([f'*k{i - 1}'] * 9)}]" for i in range(1, 12)])
FILES = {
    # text of the file, words of the message (with the line where there is one)
    "billion laughs": (f"k0: &k0 [x, x]\n{LAUGHS}\n", r":\d: more than .* aliases included"),
    "laughs in mappings": (
        "k0: &k0 {a: 1}\n" + "\n".join(f"k{i}: &k{i} {{a: *k{i - 1}, b: *k{i - 1}}}" for i in range(1, 30)),
        r"more than .* aliases included",
    ),
    "merged": (
        "k0: &k0 {a: 1}\n" + "\n".join(f"k{i}: &k{i} {{<<: [{', '.join([f'*k{i - 1}'] * 9)}]}}" for i in range(1, 12)),
        r"more than .* aliases included",
    ),
    "an alias of itself": ("model: &m\n  arch: tiny\n  self: *m\n", r":1: an alias inside"),
    "a list in itself": ("run: &r [*r]\n", r":1: an alias inside"),
    "merged with itself": ("run: &r {<<: *r}\n", r":1: << expects another mapping"),
    "merged with a number": ("run: {<<: 5}\n", r":1: << expects another mapping"),
    "deep lists": (f"run:\n  x: {'[' * 5000}\n", r":2: more than 50 levels"),
    "deep mappings": (f"run: {'{a: ' * 5000}\n", r":1: more than 50 levels"),
    "deep blocks": ("\n".join(f"{' ' * i}a:" for i in range(400)), r":50: more than 50 levels"),
    "deep entries": (f"run:\n{'- ' * 5000}", r":2: more than 50 levels"),
    "many keys": ("\n".join(f"k{i}: 1" for i in range(20_000)), r":\d+: more than .* keys and values"),
    "many unknown keys": (HEAD + "run:\n" + "\n".join(f"  k{i}: 1" for i in range(2_000)), r"and 1950 more$"),
    "many datasets": (HEAD + "datasets:\n" + "\n".join(f"  k{i}:" for i in range(2_000)), r"and 1950 more$"),
    "a long list": (f"run: [{'1,' * 20_000}]\n", r":1: more than .* keys and values"),
    "a big file": ("#" * (MAX_BYTES + 1), r"500,001 bytes, allowed are 500,000"),
    "a long number": (f"run: {{seed: {'9' * 5000}}}\n", r":1: found '9+'\.\.\., expected int"),
    "a number of 65 bits": ("run: {seed: 36893488147419103232}\n", r":1: an integer of 20 digits"),
    "not a number": ("run:\n  seed: !!int abc\n", r":2: found 'abc', expected int"),
    "not a truth": ("run:\n  amp: !!bool abc\n", r":2: found 'abc', expected bool"),
    "not a fraction": ("run: {init_lr: !!float abc}\n", r":1: found 'abc', expected float"),
    "python": ("run: !!python/object/apply:os.system [touch it_ran]\n", r":1: not valid YAML: the tag .*os\.system"),
    "python name": ("run: !!python/name:os.system\n", r":1: not valid YAML: the tag"),
    "a set": ("run: !!set {a}\n", r":1: not valid YAML: the tag"),
    "bytes": ("run: {name: !!binary aGk=}\n", r":1: not valid YAML: the tag"),
    "an own tag": ("run: !mine {a: 1}\n", r":1: not valid YAML: the tag '!mine'"),
    "a key that is a list": ("? [a, b]\n: 1\n", r":1: a key must be a single word"),
    "NUL": ("run:\n  name: a\x00b\n", r":2: .*the character U\+0000"),
    "a bell": ("run: {}\n# \x07\n", r":2: .*the character U\+0007"),
    "a tab": ("run:\n\tseed: 1\n", r":2: not valid YAML.*\n.*spaces, not with tabs"),
    "two documents": ("run: {}\n---\nrun: {}\n", r":\d: not valid YAML"),
    "references blow up": (f"{HEAD}run:\n benchmark:\n  t0: xxxx\n{REFERENCES}\n", r"stands for more than 100,000"),
    "references in a circle": (HEAD + 'run: {name: "${run.job_name}", job_name: "${run.name}"}\n', r"refers to itself"),
    "many references": (HEAD + "run:\n  weight_decay_on:\n" + '  - "${run.seed}"\n' * 600, r"more than 500 interpol"),
    "deep references": (HEAD + f"run: {{name: '{'${' * 400}'}}\n", r"more than 20 interpolations in one text"),
    "no reference": (HEAD + "run: {name: '${', job_name: '${}'}\n", r"not a valid interpolation"),
}


@pytest.mark.parametrize("name", FILES)
def test_one_message_that_names_the_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, words = FILES[name]
    file = tmp_path / "given.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file, check="none")
    assert "given.yaml" in str(caught.value) and len(str(caught.value)) < 70_000
    assert not (tmp_path / "it_ran").exists()


def test_within_the_limits(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    nested = "x: " + "[" * (MAX_DEPTH - 2) + "]" * (MAX_DEPTH - 2)
    file.write_text(
        f"a: &a {{k: 1, l: 2}}\nb: {{<<: *a, k: 3}}\nc: [*a, *a]\n{nested}\nd: {list(range(MAX_NODES // 2))}\n"
    )
    data = parse_file(file).data
    assert data["b"] == {"k": 3, "l": 2} and data["c"] == [{"k": 1, "l": 2}] * 2
    assert data["d"] == list(range(MAX_NODES // 2))
    file.write_text("a: {<<: [{x: 1, y: 1}, {x: 2, z: 2}], y: 3}\nend_sym: =\nbig: 9223372036854775807\n")
    assert parse_file(file).data == {"a": {"x": 1, "z": 2, "y": 3}, "end_sym": "=", "big": 2**63 - 1}
    file.write_text(yaml.safe_dump({"run": {f"k{i}": i for i in range(MAX_NODES // 2 - 10)}}))
    assert len(parse_file(file).data["run"]) == MAX_NODES // 2 - 10


OPTIONS = [
    "=", "==", "=a", ".=1", "..=1", "a=", "run=1", "run=[]", "model=5", "model=[]", "datasets=1", "valid_datasets=[x]",
    "evaluation_datasets=5", "plugins=[os]", "plugins.0=os", "run.seed=", "run.seed=[", "run.seed=" + "9" * 5000,
    "run.seed=36893488147419103232", "run.seed.x=1", "run.trackers.9=1", "run.trackers.-1=1", "run.trackers.²=1",
    "run.trackers." + "9" * 5000 + "=1", "run.init_lr=" + "9" * 400, "run.job_name=${", "run.task=:", "run.task=a:b",
    "run.job_name=${run.job_name}", "run.job_name=${oc.env:HOME}", "model.bridge=[&a [*a]]", "model.bridge=5",
    "model.bridge=[5]", "model.bridge.0=5", "model.bridge=" + "[" * 3000 + "]" * 3000, "a." * 3000 + "b=1",
    "run.packing=" + "{a: " * 500 + "}" * 500, "model.weights=[{format: 'os:system', into: x}]", "model.vision=[]",
    "model.arch=[]", "model.model_type={a: b}", "model.weights=[!!python/object:os.system x]", "model.train=[5]",
    "run.benchmark={judge: 5}", "datasets.x.y=1", "x" * 100_000 + "=1", "run.seed=\x00",
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: o[:30].encode("unicode_escape").decode())
def test_nonsense_as_an_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "tiny/eval", "--options", option]) == 2
    shown = capsys.readouterr().err
    assert "error: " in shown and len(shown) < 6_000
