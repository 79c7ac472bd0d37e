"""Fitted Q evaluation: what a run's policy is worth, estimated from data alone.

Le, Voloshin and Yue 2019 (arXiv 1903.08738), section 3.2: Q of a fixed policy π is fitted to
`r + γ·mask·Q̄(s', a')` with a' ~ π(s') over the data's transitions, and the policy is worth the mean
of Q(s, π(s)) over the episodes' first observations. Each of several networks sees the data's
episodes weighted by a bootstrap draw (Hao et al. 2021, arXiv 2102.03607): their spread gives the
interval.

The interval covers the choice of episodes and the fit. For actions outside the data, Q may be
anything, and no spread shows it: at best, estimates rank policies; they are not scores.

Shape suffixes: B batch, E episodes, M members.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from tql_offline.agents import Agent
from tql_offline.agents.optimizers import make_adamw, polyak_update, set_learning_rate
from tql_offline.config import Config
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.catalogue import suite_of
from tql_offline.datasets.episodes import Array, Episodes
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError
from tql_offline.eval.statistics import mean_std, student_t
from tql_offline.files import append_jsonl, require_writable
from tql_offline.networks import MLPCritic, Normaliser
from tql_offline.objectives.td import td_target
from tql_offline.training import checkpoint
from tql_offline.training.data import data_of
from tql_offline.training.device import pick_device
from tql_offline.training.reporters import Reporter
from tql_offline.training.rescoring import check_policies
from tql_offline.training.result import open_run
from tql_offline.training.watch import return_bounds

METHOD = "fqe"
TRACED = 10
"""Estimates made over the course of a fit."""
_LAGS = 3
"""Times `horizon / polyak` that a fit's updates have to be for its value to settle.

Of the way there, e⁻³ is then left, a twentieth: less than a third of the interval where the last
fifth of the updates moved the value by a quarter of it.
"""
_DRAWS = 8
"""Policy actions that an estimate averages over, for each first observation."""
_ROWS_AT_ONCE = 4096
_STEPS = 100_000
"""Steps, at most, that tell how far one goes."""
_TITLE = "fitting Q"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How Q is fitted.

    Attributes:
        updates: updates of all networks; see `needed`.
        batch_size: transitions per update.
        members: networks, each with a bootstrap of the episodes.
        hidden: layer widths of each network.
        lr: peak rate of AdamW.
        polyak: rate of the target networks, higher than in training a policy, since π stands still.
        seed: seed of everything.
    """

    updates: int = 50_000
    batch_size: int = 256
    members: int = 5
    hidden: tuple[int, ...] = (256, 256)
    lr: float = 3e-4
    polyak: float = 0.02
    seed: int = 0

    def needed(self, horizon: float) -> int:
        """Updates that a value takes to settle, looking that many steps ahead."""
        return round(_LAGS * horizon / self.polyak)


@dataclass(frozen=True, kw_only=True)
class Worth:
    """An estimated discounted return of a policy, with its 95 % interval.

    Attributes:
        trace: the estimate after each tenth of the updates (after each one if fewer than ten); the
            last is `value`.
        starts: number of first observations that it averages over.
        lasted: whether there were as many updates as `needed`.
        needed: updates that a value takes to settle.
        bounds: the least and the greatest return that the data's rewards allow.
        within: whether every network's values kept to them, give or take a quarter of their range,
            over the second half of the updates.
    """

    value: float
    low: float
    high: float
    trace: tuple[float, ...]
    starts: int
    lasted: bool = True
    needed: int = 0
    bounds: tuple[float, float] = (-math.inf, math.inf)
    within: bool = True

    @property
    def is_settled(self) -> bool:
        """Whether the last fifth of the updates moved it by at most a quarter of the interval.

        False if there were too few updates for a value to settle, or if values left their bounds:
        networks that differ from one another make the interval wide.
        """
        before = self.trace[-3:][0]
        moved = abs(self.value - before) > (self.high - self.low) / 4
        return self.lasted and self.within and not moved


