"""`inspect`: maps equal a slow computation from the weights; what is written, shown and refused."""

import json
import math
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from own_data import write_own
from report_runs import make_run, write_lines
from stand_ins import one_drawing

from tql_offline import documents
from tql_offline.cli import main
from tql_offline.cli.inspect import entropy_columns
from tql_offline.config import resolve
from tql_offline.datasets.load import load
from tql_offline.eval.attention_health import alarm_sentence, collapsed_layers, layer_means
from tql_offline.eval.inspections import DOCUMENT, MAX_STATES, read_inspection
from tql_offline.eval.report import write_report
from tql_offline.eval.report_scores import alarm_of, collapse_of
from tql_offline.eval.run_records import read_run
from tql_offline.networks import TransformerCritic
from tql_offline.training import inspection
from tql_offline.training.checkpoint import chosen_checkpoint
from tql_offline.training.inspection import Choice, _default_states, map_entropy
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.run import run

SETTINGS = {
    "flow": {"hidden": [8, 8], "flow_steps": 2},
    "steps": 4,
    "batch_size": 8,
    "log_every": 2,
    "checkpoint_every": 2,
}
S, A = 3, 2


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two episodes of 30 and 20 transitions; observation dim 0 counts the rows."""
    path = write_own(tmp_path_factory.mktemp("data") / "mine.npz", (30, 20), S)
    columns = dict(np.load(path))
    columns["observations"][:, 0] = np.arange(52)
    np.savez(path, **columns)
    return path


def trained(own, folder, **settings):
    config = resolve(SETTINGS | {"dataset": {"name": str(own)}} | settings)
    return run(config, load(str(own)), folder, "", SilentReporter())


@pytest.fixture(scope="module")
def transformer(own, tmp_path_factory):
    return trained(own, tmp_path_factory.mktemp("runs"), critic={"size": "tiny"})


@pytest.fixture(scope="module")
def mlp(own, tmp_path_factory):
    return trained(own, tmp_path_factory.mktemp("runs"), critic={"size": "tiny", "kind": "mlp"})


@pytest.fixture
def undrawn():
    with one_drawing():
        yield


def inspect(folder, *options):
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(folder.path), "--grid", "5", *map(str, options)])
    return stop.value.code


@pytest.fixture(scope="module")
def inspected(transformer, tmp_path_factory):
    out = tmp_path_factory.mktemp("inspect")
    with one_drawing():
        assert inspect(transformer, "--states", "0,29,30,49", "--out", out) == 0
    return out


# The maps.


def slow_maps(critic, observation, action):
    """Weights `(N, H, L, L)` at one state, by loops over queries and heads, from the state dict."""
    w = {name: p.double().numpy() for name, p in critic.state_dict().items()}
    tokens = [w["value_token"]]
    for kind, scalars in (("observation", observation), ("action", action)):
        for s in scalars:
            slope, offset = w[f"{kind}_embedding.weight"][:, 0], w[f"{kind}_embedding.bias"]
            place = w["position"][len(tokens) - 1]
            tokens.append(slope * s + offset + w[f"{kind}_type"] + place)
    x, heads = np.array(tokens), critic.blocks[0].num_heads
    width = x.shape[1] // heads
    found = []
    for n in range(len(critic.blocks)):
        block = {k.removeprefix(f"blocks.{n}."): v for k, v in w.items()}
        qkv = norm(x, block, "attention_norm") @ block["qkv.weight"].T + block["qkv.bias"]
        q, k, v = (part.reshape(len(x), heads, width) for part in np.split(qkv, 3, axis=1))
        p, mixed = np.zeros((heads, len(x), len(x))), np.zeros_like(q)
        for h in range(heads):
            for i in range(len(x)):
                scores = np.exp([q[i, h] @ k[j, h] / math.sqrt(width) for j in range(len(x))])
                p[h, i] = scores / scores.sum()
                mixed[i, h] = sum(p[h, i, j] * v[j, h] for j in range(len(x)))
        found.append(p)
        x = x + mixed.reshape(x.shape) @ block["out.weight"].T + block["out.bias"]
        hidden = norm(x, block, "mlp_norm") @ block["mlp.0.weight"].T + block["mlp.0.bias"]
        gelu = (
            0.5 * hidden * (1 + np.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
        )
        x = x + gelu @ block["mlp.2.weight"].T + block["mlp.2.bias"]
    return np.array(found)


def norm(x, block, name):
    centred = x - x.mean(axis=1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    return scaled * block[f"{name}.weight"] + block[f"{name}.bias"]


@pytest.fixture
def critic():
    """Of larger weights than at the start, so that no row is nearly even."""
    torch.manual_seed(0)
    critic = TransformerCritic.of_size("tiny", S, A, depth=3).double()
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.mul_(3).add_(0.1 * torch.randn_like(parameter))
    return critic


def some(rows):
    g = torch.Generator().manual_seed(1)
    return (torch.randn(rows, d, generator=g, dtype=torch.float64) for d in (S, A))


def test_maps_equal_a_slow_computation_from_the_weights(critic):
    observations, actions = some(2)
    maps = critic.attention_maps(observations, actions).detach().numpy()
    assert maps.shape == (3, 2, 2, 1 + S + A, 1 + S + A)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-12)
    assert maps.std() > 0.05
    for b in range(2):
        slow = slow_maps(critic, observations[b].numpy(), actions[b].numpy())
        np.testing.assert_allclose(maps[:, b], slow, atol=1e-12)


def test_entropies_of_maps_are_those_the_critic_returns(critic):
    observations, actions = some(7)
    _, returned = critic(observations, actions, return_entropy=True)
    maps = critic.attention_maps(observations, actions)
    by_state = torch.stack([map_entropy(maps[:, i]) for i in range(7)])
    torch.testing.assert_close(by_state.mean(0), returned, rtol=0, atol=1e-12)


def test_a_weight_of_zero_adds_no_entropy():
    even, single = torch.full((1, 1, 2, 2), 0.5), torch.eye(2).view(1, 1, 2, 2)
    assert map_entropy(even).tolist() == [[pytest.approx(math.log(2))] * 2]
    assert map_entropy(single).tolist() == [[0, 0]]


# What is written.


def test_document_holds_the_maps_means_and_the_entropies(inspected):
    document = json.loads((inspected / DOCUMENT).read_text())
    maps = np.load(inspected / "attention.npz")
    assert document["schema"] == "tql-offline/inspect/1"
    assert document["tokens"] == ["[VALUE]", "s0", "s1", "s2", "a0", "a1"]
    assert maps["transitions"].tolist() == [0, 29, 30, 49]
    assert maps["attention"].shape == (4, 2, 2, 6, 6)
    np.testing.assert_allclose(maps["attention"].sum(-1), 1, atol=1e-5)
    for state, each in zip(document["states"], maps["attention"], strict=True):
        np.testing.assert_allclose(state["attention"], each.mean(1), rtol=1e-4)
        entropy = map_entropy(torch.tensor(each))
        np.testing.assert_allclose(state["entropy"], entropy, rtol=1e-4)
    most = math.log(6)
    targets = [[0.8 * most] * 2, [0.65 * most] * 2]
    np.testing.assert_allclose(document["entropy"]["target"], targets, rtol=1e-5)
    places = [(s["episode"], s["episode_step"]) for s in document["states"]]
    assert places == [(0, 0), (0, 29), (1, 0), (1, 19)]


def test_states_are_those_of_the_data_and_landscapes_the_critics(own, transformer, inspected):
    from tql_offline.agents import make_agent
    from tql_offline.config import read_toml, validate
    from tql_offline.training import checkpoint

    config = validate(read_toml(transformer.config), "the run")
    agent = make_agent(config, S, A, torch.device("cpu"))
    checkpoint.load_networks(chosen_checkpoint(transformer, None), agent)
    data = load(str(own)).episodes
    found = read_inspection(inspected)
    for state, row in zip(found.states, (0, 29, 31, 50), strict=True):
        q = state.landscape
        np.testing.assert_allclose(q.data_action, data.actions[state.transition], rtol=1e-5)
        observation = torch.as_tensor(data.observations[row])[None]
        assert observation[0, 0] == row  # an episode's last observation lies between
        for i, first in enumerate(q.grid):
            for j, second in enumerate(q.grid):
                action = torch.tensor([[first, second]], dtype=torch.float32)
                members = agent.networks["critic"](observation, action)[0].detach()
                assert q.mean[i, j] == pytest.approx(members.mean().item(), rel=1e-4)
                spread = (members.max() - members.min()).item() / 2  # of two members
                assert q.spread[i, j] == pytest.approx(spread, rel=1e-2, abs=1e-6)


def test_every_state_has_its_figures(inspected):
    assert len(list(inspected.iterdir())) == 2 + 4 * 3


def test_the_same_call_writes_the_same_bytes(transformer, tmp_path):
    first, second = (tmp_path / name for name in "ab")
    for out in (first, second):
        assert inspect(transformer, "--states", "29", "--out", out) == 0
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    assert len(names) == 2 + 3
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.usefixtures("undrawn")
def test_figures_of_an_earlier_look_go_and_other_files_stay(transformer, tmp_path):
    others = ("notes.txt", "q-of-mine.svg", "attention-notes.svg", "q-9.svg", "attention-9.svg")
    for name in others:
        (tmp_path / name).write_text("mine")
    assert inspect(transformer, "--states", "3", "--out", tmp_path) == 0
    assert all((tmp_path / name).read_text() == "mine" for name in others), "no earlier look"
    assert inspect(transformer, "--states", "4", "--out", tmp_path) == 0
    figures = {path.name for path in tmp_path.glob("*.svg")} - {*others}
    assert figures == {"attention-4.svg", "attention-heads-4.svg", "q-4.svg"}
    assert all((tmp_path / name).read_text() == "mine" for name in others)


@pytest.mark.usefixtures("undrawn")
def test_other_dims_are_held_at_the_chosen_action(transformer, tmp_path):
    assert inspect(transformer, "--states", "3", "--dims", "1", "--out", tmp_path / "d") == 0
    held = ("--held", "policy")
    assert inspect(transformer, "--states", "3", "--dims", "1", *held, "--out", tmp_path / "p") == 0
    data, policy = (read_inspection(tmp_path / n).states[0].landscape for n in "dp")
    assert data.dims == policy.dims == (1,)
    assert data.mean.shape == (5,)
    assert (data.held, policy.held) == ("data", "policy")
    assert (data.mean != policy.mean).any()


def test_default_states_are_first_middle_and_last_of_drawn_episodes():
    lengths = np.array([5, 1, 8])
    assert _default_states(lengths, Choice(episodes=9)) == (0, 2, 4, 5, 6, 9, 13)
    drawn = {_default_states(lengths, Choice(episodes=1, seed=seed)) for seed in range(20)}
    assert drawn == {(0, 2, 4), (5,), (6, 9, 13)}


@pytest.mark.usefixtures("undrawn")
def test_tables_show_entropy_beside_target_and_the_alarm(transformer, tmp_path, capsys):
    assert inspect(transformer, "--states", "0", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "No layer's attention has collapsed." in shown
    assert shown.count("all others") == 2


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("mode", "columns"),
    [
        ("layerwise", ["target, nats#", "difference#", "temperature#"]),
        ("fixed", ["temperature#"]),
        ("none", []),
    ],
)
def test_targets_and_temperatures_that_do_nothing_have_no_columns(own, tmp_path, mode, columns):
    run = trained(own, tmp_path, critic={"size": "tiny"}, entropy={"mode": mode})
    assert inspect(run, "--states", "0") == 0
    cells = entropy_columns(read_inspection(run.inspection))
    assert [*cells][3:] == columns
    assert {len(column) for column in cells.values()} == {4}


@pytest.mark.usefixtures("undrawn")
def test_an_mlp_has_its_landscapes_only(mlp, tmp_path, capsys):
    assert inspect(mlp, "--states", "0,9", "--out", tmp_path) == 0
    assert "of transformers alone, so only Q landscapes are shown" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {DOCUMENT, "q-0.svg", "q-9.svg"}
    assert read_inspection(tmp_path).tokens == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--states", "50"), "are not all among the 50 transitions of mine"),
        (("--states", "1;2"), "is not of the form 0-7 or 0,3,5"),
        (("--states", "1,1"), "names a number twice"),
        (("--dims", "0,2"), "are not two of the 2 action dims, 0 to 1"),
        (("--held", "both"), "is neither data nor policy"),
        (("--grid", "1"), "must lie between 2 and 101"),
        (("--grid", "102"), "must lie between 2 and 101"),
        (("--episodes", "0"), "must be at least 1"),
        (("--step", "3"), "has no checkpoint of step 3; it has 2, 4"),
    ],
)
def test_bad_choices_are_a_sentence_and_nothing_is_written(
    transformer, tmp_path, capsys, options, words
):
    assert inspect(transformer, *options, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_takes_no_file_is_told_first(transformer, monkeypatch, capsys):
    monkeypatch.setattr("os.access", lambda _path, mode: not mode & os.W_OK)
    monkeypatch.setattr("tql_offline.training.inspection.inspect_agent", None)
    assert inspect(transformer) == 2
    assert "nothing can be written to" in capsys.readouterr().err


def test_behaviour_cloning_has_nothing_to_inspect(own, tmp_path, capsys):
    assert inspect(trained(own, tmp_path, objective="cloning")) == 2
    assert "has no critic to inspect" in capsys.readouterr().err


def test_other_data_than_those_trained_on_are_refused(transformer, own, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    for path in (transformer.config, transformer.provenance):
        (copy / path.name).write_text(path.read_text().replace(load(str(own)).sha256, "0" * 64))
    shutil.copytree(transformer.checkpoints, copy / "checkpoints")
    assert inspect(replace(transformer, path=copy)) == 2
    assert "restore that file" in capsys.readouterr().err


# The alarm.


def test_a_layer_collapses_by_the_mean_over_all_its_queries():
    """(0.1 + 3·0.7)/4 = 0.55 holds; (0.1 + 3·0.6)/4 = 0.475 does not."""
    assert layer_means([[0.1, 0.7]], 4) == pytest.approx([0.55])
    assert collapsed_layers([[0.1, 0.7], [0.1, 0.6]], 4) == (2,)
    assert alarm_sentence([[0.1, 0.7]], 4, "at update 1") == ""
    said = alarm_sentence([[0.1, 0.6], [3.0, 0.1], [0.1, 0.0]], 4, "at update 1")
    assert "layers 1 and 3 have collapsed at update 1" in said
    assert "layer 3 is 0.03 nats" in said  # 0.025, to even


def collapse(run, layer, first, last, of=""):
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    for line in lines:
        entropy = line.setdefault(f"{of}entropy", [[1.0, 1.0], [1.0, 1.0]])
        if first <= line["step"] <= last:
            entropy[layer] = [0.1, 0.2]
    write_lines(run.metrics, lines)


@pytest.mark.usefixtures("undrawn")
def test_report_sounds_the_alarm_from_when_it_lasts(tmp_path):
    run = make_run(tmp_path / "a", steps=2000)
    collapse(run, 1, 300, 500)
    assert collapse_of(read_run(run)) == ((), 0)  # it recovered
    collapse(run, 1, 800, 2000)
    assert collapse_of(read_run(run)) == ((2,), 800)
    assert "layer 2 has collapsed since update 800" in alarm_of(read_run(run)).replace("\xa0", " ")
    files = write_report([run, make_run(tmp_path / "b", steps=2000)], tmp_path / "out")
    for text in (files.html.read_text(), files.markdown.read_text()):
        assert text.count("Attention alarm: layer 2 has collapsed") == 1
    assert re.search(r"\| a \|.*\| layer 2 \|", files.markdown.read_text())
    assert re.search(r"\| b \|.*\| none \|", files.markdown.read_text())


@pytest.mark.usefixtures("undrawn")
def test_report_sounds_the_alarm_of_v(tmp_path):
    run = make_run(tmp_path / "a", steps=2000)
    facts = json.loads(run.provenance.read_text()) | {"value_tokens": 4}
    run.provenance.write_text(json.dumps(facts))
    collapse(run, 0, 500, 2000, of="value_")
    assert collapse_of(read_run(run)) == ((), 0)
    assert collapse_of(read_run(run), "value_") == ((1,), 500)
    files = write_report([run, make_run(tmp_path / "b", steps=2000)], tmp_path / "out")
    for text in (files.html.read_text(), files.markdown.read_text()):
        assert text.count("Attention alarm: layer 1 has collapsed in V since update 500") == 1
    assert "V's layer 1" in files.markdown.read_text()
    assert "Attention entropy of V" in files.html.read_text()


def test_report_draws_the_mark_of_collapse(tmp_path):
    files = write_report([make_run(tmp_path / "a", steps=2000)], tmp_path / "out")
    assert "0.5, the collapse threshold" in files.html.read_text()


# The report.


@pytest.fixture
def reported(inspected, tmp_path):
    run = make_run(tmp_path / "run", steps=2000)
    run.inspection.mkdir()
    (run.inspection / DOCUMENT).write_bytes((inspected / DOCUMENT).read_bytes())
    return run


@pytest.mark.usefixtures("panels_drawn_once")
def test_report_draws_the_first_states_anew(reported, tmp_path):
    hostile = "<svg onload=alert(1)><script>1</script></svg>"
    (reported.inspection / "attention-0.svg").write_text(hostile)
    once, again = (write_report([reported], tmp_path / n).html.read_text() for n in ("1", "2"))
    assert once == again
    assert once.count("Inspected at update 4: transition") == 3
    assert "1 more states are in the run" in once
    assert once.count("Layer 1, mean of heads") == 3
    assert once.count("data:image/png;base64,") == 3 * 2
    assert "onload" not in once
    assert not re.search(r'(?:href|src)="(?!#|data:)', once.replace('href="#', "#"))


def test_report_shows_the_landscapes_of_an_mlp(mlp, tmp_path):
    run = make_run(tmp_path / "run", steps=2000)
    assert inspect(mlp, "--states", "0", "--dims", "0", "--out", run.inspection) == 0
    html = write_report([run], tmp_path / "out").html.read_text()
    assert "Attention is recorded of transformer critics alone." in html
    assert "Q, mean ± spread of the ensemble" in html


@pytest.mark.usefixtures("undrawn")
def test_report_reads_a_document_beyond_the_limit_of_others(mlp, tmp_path):
    run = make_run(tmp_path / "run", steps=2000)
    assert inspect(mlp, "--states", "0", "--grid", "101", "--out", tmp_path / "one") == 0
    document = json.loads((tmp_path / "one" / DOCUMENT).read_text())
    document["states"] *= MAX_STATES
    inspection._write(run.inspection, document, None, {})
    assert (run.inspection / DOCUMENT).stat().st_size > documents.MAX_DOCUMENT_BYTES
    read = read_run(run)
    assert read.warnings == ()
    assert len(read.inspection.states) == MAX_STATES


@pytest.mark.usefixtures("undrawn")
def test_a_document_too_large_to_read_is_not_written(mlp, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inspection, "MAX_DOCUMENT_BYTES", 1000)
    assert inspect(mlp, "--states", "0", "--out", tmp_path / "out") == 2
    assert "choose fewer states or a smaller --grid" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "<script>"},
        {"states": [1]},
        {"tokens": ["<b>"] * 9},
        {"layers": 10**9},
        {"observation_dim": True},
        {"entropy": {"transitions": 1, "nats": [["x"]], "target": [], "temperature": []}},
        {"states": [{}] * 65},
        {"step": 1.5},
    ],
)
def test_a_damaged_inspection_is_left_out_with_a_warning(reported, change):
    path = reported.inspection / DOCUMENT
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (warning,) = read_run(reported).warnings
    assert warning.startswith("inspect/inspect.json was left out: ")
    assert read_run(reported).inspection is None


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"a": 1', "\x00"])
def test_an_inspection_that_is_no_json_is_left_out(reported, text):
    (reported.inspection / DOCUMENT).write_text(text)
    assert read_run(reported).inspection is None


@pytest.mark.parametrize("key", ["attention", "action"])
def test_numbers_that_cannot_be_drawn_are_left_out(reported, key):
    path = reported.inspection / DOCUMENT
    document = json.loads(path.read_text())
    document["states"][0][key] = json.loads(
        re.sub(r"-?[\d.]+(e-?\d+)?", "1e999", json.dumps(document["states"][0][key]), count=1)
    )
    path.write_text(json.dumps(document))
    assert read_run(reported).inspection is None
