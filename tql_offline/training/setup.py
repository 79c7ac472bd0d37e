"""A run in memory: from settings and data to all that trains, and its record."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tql_offline.agents import Agent, make_agent
from tql_offline.config import Config, is_own
from tql_offline.datasets.buffer import Buffer, make_buffer
from tql_offline.datasets.check_dataset import quick_findings
from tql_offline.datasets.checks_of_numbers import images_told
from tql_offline.datasets.findings import noted
from tql_offline.datasets.load import Dataset
from tql_offline.errors import InputError
from tql_offline.eval import protocol as protocols
from tql_offline.eval.references import other_limit
from tql_offline.runs import RunFolder
from tql_offline.setting_effects import flat_settings, lasting_settings
from tql_offline.training.arithmetic import flops_per_update
from tql_offline.training.compile import Execution, Updates, prepare
from tql_offline.training.device import pick_device
from tql_offline.training.environment import fitting_environment
from tql_offline.training.evaluation import check_act
from tql_offline.training.metrics import MetricsWindow
from tql_offline.training.provenance import collect_provenance, own_code
from tql_offline.training.rewards import RewardMap, reward_map


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run trains with, in its initial state until a checkpoint is loaded."""

    config: Config
    dataset: Dataset
    rewards: RewardMap
    device: torch.device
    environment: dict[str, Any] | None
    agent: Agent
    buffer: Buffer
    generator: torch.Generator
    window: MetricsWindow
    updates: Updates
    execution: Execution


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run with its folder and the step that it starts from."""

    setup: Setup
    folder: RunFolder
    step: int = 0


def set_up(config: Config, dataset: Dataset, like: Setup | None = None) -> Setup:
    """Set up a run in memory; `like`, if given, is a run with another seed whose data it shares."""
    _refuse_images(dataset)
    rewards = reward_map(config.dataset, dataset) if like is None else like.rewards
    dataset = rewards.of(dataset) if like is None else like.dataset
    device = pick_device(config.device)
    environment = _environment(config, dataset)
    agent = make_agent(config, *dims_of(dataset), device)
    if config.dataset.normalise:
        agent.normaliser.fit(dataset.episodes.observations)
    agent.fit_rewards(dataset.episodes.rewards)
    if like is None:
        if is_own(config.objective):
            check_act(agent, dataset.episodes.observations, device)
        buffer = make_buffer(
            dataset.episodes,
            n_step=config.n_step,
            discount=config.discount,
            device=device,
            after_cut=config.conservative.after_cut,
            on_host=config.execution.data == "host",
        )
    else:
        buffer = like.buffer
    generator, window = torch.Generator(device).manual_seed(config.seed), MetricsWindow()
    updates, execution = prepare(config, agent, buffer, generator, window)
    return Setup(
        config=config,
        dataset=dataset,
        rewards=rewards,
        device=device,
        environment=environment,
        agent=agent,
        buffer=buffer,
        generator=generator,
        window=window,
        updates=updates,
        execution=execution,
    )


def _refuse_images(dataset: Dataset) -> None:
    if told := images_told(dataset.episodes.observations):
        raise InputError(f"{dataset.path} holds {told}")


def _environment(config: Config, dataset: Dataset) -> dict[str, Any] | None:
    if dataset.env_id is None:
        return None
    return fitting_environment(
        dataset.env_id,
        config,
        *dims_of(dataset),
        whose=str(dataset.path),
        bounds=dataset.action_bounds,
    )


def dims_of(dataset: Dataset) -> tuple[int, int]:
    """Observation and action dims."""
    return dataset.episodes.observations.shape[1], dataset.episodes.actions.shape[1]


def findings_of(dataset: Dataset) -> tuple[str, ...]:
    """What `quick_findings` finds, as sentences; waits for the digest of the data's file."""
    return tuple(map(str, quick_findings(dataset)))


def record_of(setup: Setup, seeds: Sequence[int], findings: Sequence[str]) -> dict[str, Any]:
    """What provenance.json records of a run that begins, trained with others of these seeds."""
    dataset = replace(setup.dataset, found=(*setup.dataset.found, *map(noted, limit_notes(setup))))
    facts = collect_provenance(setup.device, dataset.describe(), setup.environment)
    return {
        **facts,
        **method_facts(setup),
        "settings": lasting_settings(flat_settings(setup.config)),
        "execution": asdict(setup.execution),
        **({"own_method": code} if (code := own_code(setup.agent)) else {}),
        "seeds_at_once": list(seeds),
        "rewards": asdict(setup.rewards),
        "data_findings": list(findings),
    }


def method_facts(setup: Setup) -> dict[str, Any]:
    """Facts about the critic and an update that follow from the code as it is now."""
    flops = flops_per_update(setup.config, *dims_of(setup.dataset))
    return {**_critic_facts(setup.agent), "flops_per_update": flops}


def _critic_facts(agent: Agent) -> dict[str, Any]:
    critic = agent.networks.get(agent.sized)  # behaviour cloning has none
    parameters = critic.parameters() if critic else ()
    value: Any = agent.networks.get("value")
    return {
        "tokens": agent.num_tokens,
        **({"value_tokens": value.num_tokens} if value else {}),
        "critic_parameters": sum(p.numel() for p in parameters),
    }


def limit_notes(setup: Setup) -> Iterator[str]:
    """Yield a sentence, if the environment's step limit is not the one of the references."""
    protocol = protocols.get(setup.config.evaluation.protocol)
    return other_limit(protocol, setup.config.dataset.name, setup.environment)
