"""The arithmetic of one update, counted: a cost that no machine, thread or library changes."""

from copy import deepcopy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tql_offline.agents import Agent
from tql_offline.batch import Batch
from tql_offline.networks import kernels
from tql_offline.training.compile import LOSSES


def flops_per_update(agent: Agent, batch_size: int) -> int:
    """Operations of the matrix products of one update; a multiply-add is two.

    Counted in a copy of the agent on the CPU, in plain operations, whatever the run's device, so
    that nothing of it and no generator is touched. A product's size is affine in the batch, so two
    small batches give any other. Of a delayed policy it is the mean over its period.

    Args:
        agent: before its first update.
        batch_size: transitions per update.
    """
    copy = deepcopy(agent)
    for name in LOSSES:
        vars(copy).pop(name, None)  # one compiled or autocast goes on with the agent's networks
    for network in copy.networks.values():
        network.to("cpu")  # a GPU's products are padded
    for optimizer in copy.optimizers.values():
        optimizer.param_groups.clear()  # a step has no products, but would take memory
        # Of no parameters all count as on a GPU: it would warn, as the copy forgets that it did.
        vars(optimizer)["_warned_capturable_if_run_uncaptured"] = True
    one, two = (_of_batch(copy, rows) for rows in (1, 2))
    return one + (batch_size - 1) * (two - one)


def _of_batch(agent: Agent, rows: int) -> int:
    states = torch.zeros(rows, len(agent.normaliser.mean))
    actions, numbers = states.new_zeros(rows, agent.action_dim), states.new_zeros(rows)
    batch = Batch(states, actions, numbers, states, numbers, numbers, actions, numbers)
    generator, period = torch.Generator(), getattr(agent, "policy_delay", 1)
    # A CPU's own passes compute a little again instead of keeping it.
    with kernels.turned_off(kernels), _Products() as products:
        for step in range(1, period + 1):
            agent.update(batch, generator, step)
    flops: int = products.flops // period
    return flops


class _Products(TorchDispatchMode):
    """Adds up the operations of products by PyTorch's own formulas.

    `FlopCounterMode` sums the same formulas up by module, at many times the time.
    """

    flops: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
