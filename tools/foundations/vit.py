"""Stage ``vit``: the vision encoder, trained to name at each patch the figure that covers it."""

from __future__ import annotations

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from foundations import common
from foundations.common import SIZES, Clock, Plan, learning_rate, update
from foundations.images import EMPTY, IGNORE, TARGETS, image_batch
from foundations.nets import Vit, to_pixels
from vlm.datasets.synthetic.export import balanced_questions
from vlm.datasets.synthetic.render import render
from vlm.datasets.synthetic.scene import COLORS, KINDS

STEPS, BATCH, PEAK, DENSE = 4_000, 32, 1.5e-3, 0.6


class Probe(nn.Module):
    """ViT, norm and one linear head for all that a patch is asked; norm and head are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = Vit()
        self.norm = nn.LayerNorm(SIZES["vision"]["embed_dim"])
        self.head = nn.Linear(SIZES["vision"]["embed_dim"], sum(TARGETS.values()))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """``[n, 3, h, w]`` -> logits ``[n, patches, classes]`` per question."""
        logits = self.head(self.norm(self.vit(pixels)[:, 1:]))
        return dict(zip(TARGETS, logits.split(list(TARGETS.values()), -1), strict=True))


def patch_loss(logits: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Sum over the questions of the mean cross entropy; empty patches count a quarter of the figures' ones."""
    total = torch.zeros(())
    for i, (name, scores) in enumerate(logits.items()):
        wanted = targets[..., i].flatten()
        if not (wanted != IGNORE).any():
            continue
        weight = torch.ones(scores.shape[-1])
        if name == "kind":
            weight[EMPTY] = 0.1
        total = total + F.cross_entropy(scores.flatten(0, 1), wanted, weight=weight, ignore_index=IGNORE)
    return total


@torch.no_grad()
def naming(model: Probe, count: int, seed: int, grid: int) -> dict[str, float]:
    """Accuracy of the figures' patches on fresh images of one to three figures in named colours."""
    images, targets, _ = image_batch(np.random.default_rng((seed, 77)), count, 0.0, grid, recolor=0.0)
    wanted = torch.from_numpy(targets)
    out: dict[str, list[float]] = {name: [] for name in TARGETS}
    for start in range(0, count, 100):
        logits = model(to_pixels(torch.from_numpy(images[start : start + 100])))
        for i, (name, scores) in enumerate(logits.items()):
            target = wanted[start : start + 100, :, i]
            real = (wanted[start : start + 100, :, 0] != EMPTY) & (target != IGNORE)
            out[name] += (scores.argmax(-1) == target)[real].float().tolist()
    return {name: float(np.mean(values)) for name, values in out.items()}


@torch.no_grad()
def naming_unseen(model: Probe, count: int, seed: int) -> dict[str, float]:
    """Kind and colour at the middle patch of held-out pairs."""
    scenes = [scene for scene, _ in balanced_questions(count, seed, split="unseen", types=("bind",))]
    images = torch.from_numpy(np.stack([np.asarray(render(scene)) for scene in scenes]))
    logits = model(to_pixels(images))
    kind, color = logits["kind"][..., :EMPTY].softmax(-1), logits["color"].softmax(-1)
    grid = SIZES["vision"]["image_size"] // SIZES["vision"]["patch_size"]
    right = []
    for i, scene in enumerate(scenes):
        for thing in scene.things:
            if thing.is_unseen:
                x, y = ((thing.place % 3) + 0.5) / 3 * grid, ((thing.place // 3) + 0.5) / 3 * grid
                at = int(y) * grid + int(x)
                best = int(kind[i, at].argmax()), int(color[i, at].argmax())
                right.append((best[0] == KINDS.index(thing.kind), best[1] == list(COLORS).index(thing.color)))
    kinds, colors = np.mean(right, axis=0)
    return {"unseen kind": float(kinds), "unseen color": float(colors)}


def export_vit(vit: Vit, plan: Plan) -> None:
    """Write ``eva_vit.safetensors`` with half weights and published names."""
    weights = {key: value.detach().half().contiguous() for key, value in vit.state_dict().items()}
    part = plan.out / "eva_vit.safetensors.part"
    save_file(weights, part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(plan.out / "eva_vit.safetensors")


def train_vit(plan: Plan, log_every: int = 500) -> None:
    """Train on random images, going on from ``work/vit.pt`` if it is there, and export."""
    torch.manual_seed(plan.seed)
    grid = SIZES["vision"]["image_size"] // SIZES["vision"]["patch_size"]
    model, total = Probe(), plan.steps(STEPS, 6)
    optimizer = common.make_optimizer(model)
    done, used = common.load_training(plan.work / "vit.pt", model, optimizer)
    clock, rng = Clock(used), np.random.default_rng((plan.seed, 4, done))
    losses: list[float] = []
    for step in range(done, total):
        images, targets, _ = image_batch(rng, BATCH, DENSE, grid)
        loss = patch_loss(model(to_pixels(torch.from_numpy(images))), torch.from_numpy(targets))
        update(optimizer, loss, learning_rate(step, total, PEAK, 300))
        losses.append(loss.item())
        if (step + 1) % log_every == 0 or step + 1 == total:
            count = 60 if plan.miniature else 600
            table = naming(model, count, plan.seed, grid) | naming_unseen(model, count // 2, plan.seed)
            line = " ".join(f"{name} {100 * value:.1f}" for name, value in table.items())
            print(f"vit step {step + 1}/{total} loss {np.mean(losses[-200:]):.4f} cpu {clock():.0f}s", line, flush=True)
            common.note_result(plan.work, "vit", step=step + 1, cpu_seconds=round(clock()), naming=table)
            common.save_training(plan.work / "vit.pt", model, optimizer, step + 1, clock())
    export_vit(model.vit, plan)
