"""The environment that a Minari dataset names for evaluation, recovered without trusting its file.

A Gymnasium specification names the function that makes the environment, and wrappers, as import
paths: an untrusted file could run any program that way. So only an environment that is registered
here is made, from its registration; the specification gives its id, its step limit and plain
settings. If it agrees with the registration, Minari's own `recover_environment(eval_env=True)`
makes it, otherwise Gymnasium does.
"""

import importlib.metadata
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from packaging.requirements import InvalidRequirement, Requirement

from tql_offline.datasets.minari import Leaf, data_folder, folder_of, metadata_of, spaces_of
from tql_offline.documents import parse_json
from tql_offline.errors import InputError, one_line, shown
from tql_offline.eval.environments import FlatObservations, quiet
from tql_offline.eval.unit_actions import in_unit_actions

_WRAPPERS = (
    "ClipAction",
    "FlattenObservation",
    "RecordEpisodeStatistics",
    "RescaleAction",
    "RescaleObservation",
    "TimeAwareObservation",
)
"""Gymnasium's wrappers that have no effect outside the environment."""
_PACKAGES = ("gymnasium_robotics", "minigrid")
"""Packages of Minari's own datasets that register their environments when they are imported."""
_MAX_NAME = 100
_MAX_SETTINGS = 100
_MAX_REQUIREMENTS = 20


def recoverable(name: str) -> tuple[str, list[str]]:
    """Tell whether the environment of a dataset can be made here.

    Args:
        name: name of a dataset, or its folder.

    Returns:
        A sentence on why not, or ""; and sentences on what differs from what the dataset says.
    """
    try:
        metadata = metadata_of(folder_of(name))
        spec = _evaluation_spec(metadata, name)
        registered = _registered(spec, name)
    except InputError as error:
        return str(error), []
    said = _left_out(spec, registered)
    return "", [*said, *_unwrapped(name, metadata, spec, registered), *_unmet(metadata)]


def recover(name: str, *, draws: bool) -> gymnasium.Env[Any, Any]:
    """Make the environment that a dataset's policies are scored in.

    Its observations are flattened and its actions scaled to [-1, 1], as the dataset's are.

    Args:
        name: name of a dataset, or its folder.
        draws: as for `environments.make`.

    Raises:
        InputError: none is named, it is not registered, or it cannot be made; or the bounds of its
            actions differ from the dataset's.
    """
    folder = folder_of(name)
    metadata = metadata_of(folder)
    _, actions = spaces_of(metadata, folder)
    spec = _evaluation_spec(metadata, name)
    registered = _registered(spec, name)
    render_mode = "rgb_array" if draws else None
    env = _by_minari(name, metadata, render_mode)
    if env is None:
        try:
            env = gymnasium.make(
                registered.id,
                max_episode_steps=spec.get("max_episode_steps"),
                disable_env_checker=True,
                **_settings(spec, name),
                **({"render_mode": render_mode} if draws else {}),
            )
        # Its constructor is given untrusted settings.
        except Exception as error:
            raise InputError(
                f"environment {registered.id} of Minari dataset {shown(name)} cannot be made "
                f"({one_line(error)}); give --env"
            ) from error
    space = env.action_space
    if not _has_bounds(space, actions):
        env.close()
        raise InputError(
            f"environment {registered.id} has actions in {space} where Minari dataset "
            f"{shown(name)} has others; install the version it was made with, or give --env"
        )
    return _in_rows(env)


def _has_bounds(space: spaces.Space[Any], actions: Leaf) -> bool:
    if not isinstance(space, spaces.Box) or space.shape != actions.shape:
        return False
    pairs = ((space.low, actions.low), (space.high, actions.high))
    return all(want is not None and np.allclose(have, want) for have, want in pairs)


def _evaluation_spec(metadata: Mapping[str, Any], name: str) -> dict[str, Any]:
    for key in ("eval_env_spec", "env_spec"):
        if metadata.get(key) is not None:
            return _spec(metadata[key], name)
    raise InputError(
        f"Minari dataset {shown(name)} names no environment, so policies are not scored; give --env"
    )


def _spec(text: Any, name: str) -> dict[str, Any]:
    try:
        spec = parse_json(text.encode())
        steps = spec.get("max_episode_steps")
        if not isinstance(spec["id"], str) or not isinstance(spec.get("kwargs") or {}, dict):
            raise TypeError
        if steps is not None and (type(steps) is not int or not 0 < steps < 2**31):
            raise TypeError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the environment's specification in Minari dataset {shown(name)} is damaged, so "
            "policies are not scored; give --env"
        ) from error
    return cast(dict[str, Any], spec)


def _registered(spec: Mapping[str, Any], name: str) -> Any:
    """The registration under the id of a specification."""
    with quiet():
        import ogbench  # noqa: F401  (registers its environments)
    package = _package(spec)
    if spec["id"] not in gymnasium.registry and package in _PACKAGES:
        with suppress(ImportError), quiet():
            import_module(package)
    found = gymnasium.registry.get(spec["id"])
    if found is None:
        whose = f" (it is of package {package})" if package else ""
        raise InputError(
            f"environment {shown(spec['id'])} of Minari dataset {shown(name)} is not registered "
            f"here{whose}, so policies are not scored; install and import the package "
            "that has it, or give --env"
        )
    _settings(spec, name)
    return found


