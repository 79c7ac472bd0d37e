"""Spoiled files against every reader: only `InputError` may come out, soon and in little memory.

    python benchmarks/fuzz.py --inputs 10000 --seed 0
    python benchmarks/fuzz.py --target dataset-hdf5 --inputs 500
    python benchmarks/fuzz.py --target dataset-hdf5 --only 137

A target is a folder of files that the project's own writers made, and what reads it. Of each input
one file is spoiled (`mutators.py`) and the folder is read, in a process of its own that lives for
many inputs: a crash of a C library, a hang or a killed process is a finding like any other
exception, and another process goes on. Input number i of a seed is always the same; `--only` plays
one again. What was found lies under `--out`, one folder per finding, with a `finding.txt`.

A finding is: an exception that is not `InputError`; an `InputError` that is not one line of at most
`MAX_SENTENCE` characters; more than `MAX_SECONDS` or `MAX_MIB`; the end of the process. Exit code 1
says that there were some.

**A new reader is one entry of `TARGETS`**: a name; a function that writes good files into an empty
folder; a pattern of the files to spoil; a function that reads the folder, given it and the spoiled
file. It must accept the good files. A format that `mutators.FORMATS` does not know is spoiled by
bytes alone; add it there.
"""

import argparse
import atexit
import json
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import h5py
import numpy as np

from benchmarks.mutators import mutate
from tql_offline.config import Config, resolve
from tql_offline.errors import InputError
from tql_offline.files import append_jsonl, rewind_jsonl, write_json
from tql_offline.runs import RunFolder, find_results

MAX_SECONDS = 20.0
MAX_MIB = 640
MAX_SENTENCE = 2000
ADDRESS_SPACE = 4 * 2**30
"""Of a reading process beyond what it has when it begins."""
TASK = "pointmaze-medium-navigate-singletask-task1-v0"
FILE = "pointmaze-medium-navigate-v0.npz"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is fuzzed.

    Attributes:
        name: on the command line.
        write: makes good files in an empty folder.
        spoil: pattern of the files of which one is spoiled.
        read: reads what is in the folder; gets it and the spoiled file.
        share: of the inputs, relative to the others: less where an input takes long.
    """

    name: str
    write: Callable[[Path], object]
    spoil: str
    read: Callable[[Path, Path], object]
    share: float = 1.0


# Good files.


def own_columns() -> dict[str, Any]:
    """Two episodes of a user's own, of 3 and 2 transitions."""
    rng = np.random.default_rng(0)
    return {
        "observations": rng.normal(size=(7, 2)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (7, 1)).astype(np.float32),
        "terminals": np.array([0, 0, 0, 1, 0, 0, 1], dtype=bool),
        "rewards": np.arange(7, dtype=np.float64),
        "masks": np.ones(7, dtype=np.float32),
    }


def write_npz(folder: Path) -> None:
    """A packed file and a plain one."""
    np.savez_compressed(folder / "packed.npz", **own_columns())
    np.savez(folder / "plain.npz", **own_columns())


def write_hdf5(folder: Path) -> None:
    """Files of one layout each: in one piece, packed, in the newest format, compact."""
    packed = {"compression": "gzip", "shuffle": True, "fletcher32": True}
    layouts: dict[str, dict[str, Any]] = {"plain": {}, "packed": packed, "newest": packed}
    for layout, settings in layouts.items():
        version = "latest" if layout == "newest" else "earliest"
        with h5py.File(folder / f"{layout}.hdf5", "w", libver=version) as file:
            for name, column in own_columns().items():
                chunks = (2, *column.shape[1:]) if settings else None
                file.create_dataset(name, data=column, chunks=chunks, **settings)


def write_collected(folder: Path) -> None:
    """A collected dataset with its manifest, and what an interrupted collection leaves."""
    from tql_offline.datasets.collect import collect

    collect(TASK, out=folder, episodes=1, steps=20, processes=1)
    parts = folder / "parts"
    parts.mkdir()
    shutil.copy(folder / FILE, parts / "train-000000.npz")
    write_json(folder / "origin.part.json", asdict(_origin()))


def _origin() -> Any:
    from tql_offline.datasets.download import _Origin

    return _Origin(url="https://host/a.npz", length=100, etag='"a"', last_modified=None)


def write_run(folder: Path) -> None:
    """A finished run with evaluations, trained for some updates on a file of a user's own."""
    shutil.copytree(_trained(), folder, dirs_exist_ok=True)


