"""Acting from a model folder, which `tql-offline export` writes (docs/models.md).

    model.json            what was trained, on what, and its scores
    config.toml           the run's settings, from which the networks are built
    *.safetensors         one file per network that acts: the normaliser, the policies and, where a
                          policy chooses by it, the critic
    policy.onnx           the learned policy for other programs
    README.md             the model card

A folder may be a stranger's: nothing in it is unpickled or imported, and what its files claim is
compared with what they hold before memory is allocated for it.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tql_offline.agents import numpy_policy
from tql_offline.config import OBJECTIVES, Config, read_complete
from tql_offline.errors import InputError, quoted, shown
from tql_offline.eval.noise import noise_generator
from tql_offline.files import read_json
from tql_offline.runs import MODEL_DOCUMENT, Inside, RunFolder
from tql_offline.sharing.acting import Acting, load_acting
from tql_offline.training.checkpoint import read_numbers
from tql_offline.training.device import pick_device
from tql_offline.training.result import action_bounds

SCHEMA = "tql-offline/model/1"
ACTION_DTYPES = ("float32", "float64")
"""Types of an environment's own actions that are kept; of any other, float32."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ModelFolder:
    """Names of the files inside one model folder."""

    path: Path
    document = Inside(MODEL_DOCUMENT)
    config = Inside("config.toml")
    onnx = Inside("policy.onnx")
    card = Inside("README.md")


class SharedPolicy:
    """A policy that acts: `action = policy(observation)`, NumPy in and out.

    The environment's own unit is `policy.to_environment(action)`.

    Attributes:
        name: `learned` or `behaviour`.
        observation_dim: numbers per observation, as the environment gives them; the policy
            normalises them itself. `facts["flattened"]` is the environment's space where they
            are flattened by `gymnasium.spaces.flatten` first.
        action_dim: numbers per action, each in [-1, 1]; `facts["action_bounds"]` are the
            environment's bounds where they differ.
        noise_dim: noise values per action; 0 for a deterministic policy.
        step: updates it was trained for.
        facts: `model.json`, as claimed by whoever exported the model.
    """

    def __init__(
        self, acting: Acting, name: str, device: str, facts: dict[str, Any], seed: int
    ) -> None:
        agent = acting.agent
        self.name, self.facts = name, facts
        self.observation_dim, self.action_dim = len(agent.normaliser.mean), agent.action_dim
        self.noise_dim = acting.noise_dims[name]
        self.step: int = facts["step"]
        self._scaled = _scaling(facts)
        self._act = numpy_policy(agent, name, pick_device(device))
        self._unused = agent.noise_dim(name) - self.noise_dim
        self.reset(seed)

    def reset(self, seed: int = 0) -> None:
        """Restart the noise, with that of the evaluated episode of this seed.

        Raises:
            InputError: the seed is negative.
        """
        if seed < 0:
            raise InputError(f"the policy's seed is {seed}; use one of at least 0")
        self._generator = noise_generator(seed)

    def __call__(self, observation: ArrayLike, noise: ArrayLike | None = None) -> Array:
        """Act.

        Args:
            observation: `(observation_dim,)` or `(batch, observation_dim)`.
            noise: standard normal, `(noise_dim,)` or `(batch, noise_dim)`; without it, the policy's
                own generator draws it, row by row.

        Returns:
            `(action_dim,)` or `(batch, action_dim)` in [-1, 1]. The same observations and noise in
            a batch of the same size give the same bits as in `tql-offline eval`.

        Raises:
            InputError: an argument has another shape or is not finite, or the action is not.
        """
        rows, is_single = self._rows("observation", observation, self.observation_dim)
        if noise is None:
            shape = (len(rows), self.noise_dim)
            numbers = self._generator.standard_normal(shape, dtype=np.float32)
        else:
            numbers, _ = self._rows("noise", noise, self.noise_dim)
            if len(numbers) != len(rows):
                raise InputError(
                    f"{len(rows)} observations are given with {len(numbers)} rows of noise; give "
                    "one row each"
                )
        padding = np.zeros((len(rows), self._unused), dtype=np.float32)
        actions = self._act(rows, np.concatenate([numbers, padding], axis=1))
        if not np.isfinite(actions).all():
            raise InputError(
                "the policy's action is not finite (NaN or infinite): the observation lies far "
                "from all that it was trained on; check its unit"
            )
        actions = actions.clip(-1, 1)
        return actions[0] if is_single else actions

    def to_environment(self, action: ArrayLike) -> Array:
        """Scale actions in [-1, 1] to the environment's bounds, as the evaluator does.

        Args:
            action: `(action_dim,)` or `(batch, action_dim)`, of this policy.

        Returns:
            The same shape, no further than the bounds, in `facts["action_dtype"]`: to the bit what
            the evaluator gives the environment. Where the environment's bounds are -1 and 1, the
            actions as they are.

        Raises:
            InputError: the actions have another shape or are not finite.
        """
        actions, is_single = self._rows("action", action, self.action_dim)
        if self._scaled is not None:
            actions = self._scaled(actions)
        return actions[0] if is_single else actions

    def _rows(self, name: str, value: ArrayLike, dim: int) -> tuple[Array, bool]:
        """An argument as `(batch, dim)`, and whether it was a single row."""
        if isinstance(value, Mapping):
            raise InputError(
                f"the {name} is a dict, which the policy does not flatten; give it the numbers of "
                f"gymnasium.spaces.flatten(env.{name}_space, {name})"
            )
        try:
            with np.errstate(over="ignore"):  # found below
                array = np.asarray(value, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"the {name} is no array of numbers ({error}); give one") from error
        if array.ndim not in (1, 2) or array.shape[-1] != dim:
            raise InputError(
                f"the {name} has shape {array.shape} where the policy takes ({dim},) or "
                f"(batch, {dim}); give it in one of these shapes"
            )
        if not np.isfinite(array).all():
            raise InputError(f"the {name} is not finite (NaN or infinite); give finite numbers")
        # A copy: PyTorch rejects arrays that are read-only or have negative strides.
        return np.array(np.atleast_2d(array), order="C"), array.ndim == 1


