"""From a study file to its cells: axes, conditions, labels, hashes, problems."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from vlm.common.errors import ConfigError
from vlm.config.schema import ConfigProblems
from vlm.runners.study.cells import Study
from vlm.runners.study.grid.axes import label_of
from vlm.runners.study.read import build_study, read_study

TWO_STAGES = """
stages:
  align: {base: tiny/stage1_pretrain, budget: {steps: 40}}
  talk: {base: tiny/stage2_finetune, set: {run.init_lr: 2e-3}}
set: {model.train: ["bridge.*"], model.text.tokens_per_medium: 65}
"""
BRIDGES = """
axes:
  model.bridge: [linear, {name: mlp, depth: 2}]
  talk.run.weight_decay: [0.0, 0.1]
seeds: [0, 1]
"""


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """Writes a study file and builds it."""

    def build(text: str, *options: str, folder: Path = tmp_path, **more: Any) -> Study:
        folder.mkdir(exist_ok=True)
        file = folder / "study.yaml"
        file.write_text(text)
        return build_study(file, options, **{"check": "none", **more})

    return build


def named(study: Study) -> list[str]:
    """Names of the combinations, in order."""
    return list(dict.fromkeys(study.named(cell.key) for cell in study.cells))


def problems(excinfo: pytest.ExceptionInfo[ConfigError]) -> list[str]:
    """One text for each problem."""
    assert isinstance(excinfo.value, ConfigProblems)
    return [str(p) for p in excinfo.value.problems]


def says(told: list[str], file: Path, words: str) -> bool:
    """Whether a problem begins with these words, in which FILE is the study's file."""
    return any(text.startswith(words.replace("FILE", str(file))) for text in told)


def test_a_part_is_replaced_as_a_whole_and_a_mapping_without_name_is_merged(study: Any) -> None:
    """The Q-Former's options do not reach the bridges that replace it; an LLM keeps what is not named."""
    found = study("""
base: tiny/stage1_pretrain
axes:
  model.bridge: [linear, {name: perceiver, num_latents: 16}, [{name: mlp}, linear]]
  model.template: [{name: vicuna0, end_sym: "!"}]
  model.llm: [{dtype: bf16}]
""")
    configs = [cell.runs[0].config.model for cell in found.cells]
    assert [[p.name for p in c.bridge] for c in configs] == [["linear"], ["perceiver"], ["mlp", "linear"]]
    assert configs[1].bridge[0].raw == {"num_latents": 16}
    assert configs[0].template.raw == {"end_sym": "!"}, "chat_form and system belonged to the part that was replaced"
    assert configs[0].llm.get("dtype") == "bf16" and configs[0].llm.get("path").endswith("llm")


def test_labels_are_short_unique_and_the_same_whatever_stands_beside_them() -> None:
    assert [label_of(v) for v in ("linear", None, True, 1e-4, [1, 2], {})] == [
        "linear", "null", "true", "0.0001", "[1, 2]", "{}",
    ]  # fmt: skip
    assert label_of({"name": "mlp", "depth": 2}) == "mlp depth=2"
    assert label_of([{"name": "qformer"}, "linear"]) == "qformer + linear"
    long = {"name": "qformer", "num_query_tokens": 16, "hidden_size": 128, "num_hidden_layers": 4}
    assert label_of([long, "linear"]) == "qformer + linear"
    assert len(label_of("x" * 500)) < 50


def test_long_values_that_begin_alike_get_different_labels(study: Any) -> None:
    text = f"base: tiny/stage1_pretrain\naxes: {{model.end_sym: [{'x' * 60}1, {'x' * 60}2]}}"
    assert len({cell.key for cell in study(text).cells}) == 2


def test_an_axis_whose_condition_does_not_hold_is_not_there(study: Any) -> None:
    found = study("""
base: tiny/stage1_pretrain
axes:
  run.weight_decay: [0.0, 0.1]
  optimiser: {adam: {}, other: {run.beta2: 0.99}}
  run.init_lr: [1e-3, 2e-3]
when:
  run.weight_decay: {optimiser: other}
  run.init_lr: {optimiser: other, run.weight_decay: 0.1}
""")
    assert named(found) == ["adam", "0.0, other", "0.1, other, 0.001", "0.1, other, 0.002"]
    assert found.cells[0].levels == {"optimiser": "adam"}
    assert found.reference == (("optimiser", "adam"),)