def evaluate_offline(
    path: Path,
    *,
    step: int | None = None,
    policies: tuple[str, ...] = (),
    fit: Fit | None = None,
    device: str = "auto",
    load_dataset: Callable[[Config], Dataset],
    reporter: Reporter,
    moved_to: Path | None = None,
) -> list[dict[str, Any]]:
    """Estimate what policies of a run's checkpoint are worth; add the estimates to its ope.jsonl.

    Rewards are the data's own, and γ is the run's.

    Args:
        path: the run folder.
        step: step of the checkpoint; None takes the last.
        policies: names; empty takes all.
        fit: how Q is fitted; None takes `usual_fit`.
        device: `auto`, `cpu` or `cuda`.
        load_dataset: loads the data of the run's config.
        reporter: where progress goes.
        moved_to: where the data's file is now, if it was moved.

    Returns:
        The lines of ope.jsonl.

    Raises:
        InputError: there is no such checkpoint or policy, the data differ, or the fit diverged.
    """
    folder, config = open_run(path)
    require_writable(folder.path)
    torch_device = pick_device(device)
    state, agent = checkpoint.load_agent(folder, config, step, torch_device)
    check_policies(agent, policies, path)
    episodes = data_of(folder, config, load_dataset, moved_to).episodes
    data = Transitions.of(
        episodes,
        discount=config.discount,
        device=torch_device,
        may_continue=is_d4rls_ant_maze(config.dataset.name),
    )
    fit = fit or usual_fit(data.horizon)
    lines = []
    for policy in policies or agent.policies:
        worth = fitted_q_evaluation(agent, policy, data, fit=fit, reporter=reporter)
        lines.append(_line(state.step, policy, config.discount, fit, worth))
        append_jsonl(folder.off_policy, lines[-1])
    return lines


def usual_fit(horizon: float) -> Fit:
    """The usual settings, with more updates where a value that looks that far ahead takes more."""
    fit = Fit()
    return replace(fit, updates=max(fit.updates, fit.needed(horizon)))


def is_d4rls_ant_maze(name: str) -> bool:
    """Whether a dataset is one whose episodes may go on from the one before; see `continues`."""
    return suite_of(name) == "d4rl" and name.startswith("antmaze")


def _line(step: int, policy: str, discount: float, fit: Fit, worth: Worth) -> dict[str, Any]:
    facts = {"step": step, "policy": policy, "method": METHOD, "discount": discount}
    return {**facts, **asdict(worth), "settled": worth.is_settled, "fit": asdict(fit)}


@dataclass(frozen=True, kw_only=True)
class Transitions:
    """Data on a device, in the form that every fit uses.

    Attributes:
        buffer: buffer of one-step targets.
        episode: `(N,)` episode of each transition, continuations counted with what they continue.
        first_rows: `(E,)` observation row at which each episode begins, continuations left out.
        normaliser: normaliser of the observations.
        bounds: the least and the greatest return that the rewards allow.
        horizon: steps that a value looks ahead.
        scale: divisor that brings returns of as many steps within ±1.
    """

    buffer: Buffer
    episode: Tensor
    first_rows: Tensor
    normaliser: Normaliser
    bounds: tuple[float, float]
    horizon: float
    scale: float

    @property
    def loose_bounds(self) -> tuple[float, float]:
        """The bounds with room for the error of a fit whose value lies on one of them."""
        least, most = self.bounds
        room = (most - least) / 4 or self.scale
        return least - room, most + room

    @classmethod
    def of(
        cls,
        episodes: Episodes,
        *,
        discount: float,
        device: torch.device,
        may_continue: bool = False,
    ) -> Self:
        """Build it from episodes with rewards in the unit of the estimate.

        Args:
            episodes: the data.
            discount: γ.
            device: where Q is fitted.
            may_continue: whether episodes may go on from the one before; see `continues`.

        Raises:
            InputError: they need more memory than the device has free.
        """
        buffer = make_buffer(episodes, n_step=1, discount=discount, device=device)
        lengths = torch.as_tensor(episodes.lengths, device=device)
        goes_on = continues(episodes) if may_continue else np.zeros(len(lengths), dtype=np.bool_)
        begins = torch.as_tensor(~goes_on, device=device)
        numbers = torch.cumsum(begins, dim=0) - 1
        normaliser = Normaliser(episodes.observations.shape[1]).to(device)
        normaliser.fit(episodes.observations)
        horizon = horizon_of(episodes, discount)
        return cls(
            buffer=buffer,
            episode=torch.repeat_interleave(numbers, lengths),
            first_rows=buffer.start_rows[(torch.cumsum(lengths, dim=0) - lengths)[begins]],
            normaliser=normaliser,
            bounds=return_bounds(episodes, discount),
            horizon=horizon,
            scale=float(np.abs(episodes.rewards).max()) * horizon or 1.0,
        )


