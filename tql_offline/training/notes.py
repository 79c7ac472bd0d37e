"""What a run says about itself before and after its first updates."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from shutil import disk_usage

from tql_offline.agents import Agent, make_agent_of_shapes
from tql_offline.config import is_own
from tql_offline.datasets.checks_of_numbers import LARGE_OBSERVATION, large_dims
from tql_offline.errors import listed, quoted
from tql_offline.eval import protocol as protocols
from tql_offline.networks import cpu_kernels
from tql_offline.training.arithmetic import flops_of, why_uncounted
from tql_offline.training.compile import (
    Updates,
    changed_numbers,
    python_numbers,
    wants_c_kernels,
)
from tql_offline.training.environment import endless
from tql_offline.training.own_settings import unread_notes
from tql_offline.training.reporters import Reporter
from tql_offline.training.rewards import floor_notes, large_notes
from tql_offline.training.setup import Begun, Setup, dims_of, limit_notes

_MAX_DIMS = 6
"""Most dims that a note lists."""
_MAX_NUMBERS = 6
"""Most attributes that a note lists."""
_MUCH = 2e9
"""Bytes of checkpoints from which on a run says what they take."""
_FEW = 2
"""Number of checkpoints to keep that is advised where disk space is short."""


def opening_notes(begun: Sequence[Begun]) -> Iterator[str]:
    """Notes on the runs of one or several seeds, before they train."""
    first = begun[0].setup
    if first.config.has_critic:  # cloning looks at no rewards
        yield from first.rewards.notes()
        yield from large_notes(first.config.dataset, first.dataset.episodes)
    yield from floor_notes(first.config, first.dataset.episodes)
    yield from _not_normalised(first)
    yield from _unscored(begun[0])
    yield from _disk(begun)
    yield from endless(first.environment)
    yield from _slower(first)
    for sentence in limit_notes(first):
        yield f"note: {sentence}"
    for one in begun:
        if one.setup.execution.reason:
            yield f"running eagerly: {one.setup.execution.reason}"


def _not_normalised(setup: Setup) -> Iterator[str]:
    """A note, if observations are large and go into networks as they are."""
    observations = setup.dataset.episodes.observations
    if not setup.config.dataset.normalise and (dims := large_dims(observations)):
        names = listed([*map(str, dims)], _MAX_DIMS)
        yield (
            f"note: observations are mostly beyond ±{LARGE_OBSERVATION:g} in dim {names}, of which "
            "networks see little more than the sign; --set dataset.normalise=true standardises them"
        )


def _unscored(begun: Begun) -> Iterator[str]:
    """A note, if scoring is left for later, with the command that does it."""
    if begun.setup.dataset.env_id is not None and not begun.setup.config.evaluation.enabled:
        yield (
            "note: policies are not scored while training; "
            f"`tql-offline eval {quoted(begun.folder.path)} --missing` scores them later"
        )


def _disk(begun: Sequence[Begun]) -> Iterator[str]:
    """A note on what checkpoints will take, if that is much, or more than there is room for."""
    first = begun[0]
    kept = _kept(first.setup, first.step)
    needed = len(begun) * kept * _checkpoint_bytes(first.setup.agent)
    free = disk_usage(first.folder.path).free
    if needed > min(_MUCH, free):
        fewer = (
            f"; --set keep_checkpoints={_FEW} keeps only the newest {_FEW}" if kept > _FEW else ""
        )
        yield (
            f"note: checkpoints will take {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free "
            f"in {first.folder.path}{fewer}"
        )


def _kept(setup: Setup, step: int) -> int:
    """Number of checkpoints that a run at a step will add and keep; see `loop.is_saved`."""
    config, every = setup.config, setup.config.checkpoint_every
    protocol = protocols.get(config.evaluation.protocol)
    scores = {s for s in protocols.evaluation_steps(protocol, config.steps) if s > step}
    others = {s for s in (*scores, config.steps) if s % every}
    regular = range(step + every - step % every, config.steps + 1, every)  # may be a billion
    count, keep = len(regular) + len(others), config.keep_checkpoints
    if not 0 < keep < count:
        return count
    newest = sorted({*regular[-keep:], *others})[-keep:]
    are_made_now = config.evaluation.enabled and setup.dataset.env_id is not None
    return keep if are_made_now else len(scores.union(newest))


def _checkpoint_bytes(agent: Agent) -> int:
    """Bytes of an agent's networks and of AdamW's two moments of what is trained."""
    tensors = [t for network in agent.networks.values() for t in network.state_dict().values()]
    for group in chain.from_iterable(agent.parameter_groups.values()):
        tensors += 2 * group["params"]
    return sum(tensor.nbytes for tensor in tensors)


def _slower(setup: Setup) -> Iterator[str]:
    """A note on why a CPU's updates take longer than they could, if they do."""
    wanted = wants_c_kernels(setup.device, setup.execution.mode, setup.execution.precision)
    if wanted and (lack := cpu_kernels.why_not()):
        yield f"note: updates take a fifth longer than with C kernels, because {lack}"


def after_first_updates(setup: Setup, reporter: Reporter) -> Updates:
    """A run's updates, which with the first ones tell what only they show of one's own method.

    Before, a fault of its own would come behind a note on what follows from the fault.
    """
    updates, agent = setup.updates, setup.agent
    done, first, before = 0, agent.policy_delay, python_numbers(agent)

    def tell(step: int, most: int) -> int:
        nonlocal done, before
        count = updates(step, most)
        was, done = done, done + count
        if was < first <= done:
            for sentence in (*_uncounted(setup), *_unread(setup)):
                reporter.noted(sentence)
            before = python_numbers(agent)  # these may have set what stays
        elif was < 2 * first <= done:
            for sentence in _unsaved(changed_numbers(agent, before)):
                reporter.noted(sentence)
        return count

    return tell if is_own(setup.config.objective) else updates


def _unsaved(names: Sequence[str]) -> Iterator[str]:
    """A note, if the method has numbers of Python's, so named, that updates change."""
    if names:
        yield (
            f"note: {listed(names, _MAX_NUMBERS)}: Python's numbers that change from update to "
            "update are in no checkpoint, so they begin anew where the run is resumed; keep them "
            "in a network's buffer that is changed in place"
        )


def _uncounted(setup: Setup) -> Iterator[str]:
    """A note, if the operations of an update are not known though it can be done."""
    if why := why_uncounted(setup.config, *dims_of(setup.dataset)):
        yield (
            f"note: the operations of an update of {setup.config.objective} are not counted, since "
            f"it cannot be done without numbers ({why}); if it looks at them (as `.item()` or `if` "
            "do), it needs execution.updates_per_launch 0 on a GPU"
        )


def _unread(setup: Setup) -> Iterator[str]:
    """A note for each setting of one's own that the first updates have not read."""
    notes = list(unread_notes(setup.config, setup.agent.policy_delay))
    if not notes or setup.execution.mode.startswith("eager"):
        yield from notes
        return
    # Compiled losses read unseen; the same code without numbers does not.
    with suppress(Exception):  # nothing is certain then
        agent = make_agent_of_shapes(setup.config, *dims_of(setup.dataset))
        flops_of(agent, setup.config.batch_size)
        yield from unread_notes(setup.config, setup.agent.policy_delay)
