"""Check the foundations: align them with a linear projection only, in two stages, and measure.

    python tools/foundations/probe_alignment.py --assets vlm/assets/tiny --seeds 0 1 2

Everything but the projection is frozen. Prints exact match with the right image, a wrong one, none, and
before alignment, each beside the most frequent answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

from foundations.common import Plan, learning_rate  # noqa: E402
from foundations.llm import answer_logits, build_llm  # noqa: E402
from foundations.nets import QFormer, to_pixels  # noqa: E402
from foundations.qformer import load_vit  # noqa: E402
from foundations.text import Row, pad_rows, stage1_row, training_row  # noqa: E402
from foundations.tokenizer import Words  # noqa: E402
from vlm.datasets.synthetic.export import balanced_questions  # noqa: E402
from vlm.datasets.synthetic.language import NOTE_WORDS, Question, caption, dialogue  # noqa: E402
from vlm.datasets.synthetic.render import render  # noqa: E402
from vlm.datasets.synthetic.scene import Scene, scene_at  # noqa: E402

HOLE = (0,) * NOTE_WORDS


@dataclass
class Recipe:
    """One stage: images, steps, batch, peak learning rate, warm-up steps."""

    images: int
    steps: int
    batch: int
    rate: float
    warmup: int = 20


class Tiny:
    """The frozen foundations and a projection."""

    def __init__(self, assets: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.words = Words(assets / "llm" / "tokenizer.model")
        self.vit = load_vit(Plan(assets, assets))
        self.qformer, self.llm = QFormer(), build_llm()
        for module, file in ((self.qformer, "qformer.safetensors"), (self.llm, "llm/model.safetensors")):
            module.load_state_dict({k: v.float() for k, v in load_file(assets / file).items()})
            module.requires_grad_(False).eval()
        self.proj = nn.Linear(self.qformer.query_tokens.shape[-1], self.llm.config.hidden_size)

    @torch.no_grad()
    def features(self, scenes: list[Scene]) -> Tensor:
        """``[n, queries, hidden]``."""
        parts = []
        for start in range(0, len(scenes), 64):
            images = torch.from_numpy(np.stack([np.asarray(render(s)) for s in scenes[start : start + 64]]))
            parts.append(self.qformer(self.vit(to_pixels(images))))
        return torch.cat(parts)

    def logits(self, rows: list[Row], features: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and targets at the trained positions, and the row of each."""
        data = {k: torch.from_numpy(v) for k, v in pad_rows(rows).items()}
        x = self.llm.get_input_embeddings()(data["ids"])
        if features is not None:
            where = data["image"][:, None] + torch.arange(NOTE_WORDS)
            rows_at = torch.arange(len(rows))[:, None].expand_as(where)
            x = x.index_put((rows_at, where), self.proj(features))
        scores, target = answer_logits(self.llm, x, data["labels"])
        owner = torch.nonzero(data["labels"][:, 1:] >= 0)[:, 0]
        return scores, target, owner


def train_stage(tiny: Tiny, rows: list[Row], features: Tensor, recipe: Recipe, seed: int, name: str) -> None:
    """Train the projection on rows whose image block is filled from ``features [n, queries, hidden]``."""
    optimizer = torch.optim.AdamW(tiny.proj.parameters(), lr=recipe.rate, betas=(0.9, 0.999), weight_decay=0.0)
    rng = np.random.default_rng((seed, 11))
    order: list[int] = []
    for step in range(recipe.steps):
        if len(order) < recipe.batch:
            order = rng.permutation(len(rows)).tolist()
        picked, order = order[: recipe.batch], order[recipe.batch :]
        scores, target, _ = tiny.logits([rows[i] for i in picked], features[picked])
        loss = F.cross_entropy(scores, target)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.rate, recipe.warmup)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            print(f"  {name} step {step} loss {loss.item():.3f}", flush=True)


Rows = list[tuple[Scene, Question]]


@torch.no_grad()
def score(tiny: Tiny, questions: Rows, features: Tensor | None) -> dict[str, float]:
    """Exact match per type; ``features`` None leaves the image out."""
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(questions), 100):
        part = questions[start : start + 100]
        block = None if features is None else HOLE
        rows = [training_row(tiny.words, block, [question]) for _, question in part]
        scores, target, owner = tiny.logits(rows, None if features is None else features[start : start + 100])
        wrong = torch.bincount(owner[scores.argmax(-1) != target], minlength=len(part))
        for (_, question), bad in zip(part, wrong.tolist(), strict=True):
            right[question.type].append(bad == 0)
    return {"all": float(np.mean([ok for values in right.values() for ok in values]))} | {
        kind: float(np.mean(values)) for kind, values in right.items()
    }


def majority(questions: Rows) -> dict[str, float]:
    """Share of the most frequent answer of each type, and of the questions answered by it over all."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in questions:
        answers[question.type][question.answer] += 1
    best = {kind: max(counter.values()) for kind, counter in answers.items()}
    total = {kind: sum(counter.values()) for kind, counter in answers.items()}
    return {"all": sum(best.values()) / sum(total.values())} | {kind: best[kind] / total[kind] for kind in best}


def probe(assets: Path, seed: int, first: Recipe, second: Recipe, gap: str = "") -> dict[str, dict[str, float]]:
    """Align with one seed and measure everything."""
    tiny, clock = Tiny(assets, seed), time.time()
    sets = {
        "seen": balanced_questions(1040, seed),
        "unseen": balanced_questions(520, seed, split="unseen"),
        "three": balanced_questions(240, seed, objects=(3,)),
    }
    features = {name: tiny.features([scene for scene, _ in rows]) for name, rows in sets.items()}
    tables = {"before alignment": score(tiny, sets["seen"], features["seen"])}
    scenes = [scene_at(seed, i, split="captions") for i in range(first.images)]
    train_stage(
        tiny, [stage1_row(tiny.words, HOLE, caption(s)) for s in scenes], tiny.features(scenes), first, seed, "stage 1"
    )
    one = time.time()
    tables["after stage 1"] = score(tiny, sets["seen"], features["seen"])
    scenes = [scene_at(seed, i, split="dialogues") for i in range(second.images)]
    talks = [dialogue(s, np.random.default_rng((*s.key, 2)), 4) for s in scenes]
    train_stage(
        tiny, [training_row(tiny.words, HOLE, t, gap) for t in talks], tiny.features(scenes), second, seed, "stage 2"
    )
    two = time.time()
    tables |= {name: score(tiny, rows, features[name]) for name, rows in sets.items()}
    tables["wrong image"] = score(tiny, sets["seen"], features["seen"].roll(17, 0))
    tables["no image"] = score(tiny, sets["seen"], None)
    tables["majority"] = majority(sets["seen"])
    tables["majority unseen"] = majority(sets["unseen"])
    print(f"seed {seed}: stage 1 {one - clock:.0f} s, stage 2 {two - one:.0f} s with rendering and features")
    return tables


def main() -> None:
    """Parse the command line, run the seeds, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    shape = ("N", "STEPS", "B", "LR")
    parser.add_argument("--first", type=float, nargs=4, default=[2000, 150, 32, 5e-3], metavar=shape)
    parser.add_argument("--second", type=float, nargs=4, default=[3000, 250, 32, 4e-3], metavar=shape)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the tables here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipes = [Recipe(int(n), int(steps), int(b), lr) for n, steps, b, lr in (options.first, options.second)]
    results = {}
    for seed in options.seeds:
        results[seed] = probe(options.assets, seed, *recipes)
        for name, table in results[seed].items():
            print(f"{name:17s}" + " ".join(f"{kind} {100 * value:5.1f}" for kind, value in table.items()), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
