"""Other implementations of our updates, to be timed beside ours in one run.

    flow          JAX/Flax     the same update, written for this benchmark (jax_tql.py)
    implicit      CORL-style   IQL as single-file repositories write it (corl_style.py)
                  d3rlpy       its own IQL (d3rlpy_updates.py)
    conservative  the same two, CQL(H)

A contender is a `Peer`: something that runs whole updates, sampling included, and can be waited
for. `available_peers` makes those of a `Workload` that are installed here and says why another is
left out; ours.py makes our own as peers of the same interface; compare.py times them in turn.
"""

from benchmarks.peers.workload import (
    METHODS,
    Peer,
    Transitions,
    Unavailable,
    Workload,
    available_peers,
    random_transitions,
)

__all__ = [
    "METHODS",
    "Peer",
    "Transitions",
    "Unavailable",
    "Workload",
    "available_peers",
    "random_transitions",
]
