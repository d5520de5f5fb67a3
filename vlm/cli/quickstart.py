"""The embedded small model, end to end, on images drawn on the spot; nothing is downloaded.

Frozen ViT, frozen Q-Former and frozen LLM come with the package; the projection between them is trained in
two stages by the same YAML files, ``train.py`` functions and classes as the full-size systems, then asked
about images it has not seen.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.cli.options import add_listed
from vlm.common.errors import UserError
from vlm.common.logging import busy, quiet, say
from vlm.common.owned import is_table, write_own
from vlm.common.paths import make_folder
from vlm.common.registry import register_command
from vlm.common.text import lines_of

CAPTIONS, DIALOGUES = 6000, 3000
"""Images of stage 1 and stage 2."""
QUESTIONS, UNSEEN, THREE = 1200, 600, 400
"""Questions on held-out images of one and two objects, on unseen colour-kind pairs, on three objects."""

RESULTS = "results.json"
DRAWN = "drawn_by_quickstart"
"""A file in ``data`` that says whose it is."""
_DRAWN = re.compile(r"shards/[0-9]{5}\.tar|images/(\w+/)?[0-9]{6,8}\.png|(seen|unseen|three)\.jsonl|dialogues\.json")

DETAILS = ("vlm.checkpoint", "vlm.runners.evaluate.run", "vlm.runners.train.run", "vlm.runners.train.trainer")
"""Loggers that would repeat at length what the quickstart reports itself."""


@dataclass
class Quickstart:
    """Where the run is written and how large it is."""

    output: Path
    seed: int = 0
    scale: float = 1.0
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """Folder of shards, dialogues and questions."""
        return self.output / "data"

    def count(self, number: int) -> int:
        """``number`` times the run's scale, at least 8."""
        return max(8, round(number * self.scale))

    @contextmanager
    def phase(self, name: str, title: str, doing: str = "") -> Iterator[None]:
        """Announce a phase and time it into ``seconds``; ``doing``: shown with a spinner (training has its own bar)."""
        say(title)
        start = time.perf_counter()
        with busy(doing) if doing else nullcontext():
            yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        say(f"   done in {self.seconds[name]:.1f} s")


def draw(run: Quickstart) -> None:
    """Draw every image and write the files that the tiny configurations name."""
    from vlm.datasets.synthetic.export import write_caption_shards, write_dialogues, write_questions

    write_caption_shards(run.data / "shards", run.count(CAPTIONS), run.seed)
    write_dialogues(run.data, run.count(DIALOGUES), run.seed)
    write_questions(run.data, run.count(QUESTIONS), run.seed, split="seen", objects=(1, 2))
    write_questions(run.data, run.count(UNSEEN), run.seed, split="unseen", objects=(1, 2))
    write_questions(run.data, run.count(THREE), run.seed, split="seen", objects=(3,), name="three")


def clear_drawn(output: Path) -> None:
    """Delete the images and texts that an earlier quickstart drew; the run folders of its stages see to themselves.

    Raises UserError: the folder is not for results, or its ``data`` was not drawn by a quickstart.
    """
    from vlm.checkpoint.run_files import MANIFEST, is_checkpoint, refuse_place, write_manifest

    refuse_place(output, "--output")
    data, table = output / "data", output / RESULTS
    if not data.exists() and not os.path.lexists(table):
        (make_folder(data) / DRAWN).touch()
        return
    if not (data / DRAWN).is_file() and not (data / "shards" / "00000.tar").is_file():
        raise UserError(
            f"{output} holds {'data' if data.exists() else RESULTS} that no quickstart wrote; nothing was changed",
            fix="name another folder with --output",
        )
    for file in sorted(data.rglob("*"), reverse=True):
        if _DRAWN.fullmatch(file.relative_to(data).as_posix()) and file.is_file():
            file.unlink()
    if not (data / DRAWN).is_file():  # of an earlier version, whose stages have no list of their files
        for stage in (output / "stage1", output / "stage2"):
            if not (stage / MANIFEST).exists() and any(map(is_checkpoint, stage.glob("checkpoints/step_*"))):
                write_manifest(stage)
    (data / DRAWN).touch()


