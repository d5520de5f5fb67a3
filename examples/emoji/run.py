"""Trains, evaluates and shows the emoji example, after prepare.py; what is finished is not repeated.

    python examples/emoji/run.py --seed 0
    python examples/emoji/run.py --table        the figures of all seeds that were evaluated, as Markdown

It does what `vlm train examples/emoji/stage1.yaml`, `vlm train examples/emoji/stage2.yaml` and `vlm eval
examples/emoji/eval.yaml --images right,wrong,none` do, in the folders of the seed, then prints the table of figures and
writes a page with answers about images that the model was not trained on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vlm.checkpoint.run_folder import RunDir
from vlm.common.errors import DataError, UserError
from vlm.common.logging import say, setup_logging
from vlm.common.owned import replace_text
from vlm.config.api import Config, load_config
from vlm.config.types import Check

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

    def config(self, name: str, options: Sequence[str] = (), check: Check = "all") -> Config:
        """A YAML file of the example with the folders of this run; ``check``: as in :func:`load_config`.

        Raises ConfigError: a file is missing, or an option is wrong.
        """
        tree = self._placed(yaml.safe_load((HERE / f"{name}.yaml").read_text("utf-8")))
        return load_config(tree, [f"run.seed={self.seed}", *options], check=check)

    def _placed(self, value: Any) -> Any:
        """Paths of the YAML file as those of this run."""
        if isinstance(value, dict):
            return {key: self._placed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._placed(item) for item in value]
        for written, own in (("output/real/seed0", self.folder), ("output/real", self.output)):
            if isinstance(value, str) and (value == written or value.startswith(f"{written}/")):
                return f"{own}{value.removeprefix(written)}"
        return value

    def check_prepared(self) -> None:
        """Raises UserError: prepare.py has not made what a run needs."""
        needed = ("data/train.jsonl", "data/blind.jsonl", "data/seen.jsonl", "data/unseen.jsonl", "parts")
        if missing := [name for name in needed if not (self.output / name).exists()]:
            raise UserError(
                f"{self.output} has no {missing[0]}", fix=f"python examples/emoji/prepare.py --output {self.output}"
            )


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
    steps = RunDir(cfg.run.output_dir).steps()
    if steps:
        check_same(cfg)
        if steps[-1] >= (cfg.run.max_steps or 1):  # the first stage saves at its end alone
            say(f"stage {stage}: finished at step {steps[-1]}")
            return
    result = run_training(cfg)
    if result.exit_code:
        raise SystemExit(result.exit_code)


def evaluate(run: Run) -> dict[str, Any]:
    """The scores of :data:`SETS` under each control, of the last checkpoint; read if they are there."""
    from vlm.runners.evaluate.run import run_evaluation

    cfg = run.config("eval")
    file, last = Path(cfg.run.output_dir) / "evaluation.json", RunDir(str(run.folder / "stage2")).last()
    assert last is not None
    if file.is_file() and file.stat().st_mtime > last.stat().st_mtime:
        with contextlib.suppress(DataError):  # another command wrote a part of it
            return scores_of(file)
    run_evaluation(cfg, images=CONTROLS)
    return scores_of(file)


def scores_of(file: Path) -> dict[str, Any]:
    """The scores of an evaluation. Raises DataError: the file is not a whole evaluation of the example."""
    try:
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        found = found.get("results", found)
        for name, control, kind in itertools.product(SETS, CONTROLS, TYPES):
            scores = found[name][control]
            scores["intervals"]["by_type"][kind], scores["counts"]["by_type"][kind]
            float(scores["by_type"][kind])
        return found
    except (OSError, ValueError, AttributeError, LookupError, TypeError) as error:
        raise DataError(
            f"{file} is not a whole evaluation ({type(error).__name__}: {error!s:.80})",
            fix="delete it, and run examples/emoji/run.py with this seed again",
        ) from error


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
    """The scores of every seed that was evaluated below ``output``. Raises DataError: as :func:`scores_of`."""
    names = {file: file.parts[-3].removeprefix("seed") for file in output.glob("seed*/eval/evaluation.json")}
    files = {int(name): file for file, name in names.items() if name.isdecimal()}
    return {seed: scores_of(files[seed]) for seed in sorted(files)}


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


def read_answers(file: Path) -> list[dict[str, Any]]:
    """The answers of an evaluation. Raises DataError: the file is missing or damaged."""
    try:
        return [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error})", fix=f"delete {file.parent}, and run this again") from error


def all_of_it(run: Run, options: Sequence[str]) -> None:
    """Both stages, the evaluation and the page. Raises UserError: as these."""
    started = time.perf_counter()
    run.check_prepared()
    run.config("stage2", options, check="none")  # a wrong option is found before the first stage
    train(run, 1)
    train(run, 2, options)
    scores = evaluate(run)
    shown = page(run, read_answers(run.folder / "eval" / "evaluation_answers.jsonl"))
    stage = run.folder / "stage2"
    say(f"\n{table(scores)}\n\n{time.perf_counter() - started:.0f} s")
    say(f"answers:  {shown}\nreport:   {stage / 'report.html'}")
    say(f'chat:     vlm chat {stage} --image {run.output}/data/images/fluent/1f984.png --ask "Picture of"')


def print_table(output: Path) -> None:
    """What ``--table`` does. Raises UserError: no seed was evaluated."""
    found = evaluated(output)
    if not found:
        raise UserError(
            f"{output}: no seed was evaluated", fix=f"python examples/emoji/run.py --output {output} --seed 0"
        )
    say(table_of_seeds(found))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2: a fault of what was given, 130: interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/real"), help="folder of prepare.py")
    parser.add_argument("--seed", type=int, default=0, help="of the training; each has a folder of its own")
    parser.add_argument(
        "--options", nargs="*", default=[], help="changes of the second stage alone, such as run.max_steps=8"
    )
    parser.add_argument("--table", action="store_true", help="only print the figures of all seeds as Markdown")
    args = parser.parse_args(arguments)
    setup_logging()
    try:
        if args.table:
            print_table(args.output)
        else:
            all_of_it(Run(args.output, args.seed), args.options)
    except UserError as error:
        say(f"error: {error}", sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted; the same command goes on", sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