def _scaling(facts: Mapping[str, Any]) -> Callable[[Any], NDArray[Any]] | None:
    """The function that scales actions to the environment's bounds, where they are not ±1."""
    if facts["action_bounds"] is None:
        return None
    from tql_offline.eval.unit_actions import from_unit_actions, within  # imports Gymnasium

    low, high = np.array(facts["action_bounds"], dtype=np.float64)
    return from_unit_actions(within(low, high, facts["action_dtype"]))[1]


def load(
    folder: str | Path,
    *,
    policy: str = "learned",
    seed: int = 0,
    device: str = "cpu",
    own_methods: bool = False,
) -> SharedPolicy:
    """Load the policy of a model folder.

    Args:
        folder: written by `tql-offline export`, by you or by a stranger.
        policy: `learned`, or `behaviour` where the model has one.
        seed: seed of the noise, if the policy takes any; see `SharedPolicy.reset`.
        device: `cpu`, `cuda` or `auto`.
        own_methods: whether to import the module of a method outside the package, which runs its
            code; one imported before is used in any case.

    Raises:
        InputError: it is not such a folder, one of its files is missing, damaged or does not fit
            the others, its method's module is not imported, or there is no such policy or device.

    >>> load("nowhere")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    tql_offline.errors.InputError: nowhere is not a model folder (it has no model.json); ...
    """
    model = ModelFolder(Path(folder))
    facts = read_facts(model)
    config = read_config(model)
    if not own_methods:
        _refuse_import(config.objective, model)
    acting = load_acting(
        config,
        facts["observation_dim"],
        facts["action_dim"],
        model.path,
        pick_device(device),
    )
    if policy not in acting.noise_dims:
        raise InputError(
            f"there is no policy {shown(policy)} in {folder}; choose of "
            f"{', '.join(acting.noise_dims)}"
        )
    return SharedPolicy(acting, policy, device, facts, seed)


def _refuse_import(objective: str, model: ModelFolder) -> None:
    """Refuse a method whose module would have to be imported: the name is the exporter's."""
    module, colon, _ = objective.partition(":")
    if colon and objective not in OBJECTIVES and module not in sys.modules:
        raise InputError(
            f"the method of {model.path} is {shown(objective)}, whose code is not imported because "
            f"a model folder names it; if you trust it, import its module before `load`, or give "
            "own_methods=True"
        )


def read_facts(model: ModelFolder) -> dict[str, Any]:
    """Read a model's `model.json`.

    Its `step`, `observation_dim` and `action_dim` are in bounds, its `action_bounds` are None or
    two rows of `action_dim` numbers, and its `action_dtype` is one of `ACTION_DTYPES`.

    Raises:
        InputError: it is missing, damaged, or of another schema.
    """
    if not model.document.is_file():
        is_run = RunFolder(model.path).checkpoints.is_dir()
        mend = f"run `tql-offline export {quoted(model.path)}`" if is_run else "check the path"
        raise InputError(f"{model.path} is not a model folder (it has no model.json); {mend}")
    facts = read_json(model.document)
    if facts.get("schema") != SCHEMA:
        raise InputError(
            f"{model.document} has schema {shown(facts.get('schema'))} where {SCHEMA!r} is needed; "
            "use the version of tql-offline that wrote it"
        )
    facts |= read_numbers(facts, model.document)
    dtype = facts.setdefault("action_dtype", ACTION_DTYPES[0])  # older models have none
    if dtype not in ACTION_DTYPES:
        raise InputError(
            f"{model.document} has action_dtype {shown(dtype)}; write {' or '.join(ACTION_DTYPES)}"
        )
    return facts | {"action_bounds": action_bounds(facts, facts["action_dim"], model.document)}


def read_config(model: ModelFolder) -> Config:
    """Read the settings of the run that a model comes from.

    Raises:
        InputError: the file is missing or damaged, or a setting is unknown or out of range.
    """
    return read_complete(model.config)
