"""The command line: what is refused before anything is collected, and the README's example."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from command_line import command
from own_data import write_own

import tql_offline.__main__
import tql_offline.cli
from tql_offline.cli import COMMANDS
from tql_offline.cli.tables import TerminalReporter, metrics_line, print_evaluations, print_spread
from tql_offline.cli.train import load_and_say
from tql_offline.config import OBJECTIVES, resolve
from tql_offline.datasets.collect import collect
from tql_offline.datasets.embedded import is_installed, load_embedded
from tql_offline.datasets.load import load
from tql_offline.datasets.names import collected_folder
from tql_offline.errors import InputError
from tql_offline.presets import DEFAULT_DATASET
from tql_offline.training.new_run import run_stem
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

ROOT = Path(__file__).resolve().parent.parent


SPINNING = """
import os, sys
sys.argv = ["tql-offline", "--version"]
from tql_offline.__main__ import main
assert "torch" not in sys.modules
try:
    main()
except SystemExit:
    print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("KMP_BLOCKTIME"))
"""


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, "1000 0"),
        ({"GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "200"}, "7 200"),
        ({"OMP_WAIT_POLICY": "active"}, "None None"),
    ],
)
def test_waiting_threads_give_their_core_away_before_pytorch_reads_how(given, count):
    names = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    others = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-c", SPINNING],
        env=others | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == count


def test_cores_are_shared_before_anything_else(monkeypatch):
    called = []
    for name in ("limit_threads", "share_cores"):
        monkeypatch.setattr(tql_offline.__main__, name, lambda name=name: called.append(name))
    monkeypatch.setattr(tql_offline.cli, "main", lambda: called.append("main"))
    tql_offline.__main__.main()
    assert called == ["limit_threads", "share_cores", "main"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--protocol", "none"],
        ["--name", "../x"],
        ["--name", "taken"],
        ["--size", "huge"],
        ["--tracker", "nowhere"],
    ],
)
def test_train_refuses_before_it_collects_data(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    code, output = command(["train", *arguments], capsys)
    assert code == 2
    assert output.err.count("\n") == 1
    assert not collected_folder().exists()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["taken"]


def test_embedded_dataset_is_collected_once(monkeypatch):
    monkeypatch.setattr("tql_offline.datasets.embedded.EPISODES", 1)
    assert not is_installed(DEFAULT_DATASET)
    seen = []
    first = load_embedded(seen.append)
    assert sum(seen) == 2000  # one training episode and one of validation
    assert is_installed(DEFAULT_DATASET)
    seen.clear()
    assert load_embedded(seen.append).sha256 == first.sha256
    assert seen == []


def test_a_full_gpu_is_one_sentence(monkeypatch, capsys):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("tql_offline.doctor.diagnose", full)
    code, output = command(["doctor"], capsys)
    assert code == 2
    assert "too little free memory" in output.err


def test_run_names_say_what_differs():
    assert run_stem(resolve({})).endswith("-flow-small-s0")
    other = resolve({"critic": {"kind": "mlp", "size": "xl"}, "objective": "implicit", "seed": 3})
    assert run_stem(other).endswith("-implicit-mlp-xl-s3")
    assert run_stem(resolve({"entropy": {"mode": "none"}})).endswith("-flow-none-small-s0")
    assert run_stem(resolve({}, preset="bc")).endswith("task1-v0-cloning-s0")  # it has no critic
    presets = (
        "iql",
        "ifql",
        "cql",
        "cal-ql",
        "bc",
        "flow-bc",
        "rebrac",
        "floq",
        "pac",
        "fql",
        "tql",
    )
    assert len({run_stem(resolve({}, preset=preset)) for preset in presets}) == len(presets)


def test_method_names_are_the_literatures():
    def name(**settings):
        return resolve(settings).method

    mlp = {"kind": "mlp"}
    assert name() == "TQL"
    assert name(entropy={"mode": "single"}) == "TQL-single"
    assert name(critic=mlp) == "FQL"
    assert name(critic=mlp, objective="implicit") == "IQL"
    assert name(critic=mlp, objective="implicit", implicit={"extraction": "best-of-n"}) == "IFQL"
    assert name(critic=mlp, objective="conservative") == "CQL"
    assert name(critic=mlp, objective="rebrac") == "ReBRAC"
    assert name(objective="rebrac") == "ReBRAC-transformer"
    assert name(objective="cloning") == "BC"
    assert name(objective="cloning", cloning={"policy": "flow"}) == "flow BC"
    assert name(objective="implicit") == "IQL-transformer"
    assert name(objective="conservative", entropy={"mode": "none"}) == "CQL-transformer-none"


@pytest.mark.parametrize(
    ("preset", "method"),
    [
        ("tql", "TQL"),
        ("fql", "FQL"),
        ("iql", "IQL"),
        ("ifql", "IFQL"),
        ("rebrac", "ReBRAC"),
        ("cql", "CQL"),
        ("cal-ql", "Cal-QL"),
        ("floq", "floq"),
        ("pac", "PAC"),
        ("bc", "BC"),
        ("flow-bc", "flow BC"),
    ],
)
def test_a_method_preset_makes_that_method(preset, method):
    assert resolve({}, preset=preset).method == method


def test_print_config_prints_all_settings_and_trains_nothing(tmp_path, capsys):
    arguments = ["train", "--preset", "scene+iql", "--size", "xl", "--no-eval", "--print-config"]
    code, output = command([*arguments, "--runs", str(tmp_path / "runs")], capsys)
    assert code == 0
    file = tmp_path / "printed.toml"
    file.write_text(output.out)
    printed = resolve({}, file=file)
    asked = {"critic": {"size": "xl"}, "evaluation": {"enabled": False}}
    assert printed == resolve(asked, preset="scene+iql")
    assert len(tomllib.loads(file.read_text())) == len(type(printed).model_fields)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("preset", "instead"),
    [
        ("iql", "none of; give --set implicit.inverse_temperature=β, or"),
        ("cql", "none of; give --set conservative.alpha=α, or"),
        ("bc", "none of; leave"),
    ],
)
def test_alpha_without_a_use_is_refused(preset, instead, capsys):
    arguments = ["train", "--preset", preset, "--alpha", "3", "--print-config"]
    code, output = command(arguments, capsys)
    assert code == 2
    assert instead in output.err


def test_a_setting_that_two_flags_give_is_refused(capsys):
    asked = ["train", "--steps", "50", "--print-config"]
    for twice in (["--set", "steps=300"], ["--set", "seed=1", "--set", "seed=2"]):
        code, output = command([*asked, *twice], capsys)
        assert (code, "two values; leave one out" in output.err) == (2, True)
    assert command([*asked, "--set", "steps=50"], capsys)[0] == 0


def test_counts_are_taken_as_set_takes_them(capsys):
    counts = ["--steps", "1e5", "--batch-size", "64"]
    code, output = command(["train", *counts, "--print-config"], capsys)
    assert code == 0
    assert {"steps = 100000", "batch_size = 64"} <= {*output.out.splitlines()}
    for flag in ("--steps", "--batch-size"):
        for wrong in ("1.5", "inf", "many", "1e400"):
            code, output = command(["train", flag, wrong, "--print-config"], capsys)
            assert code == 2
            assert f"value for '{flag}': '{wrong}' is not a whole number, such as" in output.err


def test_errors_of_settings_name_where_they_are_from(capsys):
    _, output = command(["train", "--set", "stepz=1"], capsys)
    assert "'stepz' in the flags or preset" in output.err
    with pytest.raises(InputError, match="'stepz' in the given settings or preset"):
        resolve({"stepz": 1})


def test_a_suite_is_no_config(tmp_path, capsys):
    suite = tmp_path / "a suite.toml"
    suite.write_text("seeds = [0, 1]\n[settings]\nsteps = 3\n[axis.size.tiny]\n")
    code, output = command(["train", "--config", str(suite)], capsys)
    assert code == 2
    assert "is a suite of runs, with tables [axis], [settings], and no" in output.err
    assert f"`tql-offline sweep '{suite}'`" in output.err
    suite.write_text("seeds = [0, 1]")
    assert "did you mean seed" in command(["train", "--config", str(suite)], capsys)[1].err


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("fqll", "did you mean fql or ifql?"),
        ("cube-singel+fql", "did you mean cube-single or"),
        ("TQLL", "did you mean tql"),
        ("fql+iql", "humanoidmaze"),
        ("xyzzy", "humanoidmaze"),
    ],
)
def test_a_misspelt_preset_gets_the_nearest_or_all(preset, said, capsys):
    code, output = command(["train", "--preset", preset, "--print-config"], capsys)
    assert (code, said in output.err) == (2, True)
    assert ("did you mean" in output.err) == ("did you mean" in said)


def test_a_text_that_no_datasets_name_contains_gets_the_nearest(capsys):
    for words, said in (
        (["pointmz"], "'pointmz' in it; did you mean pointmaze?"),
        (["cube-doubel-play-v0"], "did you mean cube-double-play-v0"),
        (["pointmz", "--suite", "d4rl"], "'pointmz' in it; `tql-offline datasets list` has all"),
        (["xyzzy"], "'xyzzy' in it; `tql-offline datasets list` has all"),
    ):
        code, output = command(["datasets", "list", *words], capsys)
        assert (code, said in output.err) == (2, True), output.err


def test_methods_given_as_objectives_and_pythons_booleans_are_understood(capsys):
    code, output = command(["train", "--objective", "iql", "--print-config"], capsys)
    assert (code, "--preset iql is a method" in output.err) == (2, True)
    code, output = command(["train", "--set", "dataset.normalise=True", "--print-config"], capsys)
    assert (code, tomllib.loads(output.out)["dataset"]["normalise"]) == (0, True)


def test_no_environment_is_asked_for_where_nothing_is_to_be_scored(tmp_path, capsys):
    data = write_own(tmp_path / "own.npz", (5, 5), observation_dim=3)
    for enabled in (True, False):
        config = resolve({"dataset": {"name": str(data)}, "evaluation": {"enabled": enabled}})
        load_and_say(config)
        assert ("give --env" in capsys.readouterr().out) == enabled


def test_alpha_of_an_objective_of_ones_own_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(OBJECTIVES, "cautious", OBJECTIVES["rebrac"])
    arguments = ["train", "--objective", "cautious", "--alpha", "3", "--print-config"]
    code, output = command(arguments, capsys)
    assert code == 2
    assert "has none of; leave it out" in output.err


@pytest.mark.parametrize("preset", ["tql", "fql", "floq", "pac"])
def test_alpha_is_of_flow_policies(preset, capsys):
    arguments = ["train", "--preset", preset, "--alpha", "3", "--print-config"]
    code, output = command(arguments, capsys)
    assert code == 0
    assert "alpha = 3.0" in output.out


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--preset", "bc", "--critic", "mlp"], "'cloning' has no critic"),
        (["--preset", "bc", "--entropy", "fixed"], "no transformer"),
        (["--critic", "mlp", "--entropy", "layerwise"], "no transformer"),
        (["--critic", "mlp", "--entropy", "none"], ""),
        (["--preset", "iql", "--critic", "transformer", "--entropy", "layerwise"], ""),
    ],
)
def test_flags_that_would_change_nothing_are_refused(flags, why, capsys):
    code, output = command(["train", *flags, "--print-config"], capsys)
    assert code == (2 if why else 0)
    assert why in output.err


def test_the_terminal_tells_what_the_protocol_scores(capsys):
    line = {
        **{"step": 10, "policy": "learned", "return_mean": -3.5, "score": 41.25},
        "episodes": [{"success": False, "length": 4}] * 2,
    }
    for protocol, told, untold in (
        ("quick-return", "scores 41.25", "succeeds"),
        ("quick", "succeeds in 0 %", "41.25"),
    ):
        scored = line | {"protocol": {"name": protocol, "version": 1}}
        TerminalReporter().evaluated(scored)
        print_evaluations([scored])
        output = capsys.readouterr().out
        assert told in output
        assert untold not in output
        assert ("0/2" in output) == (protocol == "quick")


def test_scores_of_several_protocols_are_told_apart(capsys):
    line = {"step": 10, "policy": "learned", "return_mean": -3.5, "score": 50.0}
    lines = [
        line
        | {"episodes": [{"success": True, "length": 4}] * count}
        | {"protocol": {"name": name, "version": 1}}
        for name, count in (("quick:20", 20), ("quick:60", 60))
    ]
    print_evaluations(lines)
    both = capsys.readouterr().out
    assert all(word in both for word in ("protocol", "quick:20", "quick:60"))
    print_evaluations(lines[:1])
    assert "quick:20" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--preset", "bc"], ["--preset", "flow-bc"], ["--preset", "rebrac", "--set", "log_every=1"]],
)
def test_methods_without_every_metric_train_from_the_command_line(arguments, tmp_path, capsys):
    data = own_file(tmp_path / "own.npz", 3, 2)
    small = ["--steps", "3", "--size", "tiny", "--set", "flow.hidden=[8]", "--set", "batch_size=4"]
    place = ["--dataset", data, "--runs", str(tmp_path / "runs")]
    code, output = command(["train", *place, *arguments, *small], capsys)
    assert code == 0
    assert "run folder" in output.out


def own_file(path, observation_dim, action_dim):
    return str(write_own(path, (30,), observation_dim, action_dim=action_dim))


@pytest.mark.parametrize(
    ("env_id", "dims", "words"),
    [
        ("Pendulum-v1", (3, 1), "RescaleAction"),
        ("rollout_environments:Silent-v0", (4, 2), "quick-return"),
        ("NoSuchEnv-v0", (2, 2), "NoSuchEnv"),
        ("pointmaze-medium-v0", (3, 2), "3 observation dims"),
    ],
)
def test_unfit_environments_are_refused_before_training(env_id, dims, words, tmp_path):
    data = load(own_file(tmp_path / "mine.npz", *dims), env_id=env_id)
    config = resolve({"dataset": {"name": str(data.path), "env_id": env_id}})
    with pytest.raises(InputError, match=words):
        run(config, data, tmp_path / "runs", "", SilentReporter())
    assert not (tmp_path / "runs").exists()


def test_a_run_that_nothing_scores_is_told_what_will_judge_it(tmp_path, capsys):
    file = own_file(tmp_path / "mine.npz", 3, 1)
    tiny = ["--size", "tiny", "--steps", "1", "--batch-size", "8", "--set", "flow.hidden=[8]"]
    place = ["--runs", str(tmp_path), "--name", "r"]
    code, output = command(["train", "--dataset", file, *tiny, *place], capsys)
    assert code == 0, output.err
    said = " ".join(output.out.split())
    assert said.count("`eval --env`: 'ogbench-singletask' if none is given") == 1
    assert "Scores" not in said


def test_help_lists_every_command_in_the_order_of_their_use(capsys):
    _, output = command(["--help"], capsys)
    commands = output.out.partition("Commands")[2]
    listed = re.findall(r"^\W*([a-z]+) {2,}[A-Z]", commands, re.MULTILINE)
    assert listed == [*COMMANDS]


def test_a_command_of_two_words_is_in_the_module_of_that_name(tmp_path, monkeypatch, capsys):
    cli = tql_offline.cli
    (tmp_path / "prune_it.py").write_text(
        "from tql_offline.cli import app\n"
        "@app.command()\n"
        "def prune_it() -> None:\n"
        '    """Prune it."""\n'
    )
    monkeypatch.setattr(cli, "__path__", [*cli.__path__, str(tmp_path)])
    monkeypatch.setattr(cli, "COMMANDS", (*COMMANDS, "prune-it"))
    monkeypatch.setattr(cli.app, "registered_commands", [*cli.app.registered_commands])
    cli._register(["prune-it"])
    code, output = command(["--help"], capsys)
    assert code == 0
    assert "Prune it." in output.out


@pytest.mark.parametrize(
    ("temperature", "shown"),
    [([0.9, 1.0], "H1 1.20→1.43 1.10→1.43"), ([1, 1.0], "H1 1.20 1.10")],
)
def test_a_line_of_metrics_shows_targets_only_where_entropies_are_steered(temperature, shown):
    line = {
        **{"step": 100, "entropy": [[1.2, 1.1]], "entropy_target": [[1.43, 1.43]]},
        "temperature": [temperature],
    }
    assert metrics_line(line, 50.0) == f"update 100  50.0/s  {shown}"


def test_several_seeds_end_in_their_mean_and_spread(capsys):
    protocol = {"name": "quick", "version": 1}
    print_spread([{"score": score, "protocol": protocol} for score in (10.0, 40.0, 100.0)])
    said = " ".join(capsys.readouterr().out.split())
    assert "over 3 seeds, learned policy at the last update: 50 ± 37 success in percent" in said


@pytest.mark.slow
def test_the_readmes_example_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    settings = '{"critic": {"size": "tiny"}, "steps": 1, "flow": {"hidden": [8]}}'
    code = code.replace('{"critic": {"size": "tiny"}}', settings)
    assert settings in code
    script = tmp_path / "example.py"
    script.write_text(code)
    collect(DEFAULT_DATASET, out=collected_folder(), episodes=2, steps=100, processes=1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "runs" / "my-run" / "result.json").is_file()


def test_datasets_are_listed_by_suite_with_what_is_broken_or_here(tmp_path, capsys):
    code, output = command(["datasets", "list", "--suite", "d4rl"], capsys)
    assert code == 0
    assert "antmaze-umaze-diverse-v0 " in output.out  # names are whole: they can be copied
    row = next(line for line in output.out.splitlines() if "hopper-medium-expert-v0" in line)
    assert "65.0 MB" in row
    assert "broken" in row
    assert "cube-" not in output.out
    code, output = command(["datasets", "list", "--installed"], capsys)
    assert (code, output.out) == (0, "no such dataset on this machine\n")
    (tmp_path / "d4rl").mkdir()
    (tmp_path / "d4rl" / "hopper_medium-v2.hdf5").write_bytes(b"")
    (tmp_path / "minari" / "D4RL" / "pen" / "human-v2" / "data").mkdir(parents=True)
    code, output = command(["datasets", "list", "--installed"], capsys)
    names = re.findall(r"\S+-v\d", output.out)
    assert names == ["hopper-medium-v2"]  # a folder alone is what a stopped download leaves
    (tmp_path / "minari" / "me" / "mine-v0" / "data").mkdir(parents=True)
    for name in ("D4RL/pen/human-v2", "me/mine-v0"):
        (tmp_path / "minari" / name / "data" / "metadata.json").write_text("{}")
    code, output = command(["datasets", "list", "--installed"], capsys)
    names = re.findall(r"\S+-v\d", output.out)
    assert names == ["hopper-medium-v2", "D4RL/pen/human-v2", "minari:me/mine-v0"]
    code, output = command(["datasets", "list", "--suite", "atari"], capsys)
    assert code == 2
    assert "no suite 'atari'" in output.err


def test_info_of_a_dataset_that_is_not_here_says_what_is_known(capsys):
    code, output = command(["datasets", "info", "antmaze-umaze-v0"], capsys)
    text = " ".join(re.sub("[│┃]", " ", output.out).split())
    assert code == 0
    assert "232,533,093 bytes" in text
    assert "out of step with the ends of its trajectories" in text
    assert "run `tql-offline download antmaze-umaze-v0`" in text
    code, output = command(["datasets", "info", "maze2d-umaze-v1"], capsys)
    assert "unknown length, sha256 unknown" in " ".join(re.sub("[│┃]", " ", output.out).split())


def test_info_of_a_file_shows_how_its_numbers_lie(tmp_path, capsys):
    path = own_file(tmp_path / "own.npz", 3, 2)
    code, output = command(["datasets", "info", path], capsys)
    text = " ".join(re.sub("[│┃]", " ", output.out).split())
    assert code == 0
    assert "episode length 30 throughout" in text
    assert "reward -1 to -1, mean -1, 1 values" in text
    assert "rewards that are 0 0 %" in text
    assert "episodes with such a one 0 of 1" in text


def test_download_takes_names_and_suites_and_tells_every_file(tmp_path, capsys):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for name in ("scene-play-v0", "puzzle-3x3-play-v0"):
        for split in ("", "-val"):
            own_file(shelf / f"{name}{split}.npz", 3, 2)
    arguments = ["download", "--suite", "ogbench-paper-25", "--mirror", str(shelf)]
    code, output = command([*arguments, "--offline"], capsys)
    assert code == 2
    assert "offline: only files and mirrors of this machine are used" in output.out
    # What came is told, though six files did not.
    assert len(re.findall(r"v0(?:-val)?\.npz: [\d,]+ bytes, sha256", output.out)) == 4
    assert output.err.startswith("tql-offline: 6 of 10 files did not come: ")
    assert output.err.count("\n") == 1
    code, output = command(["download", "scene-play-singletask-task2-v0", "--offline"], capsys)
    assert code == 0
    assert output.out.count("already there") == 2


def test_check_tells_what_could_be_had_and_fetches_nothing(tmp_path, capsys):
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    own_file(shelf / "scene-play-v0.npz", 3, 2)
    arguments = ["download", "scene-play-v0", "--check", "--mirror", str(shelf)]
    code, output = command(arguments, capsys)
    assert code == 2
    assert "1 of 2 files are neither here nor at any mirror: scene-play-v0-val.npz" in output.err
    assert "available" in output.out
    own_file(shelf / "scene-play-v0-val.npz", 3, 2)
    code, output = command(arguments, capsys)
    assert code == 0
    assert "all 2 files are here or can be downloaded" in output.out
    assert not (tmp_path / "ogbench").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to download is named"),
        (["--suite", "none"], "no suite 'none' is known"),
        (["antmaze-umaze-v0"], "is broken: its timeouts"),
        (["D4RL/pen/human-v2", "--offline"], "only local files may be used"),
    ],
)
def test_download_refuses_in_one_sentence(arguments, words, capsys):
    code, output = command(["download", *arguments], capsys)
    assert code == 2
    assert words in output.err
    assert output.err.count("\n") == 1
