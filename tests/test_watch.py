"""Rules that watch a run: when they take effect, what is said, what is stopped, what is kept."""

import json
from dataclasses import replace

import numpy as np
import pytest
from stand_ins import Noting

from tql_offline.cli import main
from tql_offline.config import WatchConfig, resolve
from tql_offline.datasets.episodes import Episodes
from tql_offline.errors import InputError
from tql_offline.eval.attention_health import COLLAPSED
from tql_offline.eval.run_records import read_run
from tql_offline.files import read_json, read_jsonl
from tql_offline.runs import RunFolder
from tql_offline.training.reporters import SilentReporter
from tql_offline.training.resume import resume
from tql_offline.training.run import run, run_seeds
from tql_offline.training.watch import Warned, Watch, largest_return, make_watch, stop_error

TOKENS = 43
EVEN, FLAT = [[3.0, 3.0]] * 2, [[3.0, 3.0], [0.4, 0.4]]


def episodes(rewards, lengths):
    count = sum(lengths)
    return Episodes(
        observations=np.zeros((count + len(lengths), 1), np.float32),
        actions=np.zeros((count, 1), np.float32),
        rewards=np.resize(np.float32(rewards), count),
        masks=np.ones(count, np.float32),
        lengths=np.array(lengths),
    )


def lines(key, values):
    return [{"step": 100 * n, key: value} for n, value in enumerate(values, 1)]


def found(key, values, bound=100.0, **settings):
    """Rule, step and last good step of everything that is found."""
    watch = Watch(WatchConfig(**settings), bound, TOKENS)
    return [(w.rule, w.step, w.since) for line in lines(key, values) for w in watch.see(line)]


@pytest.mark.parametrize(
    ("rewards", "lengths", "discount", "want"),
    [
        ([-1.0, 0.0], [4, 2], 0.99, 100.0),
        ([-2.0, 5.0], [4, 2], 0.9, 50.0),
        ([-3.0, 1.0], [4, 2], 1.0, 12.0),
        ([0.0], [4], 0.99, 1.0),
    ],
)
def test_the_largest_return_is_that_of_the_largest_reward_forever(rewards, lengths, discount, want):
    assert largest_return(episodes(rewards, lengths), discount) == pytest.approx(want)


@pytest.mark.parametrize("key", ["q_mean", "target_mean", "value_mean"])
@pytest.mark.parametrize("sign", [1, -1])
def test_q_explodes_beyond_the_factor_and_not_at_it(key, sign):
    assert found(key, [sign * 300.0] * 3) == []
    assert found(key, [sign * 300.1] * 3) == [("exploding_q", 300, 0)]


def test_a_rule_takes_effect_after_its_patience_once_until_it_is_good_again():
    bad, good = 301.0, 1.0
    assert found("q_mean", [bad, bad, good, bad, bad]) == []
    once = [good, *[bad] * 9]
    assert found("q_mean", once) == [("exploding_q", 400, 100)]
    twice = [*once, good, *[bad] * 3]
    assert found("q_mean", twice) == [("exploding_q", 400, 100), ("exploding_q", 1400, 1100)]
    assert found("q_mean", [bad], patience=1) == [("exploding_q", 100, 0)]
    assert found("q_mean", [bad] * 9, exploding_q="off") == []


def test_a_collapsed_layer_is_the_reports():
    assert found("entropy", [EVEN] * 5) == []
    assert found("entropy", [EVEN, *[FLAT] * 5]) == [("collapsed_entropy", 400, 100)]
    at = [[[COLLAPSED] * 2] * 2]
    assert found("entropy", at * 5) == []
    assert found("entropy", [FLAT] * 5, collapsed_entropy="off") == []
    assert found("entropy", [[]] * 5) == [], "a critic without attention"


def test_vs_collapse_is_by_its_own_tokens():
    """(0.1 + 5·0.6)/6 = 0.517 of six tokens holds; (0.1 + 3·0.6)/4 = 0.475 of four does not."""
    groups = [[0.1, 0.6]]
    watch = Watch(WatchConfig(patience=1), 100.0, 6, value_tokens=4)
    assert watch.see({"step": 1, "entropy": groups}) == []
    (warned,) = watch.see({"step": 2, "entropy": groups, "value_entropy": groups})
    assert warned.rule == "collapsed_entropy"
    assert "layer 1 has collapsed in V at update 2" in warned.sentence