@cache
def _trained() -> Path:
    from tql_offline.datasets.load import load
    from tql_offline.training.reporters import SilentReporter
    from tql_offline.training.result import write_result
    from tql_offline.training.run import run

    folder = Path(tempfile.mkdtemp(prefix="tql-run-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    data = folder / "mine.npz"
    np.savez(data, **own_columns())
    done = run(_settings(data), load(str(data)), folder, "run", SilentReporter())
    for step in (4, 8):
        for policy in ("learned", "behaviour"):
            append_jsonl(done.evaluations, evaluation_line(step, policy))
    write_result(done)
    return folder


def _settings(data: Path) -> Config:
    settings = {
        "critic": {"size": "tiny"},
        "flow": {"hidden": [8, 8]},
        "dataset": {"name": str(data)},
        "evaluation": {"protocol": "quick:3"},
        **{"steps": 8, "batch_size": 4, "log_every": 2, "checkpoint_every": 4},
    }
    return resolve(settings)


def evaluation_line(step: int, policy: str) -> dict[str, Any]:
    """One line of evaluations.jsonl, of three episodes."""
    from tql_offline.eval import protocol as protocols

    episodes = [
        {"seed": i, "return": float(-i), "length": 9 + i, "success": i < 2} for i in range(3)
    ]
    return {
        "step": step,
        "policy": policy,
        "protocol": asdict(protocols.get("quick:3")),
        "env_id": "pointmaze-medium-singletask-task1-v0",
        "success_timing": "pre",
        "episodes": episodes,
        "success_rate": 2 / 3,
        "return_mean": -1.0,
        "score": 200 / 3,
    }


def write_models(folder: Path) -> None:
    """A model whose policy is a flow, with ONNX, and one that chooses by its critic."""
    from tql_offline.sharing.export import export_run

    export_run(_trained() / "run", folder / "flow")
    export_run(_best_of_n(), folder / "best-of-n", onnx=False)


@cache
def _best_of_n() -> Path:
    from tql_offline.datasets.load import load
    from tql_offline.training.reporters import SilentReporter
    from tql_offline.training.run import run

    data = _trained() / "mine.npz"
    implicit = {"objective": "implicit", "implicit": {"extraction": "best-of-n", "samples": 2}}
    config = Config.model_validate(_settings(data).model_dump() | implicit)
    return run(config, load(str(data)), _trained(), "best-of-n", SilentReporter()).path


def write_results(folder: Path) -> None:
    """Results of two runs, as others send them."""
    write_run(folder)
    first = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    (folder / "results").mkdir()
    for seed in (0, 1):
        write_json(folder / "results" / f"s{seed}-result.json", first | {"seed": seed})


def write_scores(folder: Path) -> None:
    """Results, and scores from elsewhere: of their task with seeds, of another without one."""
    write_results(folder)
    first = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
    lines = [f"CORL,{first['task']},{seed},{seed / 2},CORL 1.0" for seed in range(3)]
    (folder / "scores.csv").write_text(
        "\n".join(["method,task,seed,score,source", *lines, 'IQL,other-task,,-3e1,"a, b"\n']),
        encoding="utf-8",
    )


def write_suite(folder: Path) -> None:
    """A grid of four runs, and one of a single run."""
    (folder / "grid.toml").write_text(
        f"seeds = [0, 7]\n[collect]\n{TASK} = 100\n[settings]\nsteps = 50\n"
        '[axis.size.tiny]\ncritic.size = "tiny"\nentropy.targets_nats = []\n'
        '[axis.size.mlp]\ncritic.kind = "mlp"\nflow.hidden = [16, 16]\n',
        encoding="utf-8",
    )
    (folder / "one.toml").write_text('[settings]\npreset = "pointmaze+ifql"\n', encoding="utf-8")


def write_config(folder: Path) -> None:
    """A complete config, and one of a few settings."""
    (folder / "full.toml").write_text(Config().to_toml(), encoding="utf-8")
    (folder / "few.toml").write_text(
        'preset = "iql"\nseed = 3\ncritic.size = "tiny"\ndataset.name = "a-b-v0"\n',
        encoding="utf-8",
    )


# Readers.


def read_own(_folder: Path, file: Path) -> None:
    """A user's own dataset."""
    from tql_offline.datasets.load import load

    load(str(file)).digest.result()


def read_named(folder: Path, file: Path) -> None:
    """A dataset of a name, with its rewards; a manifest by `collect`; a part of a download."""
    from tql_offline.datasets.catalogue import PublishedFile
    from tql_offline.datasets.collect import _read_part, collect
    from tql_offline.datasets.download import _parse_origin
    from tql_offline.datasets.load import load
    from tql_offline.datasets.verify import verify
    from tql_offline.files import read_json

    if file.parent.name == "parts":
        _read_part(file)
    elif file.name == "origin.part.json":
        with suppress(TypeError):  # caught where it is called
            _parse_origin(read_json(file))
    elif file.suffix == ".json":
        collect(TASK, out=folder, episodes=1, steps=20, processes=1)
    else:
        verify(file, PublishedFile(name=file.name))
        load(TASK, file)


def write_convertible(folder: Path) -> None:
    """The same episodes in every format that can be converted, and as slices."""
    from tql_offline.datasets.convert import convert

    np.savez(folder / "mine.npz", **own_columns())
    convert(folder / "mine.npz", folder / "mine.hdf5")
    convert(folder / "mine.npz", folder / "minari")
    for manifest in folder.glob("*.json"):  # which nobody reads
        manifest.unlink()
    (folder / "slices").mkdir()
    for number in range(2):
        np.savez(folder / "slices" / f"mine-{number:03}.npz", **own_columns())


def read_convertible(folder: Path, file: Path) -> None:
    """Data checked and converted, whatever numbers they hold."""
    from tql_offline.datasets.checks import check
    from tql_offline.datasets.convert import convert, read_any
    from tql_offline.datasets.load import load
    from tql_offline.datasets.views import view_of_columns

    source = file
    if file.parent.name == "slices":
        load(str(file.parent))
    if file.parent.name == "data":
        source = folder / "minari"
    for finding in check(view_of_columns(read_any(source), "mine")):
        assert "\n" not in finding.sentence
        assert len(finding.sentence) < MAX_SENTENCE
    for target in ("there.npz", "there.hdf5", "there"):
        convert(source, folder / target, force=True)


def write_d4rl(folder: Path) -> None:
    """A file of D4RL's layout with the last observations, and one without."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "observations": np.arange(12, dtype=np.float32).reshape(6, 2),
        "actions": rng.uniform(-1, 1, (6, 1)).astype(np.float32),
        "rewards": np.arange(6, dtype=np.float32),
        "terminals": np.array([0, 0, 1, 0, 0, 0], dtype=bool),
        "timeouts": np.array([0, 0, 0, 0, 1, 0], dtype=bool),
    }
    for name, more in (("with", {"next_observations": columns["observations"] + 2}), ("not", {})):
        with h5py.File(folder / f"{name}.hdf5", "w") as file:
            for column, data in (columns | more).items():
                file.create_dataset(column, data=data, chunks=True, compression="gzip")
            file["infos/qpos"] = np.zeros((6, 1))
            file["metadata/algorithm"] = "SAC"


def read_d4rl(_folder: Path, file: Path) -> None:
    """A file loaded and checked."""
    from tql_offline.datasets.checks import check
    from tql_offline.datasets.columns import is_flat, read_columns
    from tql_offline.datasets.load import load
    from tql_offline.datasets.reading import COLUMNS
    from tql_offline.datasets.views import view_of_flat

    if is_flat(file):
        view = view_of_flat(read_columns(file, only=COLUMNS, flat=True), str(file))
        for finding in check(view):
            assert "\n" not in finding.sentence
    data = load(str(file))
    data.digest.result()
    assert not any("\n" in note for note in data.notes)


def write_minari(storage: str) -> Callable[[Path], None]:
    """A writer of two episodes of nested observations, by Minari itself, in a storage."""

    def write(folder: Path) -> None:
        import gymnasium
        from gymnasium.spaces import Box, Dict, Discrete, Tuple
        from minari.data_collector import EpisodeBuffer
        from minari.dataset.minari_storage import MinariStorage

        numbers = Box(-np.inf, np.inf, (2,), np.float64)
        observations = Dict({"b": numbers, "a": Tuple((Discrete(3), numbers))})
        (folder / "mine").mkdir()
        made = MinariStorage.new(
            folder / "mine" / "data",
            observations,
            Box(-2, 2, (1,), np.float32),
            data_format=storage,
        )
        spec = gymnasium.spec("Pendulum-v1").to_json()
        made.update_metadata({"dataset_id": "mine-v0", "env_spec": spec, "eval_env_spec": spec})
        rows = np.zeros((4, 2))
        made.update_episodes(
            EpisodeBuffer(
                observations={"b": rows, "a": (np.array([0, 1, 2, 0]), rows)},
                actions=np.full((3, 1), 1.5, np.float32),
                rewards=[0.0, 1.0, 2.0],
                terminations=[False, False, ends],
                truncations=[False, False, not ends],
            )
            for ends in (False, True)
        )

    return write


def read_minari(folder: Path, _file: Path) -> None:
    """A dataset loaded and checked, and its environment made."""
    from tql_offline.datasets.checks import check
    from tql_offline.datasets.load import load
    from tql_offline.datasets.views import view_of
    from tql_offline.eval.environments import make

    data = load(str(folder / "mine"))
    data.digest.result()
    for finding in check(view_of(data.episodes)):
        assert "\n" not in finding.sentence
    assert not any("\n" in note for note in (*data.notes, data.unscored))
    if data.env_id is not None:
        make(data.env_id).close()


@cache
def _agent() -> Any:
    import torch

    from tql_offline.agents import make_agent

    return make_agent(_settings(Path("mine.npz")), 2, 1, torch.device("cpu"))


def read_checkpoint(folder: Path, _file: Path) -> None:
    """All of a checkpoint, as `eval` and `--resume` do."""
    import torch

    from tql_offline.training import checkpoint
    from tql_offline.training.metrics import MetricsWindow

    saved, generator, window = folder / "run/checkpoints/8", torch.Generator(), MetricsWindow()
    checkpoint.read_state(saved)
    checkpoint.load_networks(saved, _agent())
    checkpoint.load_training_state(saved, _agent(), generator, window)
    torch.rand(1, generator=generator)
    window.means()
    for name, optimizer in _agent().optimizers.items():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert name


def read_config(_folder: Path, file: Path) -> None:
    """A config, as `train --config` does, and written again."""
    resolve({}, file=file).to_toml()


def read_suite(_folder: Path, file: Path) -> None:
    """A sweep's suite and all its runs."""
    from tql_offline.training import suite as suites

    suite = suites.read_suite(file)
    suites.check_collected(suite)
    for run in suites.expand(suite, {}, 2):
        with suppress(InputError):  # its data are not here
            suites.check_data(run, suite)


def read_run(folder: Path, _file: Path) -> None:
    """A run's files, as `eval` and `--resume` read them, and its result made again."""
    from tql_offline.training.result import (
        open_run,
        read_evaluations,
        read_provenance,
        write_result,
    )
    from tql_offline.training.sweep import first_difference, last_evaluation

    path, config = open_run(folder / "run")
    first_difference(config, Config())
    read_provenance(path)
    read_evaluations(path)
    last_evaluation(path)
    write_result(path)
    for lines in (path.metrics, path.timing, path.evaluations):
        rewind_jsonl(lines, 4)


def read_report(folder: Path, _file: Path) -> None:
    """A report over a run."""
    from tql_offline.eval.report import write_report

    files = write_report([RunFolder(folder / "run")], folder / "report")
    assert "<script>alert" not in files.html.read_text(encoding="utf-8")


def read_model(_folder: Path, file: Path) -> None:
    """A model's policies, each acting once."""
    import tql_offline

    for name in ("learned", "behaviour"):
        policy = tql_offline.load(file.parent, policy=name)
        policy(np.zeros((2, policy.observation_dim)))


def read_export(folder: Path, _file: Path) -> None:
    """A run's export, and what it wrote."""
    from tql_offline.sharing.export import export_run

    done = export_run(folder / "run", folder / "model", force=True, onnx=False)
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in card)
    read_model(folder, done.folder / "model.json")


def read_merged(folder: Path, _file: Path) -> None:
    """The leaderboard of others' results."""
    from tql_offline.eval.report import write_report

    files = write_report([], folder / "report", merged=find_results([folder / "results"]))
    assert "<script>alert" not in files.html.read_text(encoding="utf-8")


def read_imported(folder: Path, file: Path) -> None:
    """The leaderboard with scores from elsewhere beside it."""
    from tql_offline.eval.report import write_report

    results = find_results([folder / "results"])
    files = write_report([], folder / "report", merged=results, scores=[file])
    assert "<script>alert" not in files.html.read_text(encoding="utf-8")


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(name="dataset-npz", write=write_npz, spoil="*.npz", read=read_own, share=2),
        Target(name="dataset-hdf5", write=write_hdf5, spoil="*.hdf5", read=read_own, share=2),
        Target(name="dataset-named", write=write_collected, spoil="**/*.[jn]*", read=read_named),
        Target(name="convert", write=write_convertible, spoil="**/*.[nhj]*", read=read_convertible),
        Target(name="d4rl", write=write_d4rl, spoil="*.hdf5", read=read_d4rl),
        Target(
            name="minari-hdf5",
            write=write_minari("hdf5"),
            spoil="**/*.[hj]*",
            read=read_minari,
            share=0.5,
        ),
        Target(
            name="minari-arrow",
            write=write_minari("arrow"),
            spoil="**/*.[aj]*",
            read=read_minari,
            share=0.5,
        ),
        Target(
            name="checkpoint", write=write_run, spoil="run/checkpoints/8/*", read=read_checkpoint
        ),
        Target(name="config", write=write_config, spoil="*.toml", read=read_config),
        Target(name="suite", write=write_suite, spoil="*.toml", read=read_suite),
        Target(name="run", write=write_run, spoil="run/*.*", read=read_run),
        Target(name="report", write=write_run, spoil="run/*.*", read=read_report, share=0.5),
        Target(name="model", write=write_models, spoil="*/*", read=read_model),
        Target(name="export", write=write_run, spoil="run/*.*", read=read_export),
        Target(name="merged", write=write_results, spoil="results/*", read=read_merged, share=0.5),
        Target(name="scores", write=write_scores, spoil="*.csv", read=read_imported, share=0.5),
    )
}


