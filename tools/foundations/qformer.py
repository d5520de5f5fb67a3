"""Stage ``qformer``: with the ViT frozen, query k learns to hold word k of the note.

The head that names the words is shared by all queries and thrown away, as BLIP-2 throws away the
projection into the language model it was trained with.
"""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from foundations import common
from foundations.common import SIZES, Clock, Plan, learning_rate, update
from foundations.images import IGNORE, NOTE_VOCABULARY, image_batch
from foundations.nets import QFormer, Vit, to_pixels
from vlm.datasets.synthetic.language import NOTE_WORDS, note
from vlm.datasets.synthetic.render import render
from vlm.datasets.synthetic.scene import random_scene

STEPS, BATCH, PEAK = 1_500, 48, 1.5e-3


class Speller(nn.Module):
    """Q-Former and the throw-away head over ``NOTE_VOCABULARY``."""

    def __init__(self) -> None:
        super().__init__()
        self.qformer = QFormer()
        self.head = nn.Linear(SIZES["qformer"]["hidden_size"], len(NOTE_VOCABULARY))

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens of the ViT ``[n, v, d]`` -> logits ``[n, NOTE_WORDS, words]``."""
        return self.head(self.qformer(tokens))


def load_vit(plan: Plan) -> Vit:
    """The exported ViT, frozen, in float32."""
    vit = Vit()
    vit.load_state_dict({key: value.float() for key, value in load_file(plan.out / "eva_vit.safetensors").items()})
    return vit.requires_grad_(False).eval()


@torch.no_grad()
def spelling(model: Speller, vit: Vit, count: int, seed: int, unseen: bool, things: int) -> dict[str, float]:
    """Share of right words per slot of the things there are, and of wholly right notes."""
    rng = np.random.default_rng((seed, 99, int(unseen), things))
    mix = tuple(float(n == things) for n in (1, 2, 3))
    scenes = [random_scene(rng, mix=mix, unseen=unseen, key=(seed, 9, i)) for i in range(count)]
    wanted = torch.tensor([[NOTE_VOCABULARY.index(word) for word in note(scene)] for scene in scenes])
    best = []
    for start in range(0, count, 100):
        images = np.stack([np.asarray(render(scene)) for scene in scenes[start : start + 100]])
        best.append(model(vit(to_pixels(torch.from_numpy(images)))).argmax(-1))
    right = (torch.cat(best) == wanted).float()
    slots = right[:, 1 : 1 + 5 * things].unflatten(1, (things, 5)).mean((0, 1)).tolist()
    names = ("row", "column", "size", "color", "kind")
    whole, number = right.prod(1).mean().item(), right[:, 0].mean().item()
    return {"whole": whole, "count": number, **dict(zip(names, slots, strict=True))}


def export_qformer(qformer: QFormer, plan: Plan) -> None:
    """Write ``qformer.safetensors`` with half weights and published names."""
    weights = {key: value.detach().half().contiguous() for key, value in qformer.state_dict().items()}
    part = plan.out / "qformer.safetensors.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(plan.out / "qformer.safetensors")


def report(model: Speller, vit: Vit, plan: Plan, step: int, total: int, loss: float, cpu: float) -> None:
    """Print and keep the measured spelling."""
    count = 60 if plan.miniature else 500
    model.eval()
    tables = {
        f"{'unseen' if unseen else 'seen'} {things}": spelling(model, vit, count, plan.seed, unseen, things)
        for unseen, things in ((False, 1), (False, 2), (False, 3), (True, 1), (True, 2))
    }
    model.train()
    print(f"qformer step {step}/{total} loss {loss:.4f} cpu {cpu:.0f}s")
    for name, table in tables.items():
        print(f"{name:9s}" + " ".join(f"{slot} {100 * value:5.1f}" for slot, value in table.items()), flush=True)
    common.note_result(plan.work, "qformer", step=step, cpu_seconds=round(cpu), spelling=tables)


def train_qformer(plan: Plan, log_every: int = 250) -> None:
    """Train on random images, going on from ``work/qformer.pt`` if it is there, and export."""
    torch.manual_seed(plan.seed)
    grid = SIZES["vision"]["image_size"] // SIZES["vision"]["patch_size"]
    vit, model, total = load_vit(plan), Speller(), plan.steps(STEPS, 6)
    assert SIZES["qformer"]["num_query_tokens"] == NOTE_WORDS
    optimizer = common.make_optimizer(model)
    done, used = common.load_training(plan.work / "qformer.pt", model, optimizer)
    clock, rng = Clock(used), np.random.default_rng((plan.seed, 5, done))
    losses: list[float] = []
    for step in range(done, total):
        images, _, notes = image_batch(rng, BATCH, 0.0, grid)
        with torch.no_grad():
            tokens = vit(to_pixels(torch.from_numpy(images)))
        logits = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(notes).flatten(), ignore_index=IGNORE)
        update(optimizer, loss, learning_rate(step, total, PEAK, 300))
        losses.append(loss.item())
        if (step + 1) % log_every == 0 or step + 1 == total:
            report(model, vit, plan, step + 1, total, float(np.mean(losses[-200:])), clock())
            common.save_training(plan.work / "qformer.pt", model, optimizer, step + 1, clock())
    export_qformer(model.qformer, plan)