def test_exclude_leaves_combinations_out_and_the_reference_may_be_named(study: Any) -> None:
    found = study(
        TWO_STAGES + BRIDGES + "exclude: [{model.bridge: linear, talk.run.weight_decay: 0.0}]\n"
        "reference: {talk.run.weight_decay: 0.1}\n"
    )
    assert set(named(found)) == {"linear, 0.1", "mlp depth=2, 0.0", "mlp depth=2, 0.1"}
    assert found.named(found.reference) == "linear, 0.1"
    with pytest.raises(ConfigError, match=r"exclude leaves out the reference \(model.bridge: linear, talk.run"):
        study(TWO_STAGES + BRIDGES + "exclude: [{model.bridge: linear}]")


def test_one_at_a_time_differs_from_the_reference_in_one_axis(study: Any) -> None:
    text = """
base: tiny/stage1_pretrain
axes:
  run.init_lr: [1e-3, 2e-3, 3e-3]
  run.weight_decay: [0.0, 0.1]
  run.beta2: [0.99, 0.1]
design: one_at_a_time
"""
    assert set(named(study(text))) == {"reference", "0.002", "0.003", "run.weight_decay: 0.1", "run.beta2: 0.1"}


def test_cells_share_the_first_stage_where_they_agree_on_it(study: Any) -> None:
    found = study(TWO_STAGES + BRIDGES)
    assert len(found.cells) == 8
    first = {cell.runs[0].hash for cell in found.cells}
    assert len(first) == 4, "two bridges with two seeds"
    for cell in found.cells:
        align, talk = cell.runs
        assert talk.after == align.hash
        folder = align.config.run.output_dir
        assert Path(folder) == found.folder / "runs" / align.hash
        assert folder in [w.path for w in talk.config.model.weights]
        assert talk.config.resolved["model"]["params"]["ckpt"]["default"] == folder
        assert align.config.run.seed == talk.config.run.seed == cell.seed == talk.config.resolved["run"]["seed"]
        assert align.config.run.max_steps == align.steps == 40 == align.config.resolved["run"]["max_steps"]
        assert (talk.steps, talk.config.run.init_lr) == (300, 2e-3)
    own = [cell.runs[0].hash for cell in found.cells]
    assert set(own[:4]) == first, "cells with other first stages come first"


def test_hashes_stay_when_the_study_is_amended_moved_or_told_where_to_compute(study: Any, tmp_path: Path) -> None:
    before = {cell.hash: (cell.key, cell.seed) for cell in study(TWO_STAGES + BRIDGES).cells}
    more = TWO_STAGES + BRIDGES.replace("depth: 2}", "depth: 2}, {name: perceiver, num_latents: 65}").replace(
        "[0, 1]", "[3, 1, 0]"
    )
    amended = study(
        more + "evaluate: {base: tiny/eval}\ntitle: New\noutput: elsewhere\n",
        "set.run.device=cpu", "set.run.num_workers=3", "set.run.log_freq=1", "set.run.save_freq=7",
        folder=tmp_path / "other",
    )  # fmt: skip
    after = {cell.hash: (cell.key, cell.seed) for cell in amended.cells}
    assert len(after) == 18
    assert after.items() >= before.items()


def test_hashes_follow_content_and_not_spelling_or_place(study: Any, tmp_path: Path) -> None:
    """A default that is written out changes nothing; another number of steps, or other annotations, do."""
    text = "base: tiny/stage1_pretrain\nset: {datasets: {mine: {format: conversation_json, build_info: %s}}}\n"
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "a.json").write_text("[]")

    def hash_at(place: str, *options: str, processes: int = 1) -> str:
        info = f"{{ann_path: {tmp_path / place / 'a.json'}, image_path: {tmp_path / place}}}"
        found = study(text % info + f"processes: {processes}\n", *options)
        return str(found.cells[0].hash)

    here = hash_at("here")
    (tmp_path / "here" / "a.json").touch()
    assert hash_at("here") == here == hash_at("here", "set.run.beta2=0.999")
    assert hash_at("here", "set.run.max_steps=201") != here
    one, other = (
        hash_at("here", f"set.run.lr_scale={text}") for text in ("{bridge.*: 2, '*': 3}", "{'*': 3, bridge.*: 2}")
    )
    assert len({here, one, other}) == 3, "of several globs the last one counts"
    assert hash_at("here", processes=2) != here, "a step would have twice as many samples"
    assert hash_at("here", "set.run.global_batch=32") == hash_at("here", "set.run.global_batch=32", processes=2)
    (tmp_path / "there" / "a.json").write_text("[ ]")
    assert hash_at("there") != here
    shutil.rmtree(tmp_path / "there")
    shutil.copytree(tmp_path / "here", tmp_path / "new" / "here")
    assert hash_at("new/here") == here