# One input.


@dataclass(frozen=True)
class Outcome:
    """What became of one input; `finding` is empty unless it is one."""

    index: int
    accepted: bool = False
    seconds: float = 0.0
    mib: float = 0.0
    finding: str = ""


def spoil(target: Target, folder: Path, seed: int, index: int) -> Path:
    """Spoil one file of a folder of good ones; the same one for the same seed and index."""
    rng = random.Random(f"{seed} {target.name} {index}")
    files = sorted(path for path in folder.glob(target.spoil) if path.is_file())
    file = rng.choice(files)
    alike = [path for path in files if path.suffix == file.suffix]
    other = rng.choice(alike).read_bytes()
    file.write_bytes(mutate(file.read_bytes(), file.suffix, rng, other))
    return file


def judge(target: Target, folder: Path, file: Path, index: int) -> Outcome:
    """Read a folder and say what came of it."""
    before, begin = _reset_peak(), time.process_time()
    accepted, finding = False, ""
    try:
        target.read(folder, file)
        accepted = True
    except InputError as error:
        text = str(error)
        if len(text) > MAX_SENTENCE or "\n" in text:
            finding = f"an error of {len(text)} characters or of several lines: {text[:500]!r}"
    # Also what is no Exception: a panic of Rust's.
    except BaseException:
        finding = traceback.format_exc()
    seconds, mib = time.process_time() - begin, max(_peak() - before, 0.0)
    if seconds > MAX_SECONDS or mib > MAX_MIB:
        finding = finding or f"it took {seconds:.1f} s and {mib:.0f} MiB"
    return Outcome(index=index, accepted=accepted, seconds=seconds, mib=mib, finding=finding)


