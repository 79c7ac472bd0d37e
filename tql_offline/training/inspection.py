"""Looking into a run's critic: what it attends to, how evenly, and Q around the data's actions."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tql_offline.agents import Agent
from tql_offline.config import Config
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError
from tql_offline.eval.inspect_plots import figures
from tql_offline.eval.inspections import (
    DOCUMENT,
    MAX_DOCUMENT_BYTES,
    MAX_GRID,
    MAX_STATES,
    SCHEMA,
    Inspection,
    parse_inspection,
)
from tql_offline.files import read_json, require_writable, write_atomic, writing, written_aside
from tql_offline.networks import EntropyController, TransformerCritic
from tql_offline.networks.critic import Critic
from tql_offline.training import checkpoint
from tql_offline.training.data import data_of
from tql_offline.training.device import pick_device
from tql_offline.training.reporters import Reporter
from tql_offline.training.result import open_run
from tql_offline.version import __version__

SAMPLED = 256
"""Transitions over which entropies are compared with their targets: the paper's batch."""

ROWS = 128
"""Rows per pass of the critic over a landscape."""

MAX_MAP_BYTES = 2**30

DIGITS = 6
"""Significant digits in inspect.json; attention.npz has all."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to look at.

    Attributes:
        states: transitions; empty takes the first, the middle and the last of some episodes.
        episodes: number of these episodes, drawn without replacement.
        seed: seed of these, the sampled transitions and the policy's noise.
        dims: action dims that a landscape varies; empty takes the first two.
        held: whose action its other dims are held at, `data` or `policy`.
        grid: points per dim.
    """

    states: tuple[int, ...] = ()
    episodes: int = 3
    seed: int = 0
    dims: tuple[int, ...] = ()
    held: str = "data"
    grid: int = 25


def inspect_run(
    path: Path,
    *,
    step: int | None,
    choice: Choice,
    out: Path | None,
    device: str,
    load_dataset: Callable[[Config], Dataset],
    reporter: Reporter,
    moved_to: Path | None = None,
) -> tuple[Path, Inspection]:
    """Inspect the critic of a run's checkpoint, and write what is found as numbers and figures.

    Args:
        path: the run folder.
        step: step of the checkpoint; None takes the last.
        choice: what to look at.
        out: folder to write to; None takes `inspect` in the run folder.
        device: `auto`, `cpu` or `cuda`.
        load_dataset: loads the data of the run's config.
        reporter: where progress goes.
        moved_to: where the data's file is now, if it was moved.

    Returns:
        The folder and what was found.

    Raises:
        InputError: the run has no critic or no such checkpoint, its dataset has changed, or the
            choice does not fit them.
    """
    folder, config = open_run(path)
    if not config.has_critic:
        raise InputError(f"run {path} is behaviour cloning, which has no critic to inspect")
    if out is None:
        require_writable(folder.path)
    torch_device = pick_device(device)
    state, agent = checkpoint.load_agent(folder, config, step, torch_device)
    dataset = data_of(folder, config, load_dataset, moved_to)
    facts = {
        "schema": SCHEMA,
        "version": __version__,
        "run": folder.path.resolve().name,
        "step": state.step,
        "critic": config.critic.kind,
        "size": config.critic.size,
        "dataset": dataset.name,
        "dataset_sha256": dataset.sha256,
    }
    document, maps = inspect_agent(agent, dataset, choice, torch_device, reporter)
    found = parse_inspection(facts | document)
    to = folder.inspection if out is None else out
    _write(to, facts | document, maps, figures(found, maps))
    return to, found


