"""Rollouts against a slow loop of one environment, and what they leave behind.

What the code guarantees about a policy network: it is called with all slots' rows, and episode i is
always in row i % slots. So its batch has one shape and an episode one row, whatever the number of
processes and their pace, and results are the same bits if a row of the network is a function of the
same row of its arguments. They need not be the same bits for another number of slots: another batch
shape may take another kernel. The other rows of a batch do depend on the groups' pace.
"""

import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from unittest import mock

import gymnasium
import numpy as np
import pytest
import rollout_environments
from gymnasium.utils import seeding
from rollouts import rollout

from tql_offline.eval import workers
from tql_offline.eval.rollout import RolloutCancelledError, run_episodes
from tql_offline.eval.workers import EnvironmentFailedError, EnvironmentPool

UNEVEN = "rollout_environments:Uneven-v0"
SLOTS = 5
COUNTS = (23, 10, 3)
"""Episodes: no multiple of the slots, a multiple, and fewer than slots."""

linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")


class Waits(rollout_environments.Uneven):
    """Twelve steps; in an even seed's eighth step, waits for an odd seed's episode to end."""

    def reset(self, *, seed=None, options=None):  # noqa: ARG002
        observation, info = super().reset(seed=seed)
        self.waits, self.length = seed % 2 == 0, 12
        return observation, info

    def step(self, action):
        time.sleep(0.03)  # slower than the policy, as environments worth a process are
        ended = Path(os.environ[rollout_environments.MARKER])
        if self.steps == 11 and not self.waits:
            ended.touch()
        deadline = time.monotonic() + 20
        while self.steps == 7 and self.waits and not ended.exists():
            assert time.monotonic() < deadline, "the other group was held up"
            time.sleep(0.01)
        return super().step(action)


class RaisesLate(rollout_environments.Uneven):
    """Raises in its third step, when other slots have ended episodes."""

    def step(self, action):
        if self.steps == 2:
            raise ValueError("the gripper is on fire")
        return super().step(action)


for environment in (Waits, RaisesLate):
    gymnasium.register(f"{environment.__name__}-v0", entry_point=environment)


# The same policies for the slow loop and the rollouts.


def sensitive(observations, noise):
    """A caricature of a network's rounding: rows differ by their place and the batch's size."""
    rows = np.arange(1, len(observations) + 1)
    pull = np.tanh(observations[:, :2]) + noise / 2
    return (pull * (1 + rows[:, None] / 64) + len(rows) / 16).astype(np.float32)


@cache
def layers():
    import torch  # here, since worker processes import this module

    generator = torch.Generator().manual_seed(0)
    shapes = (6, 64), (64, 64), (64, 2)
    return [torch.randn(shape, generator=generator) / 4 for shape in shapes]


def network(observations, noise):
    """A small torch network."""
    first, second, last = layers()
    x = first.new_tensor(np.concatenate([observations, noise], axis=1))
    return ((x @ first).relu() @ second).relu().mm(last).numpy()


# The slow loop.


@contextmanager
def drawing_from(stream, unseeded):
    """NumPy's global generator is the stream, and a space without a seed takes one of `unseeded`.

    Exchanging the generator also forgets the second normal of each pair.
    """
    np_random = seeding.np_random

    def seeded(seed=None):
        return np_random(int(unseeded.integers(2**32)) if seed is None else seed)

    before = np.random.get_bit_generator()
    with mock.patch.object(seeding, "np_random", seeded):
        np.random.set_bit_generator(stream)
        yield
    np.random.set_bit_generator(before)


@cache
def slow_loop(policy, seeds):
    """Episodes one by one in one environment, as (seed, return, length, success, how it ended).

    Rows of the batch that are not the episode's are of no concern, and hold nonsense.
    """
    env = gymnasium.make(UNEVEN, disable_env_checker=True)
    episodes = []
    for index, seed in enumerate(seeds):
        shared, unseeded, _space = np.random.SeedSequence(seed).spawn(3)
        own = np.random.MT19937(shared), np.random.default_rng(unseeded)
        noise = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2**32 - 1,)))
        nonsense = np.random.default_rng(index)
        with drawing_from(*own):
            observation, _ = env.reset(seed=seed)
        total, length, ended = 0.0, 0, False
        while not ended:
            batch = nonsense.standard_normal((SLOTS, 4), dtype=np.float32)
            noises = nonsense.standard_normal((SLOTS, 2), dtype=np.float32)
            batch[index % SLOTS] = observation
            noises[index % SLOTS] = noise.standard_normal(2, dtype=np.float32)
            action = np.clip(policy(batch, noises)[index % SLOTS], -1, 1)
            with drawing_from(*own):
                observation, reward, terminated, truncated, info = env.step(action)
            total, length, ended = total + reward, length + 1, terminated or truncated
        episodes.append((seed, total, length, info["success"], terminated, truncated))
    return episodes


