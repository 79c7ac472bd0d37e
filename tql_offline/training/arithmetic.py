"""The arithmetic of one update, counted: a cost that no machine, thread or library changes."""

from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from tql_offline.agents import META, Agent, make_agent_of_shapes
from tql_offline.batch import Batch
from tql_offline.config import Config, is_own
from tql_offline.errors import InputError
from tql_offline.shapes import ShapesAtOnce, without_compiler

WITHOUT_PRODUCTS = (
    *("seed", "steps", "device", "log_every", "checkpoint_every", "keep_checkpoints"),
    *("dataset", "optimizer", "execution", "watch", "evaluation"),
)
"""Settings in which runs with the same arithmetic mostly differ."""
_MAX_REASON = 200
"""Most characters quoted of an error."""


def flops_per_update(config: Config, observation_dim: int, action_dim: int) -> int | None:
    """Operations of the matrix products of one update of a config; a multiply-add is two.

    None for a method of one's own whose update cannot be counted (see `why_uncounted`).

    They are counted on a separate agent that has shapes but no numbers, so that the run's device,
    precision, compilation and hand-written passes have no effect. See `flops_of`.

    Args:
        config: its batch size matters.
        observation_dim: n_s.
        action_dim: n_a.

    Raises:
        InputError: a method of one's own lacks a setting, or returns no loss with metrics.
    """
    counted = _counted_like(config, observation_dim, action_dim)
    return counted if isinstance(counted, int) else None


def why_uncounted(config: Config, observation_dim: int, action_dim: int) -> str:
    """What an update raises where tensors have no numbers, as `flops_per_update` tries it, or "".

    It is the reason for which nothing is counted if the same update can be done with numbers.
    """
    counted = _counted_like(config, observation_dim, action_dim)
    return counted if isinstance(counted, str) else ""


def _counted_like(config: Config, observation_dim: int, action_dim: int) -> int | str:
    """The count, or why there is none; 0.4 s of work that seeds trained at once ask for again."""
    defaults = Config()
    same = {name: getattr(defaults, name) for name in WITHOUT_PRODUCTS}
    return _counted(config.model_copy(update=same), observation_dim, action_dim)


@lru_cache(maxsize=64)
def _counted(config: Config, observation_dim: int, action_dim: int) -> int | str:
    try:
        agent = make_agent_of_shapes(config, observation_dim, action_dim)
        return flops_of(agent, config.batch_size)
    except InputError:  # a setting that is not given: with numbers it is the same
        raise
    except Exception as error:  # whatever foreign code raises where there are no numbers
        if not is_own(config.objective):
            raise
        said = " ".join(str(error).partition("\n")[0].split())
        return f"{type(error).__name__}: {said}"[:_MAX_REASON]


def flops_of(agent: Agent, batch_size: int) -> int:
    """Operations of the matrix products of one update of an agent on `meta`.

    They come from PyTorch's formulas, which know every product on `meta`; on a CPU they have none
    for its fused attention. With a delayed policy, the count is the mean over the delay.
    """
    batch = _batch(agent, batch_size)
    period = agent.policy_delay
    products = _Products()
    with products:
        for step in range(1, period + 1):
            agent.update(batch, torch.Generator(), step)
    return products.flops // period


@without_compiler
class _Products(ShapesAtOnce):
    """Counts as PyTorch's `FlopCounterMode` does, without its import of the compiler (2.5 s)."""

    flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """The operation's result, once its operations are counted."""
        given = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
        result = super().__torch_dispatch__(func, types, args, given)
        if formula is not None:
            self.flops += formula(*args, **given, out_val=result)
        return result


def _batch(agent: Agent, rows: int) -> Batch:
    """Transitions of the agent's dims, without numbers."""
    states = torch.empty(rows, len(agent.normaliser.mean), device=META)
    actions, numbers = states.new_empty(rows, agent.action_dim), states.new_empty(rows)
    return Batch(states, actions, numbers, states, numbers, numbers, actions, numbers)
