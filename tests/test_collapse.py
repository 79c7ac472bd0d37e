"""The picture of the collapse: what a run records, what is skipped, packed, drawn and refused."""

import json
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from own_data import write_own

from benchmarks import collapse
from tql_offline.agents import make_agent
from tql_offline.agents.optimizers import learning_rate
from tql_offline.config import resolve
from tql_offline.datasets.buffer import make_buffer
from tql_offline.datasets.collect import collect
from tql_offline.datasets.load import load
from tql_offline.errors import InputError

FLAGS = ["--batch-size", "16", "--warmup", "0", "--critic-lr", "1e-3", "--device", "cpu"]
TARGETS = [[3.0, 3.0], [2.5, 2.5]]  # the preset's
STEPS = [1, 8, 16, 20]
NAMES = ["cube-double-mine-tiny-layerwise.jsonl", "cube-double-mine-tiny-none.jsonl"]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two episodes of 60 and 40 transitions, 30 state dims and 2 action dims, with rewards."""
    return write_own(tmp_path_factory.mktemp("data") / "mine.npz", (60, 40), 30)


def train(own, out, *more):
    data = ["--dataset", "cube-double-mine", "--path", str(own)]
    sizes = ["--sizes", "tiny", "--updates", "20", "--every", "8"]
    collapse.main(["train", "--out", str(out), *data, *sizes, *FLAGS, *more])


@pytest.fixture(scope="module")
def runs(own, tmp_path_factory):
    out = tmp_path_factory.mktemp("collapse") / "runs"
    train(own, out)
    return out


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def copy(runs, folder):
    folder.mkdir(exist_ok=True)
    for path in runs.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_files_hold_facts_and_recorded_updates(runs, own):
    assert sorted(path.name for path in runs.iterdir()) == NAMES
    for name in NAMES:
        facts, *lines = read(runs / name)
        assert facts["mode"] == name.removesuffix(".jsonl").rpartition("-")[2]
        assert (facts["dataset"], facts["rows"], facts["tokens"]) == ("cube-double-mine", 100, 33)
        assert (facts["updates"], facts["batch_size"], facts["critic_lr"]) == (20, 16, 1e-3)
        assert facts["dataset_sha256"] == load(str(own)).sha256
        assert [line["step"] for line in lines] == STEPS
        for line in lines:
            assert set(line) == {"step", "seconds", *collapse.RECORDED}
            assert np.shape(line["entropy"]) == (2, 2)
            assert line["entropy_target"] == TARGETS
            assert 0 < np.max(line["entropy"]) <= np.log(33)
        seconds = [line["seconds"] for line in lines]
        assert seconds == sorted(seconds)


def test_control_alone_separates_the_modes(runs):
    (_, *controlled), (_, *free) = (read(runs / name) for name in NAMES)
    assert controlled[0]["entropy"] == free[0]["entropy"]  # same weights, same batch
    assert controlled[-1]["entropy"] != free[-1]["entropy"]
    assert free[-1]["temperature"] == [[1, 1], [1, 1]] != controlled[-1]["temperature"]


def test_recorded_entropy_is_the_critics_own(runs, own):
    """Replay the run to its 8th update; then softmax over plain attention scores, by hand."""
    dataset, device = load(str(own)), torch.device("cpu")
    overrides = {
        "critic": {"size": "tiny"},
        "optimizer": {"critic_lr": 1e-3, "warmup": 0},
    }
    agent = make_agent(
        resolve(overrides | {"dataset": {"name": "cube-double-mine"}}), 30, 2, device
    )
    buffer = make_buffer(dataset.episodes, n_step=1, discount=0.99, device=device)
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 8):
        for name, optimizer in agent.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    step - 1, {"critic": 1e-3, "policy": 5e-4}[name], 0, 10**6
                )
        agent.update(buffer.sample(16, generator), generator, step)
    batch = buffer.sample(16, generator)

    projected = []
    critic = agent.networks["critic"]
    for block in critic.blocks:
        block.qkv.register_forward_hook(lambda *call: projected.append(call[-1]))
    critic.forward_plain(batch.observations, batch.actions)
    heads = [scores(qkv, critic.blocks[0].num_heads) for qkv in projected]
    p = torch.stack(heads).detach().double().softmax(-1)  # (layer, batch, head, query, key)
    entropy = -(p * p.log()).sum(-1).mean((1, 2))
    expected = torch.stack([entropy[:, 0], entropy[:, 1:].mean(-1)], dim=-1)
    recorded = read(runs / NAMES[0])[2]["entropy"]
    np.testing.assert_allclose(recorded, expected, rtol=1e-4)


def scores(qkv, heads):
    q, k, _ = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    return q @ k.mT / q.shape[-1] ** 0.5


def test_finished_files_are_skipped_and_unfinished_ones_begun_again(runs, own, tmp_path, capsys):
    folder = copy(runs, tmp_path / "runs")
    kept = (folder / NAMES[0]).read_bytes()
    part = folder / f"{NAMES[1]}.part"
    (folder / NAMES[1]).rename(part)
    part.write_text(part.read_text()[:-30])
    train(own, folder)
    assert "cube-double-mine-tiny-layerwise is finished already" in capsys.readouterr().out
    assert (folder / NAMES[0]).read_bytes() == kept
    again, before = (read(path / NAMES[1])[1:] for path in (folder, runs))
    for line in (*again, *before):
        del line["seconds"]
    assert again == before
    assert not part.exists()


def test_a_finished_file_of_other_settings_is_refused(runs, own, tmp_path, capsys):
    folder = copy(runs, tmp_path / "runs")
    with pytest.raises(SystemExit):
        train(own, folder, "--seed", "1")
    assert "with seed 0 where 1 is asked for" in capsys.readouterr().err


def test_draw(runs, tmp_path, capsys):
    folder = copy(runs, tmp_path / "runs")
    out = tmp_path / "out" / "collapse.svg"
    # A second size, in progress: its last line is half written.
    for name in NAMES:
        facts, *lines = read(folder / name)
        texts = [json.dumps(line) for line in (facts | {"size": "small"}, *lines)]
        path = folder / f"{name.replace('tiny', 'small')}.part"
        path.write_text("\n".join(texts)[:-20])
    collapse.main(["draw", str(folder), "--out", str(out)])

    root = ET.parse(out).getroot()
    svg = "{http://www.w3.org/2000/svg}"
    panels = root.findall(f"{svg}svg")
    words = [element.text for element in root.iter(f"{svg}text")]
    assert len(panels) == 2
    assert sum(word.startswith("ln 33 = 3.50 nats") for word in words) == 2
    assert [w.split(",")[0] for w in words if w.endswith(" parameters")] == ["tiny", "small"]
    for panel in panels:
        label = panel.get("aria-label")
        for mode in ("without control", "with control"):
            for layer in (1, 2):
                for group in ("[VALUE]", "other tokens"):
                    assert f" {mode}, layer {layer}, {group}: " in label
        assert label.count("target of layer") == 2  # both groups of a layer have the same
    assert "var(--" not in out.read_text()
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))

    tiny, small = (row.split(" | ") for row in capsys.readouterr().out.splitlines()[2:4])
    assert tiny[3] == "20"
    assert small[3] == "16 of 20"
    means = np.array(read(folder / NAMES[1])[-1]["entropy"]) @ [1, 32] / 33
    lowest = means.argmin()
    assert tiny[4] == f"{means[lowest]:.2f} (layer {lowest + 1})"
    start = np.array(read(folder / NAMES[1])[1]["entropy"])[lowest] @ [1, 32] / 33
    assert tiny[5] == f"{means[lowest] - start:+.2f}"
    last = np.array(read(folder / NAMES[0])[-1]["entropy"])
    assert tiny[8] == f"{np.abs(last - TARGETS).max():.2f}"
    assert tiny[9].startswith("no")


def test_table_names_the_collapsed_run(runs, tmp_path):
    facts, *lines = read(runs / NAMES[1])
    for line in lines[2:]:
        line["entropy"][1] = [0.1, 0.4]
    path = tmp_path / NAMES[1]
    path.write_text("".join(json.dumps(line) + "\n" for line in (facts, *lines)))
    table = collapse.table(collapse.read_pairs(tmp_path))
    assert "without control, from update 16 |" in table
    assert "| 0.39 (layer 2) |" in table


@pytest.mark.parametrize(
    "text",
    ["{}\n{}\n", "[1]\n[2]\n", "nonsense\n", "\xff\n", '{"size":"tiny"}\n{"step":1}\n'],
)
def test_foreign_files_are_named(runs, tmp_path, text, capsys):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(SystemExit) as stop:
        collapse.main(["draw", str(tmp_path), "--out", str(tmp_path / "out.svg")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"collapse\.py: \S*bad\.jsonl is no record .*again\n", error)
    assert not (tmp_path / "out.svg").exists()


def test_packed_data_are_the_relabelled_ones_and_need_no_simulator(tmp_path, monkeypatch):
    task = "pointmaze-medium-navigate-singletask-task1-v0"
    file = collect(task, out=tmp_path, episodes=2, steps=50, processes=1).train
    packed = tmp_path / "packed.npz"
    collapse.main(["pack", str(file), str(packed), "--dataset", task])
    relabelled = load(task, file).episodes
    for name in ("ogbench", "ogbench.relabel_utils", "gymnasium", "mujoco"):
        monkeypatch.setitem(sys.modules, name, None)
    episodes = collapse.load_data(task, packed).episodes
    for column in ("observations", "actions", "rewards", "masks", "lengths"):
        np.testing.assert_array_equal(getattr(episodes, column), getattr(relabelled, column))
    with pytest.raises(InputError, match=r"not installed.*pack"):
        collapse.load_data(task, file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "tiny", "small", "--updates", "1", "2", "3"], "3 numbers for 2 sizes"),
        (["--updates", "0"], "less than 1"),
        (["--critic-lr", "-1"], "critic_lr"),
        (["--device", "tpu"], "tpu"),
        (["--device", "cuda"], "no GPU"),
    ],
)
def test_bad_flags_are_one_sentence_and_nothing_is_written(
    tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        collapse.main(["train", "--out", str(tmp_path / "runs"), *flags])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
