"""Reference scores: the returns that a normalised score maps to 0 and to its scale."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from tql_offline.datasets.catalogue import entries, find
from tql_offline.datasets.load import kind_of
from tql_offline.datasets.minari import folder_of, metadata_of
from tql_offline.datasets.names import MINARI_PREFIX
from tql_offline.errors import InputError
from tql_offline.eval.protocol import Protocol, Scale

SCALES = {"d4rl": 100.0, "minari": 1.0}
"""Factor by which each benchmark multiplies its normalised scores."""

_CAVEATS = {
    "D4RL/pen": ", measured with 100 steps where the environment now allows 200 (Minari issue 303)"
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Undiscounted returns that a score is normalised by.

    Attributes:
        min: return of a random policy, which scores 0.
        max: return of an expert, which scores `scale`.
        scale: 100 or 1, as the benchmark prints its scores.
        source: where the two returns are from.
    """

    min: float
    max: float
    scale: float
    source: str

    def __post_init__(self) -> None:
        """Check that the two returns are finite and in order."""
        if not self.min < self.max < float("inf") or self.min == float("-inf"):
            raise InputError(
                f"the reference scores of {self.source} are {self.min} and {self.max}, between "
                "which nothing lies; score the plain return by protocol 'quick-return'"
            )

    def normalised(self, return_: float) -> float:
        """The score of a mean return."""
        return Scale(self.min, self.max, self.scale).of(return_)

    def describe(self) -> dict[str, Any]:
        """The fields as an evaluation records them."""
        return asdict(self)


def reference_for(protocol: Protocol, dataset: str, path: str = "") -> Reference | None:
    """The reference scores by which a protocol scores runs on a dataset.

    Args:
        protocol: the protocol.
        dataset: name of the dataset.
        path: the file or folder given for that name; empty for the installed one.

    Returns:
        The reference scores; None if the protocol does not normalise.

    Raises:
        InputError: it does, but no reference scores of this dataset are known.
    """
    if not protocol.references:
        return None
    is_minari = protocol.references == "minari"
    known = _minari(dataset, path) if is_minari else _listed(protocol, dataset)
    if known is None:
        raise InputError(
            f"protocol {protocol.name!r} normalises returns, and no reference scores of dataset "
            f"{dataset!r} are known; score the plain return by protocol 'quick-return'"
        )
    return known


def other_limit(
    protocol: Protocol, dataset: str, environment: Mapping[str, Any] | None
) -> Iterator[str]:
    """Yield why a score by D4RL's references is not comparable: episodes of another length.

    Args:
        protocol: the protocol that runs are scored by.
        dataset: name of the dataset, for which the protocol has references.
        environment: description by `environments.describe`, or None if there is no environment.
    """
    if protocol.references != "d4rl" or environment is None:
        return
    have, want = environment["max_episode_steps"], find(dataset).max_episode_steps
    if have != want:
        ends = f"end after {have} steps" if have else "have no step limit"
        yield (
            f"episodes {ends} in {environment['env_id']} where {dataset}'s references were "
            f"measured with {want}, so the normalised score is not comparable; register it with "
            f"max_episode_steps={want}"
        )


def _listed(protocol: Protocol, dataset: str) -> Reference | None:
    if all(entry.name != dataset for entry in entries("d4rl")):
        return None  # a file, or a dataset of another suite, whose name begins like one of D4RL's
    fits = [entry for entry in _tables()[protocol.references] if _is_of(dataset, entry)]
    if not fits:
        return None
    entry = max(fits, key=lambda entry: len(entry["name"]))
    return Reference(
        min=entry["min"],
        max=entry["max"],
        scale=SCALES[protocol.references],
        source=f"d4rl/infos.py, {entry['name']}",
    )


def _is_of(dataset: str, entry: dict[str, Any]) -> bool:
    """Whether a dataset belongs to a family, and is of the version that its references are of."""
    ends = dataset.endswith(f"-{entry.get('version', '')}") or "version" not in entry
    return dataset.startswith(f"{entry['name']}-") and ends


def _minari(dataset: str, path: str) -> Reference | None:
    """The reference scores in the metadata of a dataset that is on this machine."""
    if kind_of(dataset) != "minari":
        return None
    metadata = metadata_of(Path(path) if path else folder_of(dataset))
    low, high = metadata.get("ref_min_score"), metadata.get("ref_max_score")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return None
    name = dataset.removeprefix(MINARI_PREFIX)
    # By the name in the metadata, as the data may be given by a folder.
    caveat = _CAVEATS.get(str(metadata.get("dataset_id", name)).rpartition("/")[0], "")
    source = f"metadata of Minari dataset {name}{caveat}"
    return Reference(min=float(low), max=float(high), scale=SCALES["minari"], source=source)


@cache
def _tables() -> dict[str, list[dict[str, Any]]]:
    text = resources.files(__package__).joinpath("references.toml").read_text("utf-8")
    return tomllib.loads(text)
