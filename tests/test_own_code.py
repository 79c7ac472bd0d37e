"""Code that a run's or a model's settings name: the user's own runs, a stranger's never does."""

import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from command_line import command
from own_data import write_own

import tql_offline
from tql_offline.config import OBJECTIVES, resolve
from tql_offline.datasets.load import load as load_dataset
from tql_offline.errors import InputError
from tql_offline.own_code import brought, code_of_class
from tql_offline.sharing.export import export_run
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

METHOD = """
from pathlib import Path
from tql_offline.agents.flow_q import FlowQ
Path({ran!r}).touch()
class X(FlowQ):
    pass
"""
TINY = {"critic": {"size": "tiny"}, "flow": {"hidden": [8]}, "batch_size": 8, "steps": 4}
COMMANDS = {
    "eval": ["eval", "--env", "Pendulum-v1"],
    "ope": ["eval", "--ope", "fqe", "--ope-updates", "2"],
    "inspect": ["inspect", "--grid", "2"],
    "export": ["export", "--no-onnx"],
    "resume": ["train", "--resume"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a method of the package."""
    folder = tmp_path_factory.mktemp("trained")
    data = str(write_own(folder / "mine.npz", (30, 20), 3))
    config = resolve(TINY | {"dataset": {"name": data}, "checkpoint_every": 2})
    return run(config, load_dataset(data), folder, "run", SilentReporter()).path


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory in the Python path, and afterwards no module of it."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield folder
    forget(set(sys.modules) - before)


def forget(names):
    """Have modules imported anew, as another process would."""
    for name in [name for name in names if name.partition(".")[0] in ("dl", "my_methods")]:
        del sys.modules[name]


def write_method(path):
    path.write_text(METHOD.format(ran=str(path.with_suffix(".ran"))))
    return path.with_suffix(".ran")


def named(trained, where, objective):
    """A copy of a run that names another objective, with a step left to train."""
    shutil.copytree(trained, where)
    text = (where / "config.toml").read_text()
    (where / "config.toml").write_text(text.replace('"flow"', f'"{objective}"', 1))
    record = where / "provenance.json"
    facts = json.loads(record.read_text())
    facts["settings"]["objective"] = objective
    record.write_text(json.dumps(facts))
    (where / "result.json").unlink()
    shutil.rmtree(where / "checkpoints" / "4")
    return where


# Runs.


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("inside", [False, True])
def test_no_command_imports_what_lies_with_a_run(trained, work, words, inside, capsys):
    folder = named(trained, work / "dl" / "run", f"dl.{'run.' * inside}payload:X")
    ran = write_method(work / "dl" / ("run" if inside else "") / "payload.py")
    code, output = command([*words, str(folder)], capsys)
    assert code == 2
    assert "names code that may have come with it" in " ".join(output.err.split())
    assert not ran.exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_every_command_finds_ones_own_methods_in_the_working_directory(
    trained, work, words, capsys
):
    folder = named(trained, work / "runs" / "run", "my_methods:X")
    ran = write_method(work / "my_methods.py")
    code, output = command([*words, str(folder)], capsys)
    assert ran.exists()
    if words[0] == "eval" and "--env" in words:
        assert "is not finished, and --env is for finished runs" in " ".join(output.err.split())
    else:
        assert code == 0, output.err


def test_an_environment_that_lies_with_the_run_is_not_imported(trained, work, capsys):
    folder = named(trained, work / "dl" / "run", "flow")
    ran = write_method(work / "dl" / "payload.py")
    config, record = (folder / "config.toml"), (folder / "provenance.json")
    config.write_text(config.read_text().replace('env_id = ""', 'env_id = "dl.payload:X-v0"'))
    facts = json.loads(record.read_text())
    record.write_text(json.dumps(facts | {"environment": {"env_id": "dl.payload:X-v0"}}))
    for words in (["train", "--resume"], ["eval"], ["eval", "--missing"]):
        code, output = command([*words, str(folder)], capsys)
        said = "names code that may have come with it: 'dl.payload:X-v0'"
        assert (code, said in " ".join(output.err.split())) == (2, True), output.err
    assert not ran.exists()
    command(["eval", str(folder), "--env", "dl.payload:X-v0"], capsys)
    assert ran.exists(), "named by the user, too"


def test_a_file_of_settings_brings_no_package_around_it(trained, work, capsys):
    data = ["--dataset", str(trained.parent / "mine.npz"), "--print-config"]
    (work / "dl").mkdir()
    ran = write_method(work / "dl" / "payload.py")
    file = work / "dl" / "config.toml"
    for text, flag, name in (
        ('objective = "dl.payload:X"', "--objective", "dl.payload:X"),
        ('dataset.env_id = "dl.payload:X-v0"', "--env", "dl.payload:X-v0"),
    ):
        file.write_text(text)
        code, output = command(["train", "--config", str(file), *data], capsys)
        assert (code, f"name it by {flag}, too" in " ".join(output.err.split())) == (2, True)
        assert command(["train", "--config", str(file), flag, name, *data], capsys)[0] == 0
    assert not ran.exists()
    write_method(work / "my_methods.py")
    (work / "mine.toml").write_text('objective = "my_methods:X"')
    assert command(["train", "--config", "mine.toml", *data], capsys)[0] == 0


def test_no_run_begins_that_no_command_would_open(trained, work, capsys):
    (work / "dl").mkdir()
    write_method(work / "dl" / "payload.py")
    words = ["train", "--objective", "dl.payload:X", "--dataset", str(trained.parent / "mine.npz")]
    tiny = ["--size", "tiny", "--steps", "2", "--batch-size", "8", "--set", "flow.hidden=[8]"]
    code, output = command([*words, *tiny, "--runs", "dl/runs"], capsys)
    assert (code, "choose another --runs" in output.err) == (2, True)
    assert not (work / "dl" / "runs").exists()
    assert command([*words, *tiny, "--runs", "runs"], capsys)[0] == 0


@pytest.mark.slow
def test_a_sweep_trains_and_resumes_a_method_of_ones_own(trained, work, capsys, monkeypatch):
    root = Path(tql_offline.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", str(root)]))
    write_method(work / "my_methods.py")
    (work / "suite.toml").write_text(
        f"""
seeds = [0]
[settings]
objective = "my_methods:X"
critic.size = "tiny"
flow.hidden = [8]
batch_size = 8
steps = 4
checkpoint_every = 2
dataset.name = "{trained.parent / "mine.npz"}"
"""
    )
    assert command(["sweep", "suite.toml"], capsys)[0] == 0
    (folder,) = (path.parent for path in work.glob("runs/*/result.json"))
    result = (folder / "result.json").read_bytes()
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    assert command(["sweep", "suite.toml"], capsys)[0] == 0
    assert (folder / "result.json").read_bytes() == result

    config = folder / "config.toml"
    config.write_text(config.read_text().replace("my_methods:X", "runs.payload:X"))
    ran = write_method(work / "runs" / "payload.py")
    code, output = command(["sweep", "suite.toml"], capsys)
    assert (code, "has objective 'runs.payload:X'" in " ".join(output.err.split())) == (2, True)
    assert not ran.exists()


# Where code lies.


def test_a_package_around_a_run_is_not_imported_to_look_into_it(work):
    (work / "dl" / "deep").mkdir(parents=True)
    ran = write_method(work / "dl" / "__init__.py")
    write_method(work / "dl" / "deep" / "payload.py")
    assert brought("dl.deep.payload:X", work / "dl" / "run") == work / "dl"
    assert not ran.exists()


def test_a_module_in_the_run_is_found_out_where_the_run_is_in_the_path(work):
    write_method(work / "my_methods.py")
    assert brought("my_methods:X", work) == work / "my_methods.py"
    assert brought("my_methods:X", Path()) == work / "my_methods.py"
    assert brought("goals:my_methods:X-v0", Path()) == work / "my_methods.py"
    assert brought("my_methods:X", work / "runs" / "run") is None
    assert brought("my_methods", work) is None


def test_a_module_that_the_caller_imported_is_the_callers(work):
    write_method(work / "my_methods.py")
    importlib.import_module("my_methods")
    assert brought("my_methods:X", work) is None


def test_links_do_not_hide_where_code_lies(work, tmp_path):
    (work / "dl").mkdir()
    write_method(work / "dl" / "payload.py")
    (tmp_path / "store" / "run").mkdir(parents=True)
    (work / "dl" / "run").symlink_to(tmp_path / "store" / "run")
    (tmp_path / "link").symlink_to(work / "dl")
    for opened in (work / "dl" / "run", tmp_path / "link" / "other", Path("dl/../dl")):
        assert brought("dl.payload:X", opened) == work / "dl"
    (work / "dl" / "inner").mkdir()
    (tmp_path / "alias").symlink_to(work / "dl" / "inner")
    assert brought("dl.payload:X", tmp_path / "alias") == work / "dl"
    assert brought("dl.payload:X", Path("dl/../runs/run")) is None


def test_a_package_that_looks_elsewhere_is_followed(work):
    """As `pkgutil.extend_path` does, and as a checkout of tql-offline itself."""
    (work / "my_methods").mkdir()
    (work / "dl").mkdir()
    (work / "my_methods" / "__init__.py").write_text(f"__path__ += [{str(work)!r}]")
    ran = write_method(work / "dl" / "payload.py")
    assert brought("my_methods.dl.payload:X", work / "dl" / "run") == work / "dl"
    assert not ran.exists()


# Models.


@pytest.fixture
def model(trained, work):
    """A stranger's: its settings name a module that lies beside them, and in the Python path."""
    folder = export_run(trained, work / "dl", onnx=False).folder
    for network in (trained / "checkpoints" / "4").glob("*.safetensors"):
        shutil.copy(network, folder)  # a method of one's own keeps them all
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace('"flow"', '"dl.payload:X"', 1))
    return folder


def test_load_imports_no_module_that_a_model_names(model):
    ran = write_method(model / "payload.py")
    with pytest.raises(InputError, match=r"'dl.payload:X'.*import its module before `load`") as e:
        tql_offline.load(model)
    assert "\n" not in str(e.value)
    assert not ran.exists()


def test_load_takes_a_module_that_the_caller_imported_or_allows(model):
    ran = write_method(model / "payload.py")
    assert tql_offline.load(model, own_methods=True)([0.0, 0.0, 0.0]).shape == (2,)
    assert ran.exists()
    ran.unlink()
    assert tql_offline.load(model)([0.0, 0.0, 0.0]).shape == (2,)
    assert not ran.exists()


@pytest.mark.parametrize("short", [False, True])
def test_the_code_of_a_card_loads_a_method_of_ones_own(trained, work, short, monkeypatch):
    objective = "my_methods:X"
    write_method(work / "my_methods.py")
    if short:
        monkeypatch.setitem(OBJECTIVES, "mine", objective)
    source = named(trained, work / "runs" / "run", "mine" if short else objective)
    folder = export_run(source, work / "model", onnx=False).folder
    card = (folder / "README.md").read_text()
    assert "class `X` of the module `my_methods`" in card
    OBJECTIVES.pop("mine", None)
    forget(sys.modules.copy())
    code = card.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(folder))
    scope = {"observation": [0.0, 0.0, 0.0]}
    exec(code, scope)
    assert scope["action"].shape == (2,)


def test_a_card_of_a_method_of_the_package_names_no_module(trained, work):
    card = export_run(trained, work / "model", onnx=False).folder / "README.md"
    assert "author's own" not in card.read_text()
    assert "```python\nimport tql_offline\n" in card.read_text()


TYPED = """
class Base:
    WEIGHT = {weight}
    def scale(self, x, most={most}):
        return [y for y in (x, {sign}x) if y in {{"a", "b"}}]
class Mine(Base):
    @property
    def own(self):
        return 1
"""


def typed(weight=1.0, most=2, sign=""):
    module = types.ModuleType("typed_in")
    exec(TYPED.format(weight=weight, most=most, sign=sign), vars(module))
    return code_of_class(module.Mine)


def test_classes_typed_into_a_session_are_told_apart_by_what_they_do():
    assert typed() == typed()
    assert typed()["file"] == ""
    changed = [typed(), typed(weight=2.0), typed(most=3), typed(sign="-")]
    assert len({code["sha256"] for code in changed}) == 4


def test_the_code_of_a_typed_class_is_the_same_in_every_process():
    code = "from test_own_code import typed; print(typed()['sha256'])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {typed()["sha256"]}