def horizon_of(episodes: Episodes, discount: float) -> float:
    """Sum of the discounts that a value adds up: over the longest episode, if all end their task.

    After a cut a value goes on: `1 / (1 - γ)`; without discounting, at least as far as any episode.
    """
    powers = discount ** np.arange(episodes.lengths.max(), dtype=np.float64)
    all_end = (episodes.masks[episodes.last_transitions()] == 0).all()
    return float(powers.sum()) if all_end or discount == 1 else 1 / (1 - discount)


def continues(episodes: Episodes) -> NDArray[np.bool_]:
    """Which episodes of D4RL's ant mazes go on from where the one before ended its task, `(E,)`.

    These data mark every step near the goal as an end, while the ant walks on: each such row is an
    episode of its own, and none of them begins where the task does. An episode goes on if its first
    observation is no more than a step away from the last one of an episode that was not cut off.
    In other data this would also be true of an episode that happens to begin near the goal.
    """
    before = episodes.last_transitions()[:-1]
    first_rows = episodes.start_rows()[episodes.last_transitions() + 1 - episodes.lengths]
    first, last = (episodes.observations[rows] for rows in (first_rows[1:], first_rows[1:] - 1))
    goes_on = (episodes.masks[before] == 0) & _step_test(episodes)(last, first)
    return np.insert(goes_on, 0, False)