def _reset_peak() -> float:
    """Forget the highest resident size so far; returns the present one in MiB."""
    with suppress(OSError):  # only Linux
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS:")


def _peak() -> float:
    return _status("VmHWM:")


def _status(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 2**20 if sys.platform == "darwin" else most / 1024
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


# Reading processes.


def _serve(pipe: Connection, good: Path, seed: int) -> None:
    """Judge the inputs whose targets and numbers come, until None comes."""
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="tql-fuzz-") as home:
        os.environ |= {"TQL_OFFLINE_DATA": f"{home}/none", "OGBENCH_DATA": f"{home}/none"}
        os.chdir(home)
        warm: set[str] = set()
        while (asked := pipe.recv()) is not None:
            target, index = TARGETS[asked[0]], asked[1]
            if target.name not in warm:
                _warm_up(target, good / target.name, Path(home) / target.name)
                warm.add(target.name)
            folder = Path(home) / f"{target.name}-{index}"
            shutil.copytree(good / target.name, folder)
            pipe.send(judge(target, folder, spoil(target, folder, seed, index), index))
            shutil.rmtree(folder, ignore_errors=True)


def _warm_up(target: Target, good: Path, folder: Path) -> None:
    """Read good files, so that no library's first use counts; they must be accepted."""
    shutil.copytree(good, folder)
    for file in sorted(folder.glob(target.spoil)):
        if file.is_file():
            target.read(folder, file)
    _limit_memory()  # anew: a target's libraries take address space, too