def _package(spec: Mapping[str, Any]) -> str:
    """The package that a specification's function is in, or ""."""
    entry = spec.get("entry_point")
    package = entry.partition(":")[0].partition(".")[0] if isinstance(entry, str) else ""
    return package[:_MAX_NAME] if package.isidentifier() else ""


def _settings(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The settings of a specification without the render mode; they may name no files."""
    given = {
        key: value for key, value in (spec.get("kwargs") or {}).items() if key != "render_mode"
    }
    words = list(_words(given))
    if len(given) > _MAX_SETTINGS or any("/" in word or "\\" in word for word in words):
        raise InputError(
            f"the environment of Minari dataset {shown(name)} is set to files of "
            "its own, which are not taken from a dataset; give --env with an "
            "environment that you have registered"
        )
    return given


def _words(value: Any) -> Iterator[str]:
    """Every string in a document."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)


def _left_out(spec: Mapping[str, Any], registered: Any) -> list[str]:
    """Sentences on the parts of a specification that are not used: its function and wrappers."""
    said = []
    if spec.get("entry_point") != registered.entry_point:
        said.append(
            f"environment {registered.id} is made as it is registered here, not by "
            f"{shown(spec.get('entry_point'))}, which the dataset names"
        )
    wrappers = spec.get("additional_wrappers") or []
    if not _are_known(wrappers):
        said.append(
            f"environment {registered.id} is made without the wrappers that the dataset names, as "
            "some are not Gymnasium's own"
        )
    if spec.get("vector_entry_point") != registered.vector_entry_point and not said:
        said.append(f"environment {registered.id} is made as it is registered here")
    return said


def _unwrapped(
    name: str, metadata: Mapping[str, Any], spec: Mapping[str, Any], registered: Any
) -> list[str]:
    """A sentence on Gymnasium's own wrappers, lost if Minari does not make the environment."""
    wrappers = spec.get("additional_wrappers") or []
    if not wrappers or not _are_known(wrappers):
        return []
    with quiet():
        env = _by_minari(name, metadata, None)
    if env is not None:
        env.close()
        return []
    names = dict.fromkeys(wrapper["entry_point"].rpartition(":")[2] for wrapper in wrappers)
    return [
        f"environment {registered.id} is made without {', '.join(names)}, which the dataset names, "
        "as Minari is not installed or cannot make it, and may behave otherwise; run "
        "`pip install 'tql-offline[minari]'`"
    ]


def _are_known(wrappers: Any) -> bool:
    return isinstance(wrappers, list) and all(map(_is_known, wrappers))


def _is_known(wrapper: Any) -> bool:
    entry = wrapper.get("entry_point") if isinstance(wrapper, dict) else None
    module, _, name = entry.partition(":") if isinstance(entry, str) else ("", "", "")
    return (module == "gymnasium.wrappers" or module.startswith("gymnasium.wrappers.")) and (
        name in _WRAPPERS
    )


def _unmet(metadata: Mapping[str, Any]) -> list[str]:
    """Sentences on packages that a dataset requires in versions other than those installed."""
    asked = metadata.get("requirements")
    said = []
    for text in asked[:_MAX_REQUIREMENTS] if isinstance(asked, list) else ():
        try:
            wanted = Requirement(text)
            have = importlib.metadata.version(wanted.name)
        except (InvalidRequirement, TypeError, ValueError, importlib.metadata.PackageNotFoundError):
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            said.append(
                f"the dataset was made with {wanted.name}{wanted.specifier} where {have} is "
                "installed: the environment may behave otherwise"
            )
    return said


def _by_minari(
    name: str, metadata: Mapping[str, Any], render_mode: str | None
) -> gymnasium.Env[Any, Any] | None:
    """Have Minari make the environment; None if it is not installed or cannot."""
    try:
        # Minari reads every specification, so each must be sound.
        for key in ("env_spec", "eval_env_spec"):
            if metadata.get(key) is not None:
                spec = _spec(metadata[key], name)
                if _left_out(spec, _registered(spec, name)):
                    return None
        minari = import_module("minari")  # an extra, and slow to import
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about requirements, which are reported on loading
            dataset = minari.MinariDataset(data_folder(folder_of(name)))
            made = dataset.recover_environment(
                eval_env=True, disable_env_checker=True, render_mode=render_mode
            )
        return cast(gymnasium.Env[Any, Any], made)
    except Exception:  # Gymnasium makes it, or says why it cannot
        return None


def flat_observations(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Flatten an environment's observations, as a Minari dataset's are."""
    space = _sorted(env.observation_space)
    if isinstance(space, spaces.Box) and (len(space.shape) == 1 or _is_image(space)):
        return env
    return FlatObservations(env, space)


def _in_rows(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Flatten an environment's observations, and scale its actions to [-1, 1]."""
    return in_unit_actions(flat_observations(env))


def _sorted(space: spaces.Space[Any]) -> spaces.Space[Any]:
    """A space with the keys of its Dicts sorted."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _sorted(space[key]) for key in sorted(space.spaces)})
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple([_sorted(inner) for inner in space.spaces])
    return space


def _is_image(space: spaces.Box) -> bool:
    return space.dtype == np.uint8 and len(space.shape) == 3
