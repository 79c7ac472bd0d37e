"""Agents: one method per file, in its paper's order."""

from tql_offline.agents.base import Agent, make_agent, numpy_policy

__all__ = ["Agent", "make_agent", "numpy_policy"]