def _step_test(episodes: Episodes) -> Callable[[Array, Array], NDArray[np.bool_]]:
    """Make a test of whether observations `(K, n_s)` are no further apart than steps go.

    Distance is measured with each dim in units of its root mean square step, and the limit is what
    all but a hundredth of the steps keep.
    """
    rows = episodes.start_rows()
    rows = rows[:: len(rows) // _STEPS + 1]
    steps = episodes.observations[rows + 1].astype(float) - episodes.observations[rows]
    unit = np.sqrt(np.mean(steps**2, axis=0)) + np.finfo(np.float32).tiny
    limit = np.quantile(np.linalg.norm(steps / unit, axis=1), 0.99)

    def is_step(one: Array, other: Array) -> NDArray[np.bool_]:
        return np.asarray(np.linalg.norm((other.astype(float) - one) / unit, axis=1) <= limit)

    return is_step


def fitted_q_evaluation(
    agent: Agent, policy: str, data: Transitions, *, fit: Fit, reporter: Reporter
) -> Worth:
    """Estimate what a policy is worth from the data's first observations on.

    Args:
        agent: whose policy it is, on the device of the data.
        policy: its name.
        data: data to fit to.
        fit: how Q is fitted.
        reporter: where progress goes.

    Raises:
        InputError: the fit diverged.
    """
    fitting = Fitting(agent, policy, data, fit)
    reporter.started(_TITLE, fit.updates)
    trace, traced = [], {-(-fit.updates * k // TRACED) for k in range(1, TRACED + 1)}
    within, (least, most) = True, data.loose_bounds
    for step in range(1, fit.updates + 1):
        fitting.update(step)
        reporter.advanced(step, title=_TITLE)
        if step in traced:
            values = fitting.values()
            trace.append(float(values.mean()))
            possible = bool(((values >= least) & (values <= most)).all())
            within &= possible or 2 * step <= fit.updates
            if not math.isfinite(trace[-1]):
                raise InputError(f"the fit of Q diverged by update {step}; there is no estimate")
    needed = fit.needed(data.horizon)
    mean, sd = mean_std(values.tolist(), ddof=1)
    margin = student_t(fit.members - 1) * sd
    return Worth(
        value=mean,
        low=mean - margin,
        high=mean + margin,
        trace=tuple(trace),
        starts=len(data.first_rows),
        lasted=fit.updates >= needed,
        needed=needed,
        bounds=data.bounds,
        within=within,
    )


class Fitting:
    """Networks of one fit to scaled rewards, and its random generator."""

    def __init__(self, agent: Agent, policy: str, data: Transitions, fit: Fit) -> None:
        self.agent, self.policy, self.data, self.fit = agent, policy, data, fit
        device = data.buffer.actions.device
        self.generator = torch.Generator(device).manual_seed(fit.seed)
        dims = data.buffer.observations.shape[1], agent.action_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fit.seed)
            self.critic = MLPCritic(*dims, fit.hidden, fit.members).to(device)
            self.target = MLPCritic(*dims, fit.hidden, fit.members).to(device)
        self.target.load_state_dict(self.critic.state_dict())
        group = {"params": list(self.critic.parameters()), "weight_decay": 0.0}
        self.optimizer = make_adamw([group], fit.lr)
        self.weights = self._bootstrap(len(data.first_rows), device)

    def _bootstrap(self, count: int, device: torch.device) -> Float[Tensor, "E M"]:
        """How often each member's bootstrap has each episode; once if there is only one."""
        drawn = torch.randint(
            count, (self.fit.members, count), generator=self.generator, device=device
        )
        return torch.stack([torch.bincount(row, minlength=count) for row in drawn], dim=1).float()

    def update(self, step: int) -> None:
        """Step every member and its target."""
        data, buffer, fit = self.data, self.data.buffer, self.fit
        shape, device = (fit.batch_size,), buffer.actions.device
        index = torch.randint(
            buffer.num_transitions, shape, generator=self.generator, device=device
        )
        batch = buffer.take(index)
        with torch.no_grad():
            next_q = self._q_of_policy(self.target, batch.next_observations)
            rewards, discounts = batch.rewards / data.scale, batch.discounts
            target = td_target(rewards.unsqueeze(-1), discounts.unsqueeze(-1), next_q)
        q = self.critic(data.normaliser(batch.observations), batch.actions)
        loss = (self.weights[data.episode[index]] * (q - target).square()).mean()
        self.optimizer.zero_grad()
        loss.backward()
        peaks, warmup = {METHOD: fit.lr}, fit.updates // 100
        set_learning_rate({METHOD: self.optimizer}, peaks, step - 1, warmup, fit.updates)
        self.optimizer.step()
        polyak_update(self.target, self.critic, fit.polyak)

    @torch.no_grad()
    def values(self) -> Tensor:
        """Each member's mean of Q(s, π(s)) over the first observations of its bootstrap, `(M,)`."""
        observations = self.data.buffer.observations[self.data.first_rows].float()
        draws = [self._q_of_policy(self.critic, observations) for _ in range(_DRAWS)]
        q_of_starts = self.data.scale * torch.stack(draws).mean(dim=0)
        return (self.weights * q_of_starts).sum(dim=0) / self.weights.sum(dim=0)

    def _q_of_policy(self, critic: MLPCritic, observations: Tensor) -> Float[Tensor, "B M"]:
        count = (len(observations), self.agent.noise_dim(self.policy))
        noise = torch.randn(count, generator=self.generator, device=observations.device)
        # In parts: best-of-n asks the run's critic n times a row, for all starts at once.
        parts = zip(observations.split(_ROWS_AT_ONCE), noise.split(_ROWS_AT_ONCE), strict=True)
        # As they would be played.
        actions = torch.cat([self.agent.act(self.policy, *part) for part in parts]).clamp(-1, 1)
        q: Tensor = critic(self.data.normaliser(observations), actions)
        return q