def _limit_memory() -> None:
    with suppress(OSError, ValueError):
        limit = int(_status("VmSize:") * 2**20) + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Reader:
    """A reading process, started anew when it has ended; of every target it has good files.

    Args:
        good: of each target a folder of its name.
        seed: of the inputs.
    """

    def __init__(self, good: Path, seed: int) -> None:
        self.good, self.seed = good, seed
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.good, self.seed)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def judge(self, target: Target, index: int) -> Outcome:
        """What became of an input; the process's end is a finding."""
        self.pipe.send((target.name, index))
        with suppress(EOFError, OSError):
            # Its start takes seconds, and a machine may be busy: far more than MAX_SECONDS of work.
            if self.pipe.poll(10 * MAX_SECONDS):
                outcome: Outcome = self.pipe.recv()
                return outcome
            self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self._start()
        return Outcome(index=index, finding=f"the process ended or hung (exit code {code})")

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self.pipe.send(None)
        self.process.join(10)
        self.process.kill()


# All inputs.


@dataclass
class Summary:
    """What became of a target's inputs."""

    name: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    mib: float = 0.0
    findings: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        self.inputs += 1
        self.accepted += outcome.accepted
        self.seconds = max(self.seconds, outcome.seconds)
        self.mib = max(self.mib, outcome.mib)
        self.findings += [outcome] if outcome.finding else []

    def __str__(self) -> str:
        """One row of the table."""
        refused = self.inputs - self.accepted - len(self.findings)
        counts = f"| {self.name} | {self.inputs:,} | {self.accepted:,} | {refused:,} "
        return f"{counts}| {self.seconds:.2f} | {self.mib:.0f} | {len(self.findings)} |"


