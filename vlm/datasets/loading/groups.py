"""Groups of datasets that are trained on side by side: one batch of each in every micro-step (``mixing: joint``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vlm.common.errors import ConfigError
from vlm.datasets.base import StreamDataset
from vlm.datasets.loading.worker import Source

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry


def groups_of(sources: Sequence[Source]) -> dict[str, list[int]]:
    """Numbers of the sources by group, in the order in which the groups are first named.

    Raises:
        ConfigError: a source without a group, or a group of which nothing can be drawn.
    """
    if missing := [s.name for s in sources if not s.group]:
        raise ConfigError(
            f"run.mixing is joint, but {', '.join(missing)} belong{'s' if len(missing) == 1 else ''} to no group",
            fix=f"set datasets.{missing[0]}.group, e.g. vision or language",
        )
    result: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        result.setdefault(source.group, []).append(number)
    for name, members in result.items():
        if not any(sources[m].ratio > 0 for m in members):
            raise ConfigError(
                f"group {name}: no dataset has a sample_ratio above 0 ({', '.join(sources[m].name for m in members)})",
                fix="raise one of them, or leave the datasets of the group out",
            )
    return result


def ratios_from_sizes(entries: Mapping[str, DatasetEntry], sources: Sequence[Source]) -> None:
    """Give the datasets of a group without any ``sample_ratio`` shares by their numbers of records.

    That is one shuffled list of all of them, as published.

    Raises:
        ConfigError: only some of a group have a ratio, or a dataset's length is not known.
    """
    for name, members in groups_of(sources).items():
        bare = [sources[m] for m in members if entries[sources[m].name].sample_ratio is None]
        if not bare:
            continue
        if len(bare) < len(members):
            raise ConfigError(
                f"group {name}: {', '.join(s.name for s in bare)} without sample_ratio, others have one",
                fix="give all of them a sample_ratio, or none (then shares follow from the numbers of records)",
            )
        for source in bare:
            if isinstance(source.dataset, StreamDataset) and len(bare) > 1:
                raise ConfigError(
                    f"group {name}: {source.name} is a stream, whose number of records is not known",
                    fix=f"give {', '.join(s.name for s in bare)} a sample_ratio each",
                )
            if not isinstance(source.dataset, StreamDataset):
                source.ratio = float(len(source.dataset))


def lengths(sources: Sequence[Source], members: Sequence[int]) -> list[int] | None:
    """Records of the datasets of a group; None for streams and where shares are not those of the numbers of records."""
    datasets = [sources[m].dataset for m in members]
    if any(isinstance(d, StreamDataset) for d in datasets):
        return None
    result = [len(d) for d in datasets]
    alike = all(
        sources[m].ratio * result[0] == sources[members[0]].ratio * n for m, n in zip(members, result, strict=True)
    )
    return result if alike else None


def batch_sizes(sources: Sequence[Source], groups: Sequence[Sequence[int]], wished: int | None) -> list[int]:
    """Samples of a batch of each group (without groups, of all sources): ``wished``, else the sources' largest."""
    members = groups or [range(len(sources))]
    return [wished or max(sources[m].batch_size for m in g if sources[m].ratio > 0) for g in members]


def wanted(
    sources: Sequence[Source], sizes: Sequence[int], groups: Sequence[Sequence[int]], by_source: bool
) -> list[float]:
    """How many samples each source should give, up to a common factor; ``sizes`` of the sources' or groups' batches."""
    if by_source:
        return [s.ratio * size for s, size in zip(sources, sizes, strict=True)]
    shares = [s.ratio for s in sources]
    for size, members in zip(sizes, groups, strict=False):  # without groups there is one size that changes nothing
        total = sum(sources[m].ratio for m in members)
        for m in members:
            shares[m] *= size / total
    return shares
