"""Where the images of the questions are: what answers name is shown from there alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.common.errors import UserError
from vlm.config.api import load_config
from vlm.runners.study.running.asking import asked_of

if TYPE_CHECKING:
    from vlm.config.api import Config
    from vlm.runners.study.cells import Study
    from vlm.runners.study.results import CellResult

log = logging.getLogger(__name__)


def media_roots(study: Study, results: Sequence[CellResult], root: str = "") -> dict[str, str]:
    """Dataset -> the folder of its images.

    Args:
        study: whose ``evaluate`` is meant.
        results: of its cells.
        root: of all datasets, in place of what the study says.
    """
    entries = {asking.dataset: asking.entry for asking in asked_of(study)}
    if root or not results:
        return dict.fromkeys(entries, root)
    config = results[0].cell.runs[-1].config
    return {name: folder for name, entry in entries.items() if (folder := _folder(config, name, entry))}


def _folder(config: Config, name: str, entry: dict[str, Any]) -> str:
    """The folder that an entry of ``evaluation_datasets`` names, else that of its records; empty: none is known."""
    tree = {"model": config.resolved["model"], "evaluation_datasets": {name: entry}, "plugins": config.plugins}
    try:
        found = load_config(tree, check="none")
    except UserError as error:
        log.warning("evaluation_datasets.%s: images are not shown (%s)", name, error)
        return ""
    if name in found.evaluation_files:
        return str(found.evaluation_files[name].img_path or "")
    options = found.evaluation_datasets[name].format.raw
    records = options.get("ann_path", "")
    first = records[0] if isinstance(records, list) and records else records
    return str(options.get("image_path") or (Path(str(first)).parent if first else ""))