def test_all_problems_of_the_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("""base: tiny/stage1_pretrain
stages: {"../x": {base: a.yaml, after: nothing}}
axes:
  model.bridge: []
  modell.llm: [a]
  run.seed: [1, 2]
  kind: {a: [1], b: {run.init_lr: 1}}
  run.init_lr: [1e-3, 1e-3]
when: {run.init_lr: {run.init_lr: 0.001}}
exclude: [{kindd: a}, {}]
reference: {run.init_lr: [0.001, 5]}
budget: {steps: 3, flops: 1e12}
seeds: [0, 0]
colour: red
""")
    with pytest.raises(ConfigProblems) as excinfo:
        read_study(file)
    told = problems(excinfo)
    assert [text for text in told if "bad.yaml" not in text] == []
    assert any("colour" in t and "bad.yaml:14" in t for t in told) and any("seeds" in t for t in told)
    file.write_text(file.read_text().replace("seeds: [0, 0]\ncolour: red\n", ""))
    with pytest.raises(ConfigProblems) as excinfo:
        read_study(file)
    told = problems(excinfo)
    for words in (
        "base (FILE:1): found base and stages",
        "stages.../x (FILE:2): found the name '../x'",
        "stages.../x.after (FILE:2): unknown earlier stage 'nothing'",
        "budget (FILE:12): found steps and flops, expected exactly one of",
        "axes.model.bridge (FILE:4): found [] (a list), expected values",
        "axes.modell.llm (FILE:5): unknown section or stage 'modell'; did you mean 'model'?",
        "axes.run.seed (FILE:6): run.seed is decided by seeds",
        "axes.kind.a (FILE:7): found [1] (a list), expected a mapping of dotted keys",
        "axes.run.init_lr.1 (FILE:8): the value '0.001' is given twice",
        "when.run.init_lr (FILE:9): the condition depends on the axis itself",
        "exclude.0.kindd (FILE:10): unknown axis 'kindd'",
        "exclude.1 (FILE:10): found an empty mapping",
        "reference.run.init_lr (FILE:11): unknown value of run.init_lr '5'",
    ):
        assert says(told, file, words), (words, told)