@torch.no_grad()
def inspect_agent(
    agent: Agent, dataset: Dataset, choice: Choice, device: torch.device, reporter: Reporter
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """Inspect an agent: everything that inspect.json holds, and the maps of every head.

    Returns:
        The document without its facts, and `(states, N, H, L, L)` weights; None without attention.

    Raises:
        InputError: the choice does not fit the data or the agent.
    """
    rows = _checked(choice, agent, dataset)
    critic: Any = agent.networks["critic"]
    observations, actions = _tensors(agent, dataset, rows, device)
    policy_actions = _policy_actions(agent, dataset, rows, choice.seed, device)
    q, q_policy = critic(observations, actions), critic(observations, policy_actions)
    maps = _maps(critic, observations, actions)
    landscapes = _landscapes(critic, observations, actions, policy_actions, choice, reporter)
    places = _places(dataset.episodes.lengths, rows)
    states = []
    for i, row in enumerate(rows.tolist()):
        states.append(
            {
                "transition": row,
                "episode": places[0][i],
                "episode_step": places[1][i],
                "action": _rounded(actions[i]),
                "policy_action": _rounded(policy_actions[i]),
                "q": _rounded(q[i]),
                "q_policy": _rounded(q_policy[i]),
                "entropy": [] if maps is None else _rounded(map_entropy(maps[:, i])),
                "attention": [] if maps is None else _rounded(maps[:, i].mean(dim=1)),
                "landscape": landscapes[i],
            }
        )
    has_attention = maps is not None
    document = {
        "observation_dim": observations.shape[1],
        "action_dim": actions.shape[1],
        "tokens": token_names(observations.shape[1], actions.shape[1]) if has_attention else [],
        "layers": 0 if maps is None else maps.shape[0],
        "heads": 0 if maps is None else maps.shape[2],
        "entropy": _entropy(agent, dataset, choice.seed, device),
        "states": states,
    }
    return document, None if maps is None else maps.transpose(0, 1).float().cpu().numpy()


def token_names(observation_dim: int, action_dim: int) -> list[str]:
    """The tokens in the order of a map's rows and columns.

    >>> token_names(2, 1)
    ['[VALUE]', 's0', 's1', 'a0']
    """
    states, actions = (
        (f"s{i}" for i in range(observation_dim)),
        (f"a{i}" for i in range(action_dim)),
    )
    return ["[VALUE]", *states, *actions]


def map_entropy(maps: Tensor) -> Tensor:
    """Entropies `(N, 2)` in nats of maps `(N, H, L, L)`: the `[VALUE]` query, all others."""
    entropies = -torch.xlogy(maps, maps).sum(dim=-1)  # a weight of 0 adds 0
    return torch.stack([entropies[..., 0].mean(1), entropies[..., 1:].mean((1, 2))], dim=-1)


# What to look at.


def _checked(choice: Choice, agent: Agent, dataset: Dataset) -> NDArray[np.int64]:
    """The chosen transitions, after checking that everything chosen exists."""
    data = dataset.episodes
    have = (data.observations.shape[1], data.actions.shape[1])
    want = (len(agent.normaliser.mean), agent.action_dim)
    if have != want:
        raise InputError(
            f"{dataset.path} has {have} observation and action dims where the run's networks take "
            f"{want}; restore the file that it was trained on"
        )
    dims = _dims(choice, agent.action_dim)
    if len(set(dims)) != len(dims) or not all(0 <= dim < agent.action_dim for dim in dims):
        raise InputError(
            f"--dims {','.join(map(str, dims))} are not two of the {agent.action_dim} action dims, "
            f"0 to {agent.action_dim - 1}; name others"
        )
    if not 2 <= choice.grid <= MAX_GRID:
        raise InputError(f"--grid {choice.grid} must lie between 2 and {MAX_GRID}; correct it")
    if choice.held not in ("data", "policy"):
        raise InputError(f"--held {choice.held!r} is neither data nor policy; choose one of them")
    rows = choice.states or _default_states(data.lengths, choice)
    if not all(0 <= row < data.num_transitions for row in rows):
        raise InputError(
            f"--states {','.join(map(str, rows))} are not all among the {data.num_transitions:,} "
            f"transitions of {dataset.name}; name indices from 0 to {data.num_transitions - 1}"
        )
    if len(rows) > MAX_STATES:
        raise InputError(f"{len(rows)} states are more than {MAX_STATES}; name fewer")
    return np.array(rows, dtype=np.int64)


def _dims(choice: Choice, action_dim: int) -> tuple[int, ...]:
    return choice.dims or tuple(range(min(2, action_dim)))


def _default_states(lengths: NDArray[np.int64], choice: Choice) -> tuple[int, ...]:
    """First, middle and last transition of drawn episodes, each once."""
    if choice.episodes < 1:
        raise InputError(f"--episodes {choice.episodes} must be at least 1; correct it")
    count = min(choice.episodes, len(lengths))
    drawn = np.random.default_rng(choice.seed).choice(len(lengths), count, replace=False)
    ends = np.cumsum(lengths)
    rows: dict[int, None] = {}
    for episode in sorted(drawn.tolist()):
        first, last = int(ends[episode] - lengths[episode]), int(ends[episode]) - 1
        rows |= dict.fromkeys((first, (first + last) // 2, last))
    return tuple(rows)


def _places(lengths: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Episode of each transition, and its step within it."""
    ends = np.cumsum(lengths)
    episodes = np.searchsorted(ends, rows, side="right")
    steps = rows - (ends - lengths)[episodes]
    return episodes.tolist(), steps.tolist()


def _raw_observations(dataset: Dataset, rows: NDArray[np.int64], device: torch.device) -> Tensor:
    """Observations at which transitions start, as the data hold them."""
    data = dataset.episodes
    starts = rows + np.array(_places(data.lengths, rows)[0])  # one more row per earlier episode
    return torch.as_tensor(data.observations[starts], dtype=torch.float32, device=device)


def _tensors(
    agent: Agent, dataset: Dataset, rows: NDArray[np.int64], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Observations as the networks see them, and actions."""
    actions = torch.as_tensor(dataset.episodes.actions[rows], device=device)
    return agent.normaliser(_raw_observations(dataset, rows, device)), actions


def _policy_actions(
    agent: Agent, dataset: Dataset, rows: NDArray[np.int64], seed: int, device: torch.device
) -> Tensor:
    policy = agent.policies[0]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(rows), agent.noise_dim(policy), generator=generator).to(device)
    return agent.act(policy, _raw_observations(dataset, rows, device), noise)


# What is seen.


def _maps(critic: Critic, observations: Tensor, actions: Tensor) -> Tensor | None:
    """Attention weights `(N, states, H, L, L)`; None for a critic without attention."""
    if not isinstance(critic, TransformerCritic):
        return None
    blocks: Any = critic.blocks
    heads = blocks[0].num_heads
    size = 4 * len(blocks) * heads * len(observations) * critic.num_tokens**2
    if size > MAX_MAP_BYTES:
        raise InputError(
            f"attention maps of {len(observations)} states take {size / 2**30:.1f} GiB; "
            "name fewer --states"
        )
    return critic.attention_maps(observations, actions)


def _entropy(agent: Agent, dataset: Dataset, seed: int, device: torch.device) -> dict[str, Any]:
    """The critic's own entropies over sampled transitions, beside their targets."""
    control: Any = agent.networks["control"]
    count = min(SAMPLED, dataset.episodes.num_transitions)
    rows = np.random.default_rng(seed).choice(
        dataset.episodes.num_transitions, count, replace=False
    )
    critic: Any = agent.networks["critic"]
    _, entropy = critic(*_tensors(agent, dataset, rows, device), return_entropy=True)
    assert isinstance(control, EntropyController)
    return {
        "transitions": count,
        "mode": control.mode,
        "nats": _rounded(entropy),
        "target": _rounded(control.targets),
        "temperature": _rounded(control.temperatures),
    }


def _landscapes(
    critic: Any,
    observations: Tensor,
    actions: Tensor,
    policy_actions: Tensor,
    choice: Choice,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Mean and spread of the ensemble over a grid of actions, at every state."""
    dims = _dims(choice, actions.shape[1])
    axis = torch.linspace(-1, 1, choice.grid, device=actions.device)
    points = torch.cartesian_prod(*[axis] * len(dims)).view(-1, len(dims))
    held = policy_actions if choice.held == "policy" else actions
    title = "Q landscapes"
    reporter.started(title, len(observations))
    found = []
    for i in range(len(observations)):
        varied = held[i].repeat(len(points), 1)
        varied[:, list(dims)] = points
        q = torch.cat(
            [critic(observations[i].expand(len(part), -1), part) for part in varied.split(ROWS)]
        )
        shape = (choice.grid,) * len(dims)
        found.append(
            {
                "dims": list(dims),
                "held": choice.held,
                "grid": _rounded(axis),
                "q_mean": _rounded(q.mean(dim=1).view(shape)),
                "q_spread": _rounded(q.std(dim=1, correction=0).view(shape)),
            }
        )
        reporter.advanced(i + 1, title)
    return found


def _rounded(values: Tensor) -> Any:
    """Nested lists of numbers in `DIGITS` significant digits."""
    flat = [float(f"{value:.{DIGITS}g}") for value in values.flatten().tolist()]
    return np.array(flat).reshape(values.shape).tolist()


# What is written.


def _write(
    folder: Path,
    document: dict[str, Any],
    maps: NDArray[np.float32] | None,
    drawn: dict[str, str],
) -> None:
    """Write figures and maps, then inspect.json; delete figures of an earlier inspection.

    Files that have only names like theirs are kept.
    """
    earlier = _figures_of(folder)
    text = json.dumps(document, allow_nan=False) + "\n"
    if len(text) > MAX_DOCUMENT_BYTES:
        raise InputError(
            f"{folder / DOCUMENT} would have {len(text):,} bytes where at most "
            f"{MAX_DOCUMENT_BYTES:,} are read; choose fewer states or a smaller --grid"
        )
    with writing(folder / DOCUMENT):
        folder.mkdir(parents=True, exist_ok=True)
    for name, svg in drawn.items():
        write_atomic(folder / name, svg)
    if maps is not None:
        rows = np.array([state["transition"] for state in document["states"]])
        _write_maps(folder / "attention.npz", maps, rows)
    write_atomic(folder / DOCUMENT, text)
    kept = {*drawn, *(["attention.npz"] if maps is not None else [])}
    with writing(folder / DOCUMENT):
        for name in earlier - kept:
            (folder / name).unlink(missing_ok=True)


def _figures_of(folder: Path) -> set[str]:
    """Names of the figures and maps of a folder's inspection, if there is one."""
    try:
        states = read_json(folder / DOCUMENT, MAX_DOCUMENT_BYTES).get("states")
    except InputError:
        return set()
    rows = [state.get("transition") for state in states or () if isinstance(state, dict)]
    kinds = ("attention", "attention-heads", "q")
    figures_ = {f"{kind}-{row}.svg" for kind in kinds for row in rows if isinstance(row, int)}
    return {"attention.npz", *figures_}


def _write_maps(path: Path, maps: NDArray[np.float32], rows: NDArray[np.int64]) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, attention=maps, transitions=rows)
    with writing(path), written_aside(path) as aside:
        aside.write_bytes(packed.getvalue())
