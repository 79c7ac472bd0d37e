"""AdamW as the paper's code sets it up, its schedule, and the target network's average."""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tql_offline.config import Schedule


class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW, which does not import the compiler.

    Its methods' decorators keep `torch.compile` out of them, and import it for that: 2.5 s, of the
    6 from a command to its first update. Only losses are compiled here (training/compile.py), so
    the methods without their decorators do the same.
    """

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def critic_groups(
    critics: Sequence[nn.Module], control: nn.Module, weight_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on matrices of blocks, heads and MLPs, and nothing else.

    Embeddings, tokens, positions, norms, biases and temperatures do not decay, nor does anything
    of a critic of one's own outside `blocks`, `heads` and `members`.
    """
    decayed: list[nn.Parameter] = []
    plain = list(control.parameters())
    for critic in critics:
        for name, parameter in critic.named_parameters():
            if not parameter.requires_grad:
                continue  # a fixed network in a critic of one's own: nothing is learnt of it
            matrix = parameter.ndim == 2 and name.startswith(("blocks.", "heads.", "members."))
            (decayed if matrix else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def policy_groups(policies: Iterable[nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: weight decay on the policies' matrices, as in the paper's code.

    Without decay there is one group, in whose order checkpoints of runs without it hold moments.
    """
    every = [p for policy in policies for p in policy.parameters() if p.requires_grad]
    if not weight_decay:
        return [{"params": every, "weight_decay": 0.0}]
    return [
        {"params": [p for p in every if p.ndim == 2], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim != 2], "weight_decay": 0.0},
    ]


def make_adamw(groups: Iterable[dict[str, Any]], rate: float) -> AdamW:
    """AdamW(0.9, 0.999, 1e-8) at a constant rate; `set_learning_rate` applies a schedule.

    On a GPU, rates are tensors on the device, so that a step can be captured in a CUDA graph.
    """
    groups = [group for group in groups if group["params"]]
    device = groups[0]["params"][0].device
    on_gpu = device.type == "cuda"
    groups = [
        {"lr": torch.tensor(rate, device=device) if on_gpu else rate, **group} for group in groups
    ]
    betas, eps = (0.9, 0.999), 1e-8
    fused = device.type != "meta"  # an agent made for its shapes alone
    return AdamW(groups, betas=betas, eps=eps, fused=fused, capturable=on_gpu)


def learning_rate(
    step: int, peak: float, warmup: int, steps: int, schedule: Schedule = "cosine"
) -> float:
    """The rate of update `step` (from 0): linear from 1% over `warmup`, then cosine to 10%.

    The cosine ends at `steps - warmup`, as in the paper's code, and stays at 10% from there. The
    warm-up takes at most a tenth of a run, so that a short one reaches its peak. A constant
    schedule stays at the peak; FQL's code and, but for IQL's policy, CORL's use it without warm-up.

    >>> [round(learning_rate(s, 1.0, 10, 100), 3) for s in (0, 5, 10, 50, 90, 100)]
    [0.01, 0.505, 1.0, 0.55, 0.1, 0.1]
    """
    warmup = min(warmup, steps // 10)
    if step < warmup:
        return peak * (0.01 + 0.99 * step / warmup)
    if schedule == "constant":
        return peak
    progress = min((step - warmup) / (steps - 2 * warmup), 1.0)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(
    optimizers: Mapping[str, torch.optim.Optimizer],
    peaks: Mapping[str, float],
    step: int,
    warmup: int,
    steps: int,
    schedule: Schedule = "cosine",
) -> None:
    """Set every optimizer's rate for update `step` (from 0)."""
    for name, optimizer in optimizers.items():
        rate = learning_rate(step, peaks[name], warmup, steps, schedule)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


@torch.no_grad()
def polyak_update(target: nn.Module, online: nn.Module, rate: float) -> None:
    """`θ̄ ← θ̄ + rate·(θ - θ̄)` for every parameter."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
