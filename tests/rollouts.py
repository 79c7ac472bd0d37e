"""Episodes in a pool of their own, for tests that play only once."""

from tql_offline.eval.rollout import run_episodes
from tql_offline.eval.workers import EnvironmentPool


def rollout(policy, env_id, *, slots, processes, **more):
    with EnvironmentPool(env_id, slots=slots, processes=processes) as pool:
        return run_episodes(policy, pool, **more)
