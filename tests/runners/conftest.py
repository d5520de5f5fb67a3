"""Stand-ins that follow the contracts, so that the loop is tested without a composition."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlm.checkpoint.run_folder import RunDir
from vlm.common.types import IGNORE_INDEX, Batch, Output
from vlm.config.run import RunConfig
from vlm.runners.train.trainer import Trainer
from vlm.tasks.image_text_pretrain import ImageTextPretrain

VOCAB = 11


class TinyModel(nn.Module):
    """Frozen embedding and head, trainable projection, dropout to use the random state."""

    def __init__(self, dropout=0.1, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(VOCAB, 6)
        self.proj = nn.Linear(6, 6)
        self.head = nn.Linear(6, VOCAB, bias=False)
        self.drop = nn.Dropout(dropout)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype) * 0.5
        self.embed.requires_grad_(False)
        self.head.requires_grad_(False)
        self.poison = None

    def forward(self, batch: Batch) -> Output:
        logits = self.head(self.drop(torch.tanh(self.proj(self.embed(batch.ids)))))
        if self.poison is not None and self.poison in batch.sample_ids:
            logits = logits * float("nan")
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
            batch.labels.flatten(),
            ignore_index=IGNORE_INDEX,
            reduction="sum",
        )
        return Output(loss, int((batch.labels != IGNORE_INDEX).sum()))


def make_batch(rows, length, seed):
    """Rows of random ids; row i has a different number of supervised tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (rows, length), generator=generator)
    labels = (ids * 3 + 1) % VOCAB
    for r in range(rows):
        labels[r, : 1 + (seed + r) % (length - 1)] = IGNORE_INDEX
    empty = torch.empty(0, dtype=torch.long)
    names = [f"s{seed}.{r}" for r in range(rows)]
    return Batch(ids, labels, torch.ones_like(ids), None, empty, empty, sample_ids=names)


class TinyLoader:
    """Endless batches; the state is one number."""

    def __init__(self, rows=2, length=6):
        self.rows, self.length, self.position = rows, length, 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return make_batch(self.rows, self.length, self.position)

    def step(self, count):
        return [next(self) for _ in range(count)]

    def state_dict(self):
        return {"position": self.position}

    def load_states(self, states):
        self.position = states[0]["position"]

    def report(self):
        return {}


def run_options(**changes):
    """The run section with small numbers."""
    options = {"max_steps": 6, "init_lr": 0.05, "min_lr": 0.01, "warmup_steps": 2, "save_freq": 2, "val_freq": 2}
    return RunConfig(**{**options, "keep_last": 0, **changes})


@pytest.fixture
def tools(tmp_path):
    """Builders for stand-in runs."""

    def trainer(name="run", model=None, loader=None, validator=None, resume="never", epoch_steps=100, **changes):
        run_dir = RunDir(tmp_path / name)
        source = run_dir.prepare(resume=resume)
        found = Trainer(
            model or TinyModel(), loader or TinyLoader(), ImageTextPretrain(), run_options(**changes),
            run_dir=run_dir, device=torch.device("cpu"), epoch_steps=epoch_steps, validator=validator,
        )  # fmt: skip
        if source is not None:
            found.resume(source)
        return found

    return SimpleNamespace(
        trainer=trainer, model=TinyModel, loader=TinyLoader, batch=make_batch, options=run_options, path=tmp_path
    )