HEAD = (
    "| target | inputs | accepted | refused | worst s | peak MiB | findings |\n"
    "|---|---|---|---|---|---|---|"
)


def fuzz(chosen: Iterable[tuple[Target, Iterable[int]]], seed: int, out: Path) -> Iterator[Summary]:
    """Judge inputs of some targets, given by their numbers; findings are kept under `out`."""
    with tempfile.TemporaryDirectory(prefix="tql-good-") as folder, _reading(folder, seed) as by:
        for target, indices in chosen:
            good = by.good / target.name
            good.mkdir()
            target.write(good)
            summary = Summary(target.name)
            for index in indices:
                outcome = by.judge(target, index)
                summary.add(outcome)
                if outcome.finding:
                    _keep(target, good, seed, outcome, out)
            yield summary


@contextmanager
def _reading(good: str, seed: int) -> Iterator[Reader]:
    reader = Reader(Path(good), seed)
    try:
        yield reader
    finally:
        reader.close()


def _keep(target: Target, good: Path, seed: int, outcome: Outcome, out: Path) -> None:
    folder = out / f"{target.name}-{outcome.index}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    file = spoil(target, folder, seed, outcome.index)
    text = f"--seed {seed} --target {target.name} --only {outcome.index}: {file.name}\n"
    (folder / "finding.txt").write_text(text + outcome.finding, encoding="utf-8")


def shares(inputs: int, targets: Sequence[Target]) -> Iterator[tuple[Target, range]]:
    """How many of the inputs each target gets."""
    whole = sum(target.share for target in targets)
    done = 0.0
    for target in targets:
        begin, done = round(inputs * done / whole), done + target.share
        yield target, range(round(inputs * done / whole) - begin)


def main() -> int:
    """Fuzz as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=1000, help="of all targets (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="may be repeated")
    parser.add_argument("--only", type=int, help="judge this one input of the target alone")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="where findings go")
    options = parser.parse_args()
    chosen = shares(options.inputs, [TARGETS[name] for name in options.target or TARGETS])
    if options.only is not None:
        chosen = ((target, range(options.only, options.only + 1)) for target, _ in chosen)
    print(HEAD, flush=True)
    found: list[Outcome] = []
    for summary in fuzz(chosen, options.seed, options.out):
        print(summary, flush=True)
        found += summary.findings
    for outcome in found[:20]:
        print(f"\n#{outcome.index}: {outcome.finding}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
