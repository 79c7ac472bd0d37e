"""The interface of critics to the objectives, which never know which one they have."""

from typing import Literal, overload

from torch import Tensor, nn


class Critic(nn.Module):
    """`critic(observations, actions)` → Q `(B, E)` and, on request, entropies `(N, 2)`.

    Attributes:
        num_tokens: number of tokens L; 0 without attention that could be controlled.
    """

    num_tokens: int

    @overload
    def __call__(
        self, observations: Tensor, actions: Tensor, return_entropy: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def __call__(
        self, observations: Tensor, actions: Tensor, return_entropy: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, observations: Tensor, actions: Tensor, return_entropy: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """See `forward`; spelled out so that type checkers know what each call returns."""
        result: Tensor | tuple[Tensor, Tensor] = super().__call__(
            observations, actions, return_entropy
        )
        return result