def fields(episodes):
    return [(e.seed, e.return_, e.length, e.success, e.terminated, e.truncated) for e in episodes]


# What is left behind.


def children():
    """Process ids of this process's children, unless they only watch over resources."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            command = (path / "cmdline").read_text()
        except OSError:
            continue
        if parent == os.getpid() and "resource_tracker" not in command:
            found.add(int(path.name))
    return found


def segments():
    return {path.name for path in Path("/dev/shm").iterdir()}


def open_files():
    """How many pipes, sockets, and shared or other files this process holds open."""
    kinds: Counter[str] = Counter()
    for path in Path("/proc/self/fd").iterdir():
        try:
            kinds[re.sub(r"\d+|pym-\S*", "", str(path.readlink()))] += 1
        except OSError:
            continue
    return kinds


@pytest.fixture(scope="module")
def warm():
    """Python keeps its resource tracker, and the first block of shared memory for later pools."""
    rollout(sensitive, UNEVEN, seeds=[1], noise_dim=2, slots=SLOTS, processes=2)


@pytest.fixture
def nothing_left(warm, marker):
    """A check that the processes, segments and files of the test are gone."""
    gc.collect()
    before = children(), segments(), open_files()

    def check():
        gc.collect()
        assert children() == before[0]
        deadline = time.monotonic() + 5
        while new := segments() - before[1]:  # other programs may have some for a moment
            assert time.monotonic() < deadline, new
            time.sleep(0.1)
        assert open_files() == before[2]

    return check


@pytest.fixture
def marker(private_home, monkeypatch):
    path = private_home / "marker"
    monkeypatch.setenv(rollout_environments.MARKER, str(path))
    return path


# Results.


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_episodes_are_those_of_a_slow_loop(processes):
    with EnvironmentPool(UNEVEN, slots=SLOTS, processes=processes) as pool:
        for count in COUNTS:
            seeds = range(40, 40 + count)
            for policy in (sensitive, network):
                episodes = run_episodes(policy, pool, seeds=seeds, noise_dim=2)
                assert fields(episodes) == slow_loop(policy, seeds), (count, policy.__name__)
    lengths = {length for _, _, length, *_ in slow_loop(sensitive, range(40, 63))}
    assert lengths == set(rollout_environments.LENGTHS)


def test_episodes_do_not_depend_on_the_groups_pace(monkeypatch):
    """Groups that never wait for each other, that always wait, and that a slow policy holds up."""

    def slow(observations, noise):
        time.sleep(0.002)
        return network(observations, noise)

    seeds = range(40, 63)
    with EnvironmentPool(UNEVEN, slots=SLOTS, processes=3) as pool:
        assert fields(run_episodes(slow, pool, seeds=seeds, noise_dim=2)) == slow_loop(
            network, seeds
        )
        for policy in (sensitive, network):
            for share in (1, 3):
                monkeypatch.setattr(
                    workers._Pace, "quorum", lambda _, n, share=share: min(n, share)
                )
                episodes = run_episodes(policy, pool, seeds=seeds, noise_dim=2)
                assert fields(episodes) == slow_loop(policy, seeds), (share, policy.__name__)


def test_a_group_goes_on_while_another_is_at_a_step(marker):
    done: list[int] = []
    episodes = rollout(
        sensitive,
        "test_stepping:Waits-v0",
        seeds=[2, 3],
        noise_dim=2,
        slots=2,
        processes=2,
        progress=done.append,
    )
    assert [e.length for e in episodes] == [12, 12]
    assert done == [1, 2]


@linux
def test_workers_may_be_killed_at_any_moment(nothing_left):
    """Within a rollout, while they step or wait, and between two rollouts."""
    seeds, calls = range(40, 63), 0
    expected = slow_loop(sensitive, seeds)

    def kill(which, wait=0.0):
        processes = sorted(multiprocessing.active_children(), key=lambda p: p.pid or 0)
        pids = {process.pid for process in processes}
        processes[which].kill()
        processes[which].join(wait)
        return pids

    def killing(observations, noise):
        nonlocal calls
        calls += 1
        # Episodes end between these, so that no group has lost too many in a row.
        if calls in (2, 40, 90):
            kill(calls % 4 // 2)
        return sensitive(observations, noise)

    with EnvironmentPool(UNEVEN, slots=SLOTS, processes=2) as pool:
        assert fields(run_episodes(killing, pool, seeds=seeds, noise_dim=2)) == expected
        assert calls > 90
        before = kill(0, wait=10)  # its pipe is broken before the next order
        assert fields(run_episodes(sensitive, pool, seeds=seeds, noise_dim=2)) == expected
        now = {process.pid for process in multiprocessing.active_children()}
        assert len(now) == 2
        assert len(now & before) == 1
    del pool
    nothing_left()


# Cancelling.


@linux
def test_cancelling_does_not_wait_for_a_step_to_end(marker, nothing_left):
    """The step would take ten minutes, or twenty seconds until the worker is found to hang."""
    seeds = range(40, 63)
    with EnvironmentPool(
        "rollout_environments:HangOnce-v0", slots=SLOTS, processes=2, step_timeout=20
    ) as pool:
        with pytest.raises(RolloutCancelledError, match="was cancelled"):
            run_episodes(sensitive, pool, seeds=seeds, noise_dim=2, cancelled=marker.exists)
        assert time.time() - marker.stat().st_mtime < 5
        assert not children()
        # The pool is as good as new.
        expected = slow_loop(sensitive, seeds)
        assert fields(run_episodes(sensitive, pool, seeds=seeds, noise_dim=2)) == expected
    del pool
    nothing_left()


@linux
def test_a_thread_is_cancelled_from_another(nothing_left):
    """One process is a worker here: environments belong into no other thread."""
    cancelled, raised = threading.Event(), []
    seen: set[int] = set()

    def progress(done):
        seen.update(children())
        if done >= 3:
            cancelled.set()

    def play():
        try:
            rollout(
                sensitive,
                UNEVEN,
                seeds=range(10**5),
                noise_dim=2,
                slots=SLOTS,
                processes=1,
                progress=progress,
                cancelled=cancelled.is_set,
            )
        except RolloutCancelledError as error:
            raised.append(str(error))

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    assert cancelled.wait(30)
    thread.join(5)
    assert not thread.is_alive()
    assert raised
    assert len(seen) == 1
    nothing_left()


def test_cancelling_within_one_process_asks_for_no_further_action():
    calls = asked = 0

    def counting(observations, noise):
        nonlocal calls
        calls += 1
        return sensitive(observations, noise)

    def cancelled():
        nonlocal asked
        asked += 1
        return calls == 10

    with pytest.raises(RolloutCancelledError):
        rollout(
            counting,
            UNEVEN,
            seeds=range(40, 63),
            noise_dim=2,
            slots=SLOTS,
            processes=1,
            cancelled=cancelled,
        )
    assert calls == 10
    assert asked > 9 * SLOTS  # before each slot's step: ten steps may be slow together


# Leaving nothing.


def broken_policy(observations, noise):
    if observations[:, 3].max() >= 3:
        raise RuntimeError("the policy is out of ideas")
    return sensitive(observations, noise)


@linux
@pytest.mark.parametrize(
    ("policy", "env_id", "error", "message"),
    [
        (sensitive, UNEVEN, None, ""),
        (broken_policy, UNEVEN, RuntimeError, "out of ideas"),
        (sensitive, "test_stepping:RaisesLate-v0", EnvironmentFailedError, "on fire"),
    ],
)
def test_nothing_is_left_after(policy, env_id, error, message, nothing_left):
    with pytest.raises(error, match=message) if error else nullcontext():
        rollout(policy, env_id, seeds=range(40, 63), noise_dim=2, slots=SLOTS, processes=2)
    nothing_left()


@linux
def test_a_killed_caller_takes_its_workers_along(tmp_path):
    """Nobody is there to clean up."""
    code = (
        "import multiprocessing, time\n"
        "from rollouts import rollout\n"
        "def policy(observations, noise):\n"
        "    if observations[:, 3].max() == 1:\n"
        "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "    return noise\n"
        f"rollout(policy, {UNEVEN!r}, seeds=range(10**6), noise_dim=2, slots=4, processes=2)\n"
    )
    here = Path(__file__).parent
    before, said = segments(), tmp_path / "stderr"
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": f"{here.parent}{os.pathsep}{here}"},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as caller,
    ):
        assert caller.stdout is not None
        pids = caller.stdout.readline().split()
        running = [pid for pid in pids if alive(pid)]
        caller.kill()
    deadline = time.monotonic() + 10
    try:
        while any(alive(pid) for pid in pids) or segments() - before:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        for pid in filter(alive, pids):
            os.kill(int(pid), signal.SIGKILL)
    assert len(running) == 2
    assert said.read_text() == ""


def alive(pid):
    """Whether a process runs; one that nobody waits for (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
