"""AdamW without its decorators is PyTorch's."""

from itertools import pairwise

import pytest
import torch

from tql_offline.agents.optimizers import AdamW, critic_groups, make_adamw, policy_groups


def stepped(made, groups, steps=5):
    """The parameters after some steps, half of them after its state was saved and loaded."""
    optimizer = made(groups)
    for step in range(steps):
        for group in groups:
            for i, parameter in enumerate(group["params"]):
                parameter.grad = parameter.detach() * (i + 1) + step
        optimizer.step()
        if step == steps // 2:
            state = optimizer.state_dict()
            optimizer = made(groups)
            optimizer.load_state_dict(state)
    optimizer.zero_grad()
    return [parameter for group in groups for parameter in group["params"]]


def made_groups():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "params": [torch.randn(3, generator=generator).requires_grad_() for _ in range(2)],
            "weight_decay": decay,
        }
        for decay in (0.1, 0.0)
    ]


def test_it_takes_the_steps_of_pytorchs():
    of_pytorch = torch.optim.AdamW
    settings = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "fused": True}
    ours = stepped(lambda groups: make_adamw(groups, 1e-2), made_groups())
    theirs = stepped(lambda groups: of_pytorch(groups, **settings), made_groups())
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(parameter.grad is None for parameter in ours)
    assert not any(torch.equal(a, b) for a, b in pairwise(ours))


def test_a_step_keeps_no_history():
    parameter = torch.ones(2, requires_grad=True)
    optimizer = AdamW([parameter])
    parameter.square().sum().backward()
    assert torch.is_grad_enabled()
    optimizer.step()
    assert torch.is_grad_enabled()
    assert parameter.is_leaf


def test_it_refuses_what_pytorchs_refuses():
    with pytest.raises(ValueError, match="more than one parameter group"):
        AdamW([{"params": (one := [torch.ones(1)])}, {"params": one}])


def test_what_is_fixed_is_in_no_group_and_empty_groups_are_dropped():
    """A run with moments of some parameters alone could not be resumed."""
    critic = torch.nn.Module()
    critic.first = torch.nn.Linear(3, 2)
    critic.heads = torch.nn.Linear(3, 2).requires_grad_(False)
    groups = critic_groups([critic], torch.nn.Module(), 0.1)
    assert [len(group["params"]) for group in groups] == [0, 2]
    (group,) = make_adamw(groups, 1e-3).param_groups
    assert group["weight_decay"] == 0
    (policy,) = policy_groups([critic], 0.0)
    assert len(policy["params"]) == 2
