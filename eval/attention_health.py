"""Criterion by which a critic's attention counts as collapsed, and what a control of it does."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLLAPSED = 0.5
"""A layer counts as collapsed if its mean entropy over all its queries is below this, in nats: the
paper sees its uncontrolled 26M critic fall below it (arXiv 2602.01439). It corresponds to even
attention over 1.6 tokens."""


def has_temperatures(mode: object) -> bool:
    """Whether an entropy mode weighs entropies by temperatures; `none` leaves them to themselves.

    An unknown mode counts as one that does: what was recorded is then shown.
    """
    return mode != "none"


def has_targets(mode: object) -> bool:
    """Whether an entropy mode steers entropies to targets, by temperatures that are learned.

    >>> [mode for mode in ("none", "fixed", "single", "layerwise") if has_targets(mode)]
    ['single', 'layerwise']
    """
    return mode not in ("none", "fixed")


def layer_means(entropy: ArrayLike, tokens: int) -> NDArray[np.float64]:
    """Mean entropy over all L queries of a layer, from those of the two token groups.

    Args:
        entropy: `(..., 2)` nats of the `[VALUE]` query and of the mean of the L - 1 others.
        tokens: L.

    >>> layer_means([[1.0, 3.0]], tokens=4)
    array([2.5])
    """
    groups = np.asarray(entropy, dtype=np.float64)
    return np.asarray((groups[..., 0] + (tokens - 1) * groups[..., 1]) / tokens)


def collapsed_layers(entropy: ArrayLike, tokens: int) -> tuple[int, ...]:
    """Layers, counted from 1, whose mean entropy is below `COLLAPSED`.

    >>> collapsed_layers([[0.1, 0.2], [0.1, 2.0]], tokens=4)
    (1,)
    """
    return tuple(n for n, mean in enumerate(layer_means(entropy, tokens), 1) if mean < COLLAPSED)


def alarm_sentence(entropy: Sequence[Sequence[float]], tokens: int, where: str) -> str:
    """A sentence on the layers that have collapsed, empty if none has.

    Args:
        entropy: `(N, 2)` nats.
        tokens: L.
        where: text that says at which update.
    """
    layers = collapsed_layers(entropy, tokens)
    if not layers:
        return ""
    means = layer_means(entropy, tokens)
    lowest = min(layers, key=lambda n: means[n - 1])
    named = f"layer {layers[0]} has" if len(layers) == 1 else f"layers {_listed(layers)} have"
    return (
        f"Attention alarm: {named} collapsed {where}: the mean entropy over all queries of layer "
        f"{lowest} is {means[lowest - 1]:.2f} nats, below {COLLAPSED:g} "
        f"(even attention has {math.log(tokens):.2f})."
    )


def _listed(layers: Sequence[int]) -> str:
    return " and ".join([", ".join(map(str, layers[:-1])), str(layers[-1])])
