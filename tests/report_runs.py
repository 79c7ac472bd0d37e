"""Run folders made up for the report's tests: test data, not measurements."""

import json
import math
import random
from pathlib import Path
from typing import Any

import tomli_w

from tql_offline.eval.leaderboard import make_boards
from tql_offline.eval.measured import Measured, measured
from tql_offline.eval.run_records import read_result
from tql_offline.runs import RESULT_SCHEMA, RunFolder

TOKENS = 6
PARAMETERS = {"tiny": 106_434, "small": 406_530, "medium": 1_650_000, "large": 6_600_000}
PROTOCOLS = {
    "quick": {"name": "quick", "version": 1, "episodes": 50, "counted": "last"},
    "ogbench-singletask": {
        "name": "ogbench-singletask",
        "version": 1,
        "episodes": 50,
        "counted": "last-3",
    },
}
SHA256 = "5a" * 32
TASKS = tuple(f"cube-double-play-singletask-task{n}-v0" for n in range(1, 6))


def make_run(
    path: Path,
    *,
    size: str = "tiny",
    seed: int = 0,
    steps: int = 0,
    successes: tuple[int, ...] = (3, 21, 44, 49),
    behaviour: int | None = 0,
    protocol: str = "quick",
    finished: bool = True,
    method: str = "TQL",
    mujoco: str = "3.3.5",
    sha256: str = SHA256,
) -> RunFolder:
    """A run folder as `train` leaves it, of made-up numbers drawn from its seed."""
    every = 100_000 if protocol.startswith("ogbench") else 5_000
    steps = steps or every * len(successes)
    folder = RunFolder(path)
    path.mkdir(parents=True)
    facts = provenance(size, mujoco, sha256)
    settings = config(size, seed, steps, protocol)
    if method != "TQL":
        settings["critic"]["kind"] = "mlp"
        settings["objective"] = "flow" if method == "FQL" else f"methods:{method}"
    folder.config.write_text(tomli_w.dumps(settings))
    folder.provenance.write_text(json.dumps(facts))
    write_lines(
        folder.metrics,
        [metrics(step, steps, seed) for step in range(100, steps + 1, max(100, steps // 200))],
    )
    at = [steps * i // len(successes) for i in range(1, len(successes) + 1)]
    lines = [
        evaluation(step, "learned", k, protocol, steps)
        for step, k in zip(at, successes, strict=True)
    ]
    if behaviour is not None:
        lines.append(evaluation(steps, "behaviour", behaviour, protocol, steps))
    write_lines(folder.evaluations, lines)
    if finished:
        document = result(path.name, size, seed, steps, protocol, method, sha256, lines, facts)
        document["objective"] = settings["objective"]
        folder.result.write_text(json.dumps(document))
    return folder


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def config(size: str, seed: int, steps: int, protocol: str) -> dict[str, Any]:
    return {
        "objective": "flow",
        "seed": seed,
        "steps": steps,
        "batch_size": 256,
        "discount": 0.99,
        "dataset": {"name": "pointmaze-medium-navigate-singletask-task1-v0", "path": ""},
        "critic": {"kind": "transformer", "size": size, "depth": 2, "ensemble": 2},
        "entropy": {"mode": "layerwise", "target": 0.8, "last_target": 0.65, "targets_nats": []},
        "flow": {"alpha": 30.0, "flow_steps": 10, "hidden": [512, 512, 512, 512]},
        "optimizer": {"critic_lr": 1e-4, "policy_lr": 5e-4, "weight_decay": 0.01},
        "evaluation": {"protocol": protocol, "success_timing": "", "processes": 0},
    }


def provenance(size: str, mujoco: str, sha256: str) -> dict[str, Any]:
    return {
        "tql_offline": "0.1.0",
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {
            "python": "3.12.1",
            "torch": "2.13.0",
            "mujoco": mujoco,
            "gymnasium": "1.4.0",
            "ogbench": "1.2.2",
            "minari": None,
        },
        "device": "cpu (x86_64)",
        "dataset": {
            "name": "pointmaze-medium-navigate-singletask-task1-v0",
            "path": "data/pointmaze-medium-navigate-v0.npz",
            "sha256": sha256,
            "source": "collected",
            "transitions": 100_000,
            "episodes": 100,
        },
        "environment": {
            "env_id": "pointmaze-medium-singletask-task1-v0",
            "max_episode_steps": 1000,
            "success_timing": "pre",
        },
        "tokens": TOKENS,
        "critic_parameters": PARAMETERS[size],
    }


def metrics(step: int, steps: int, seed: int) -> dict[str, Any]:
    """One line of metrics.jsonl: entropies that settle on their targets, losses that fall."""
    noise = random.Random(1000 * seed + step)
    settled = math.exp(-6 * step / steps)
    most = math.log(TOKENS)
    targets = [[0.8 * most] * 2, [0.65 * most] * 2]
    starts = [[0.98 * most, 0.9 * most], [0.93 * most, 0.86 * most]]
    entropy = [
        [t + (s - t) * settled + noise.gauss(0, 0.008) for t, s in zip(*pair, strict=True)]
        for pair in zip(targets, starts, strict=True)
    ]
    return {
        "step": step,
        "critic_loss": 40 * settled**3 + 0.08 + abs(noise.gauss(0, 0.02)),
        "policy_loss": -1.2 + 3 * settled + noise.gauss(0, 0.06),
        "behaviour_loss": 0.4 + 0.9 * settled**2 + noise.gauss(0, 0.02),
        "q_mean": -60 * (1 - settled) + noise.gauss(0, 0.8),
        "entropy": entropy,
        "entropy_target": targets,
        "temperature": [
            [math.exp(-2.5 * (1 - settled)), math.exp(-1.5 * (1 - settled))],
            [math.exp(-3.0 * (1 - settled)), math.exp(-0.4 * (1 - settled))],
        ],
    }


def evaluation(step: int, policy: str, successes: int, protocol: str, steps: int) -> dict[str, Any]:
    """One line of evaluations.jsonl with 50 episodes of the given number of successes."""
    drawn = random.Random(f"{step} {policy}")
    won = set(drawn.sample(range(50), successes))
    episodes = []
    for i in range(50):
        length = drawn.randint(180, 420) if i in won else 1000
        episodes.append(
            {"seed": 4_000_000 + i, "return": -float(length), "length": length, "success": i in won}
        )
    return {
        "step": step,
        "policy": policy,
        "protocol": PROTOCOLS[protocol],
        "env_id": "pointmaze-medium-singletask-task1-v0",
        "success_timing": "pre",
        "episodes": episodes,
        "success_rate": successes / 50,
        "return_mean": sum(e["return"] for e in episodes) / 50,
        "score": 2.0 * successes,
    }


def result(
    name: str,
    size: str,
    seed: int,
    steps: int,
    protocol: str,
    method: str,
    sha256: str,
    lines: list[dict[str, Any]],
    facts: dict[str, Any],
) -> dict[str, Any]:
    keys = ("policy", "step", "success_rate", "return_mean", "score")
    return {
        "schema": RESULT_SCHEMA,
        "run": name,
        "method": method,
        "objective": "flow",
        "critic": "transformer",
        "entropy": "layerwise",
        "size": size,
        "parameters": PARAMETERS[size],
        "dataset": "pointmaze-medium-navigate-singletask-task1-v0",
        "dataset_sha256": sha256,
        "task": "pointmaze-medium-singletask-task1-v0",
        "seed": seed,
        "protocol": PROTOCOLS[protocol],
        "updates": steps,
        "evaluations": [{"episodes": 50, **{key: line[key] for key in keys}} for line in lines],
        "provenance": facts,
    }


def write_result(
    path: Path,
    *,
    task: str = "cube-double-play-singletask-task1-v0",
    successes: tuple[int, ...] = (10, 20, 30),
    seed: int = 0,
    size: str = "tiny",
    method: str = "TQL",
    **other: Any,
) -> Path:
    """A result.json of made-up scores: the mean of `successes`, in percent of 50 episodes."""
    facts = provenance(size, other.pop("mujoco", "3.3.5"), SHA256)
    facts["dataset"]["name"] = task
    lines = [
        evaluation(100_000 * i, "learned", count, "ogbench-singletask", 100)
        for i, count in enumerate(successes, start=1)
    ]
    args = (path.stem, size, seed, 300_000, "ogbench-singletask", method, SHA256, lines, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result(*args) | {"dataset": task} | other))
    return path


def part_of(section, title):
    """A part of a board's section by its heading."""
    (part,) = [part for part in section.parts if part.title == title]
    return part


def titles_of(section):
    """The headings of a board's section, and those with plots."""
    return [p.title for p in section.parts], [p.title for p in section.parts if p.plots]


def boards_of(paths, published=()):
    """Boards of result files, each of which has a score, and the warnings."""
    found = [measured(read_result(path)) for path in paths]
    assert all(isinstance(scores, Measured) for scores in found), found
    return make_boards(found, published)


def played_in(path, evaluations=slice(None), dataset="hopper-medium-v2", **facts):
    """A result whose evaluations record these facts."""
    document = json.loads(path.read_text()) | {"dataset": dataset}
    for line in document["evaluations"][evaluations]:
        line.update(facts)
    path.write_text(json.dumps(document))
    return path


def several(tmp_path, methods=("A", "B"), tasks=(0, 1), sizes=("tiny",), seeds=(0, 1)):
    return [
        write_result(
            tmp_path / f"{method}-{task}-{size}-{seed}-result.json",
            task=TASKS[task], method=method, size=size, seed=seed, successes=(10 + seed,) * 3,
        )
        for method in methods for task in tasks for size in sizes for seed in seeds
    ]  # fmt: skip


def by_size(folder, flops):
    """Two sizes of two seeds on two tasks; `flops` of an update by size, where it is counted."""
    return [
        write_result(
            folder / f"{size}-{seed}-{task}-result.json", size=size, seed=seed, task=TASKS[task],
            successes=(k, k, k + seed), **({"flops_per_update": flops[size]} if flops else {}),
        )
        for size, k in (("tiny", 13), ("large", 40))
        for seed in range(2)
        for task in range(2)
    ]  # fmt: skip
