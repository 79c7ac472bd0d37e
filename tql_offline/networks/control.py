"""The attention-entropy controller: its temperatures and targets.

Modes, all needed for the paper's ablation (arXiv 2602.01439):

    none       no entropy term
    fixed      temperatures held at 1
    single     one learned temperature for all layers and token groups
    layerwise  the method: one per layer and token group, N × 2
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tql_offline.errors import InputError
from tql_offline.objectives.entropy import entropy_loss, temperature_loss

ENTROPY_MODES = ("none", "fixed", "single", "layerwise")


class EntropyController(nn.Module):
    """Temperatures τ = exp(log_temperature), initially 1, and the targets they steer towards.

    Args:
        mode: one of `ENTROPY_MODES`.
        targets: `(N, 2)` target entropies in nats, `([VALUE], others)` per layer; N = 0 for a
            critic without attention, which gets no entropy term in any mode.
    """

    log_temperature: Tensor
    targets: Tensor

    def __init__(self, mode: str, targets: Float[Tensor, "N 2"]) -> None:
        super().__init__()
        if mode not in ENTROPY_MODES:
            raise InputError(f"there is no entropy mode {mode!r}; choose one of {ENTROPY_MODES}")
        self.mode = mode
        self.register_buffer("targets", targets, persistent=False)
        start = torch.zeros(1, 1) if mode == "single" else torch.zeros(targets.shape)
        # Without targets it would get no gradient, hence no moments, which a resumed run needs.
        if mode in ("single", "layerwise") and targets.numel():
            self.log_temperature = nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", start)

    @property
    def acts(self) -> bool:
        """Whether it adds to the loss; it does not in mode `none` or without attention."""
        return self.mode != "none" and self.targets.numel() > 0

    @property
    def temperatures(self) -> Float[Tensor, "N 2"]:
        """τ of every layer and token group (equal ones in mode `single`)."""
        return self.log_temperature.exp().expand(self.targets.shape)

    def forward(self, entropy: Float[Tensor, "N 2"]) -> tuple[Tensor, Tensor]:
        """The two terms added to the critic loss: the entropy bonus and the temperatures' own."""
        if not self.acts:
            zero = entropy.new_zeros(())
            return zero, zero
        bonus = entropy_loss(entropy, self.temperatures)
        if self.mode == "fixed":
            return bonus, entropy.new_zeros(())
        return bonus, temperature_loss(self.temperatures, entropy, self.targets)


def entropy_targets(
    depth: int, num_tokens: int, fraction: float, last_fraction: float
) -> Float[Tensor, "N 2"]:
    """Targets as fractions of ln L, so that they carry over to any dataset.

    Args:
        depth: N.
        num_tokens: L.
        fraction: fraction for every layer but the last, in (0, 1).
        last_fraction: fraction for the last layer, in (0, 1).
    """
    fractions = torch.full((depth, 2), fraction)
    fractions[-1] = last_fraction
    return fractions * math.log(num_tokens)


def entropy_targets_in_nats(
    pairs: Sequence[tuple[float, float]], num_tokens: int
) -> Float[Tensor, "N 2"]:
    """Targets as the paper lists them: `([VALUE], others)` in nats per layer.

    Raises:
        InputError: no attention over L tokens can reach a target.
    """
    limit = math.log(num_tokens)
    if any(not 0 < target < limit for pair in pairs for target in pair):
        raise InputError(
            f"entropy.targets_nats must lie between 0 and ln {num_tokens} = {limit:.3f}, "
            "the largest entropy this dataset's tokens allow; lower them or use fractions"
        )
    return torch.tensor(pairs)
