"""From the datasets of a run to its mixing policy, and the groups that ``mixing: joint`` trains side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vlm.common.errors import ConfigError
from vlm.datasets.base import record_count
from vlm.datasets.loading.mixing import BatchMixing, JointMixing, MixingName, MixingPolicy, SampleMixing
from vlm.datasets.loading.sources import Source

if TYPE_CHECKING:
    from vlm.config.api import DatasetEntry


def groups_of(sources: Sequence[Source]) -> dict[str, list[int]]:
    """Numbers of the sources by group, groups in the order of their first source.

    Raises ConfigError: a source without a group, or a group without a positive ratio.
    """
    if missing := [s.name for s in sources if not s.group]:
        raise ConfigError(
            f"run.mixing is joint, but {', '.join(missing)} belong{'s' if len(missing) == 1 else ''} to no group",
            fix=f"set datasets.{missing[0]}.group, e.g. vision or language",
        )
    result = defaultdict[str, list[int]](list)
    for number, source in enumerate(sources):
        result[source.group].append(number)
    for name, members in result.items():
        if not any(sources[m].ratio > 0 for m in members):
            raise ConfigError(
                f"group {name}: no dataset has a sample_ratio above 0 ({', '.join(sources[m].name for m in members)})",
                fix="raise one of them, or leave the datasets of the group out",
            )
    return result


def ratios_from_sizes(entries: Mapping[str, DatasetEntry], sources: Sequence[Source]) -> None:
    """Set the ratios of a group without any ``sample_ratio`` to its datasets' numbers of records.

    The group is then one shuffled list of all its records, as in Multimodal-GPT's training.

    Raises:
        ConfigError: only some datasets of a group have a ratio, or a dataset's length is not known.
    """
    for name, members in groups_of(sources).items():
        unset = [sources[m] for m in members if entries[sources[m].name].sample_ratio is None]
        if not unset:
            continue
        if len(unset) < len(members):
            raise ConfigError(
                f"group {name}: {', '.join(s.name for s in unset)} without sample_ratio, others have one",
                fix="give all of them a sample_ratio, or none (then shares follow from the numbers of records)",
            )
        for source in unset:
            count = record_count(source.dataset)
            if count is None and len(unset) > 1:
                raise ConfigError(
                    f"group {name}: {source.name} is a stream, whose number of records is not known",
                    fix=f"give {', '.join(s.name for s in unset)} a sample_ratio each",
                )
            if count is not None:
                source.ratio = float(count)


def record_counts(sources: Sequence[Source], members: Sequence[int]) -> list[int] | None:
    """Record counts of a group's datasets; None if one is a stream or the ratios are not proportional to them."""
    own = [sources[m] for m in members]
    result = [n for s in own if (n := record_count(s.dataset)) is not None]
    same = all(s.ratio * result[0] == own[0].ratio * n for s, n in zip(own, result, strict=False))
    return result if same and len(result) == len(own) else None


def mixing_policy(name: MixingName, sources: Sequence[Source], seed: int, batch_size: int | None) -> MixingPolicy:
    """The policy of ``run.mixing``.

    Args:
        name: ``batch``, ``sample`` or ``joint``.
        sources: the datasets; for ``joint`` each in a group.
        seed: of the run.
        batch_size: samples of a batch (``joint``: of each group); None: the largest batch size of its datasets.

    Raises:
        ConfigError: as :func:`groups_of`.
    """
    weights = [s.ratio for s in sources]
    if name == "batch":
        return BatchMixing(seed, weights, [s.batch_size for s in sources])

    def size(members: Iterable[int]) -> int:
        return batch_size or max(sources[m].batch_size for m in members if sources[m].ratio > 0)

    if name == "sample":
        return SampleMixing(seed, weights, [size(range(len(sources)))])
    groups = list(groups_of(sources).values())
    counts = [record_counts(sources, members) for members in groups]
    return JointMixing(seed, weights, [size(members) for members in groups], groups, counts)
