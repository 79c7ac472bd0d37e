"""Which settings change nothing of a run, given its others."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tql_offline.config import FLOW_POLICIES, WITHOUT_CRITIC, Config
from tql_offline.documents import flatten

_TABLES = {
    "flow": (),
    "implicit": ("implicit",),
    "conservative": ("conservative",),
    "rebrac": ("rebrac",),
    "floq": ("floq",),
    "pac": ("pac",),
    "cloning": ("cloning",),
}
"""Objective → tables of methods that it reads, besides `flow`, which every policy reads.

An objective that is not here may read any."""

CHANGE_NO_RESULT = ("evaluation.processes", "keep_checkpoints")
# Settings, and tables of them, by the prefixes of their names.
_CHANGE_NO_POLICY = (
    *("dataset.", "execution.", "watch.", "evaluation."),
    *("device", "log_every", "checkpoint_every", "keep_checkpoints", "tracker", "preset"),
    "conservative.rows_at_once",
)
_YET_CHANGE_ONE = (
    *("dataset.normalise", "dataset.return_range", "dataset.reward_scale", "dataset.reward_shift"),
    "execution.precision",
)
UNSET = "unset"
"""What a setting is called that a run has not."""


def policy_settings(objective: str, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The flattened settings that may change the policy of a run of an objective."""
    idle = (*_CHANGE_NO_POLICY, *idle_settings(objective, flat))
    return {
        key: value
        for key, value in flat.items()
        if key in _YET_CHANGE_ONE or not key.startswith(idle)
    }


def lasting_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that may change a policy and stay what a run began with.

    More updates (`train --resume --steps`) leave its schedule as long as it was.
    """
    found = policy_settings(str(flat.get("objective")), flat)
    steps, schedule = found.pop("steps", None), "optimizer.schedule_steps"
    return found | ({schedule: found[schedule] or steps} if schedule in found else {})


def first_unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting of two runs' that differs, with both values; None if none does.

    A version that did not know a setting yet did not record it; a method's own that was not given
    has no value.

    >>> first_unlike({"flow.alpha": 3.0, "seed": 0}, {"flow.alpha": 30.0})
    ('flow.alpha', 3.0, 30.0)
    """
    for key in dict.fromkeys((*one, *other)):
        is_told = key in one and key in other
        before, now = one.get(key, UNSET), other.get(key, UNSET)
        if before != now and (is_told or key.startswith("own.")):
            return key, before, now
    return None


def idle_settings(objective: str, flat: Mapping[str, Any]) -> list[str]:
    """Prefixes of settings that this objective and critic do not use.

    A method of one's own may build on any of the package's, and use its settings.

    Args:
        objective: the objective.
        flat: a run's flattened settings.
    """
    idle = _of_others(objective) if objective in _TABLES else []
    if objective in WITHOUT_CRITIC:
        idle += ["critic.", "entropy.", "discount", "n_step", "polyak"]
        idle += ["optimizer.critic_lr", "optimizer.weight_decay"]
        idle += ["dataset.return_range", "dataset.reward_scale", "dataset.reward_shift"]
    if objective == "implicit":
        by_weights = flat.get("implicit.extraction") == "awr"
        of_weights = ["implicit.inverse_temperature", "implicit.deviation"]
        idle += ["implicit.samples"] if by_weights else of_weights
    if objective in _TABLES and not _has_flow(objective, flat):
        idle.append("flow.flow_steps")
    if flat.get("critic.kind") != "mlp" and objective != "floq":
        idle.append("critic.counted")
    if objective == "pac":
        idle.append("critic.reduction")
    if flat.get("critic.kind") in ("mlp", "perceiver"):
        idle.append("entropy.")  # not the depth: the width goes by a transformer's of that depth
    if flat.get("entropy.mode") in ("none", "fixed"):
        idle += ["entropy.target", "entropy.last_target"]  # the first also names targets_nats
    if flat.get("optimizer.schedule") == "constant" and flat.get("optimizer.warmup") == 0:
        idle.append("optimizer.schedule_steps")
    if not flat.get("conservative.calibrated"):
        idle.append("conservative.after_cut")
    return idle


def _has_flow(objective: str, flat: Mapping[str, Any]) -> bool:
    """Whether a policy is a behaviour flow."""
    by_table = {"implicit": "best-of-n", "cloning": "flow"}
    chosen = flat.get("implicit.extraction"), flat.get("cloning.policy")
    return objective in FLOW_POLICIES or by_table.get(objective) in chosen


def _of_others(objective: str) -> list[str]:
    tables = {name for read in _TABLES.values() for name in read}
    idle = [f"{name}." for name in sorted(tables - {*_TABLES[objective]})]
    return idle if objective in FLOW_POLICIES else [*idle, "flow.alpha", "critic.reduction"]


def idle_of(config: Config, given: Mapping[str, Any]) -> list[str]:
    """Names of given settings that nothing does with a run of this config."""
    unused = idle_settings(config.objective, flat_settings(config))
    idle = tuple(name for name in unused if name != "discount")  # estimates from data use it
    named = [name for name, value in flatten(given).items() if (name, value) != _OFF]
    return [name for name in named if name.startswith(idle)]


_OFF = ("entropy.mode", "none")
"""What a critic without attention has anyway."""


def copies(runs: Iterable[tuple[str, Config]]) -> Iterator[tuple[str, str]]:
    """Names of runs that would train the same as an earlier one, each behind that one's."""
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    for name, config in runs:
        flat = flat_settings(config)
        without_effect = (*idle_settings(config.objective, flat), *CHANGE_NO_RESULT, "preset")
        used = {
            key: str(value) for key, value in flat.items() if not key.startswith(without_effect)
        }
        first = seen.setdefault(tuple(sorted(used.items())), name)
        if first != name:
            yield first, name


def flat_settings(config: Config) -> dict[str, Any]:
    """A config's settings by their whole names, `flow.alpha`, as TOML and JSON hold them."""
    return flatten(config.model_dump(mode="json"))
