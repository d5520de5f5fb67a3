"""Trains, evaluates and shows the emoji example, after prepare.py; what is finished is not repeated.

    python examples/emoji/run.py --seed 0
    python examples/emoji/run.py --table        the figures of all seeds that were evaluated, as Markdown

It does what `vlm train examples/emoji/stage1.yaml`, `vlm train examples/emoji/stage2.yaml` and `vlm eval
examples/emoji/eval.yaml --images right,wrong,none` do, in the folders of the seed, then prints the table of figures and
writes a page with answers about images that the model was not trained on.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import UserError
from vlm.common.logging import say, setup_logging
from vlm.common.owned import replace_text
from vlm.config.api import Config, load_config

HERE = Path(__file__).resolve().parent
CONTROLS = ("right", "wrong", "none")
TYPES = {"category": "category", "name": "English name", "chinese": "Chinese name"}
SETS = {"seen": "concepts of the training", "unseen": "concepts never trained on"}
SHOWN = 40
"""Images of the page."""


@dataclass(frozen=True)
class Run:
    """The folders of one seed."""

    output: Path
    seed: int = 0

    @property
    def folder(self) -> Path:
        """What belongs to this seed."""
        return self.output / f"seed{self.seed}"

    def config(self, name: str, options: Sequence[str] = ()) -> Config:
        """A YAML file of the example with the folders of this run. Raises ConfigError: a file is missing."""
        text = (HERE / f"{name}.yaml").read_text("utf-8")
        text = text.replace("output/real/seed0", str(self.folder)).replace("output/real", str(self.output))
        return load_config(yaml.safe_load(text), [f"run.seed={self.seed}", *options], check="all")


def check_same(cfg: Config) -> None:
    """Raises UserError: the folder of the stage holds another bridge than the YAML file describes now."""
    stored = load_config(str(Path(cfg.run.output_dir) / "config.yaml"), check="none")
    before, now = ([(part.name, part.config) for part in config.model.bridge] for config in (stored, cfg))
    if before != now:
        raise UserError(
            f"{cfg.run.output_dir}: trained with another bridge than the YAML file has now",
            fix=f"delete {Path(cfg.run.output_dir).parent}, or use another --seed",
        )


def train(run: Run, stage: int, options: Sequence[str] = ()) -> None:
    """Train a stage, or what is left of it. Raises UserError: as ``vlm train``; SystemExit: a signal stopped it."""
    from vlm.runners.train.run import run_training

    cfg = run.config(f"stage{stage}", ["run.resume=auto", *options])
    last = RunDir(cfg.run.output_dir).last()
    if last is not None:
        check_same(cfg)
    if last is not None and (Path(cfg.run.output_dir) / "verify.json").is_file():
        say(f"stage {stage}: finished ({last})")
        return
    result = run_training(cfg)
    if result.exit_code:
        raise SystemExit(result.exit_code)


def evaluate(run: Run, options: Sequence[str] = ()) -> dict[str, Any]:
    """The scores of :data:`SETS` under each control, of the last checkpoint; read if they are there."""
    from vlm.runners.evaluate.run import run_evaluation

    cfg = run.config("eval", options)
    file, stage = Path(cfg.run.output_dir) / "evaluation.json", run.folder / "stage2"
    if not file.is_file() or file.stat().st_mtime < (stage / "verify.json").stat().st_mtime:
        run_evaluation(cfg, images=CONTROLS)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found.get("results", found)


def table(scores: Mapping[str, Any]) -> str:
    """The figures as text: accuracy with its 95 % interval by question, concepts and image."""
    lines = [f"{'exact match, new style':<32}{'right image':>22}{'wrong image':>15}{'no image':>12}{'majority':>12}"]
    for name in SETS:
        right = scores[name]["right"]
        for kind, title in TYPES.items():
            low, high = right["intervals"]["by_type"][kind]
            cell = f"{right['by_type'][kind]:.1%} [{100 * low:.0f}-{100 * high:.0f}]"
            others = [scores[name][control]["by_type"][kind] for control in CONTROLS[1:]]
            others.append(right["majority"]["by_type"][kind])
            label = f"{title} ({name}, {right['counts']['by_type'][kind]})"
            lines.append(f"{label:<32}{cell:>22}{others[0]:>15.1%}{others[1]:>12.1%}{others[2]:>12.1%}")
    lines += [f"{name}: {about}" for name, about in SETS.items()]
    return "\n".join(lines)


def evaluated(output: Path) -> dict[int, dict[str, Any]]:
    """The scores of every seed that was evaluated below ``output``."""
    names = {file: file.parts[-3].removeprefix("seed") for file in output.glob("seed*/eval/evaluation.json")}
    files = {int(name): file for file, name in names.items() if name.isdecimal()}
    found = {seed: json.loads(files[seed].read_text("utf-8")) for seed in sorted(files)}
    return {seed: scores.get("results", scores) for seed, scores in found.items()}


def spread(values: Sequence[float]) -> str:
    """The mean in percent, and from the least to the largest."""
    percent = [100 * value for value in values]
    return f"{sum(percent) / len(percent):.1f} % ({min(percent):.1f} to {max(percent):.1f})"


def table_of_seeds(found: Mapping[int, Mapping[str, Any]]) -> str:
    """The figures of all seeds as Markdown: means and spread, and whether each seed beats its controls.

    A seed beats a control where the 95 % interval with the right image lies above that of the control.
    """
    lines = [
        f"| exact match, new style, seeds {', '.join(map(str, found))} | right image | wrong image | no image "
        "| majority | beats its controls |",
        "|---|---|---|---|---|---|",
    ]
    for name, about in SETS.items():
        for kind, title in TYPES.items():
            shares = {c: [scores[name][c]["by_type"][kind] for scores in found.values()] for c in CONTROLS}
            majority = [scores[name]["right"]["majority"]["by_type"][kind] for scores in found.values()]
            above = sum(beats(scores[name], kind) for scores in found.values())
            count = next(iter(found.values()))[name]["right"]["counts"]["by_type"][kind]
            cells = [f"**{spread(shares['right'])}**", *(spread(shares[c]) for c in CONTROLS[1:])]
            cells += [f"{100 * majority[0]:.1f} %", f"{above} of {len(found)}"]
            lines.append(f"| {count} {about}: {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def beats(scores: Mapping[str, Any], kind: str) -> bool:
    """Whether the interval with the right image lies above those of all controls."""
    low = scores["right"]["intervals"]["by_type"][kind][0]
    return all(low > scores[control]["intervals"]["by_type"][kind][1] for control in CONTROLS[1:])


def page(run: Run, answers: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page: images with the answers in both languages, those of the held-out concepts last."""
    from vlm.pages.grid import Cell
    from vlm.pages.grid import page as grid

    told: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {name: {} for name in SETS}
    for answer in answers:
        if answer["image"] == "right":
            image, _, kind = answer["id"].rpartition("/")
            told[answer["dataset"]].setdefault(image, {})[kind] = answer
    groups = []
    for name, heading in SETS.items():
        cells = []
        for image, found in list(told[name].items())[: SHOWN // 2]:
            lines = [(found[kind]["answer"], bool(found[kind]["right"])) for kind in ("name", "chinese", "category")]
            file = str(run.output / "data" / "images" / f"{image}.png")
            cells.append(Cell(file, lines, found["name"]["reference"]))
        groups.append((heading[:1].upper() + heading[1:], cells))
    about = (
        "Images of a style that nothing was trained on, with the answers of the model: English name, Chinese name, "
        "category. Red with a cross: not the very words of the list, which are in grey."
    )
    target = run.folder / "answers.html"
    replace_text(target, grid("What is it? 这是什么？", groups, about))
    return target


def print_table(output: Path) -> int:
    """What ``--table`` does; 2: no seed was evaluated."""
    found = evaluated(output)
    if not found:
        say(f"error: {output}: no seed was evaluated\n  fix: python examples/emoji/run.py --seed 0", sys.stderr)
        return 2
    say(table_of_seeds(found))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/real"), help="folder of prepare.py")
    parser.add_argument("--seed", type=int, default=0, help="of the training; each has a folder of its own")
    parser.add_argument("--options", nargs="*", default=[], help="changes of the second stage, such as run.max_steps=8")
    parser.add_argument("--table", action="store_true", help="only print the figures of all seeds as Markdown")
    args = parser.parse_args(arguments)
    setup_logging()
    if args.table:
        return print_table(args.output)
    run, started = Run(args.output, args.seed), time.perf_counter()
    try:
        train(run, 1)
        train(run, 2, args.options)
        scores = evaluate(run)
        lines = (run.folder / "eval" / "evaluation_answers.jsonl").read_text("utf-8").splitlines()
        shown = page(run, [json.loads(line) for line in lines])
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    stage = run.folder / "stage2"
    say(f"\n{table(scores)}\n\n{time.perf_counter() - started:.0f} s")
    say(f"answers:  {shown}\nreport:   {stage / 'report.html'}")
    say(f'chat:     vlm chat {stage} --image {args.output}/data/images/fluent/1f984.png --ask "Picture of"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