def test_a_run_that_goes_on_finds_what_it_would_have_found():
    values = [1.0, *[301.0] * 5, 1.0, *[301.0] * 4]
    whole = found("q_mean", values)
    assert len(whole) == 2
    for cut in range(len(values) + 1):
        watch = Watch(WatchConfig(), 100.0, TOKENS)
        before, after = lines("q_mean", values)[:cut], lines("q_mean", values)[cut:]
        watch.catch_up(before)
        rest = [(w.rule, w.step, w.since) for line in after for w in watch.see(line)]
        assert rest == [w for w in whole if w[1] > 100 * cut]


def settings(**overrides):
    """A few updates whose critic cannot but be warned of: its bound is exceeded from the start."""
    return resolve(
        {
            "steps": 12,
            "log_every": 2,
            "checkpoint_every": 3,
            "batch_size": 4,
            "device": "cpu",
            "critic": {"size": "tiny"},
            "flow": {"hidden": [8]},
            "evaluation": {"protocol": "quick-return", "processes": 1},
        }
        | overrides
    )


@pytest.fixture(scope="module")
def explosive(data):
    """Data of a great reward, without an environment to score in."""
    rewards = np.zeros_like(data.episodes.rewards)
    return replace(data, env_id=None, episodes=replace(data.episodes, rewards=rewards))


@pytest.fixture
def exploding(monkeypatch):
    """Q beyond any bound from the third log line on."""
    monkeypatch.setattr("tql_offline.training.run.make_watch", lambda *_: OneBadFrom(6))


class OneBadFrom(Watch):
    """A watch that sees a Q of 1000 from a step on."""

    def __init__(self, step, action="stop"):
        super().__init__(WatchConfig(exploding_q=action, patience=2), 100.0, 0)
        self.step = step

    def see(self, line):
        return super().see(line | {"q_mean": 1000.0 if line["step"] >= self.step else 0.0})


def test_stop_names_rule_step_and_last_good_checkpoint(explosive, tmp_path, exploding):
    config = settings(watch={"exploding_q": "stop"})
    with pytest.raises(InputError, match=r"Q explodes at update 8: .*1000.*±100") as error:
        run(config, explosive, tmp_path, "r", SilentReporter())
    folder = RunFolder(tmp_path / "r")
    assert f"last good checkpoint is {folder.checkpoints / '3'}," in str(error.value)
    assert "watch.exploding_q" in str(error.value)
    assert folder.checkpoint_steps() == [3, 6], "none is written of the step that is stopped"
    assert [line["step"] for line in read_jsonl(folder.metrics)] == [2, 4, 6, 8]
    assert not folder.result.exists()
    ended = read_json(folder.ended)
    assert (ended["rule"], ended["step"]) == ("exploding_q", 8)


def test_a_stopped_run_goes_on_once_its_action_is_warn(explosive, tmp_path, monkeypatch):
    make = "tql_offline.training.run.make_watch"
    monkeypatch.setattr(make, lambda *_: OneBadFrom(6))
    with pytest.raises(InputError, match="explodes"):
        run(settings(watch={"exploding_q": "stop"}), explosive, tmp_path, "r", SilentReporter())
    folder = RunFolder(tmp_path / "r")
    text = folder.config.read_text().replace('exploding_q = "stop"', 'exploding_q = "warn"')
    folder.config.write_text(text)
    noting = Noting()
    assert folder.ended.exists()
    resume(folder.path, lambda _: explosive, noting)
    assert not folder.ended.exists()
    assert [s for s in noting.sentences if "explodes" in s] == [
        "warning: Q explodes at update 8: q_mean is 1000 where no return of the data can be "
        "beyond ±100"
    ]
    uninterrupted = run(settings(), explosive, tmp_path, "whole", SilentReporter())
    for name in ("metrics", "warnings"):
        assert getattr(folder, name).read_bytes() == getattr(uninterrupted, name).read_bytes()


def test_a_warning_is_kept_in_the_run_its_result_and_its_report(explosive, tmp_path, exploding):
    folder = run(settings(), explosive, tmp_path, "r", SilentReporter())
    (line,) = read_jsonl(folder.warnings)
    assert (line["rule"], line["step"], line["since"]) == ("exploding_q", 8, 4)
    assert read_json(folder.result)["warnings"] == [line["sentence"]]
    assert f"training: {line['sentence']}" in read_run(folder).warnings


def test_a_run_without_warnings_has_no_file_of_them(explosive, tmp_path):
    folder = run(settings(), explosive, tmp_path, "r", SilentReporter())
    assert not folder.warnings.exists()
    assert read_json(folder.result)["warnings"] == []


