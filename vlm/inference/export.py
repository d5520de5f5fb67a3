"""How what a run trained becomes a file or folder of a published layout: kind ``export``."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from vlm.common.errors import UserError, WeightsError
from vlm.common.paths import make_folder
from vlm.inference.load import load_parts
from vlm.models.vlm import VLM

NAMES_SHOWN = 4
"""Names listed after an export; the rest is counted."""


class ModelExport(ABC):
    """A published layout that needs no more than the model; the docstring's first line is its help.

    Any class registered with ``@register_export`` that has :meth:`write` will do.
    """

    def write(self, source: Path, target: Path) -> list[str]:
        """Write ``source`` (a run folder, or what else this layout can be made of) as ``target``; returns a summary.

        Raises:
            UserError: nothing usable at ``source``, ``target`` exists, or the layout cannot hold the composition.
        """
        refuse_existing(target)
        make_folder(target.parent)
        names = self.save(load_parts(source, "cpu", quantised=False)[0], target)
        more = len(names) - NAMES_SHOWN
        return [f"{target}: {', '.join(names[:NAMES_SHOWN])}{f' and {more} more' if more > 0 else ''}"]

    @abstractmethod
    def save(self, model: VLM, path: Path) -> list[str]:
        """Write the trained parameters of ``model``; returns the names written.

        Raises:
            WeightsError: the composition is another, or something trains that the layout has no name for.
        """


def trained_tensors(
    model: VLM, theirs: Callable[[str], str | None], layout: str, *, whole: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Copies of what trains, on the CPU, under the names that ``theirs`` gives to ours.

    Args:
        model: the composition.
        theirs: gives the published name, or None if ``layout`` has no such part.
        layout: the published files, for messages.
        whole: prefixes of our keys that are written whether they train or not, buffers included.

    Raises:
        WeightsError: ``theirs`` gives None.
    """
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    result: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in trains or name.startswith(whole):
            published = theirs(name)
            if published is None:
                raise WeightsError(f"{name} trains, but {layout} have no such part")
            result[published] = tensor.detach().cpu().clone()
    return result


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Within the block, a hidden folder beside ``target``; it becomes ``target`` at the end, or is removed.

    Raises:
        UserError: the disk is full, the folder cannot be written, or ``target`` came into being meanwhile.
    """
    make_folder(target.parent)
    work = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        work.mkdir()
        yield work
        if os.path.lexists(target):
            raise UserError(f"{target} exists", fix="give another name, or move it away")
        os.replace(work, target)
    except OSError as error:
        if error.filename is not None and not str(error.filename).startswith(str(work)):
            raise
        text = f"{target} cannot be written ({error.strerror or error}); nothing was left there"
        raise UserError(text, fix="make room, or give another name") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def refuse_existing(target: Path) -> None:
    """Raise WeightsError if ``target`` exists."""
    if os.path.lexists(target):
        raise WeightsError(f"{target} exists", fix="give another name, or move it away")