def train(run: Quickstart, stage: int) -> None:
    """Train one stage as ``vlm train`` would."""
    from vlm.config.api import load_config
    from vlm.runners.train.run import run_training

    name = ("tiny/stage1_pretrain", "tiny/stage2_finetune")[stage - 1]
    options = [f"run.seed={run.seed}", f"run.output_dir={run.output}/stage{stage}", "run.overwrite=true"]
    if stage == 1:
        options += [f"datasets.tiny_captions.build_info.storage={run.data}/shards"]
    else:
        options += [
            f"model.ckpt={run.output}/stage1/last",
            f"datasets.tiny_dialogues.build_info.ann_path={run.data}/dialogues.json",
            f"datasets.tiny_dialogues.build_info.image_path={run.data}/images",
        ]
    cfg = load_config(name, options, train=True)
    if run.scale < 1:
        cfg = load_config(name, [*options, f"run.max_steps={run.count(cfg.run.max_steps or 8)}"], train=True)
    result = run_training(cfg)
    if result.exit_code:  # a signal: the stage is saved, the rest is not done
        raise SystemExit(result.exit_code)


def evaluate(run: Quickstart, ckpt: str) -> dict[str, Any]:
    """Answers to all questions: with the right image, and after training with a wrong one and with none."""
    from vlm.common import dist
    from vlm.config.api import load_config
    from vlm.inference.engine import Engine
    from vlm.runners.evaluate.run import run_evaluation

    options = [f"model.ckpt={ckpt}", f"run.seed={run.seed}", f"run.output_dir={run.output}/eval"]
    for name in ("seen", "unseen", "three"):
        info = f"evaluation_datasets.{name}.build_info"
        options += [f"{info}.ann_path={run.data}/{name}.jsonl", f"{info}.image_path={run.data}"]
    cfg = load_config("tiny/eval", options)
    dist.seed_everything(run.seed, 0, False)  # the untrained projection is a random draw
    engine = Engine.load(cfg, device="cpu", allow_random=not ckpt)
    if not ckpt:
        return run_evaluation(cfg, engine=engine, datasets=["seen"], output=run.output / "eval" / "unaligned")
    results = run_evaluation(cfg, engine=engine, datasets=["seen"], images=("right", "wrong", "none"))
    more = run.output / "eval" / "more"
    return results | run_evaluation(cfg, engine=engine, datasets=["unseen", "three"], output=more)


