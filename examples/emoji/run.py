"""Trains, evaluates and shows the emoji example, after prepare.py; what is finished is not repeated.

    python examples/emoji/run.py --seed 0

It does what `vlm train examples/emoji/stage1.yaml`, `vlm train examples/emoji/stage2.yaml` and `vlm eval
examples/emoji/eval.yaml --images right,wrong,none` do, in the folders of the seed, then prints the table of figures and
writes a page with answers about images that the model was not trained on.
"""

from __future__ import annotations

import argparse
import html
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
from vlm.config.api import Config, load_config

HERE = Path(__file__).resolve().parent
CONTROLS = ("right", "wrong", "none")
TYPES = {"category": "category", "name": "English name", "chinese": "Chinese name"}
SETS = {"seen": "concepts of the training", "unseen": "concepts never trained on"}
SHOWN = 40
"""Images of the page."""
PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 13px/1.35 sans-serif; margin: 16px; max-width: 1100px; background: white; color: #1b1f24 }}
main {{ display: grid; grid-template-columns: repeat(8, 1fr); gap: 10px }}
figure {{ margin: 0; text-align: center }} img {{ width: 80px; height: 80px }}
.no {{ color: #a3272b }} small {{ color: #59636e; display: block }}
</style><h1>{title}</h1><p>{about}</p><main>
{cards}
</main>
"""


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


def train(run: Run, stage: int, options: Sequence[str] = ()) -> None:
    """Train a stage, or what is left of it. Raises UserError: as ``vlm train``; SystemExit: a signal stopped it."""
    from vlm.runners.train.run import run_training

    cfg = run.config(f"stage{stage}", ["run.resume=auto", *options])
    last = RunDir(cfg.run.output_dir).last()
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


def page(run: Run, answers: Sequence[Mapping[str, Any]]) -> Path:
    """Write the page: images with the answers in both languages, those of the held-out concepts last."""
    from vlm.pages.parts import image_uri

    told: dict[str, dict[str, Mapping[str, Any]]] = {}
    for answer in answers:
        if answer["image"] == "right":
            image, _, kind = answer["id"].rpartition("/")
            told.setdefault(image, {"set": answer["dataset"]})[kind] = answer
    chosen = [
        *[p for p in told if told[p]["set"] == "seen"][: SHOWN // 2],
        *[p for p in told if told[p]["set"] == "unseen"][: SHOWN // 2],
    ]
    cards = []
    for image in chosen:
        words = []
        for kind in ("name", "chinese", "category"):
            answer = told[image][kind]
            mark = "" if answer["right"] else ' class="no"'
            words.append(f"<div{mark}>{html.escape(answer['answer'])}</div>")
        name = told[image]["name"]["reference"]
        uri = image_uri(str(run.output / "data" / "images" / f"{image}.png"), 160)
        cards.append(f'<figure><img alt="" src="{uri}">{"".join(words)}<small>{html.escape(name)}</small></figure>')
    about = (
        f"Images of a style that nothing was trained on; the last {SHOWN // 2} show concepts that were never trained "
        "on either. Under each: the answers of the model (red: not the very words of the list), in grey the name."
    )
    target = run.folder / "answers.html"
    target.write_text(PAGE.format(title="What is it? 这是什么？", about=about, cards="\n".join(cards)), "utf-8")
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/real"), help="folder of prepare.py")
    parser.add_argument("--seed", type=int, default=0, help="of the training; each has a folder of its own")
    parser.add_argument("--options", nargs="*", default=[], help="changes of the second stage, such as run.max_steps=8")
    args = parser.parse_args(arguments)
    setup_logging()
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