def test_what_a_study_decides_is_not_set_in_another_way(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("""stages:
  one: {base: tiny/stage1_pretrain, budget: {steps: 3}}
  two: {base: tiny/stage2_finetune, into: run.output_dir, set: {run: {max_epoch: 2}}}
set: {one.run.max_steps: 5}
axes:
  run: [{seed: 1}, {seed: 2, output_dir: /elsewhere}]
  kind: {"a\\e[2J": {}, b: {two.run: {resume: auto}}}
""")
    with pytest.raises(ConfigProblems) as excinfo:
        read_study(file)
    told = problems(excinfo)
    for words in (
        "stages.two.into (FILE:3): found 'run.output_dir', expected a key that takes a run folder",
        "set.one.run.max_steps (FILE:4): run.max_steps is decided by the budget",
        "axes.run (FILE:6): run.seed is decided by seeds",
        "axes.kind.a\x1b[2J (FILE:7): found a label with control characters",
        "axes.kind.b.two.run (FILE:7): run.resume is decided by",
    ):
        assert says(told, file, words), (words, told)
    assert len(told) == 5, "the second stage has no budget, so its file and its study say its length"
    assert label_of("Describe:\n\x07") == "Describe:\\n\\x07"


def test_a_stage_that_starts_from_nothing_is_told(study: Any) -> None:
    with pytest.raises(ConfigProblems, match="the model loads nothing from model.prompt_path"):
        study(TWO_STAGES.replace("set: {run.init_lr", "into: model.prompt_path, set: {run.init_lr"))


def test_a_bad_value_is_told_once_with_its_line_and_the_cells_that_have_it(study: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems) as excinfo:
        study(
            TWO_STAGES
            + """
axes:
  model.bridge:
    - linear
    - {name: mlp, depht: 2}
    - {name: nothing}
  talk.run.init_lr: [1e-3, fast]
"""
        )
    told = problems(excinfo)
    place = f"{tmp_path / 'study.yaml'}"
    assert len(told) == 3
    unknown = next(t for t in told if "depht" in t)
    assert unknown.startswith(f"align.model.bridge.0.depht ({place}:10): unknown key 'depht'; did you mean 'depth'?")
    assert unknown.endswith("[mlp depht=2, 0.001; mlp depht=2, fast]")
    assert [t for t in told if f"talk.run.init_lr ({place}:12): found 'fast' (a string)" in t][0].endswith(
        "[linear, fast]"
    ), "the second stage of cells whose first is wrong is not looked at"


def test_two_axes_that_set_the_same_key_are_a_problem(study: Any) -> None:
    with pytest.raises(ConfigProblems, match="the axes run.init_lr and recipe both set it"):
        study("base: tiny/stage1_pretrain\naxes: {run.init_lr: [1e-3], recipe: {a: {run.init_lr: 2e-3}}}")


def test_grids_that_nobody_can_run_are_refused_at_once(study: Any) -> None:
    many = ", ".join(map(str, range(1, 60)))
    huge = (
        "base: tiny/stage1_pretrain\naxes: {"
        + ", ".join(f"run.{k}: [{many}]" for k in ("log_freq", "accum_grad_iters"))
        + "}"
    )
    before = time.monotonic()
    with pytest.raises(ConfigError, match=r"more than 3,333 combinations of the axes \(10,000 cells are allowed\)"):
        study(huge + "\nseeds: [0, 1, 2]")
    axes = ", ".join(f"a{n}: {{x: {{}}, y: {{}}}}" for n in range(24))
    with pytest.raises(ConfigError, match="more than 50,000 combinations, excluded ones counted"):
        study(f"base: tiny/stage1_pretrain\naxes: {{{axes}}}\nexclude: [{{a0: [x, y]}}]")
    assert time.monotonic() - before < 20


def test_a_study_may_import_nothing_unless_it_is_trusted(study: Any, tmp_path: Path) -> None:
    text = "base: tiny/stage1_pretrain\nplugins: [no_such_module]"
    with pytest.raises(ConfigError, match="only with --trust"):
        study(text)
    with pytest.raises(ConfigError, match="no_such_module"):
        study(text, trust=True)
    for run_file in (
        "plugins: [no_such_module]",
        'datasets: {a: {format: web_shards, build_info: {storage: "pipe:id"}}}',
    ):
        (tmp_path / "foreign.yaml").write_text(f"model: {{arch: tiny, model_type: minigpt4}}\n{run_file}\n")
        with pytest.raises(ConfigError, match="only with --trust"):
            study("base: foreign.yaml")


def test_options_change_the_study_file(study: Any) -> None:
    found = study(TWO_STAGES + BRIDGES, "seeds=[7]", "axes.model.bridge=[linear]", "stages.talk.set.run.init_lr=1e-5")
    assert [(c.seed, c.runs[1].config.run.init_lr) for c in found.cells] == [(7, 1e-5), (7, 1e-5)]


def test_a_base_is_looked_up_beside_the_study(study: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {arch: tiny, model_type: minigpt4}\nrun: {max_steps: 5}\n")
    assert study("base: mine.yaml").cells[0].runs[0].steps == 5
    with pytest.raises(ConfigError, match="other.yaml'?: no such file"):
        study("base: other.yaml")


@pytest.mark.heavy
def test_the_ablation_table_of_lynx_has_its_seven_rows() -> None:
    """Each differs from the full model in one thing; the first stage is shared where nothing of it changes."""
    found = build_study(Path(__file__).parents[3] / "studies" / "lynx_ablation.yaml", check="none")
    assert set(named(found)) == {
        "reference", "llama", "one", "noisy", "cross-attention", "cross-attention, LLM trained", "224",
    }  # fmt: skip
    runs = {found.named(cell.key): [run.hash for run in cell.runs] for cell in found.cells}
    shared = [name for name, hashes in runs.items() if hashes[0] == runs["reference"][0]]
    assert set(shared) == {"reference", "224"}
    budgets = [(run.budget.samples if run.budget else None) for run in found.cells[0].runs]
    assert budgets == [25_600_000, 2_560_000, 5_120_000]