def summary(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The numbers of ``results.json``, all of them fractions."""
    right = after["seen"]["right"]

    def numbers(entry: dict[str, Any]) -> dict[str, Any]:
        return {k: entry[k] for k in ("overall", "by_type", "by_objects")} | {"questions": entry["count"]}

    return {
        "aligned": {
            **numbers(right),
            "unseen_pairs": after["unseen"]["right"]["overall"],
            "unseen_pairs_by_type": after["unseen"]["right"]["by_type"],
            "unseen_pairs_questions": after["unseen"]["right"]["count"],
            "three_objects": after["three"]["right"]["overall"],
            "three_objects_questions": after["three"]["right"]["count"],
        },
        "wrong_image": numbers(after["seen"]["wrong"]),
        "no_image": numbers(after["seen"]["none"]),
        "unaligned": numbers(before["seen"]["right"]),
        "majority": {"overall": right["majority"]["overall"], "by_type": right["majority"]["by_type"]},
    }


def table(results: dict[str, Any]) -> str:
    """Accuracy per question type and condition, as text."""
    columns = ("aligned", "wrong_image", "no_image", "unaligned", "majority")
    titles = ("aligned", "wrong image", "no image", "before", "majority")
    lines = [f"{'question':<12}" + "".join(f"{title:>15}" for title in titles)]
    for kind in [*results["aligned"]["by_type"], "overall"]:
        cells = [results[c]["overall"] if kind == "overall" else results[c]["by_type"].get(kind, 0.0) for c in columns]
        lines.append(f"{kind:<12}" + "".join(f"{100 * cell:>14.1f}%" for cell in cells))
    aligned = results["aligned"]
    lines.append(
        f"{aligned['questions']} questions on held-out images of one and two objects; "
        "colour-kind pairs never seen together: "
        f"{100 * aligned['unseen_pairs']:.1f}% of {aligned['unseen_pairs_questions']}; "
        f"images of three objects: {100 * aligned['three_objects']:.1f}% of {aligned['three_objects_questions']}"
    )
    return "\n".join(lines)


def dialogues(run: Quickstart, images: int = 2) -> str:
    """A few questions about held-out images, asked one after another in a chat."""
    from vlm.common.types import Image
    from vlm.inference.engine import Engine
    from vlm.inference.generation import Generation
    from vlm.inference.session import ChatSession

    engine = Engine.load(run.output / "stage2", device="cpu")
    rows = [json.loads(line) for line in lines_of((run.data / "seen.jsonl").read_text("utf-8"))]
    lines = []
    for row in [r for r in rows if r["objects"] == 2 and r["type"] != "count"][-images:]:
        lines.append(f"{run.data / row['image']}")
        session = ChatSession(engine, Generation(max_new_tokens=80, do_sample=False, repetition_penalty=1.0))
        questions = [row["question"], "How many objects are there?", "Describe this image in detail."]
        for number, question in enumerate(questions):
            session.ask(question, [Image(run.data / row["image"])] if number == 0 else [])
            lines += [f"   you:   {question}", f"   model: {session.answer()}"]
    return "\n".join(lines)


@register_command("quickstart")
class QuickstartCommand:
    """Train, evaluate and try the embedded small model; nothing is downloaded.

    examples:
      vlm quickstart --scale 0.1 --output output/trial
      vlm quickstart --data-only
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Seed, output folder, scale, and whether to stop after drawing."""
        add_listed(parser, "quickstart")

    def main(self, args: argparse.Namespace) -> int:
        """``vlm quickstart``."""
        if args.data_only:
            draw_data(args.output, args.seed, args.scale)
        else:
            run_quickstart(args.output, args.seed, args.scale)
        return 0


def draw_data(output: str | Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Draw what the quickstart trains on and asks; the first of its phases.

    Args:
        output: folder of the run; images and texts that an earlier quickstart drew there are replaced.
        seed: of the images.
        scale: fraction of the images and questions.

    Returns:
        ``<output>/data``.
    """
    run = prepared(output, seed, scale)
    with quiet(*DETAILS):
        drawn(run)
    say(f"data:     {run.data}")
    return run.data


def prepared(output: str | Path, seed: int, scale: float) -> Quickstart:
    """A run whose folder holds nothing that an earlier one drew.

    Raises UserError: the scale is out of range, or :func:`clear_drawn` refuses the folder.
    """
    if not 0 < scale <= 100:
        raise UserError(f"--scale is {scale}, expected a number above 0 and at most 100")
    run = Quickstart(Path(output), seed, scale)
    clear_drawn(run.output)
    return run


def drawn(run: Quickstart) -> None:
    """The phase of :func:`draw`."""
    with run.phase("draw", "1. drawing images of coloured shapes and letters", "drawing"):
        draw(run)


def run_quickstart(output: str | Path, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    """Draw, train both stages, evaluate, chat; writes ``<output>/results.json``.

    Args:
        output: folder of the run; what an earlier quickstart wrote there is replaced.
        seed: of the images and of training.
        scale: fraction of the images, questions and steps; below 1 it only shows that everything runs.

    Returns:
        The content of ``results.json``.
    """
    import torch

    run = prepared(output, seed, scale)
    # These tensors are tiny: a second thread gains a fifth on an idle machine and loses tenfold on a busy one.
    torch.set_num_threads(1)
    with quiet(*DETAILS):
        drawn(run)
        with run.phase("evaluate_before", "2. asking before alignment (the projection is random)", "asking"):
            before = evaluate(run, "")
        with run.phase("stage1", "3. training, stage 1: captions; only the projection between Q-Former and LLM trains"):
            train(run, 1)
        with run.phase("stage2", "4. training, stage 2: dialogues; the same projection trains on"):
            train(run, 2)
        asking = "5. asking about images never seen: with the right image, a wrong one, none"
        with run.phase("evaluate", asking, "asking"):
            after = evaluate(run, f"{run.output}/stage2/last")
        with run.phase("dialogues", "6. chatting about two of them", "chatting"):
            talk = dialogues(run)
    run.seconds["total"] = round(sum(run.seconds.values()), 2)
    results = {**summary(before, after), "seed": seed, "seconds": run.seconds}
    write_own(run.output / RESULTS, json.dumps(results, indent=1) + "\n", is_table)
    say(f"\n{table(results)}\n\n{talk}\n")
    say(f"results:  {run.output / 'results.json'}\nreport:   {run.output / 'stage2' / 'report.html'}")
    say(f"chat:     vlm chat {run.output / 'stage2'}\npage:     vlm demo {run.output / 'stage2'}")
    return results
