"""Agents: one method per file, in its paper's order."""

from tql_offline.agents.base import (
    META,
    Agent,
    agent_class,
    make_agent,
    make_agent_of_shapes,
    numpy_policy,
)

__all__ = ["META", "Agent", "agent_class", "make_agent", "make_agent_of_shapes", "numpy_policy"]