def test_a_seed_that_is_stopped_does_not_stop_the_others(explosive, tmp_path, monkeypatch):
    make = "tql_offline.training.run.make_watch"
    monkeypatch.setattr(make, lambda config, *_: OneBadFrom(6 if config.seed == 1 else 99))
    config = settings(watch={"exploding_q": "stop"})
    with pytest.raises(InputError, match="explodes at update 8"):
        run_seeds(config, [0, 1, 2], explosive, tmp_path, "r", SilentReporter())
    finished = [(tmp_path / f"r-s{seed}" / "result.json").exists() for seed in range(3)]
    assert finished == [True, False, True]


def test_the_bound_is_of_the_rewards_that_training_sees(explosive, tmp_path, monkeypatch):
    bounds = []

    def make(config, episodes, tokens):
        bounds.append(largest_return(episodes, config.discount))
        return make_watch(config, episodes, tokens)

    monkeypatch.setattr("tql_offline.training.run.make_watch", make)
    config = settings(discount=0.99, dataset={"reward_scale": 0.5, "reward_shift": -2.0})
    noting = Noting()
    run_seeds(config, [0, 1], explosive, tmp_path, "r", noting)
    assert bounds == pytest.approx([200.0, 200.0])
    told = "note: training sees rewards 0.5 r -2, as set by "
    assert sum(sentence.startswith(told) for sentence in noting.sentences) == 1
    seen = [read_json(tmp_path / f"r-s{seed}" / "provenance.json")["rewards"] for seed in (0, 1)]
    assert seen == [{"scale": 0.5, "shift": -2.0}] * 2


def test_rewards_that_are_left_alone_are_not_spoken_of(explosive, tmp_path):
    noting = Noting()
    run(settings(), explosive, tmp_path, "r", noting)
    assert not any("rewards of" in sentence for sentence in noting.sentences)


def test_real_training_that_explodes_is_warned_of(explosive, tmp_path):
    """Rewards of 1 with a discount of 0.01 allow returns of 1.01; a great rate takes Q far off."""
    noting = Noting()
    config = settings(
        steps=60, log_every=5, discount=0.01, optimizer={"critic_lr": 10.0, "warmup": 0}
    )
    run(config, explosive, tmp_path, "r", noting)
    assert any("Q explodes at update" in sentence for sentence in noting.sentences)


def test_real_attention_that_collapses_is_warned_of(explosive, tmp_path):
    """Without control, keys and queries driven apart by a great rate."""
    noting = Noting()
    config = settings(
        steps=80,
        log_every=5,
        entropy={"mode": "none"},
        optimizer={"critic_lr": 1.0, "warmup": 0},
        watch={"exploding_q": "off"},
    )
    run(config, explosive, tmp_path, "r", noting)
    assert any("Attention alarm: layer" in sentence for sentence in noting.sentences)


def test_a_run_of_the_implicit_objective_watches_v(explosive, tmp_path, monkeypatch):
    """By pointmaze's three tokens of a state: (0.1 + 2·0.6)/3 = 0.43; five would have 0.5."""
    made = []
    keep = "tql_offline.training.run.make_watch"
    monkeypatch.setattr(keep, lambda *arguments: made.append(make_watch(*arguments)) or made[0])
    config = settings(objective="implicit", watch={"patience": 1})
    folder = run(config, explosive, tmp_path, "r", SilentReporter())
    assert read_json(folder.provenance)["value_tokens"] == 3
    line = list(read_jsonl(folder.metrics))[-1]
    assert made[0].see(line) == []
    (warned,) = made[0].see(line | {"value_entropy": [[0.1, 0.6], [1.0, 1.0]]})
    assert "collapsed in V" in warned.sentence


def test_the_command_ends_with_code_2(explosive, tmp_path, exploding, monkeypatch, capsys):
    monkeypatch.setattr("tql_offline.cli.train.load_and_say", lambda _: explosive)
    toml = tmp_path / "c.toml"
    toml.write_text(settings(watch={"exploding_q": "stop"}).to_toml())
    arguments = ["train", "--config", str(toml), "--runs", str(tmp_path), "--name", "r"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "tql-offline: Q explodes at update 8" in capsys.readouterr().err
    assert json.loads((tmp_path / "r" / "warnings.jsonl").read_text())["rule"] == "exploding_q"


def test_a_stop_before_the_first_checkpoint_advises_no_resuming():
    warned = Warned(rule="exploding_q", step=1, since=0, sentence="Q is 1e9")
    assert "there is no checkpoint yet" in str(stop_error(warned, ""))
    assert "resume" not in str(stop_error(warned, ""))
    assert str(stop_error(warned, "runs/a/1")).endswith("and resume")
