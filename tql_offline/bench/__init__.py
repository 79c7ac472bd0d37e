"""Timing whole updates: ours in several ways, and others' implementations of the same update.

    workload.py        what is timed; who takes part
    ours.py            our updates: as training runs them, on the plain path, many seeds at once
    jax_tql.py         the flow update in JAX/Flax, written for this benchmark
    corl_style.py      IQL and CQL as single-file repositories write them
    d3rlpy_updates.py  d3rlpy's own IQL and CQL
    compare.py         timing in turn, beside the device's matrix products
    memory.py          peak memory, each contender in a process of its own

Others take part where they are installed (`pip install 'tql-offline[peers]'`).
"""

from tql_offline import config

OBJECTIVES = tuple(
    name for name in config.OBJECTIVES if name not in (*config.WITHOUT_CRITIC, "pac")
)
"""Those whose critic can be a transformer."""
