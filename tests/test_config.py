"""Settings: layers, round trip, and one sentence for everything wrong with them."""

import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from command_line import command

from tql_offline.agents.controlled_critic import make_control, make_critic
from tql_offline.cli.train import assign
from tql_offline.config import (
    _EARLIER,
    OBJECTIVES,
    SIZES,
    SIZES_TOLD,
    Config,
    as_its_version,
    read_complete,
    resolve,
    validate,
)
from tql_offline.errors import InputError
from tql_offline.networks import MLPCritic
from tql_offline.networks.mlp_critic import parameters_of_size
from tql_offline.presets import family_of, presets
from tql_offline.setting_effects import _TABLES, copies, idle_of
from tql_offline.settings_page import reference
from tql_offline.training.suite import expand, read_suite


def test_config_survives_its_toml():
    config = resolve(
        {"critic": {"size": "xl"}, "entropy": {"targets_nats": [[1.0, 1.2], [0.9, 1]]}}
    )
    assert validate(tomllib.loads(config.to_toml()), "test") == config


def test_layers_override_in_order(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("steps = 7\nseed = 3\n")
    assert resolve({}).steps == 8_000  # the preset of the default dataset
    assert resolve({}, file=file).steps == 7
    assert resolve({"steps": 9}, file=file).steps == 9
    assert resolve({"steps": 9}, file=file).seed == 3
    assert resolve({}, file=file).n_step == 25


def test_a_runs_own_config_repeats_it_exactly(tmp_path):
    config = resolve({"seed": 5, "flow": {"alpha": 2.0}})
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert resolve({}, file=file) == config


def test_defaults_are_the_papers():
    config = Config()
    assert (config.discount, config.polyak, config.batch_size) == (0.99, 0.005, 256)
    assert config.flow.hidden == (512, 512, 512, 512)
    assert (config.optimizer.critic_lr, config.optimizer.policy_lr) == (1e-4, 5e-4)


@pytest.mark.parametrize("family", list(presets()["family"]))
@pytest.mark.parametrize("method", ["", *presets()["method"]])
def test_every_preset_makes_a_config(family, method, tmp_path):
    name = f"{family}+{method}" if method else family
    config = resolve({}, preset=name)
    assert config.preset == name
    assert config.objective == presets()["method"].get(method, {}).get("objective", "flow")
    file = tmp_path / "config.toml"
    file.write_text(config.to_toml())
    assert resolve({}, file=file) == config


def test_the_families_with_coefficients_are_those_that_presets_toml_and_the_readme_name():
    ogbench = {"cube-single", "cube-double", "cube-triple", "scene", "puzzle", "humanoidmaze"}
    ogbench |= {"puzzle-3x3", "puzzle-4x4", "antmaze", "antmaze-giant"}
    without = {"pointmaze", "antsoccer", "ant", "D4RL", "D4RL/antmaze"}
    families = presets()["family"]
    for family in families.keys() - without - {"mujoco", "kitchen"}:
        assert rebrac_anywhere(families[family]), family
    for family in without | {"mujoco"}:
        assert not rebrac_anywhere(families[family]), family
        assert "implicit" not in families[family]
    assert all("implicit" in families[family] for family in ogbench | {"kitchen", "pen", "maze2d"})


def rebrac_anywhere(family):
    return "rebrac" in family or any("rebrac" in data for data in family.get("data", {}).values())


@pytest.mark.parametrize(
    ("name", "rebrac", "implicit"),
    [
        ("hopper-medium-v2", (0.01, 0.01), (0.7, 3.0)),
        ("hopper-medium-replay-v2", (0.05, 0.5), (0.7, 3.0)),
        ("walker2d-random-v2", (0.01, 0.0), (0.7, 3.0)),
        ("pen-human-v1", (0.1, 0.5), (0.7, 0.5)),
        ("pen-expert-v1", (0.01, 0.01), (0.7, 0.5)),
        ("antmaze-umaze-v2", (0.003, 0.002), (0.9, 10.0)),
        ("antmaze-umaze-diverse-v2", (0.003, 0.001), (0.9, 10.0)),
        ("maze2d-umaze-v1", (0.003, 0.001), (0.7, 3.0)),
        ("antmaze-large-navigate-singletask-task1-v0", (0.003, 0.01), (0.9, 10.0)),
        ("antmaze-giant-navigate-singletask-task1-v0", (0.003, 0.01), (0.9, 10.0)),
        ("scene-play-singletask-task1-v0", (0.1, 0.01), (0.9, 10.0)),
        ("minari:mujoco/hopper/medium-v0", (0.1, 0.01), (0.9, 10.0)),
    ],
)
def test_coefficients_are_those_of_the_dataset(name, rebrac, implicit):
    config = resolve({"dataset": {"name": name}}, preset="iql")
    assert (config.rebrac.policy_alpha, config.rebrac.critic_alpha) == rebrac
    assert (config.implicit.expectile, config.implicit.inverse_temperature) == implicit


def test_a_preset_of_one_objective_is_of_that_one_alone():
    hopper = {"dataset": {"name": "hopper-medium-v2"}}
    assert resolve(hopper, preset="iql").dataset.return_range == 1000.0
    assert resolve(hopper | {"objective": "implicit"}).dataset.return_range == 1000.0
    for other in ("", "rebrac", "cql", "bc"):
        assert resolve(hopper, preset=other).dataset.return_range == 0.0
    assert resolve(hopper | {"objective": "flow"}, preset="iql").dataset.return_range == 0.0
    own = hopper["dataset"] | {"return_range": 5.0}
    assert resolve({"dataset": own}, preset="iql").dataset.return_range == 5.0


@pytest.mark.parametrize(
    ("name", "after_cut"),
    [
        ("pen-human-v1", "nothing"),
        ("relocate-expert-v1", "nothing"),
        ("ant-medium-v2", "nothing"),
        ("hopper-medium-v2", "nothing"),
        ("kitchen-mixed-v0", "last"),
        ("antmaze-umaze-v2", "worst"),
    ],
)
def test_cal_ql_assumes_nothing_beyond_the_cuts_of_dense_rewards(name, after_cut):
    config = resolve({"dataset": {"name": name}}, preset="cal-ql")
    assert config.conservative.after_cut == after_cut


def test_rebrac_sees_the_ant_mazes_that_its_coefficients_were_tuned_for():
    for maze in ("umaze", "umaze-diverse", "medium-play", "large-diverse"):
        task = {"dataset": {"name": f"antmaze-{maze}-v2"}}
        for preset, *wanted in (("rebrac", 0.999, 100.0, 0.0), ("iql", 0.99, 1.0, -1.0)):
            config = resolve(task, preset=preset)
            assert [
                config.discount,
                config.dataset.reward_scale,
                config.dataset.reward_shift,
            ] == wanted


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": True}, "valid integer"),
        ({"steps": "100"}, "valid integer"),
        ({"steps": 1.5}, "valid integer"),
        ({"steps": float("inf")}, "valid integer"),
        ({"discount": "0.9"}, "valid number"),
        ({"dataset": {"normalise": 1}}, "valid boolean"),
        ({"dataset": {"normalise": "yes"}}, "valid boolean"),
        ({"flow": {"hidden": [8, True]}}, "valid integer"),
        ({"entropy": {"targets_nats": [["1", 1], [1, 1]]}}, "valid number"),
    ],
)
def test_values_of_another_type_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        resolve(settings)


def test_a_quoted_dotted_key_is_told_how_it_is_written(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text('"critic.size" = "tiny"\n')
    with pytest.raises(InputError, match=r"critic\.size.*one key with a dot .* without quotes"):
        resolve({}, file=file)


def test_whole_numbers_and_lists_are_taken_where_they_mean_the_same():
    config = resolve({"steps": 1e6, "discount": 1, "flow": {"alpha": 3, "hidden": [8, 8]}})
    assert (config.steps, type(config.steps)) == (1_000_000, int)
    assert (config.discount, config.flow.alpha, config.flow.hidden) == (1.0, 3.0, (8, 8))
    assert resolve({"entropy": {"targets_nats": [[1, 1], [1, 1]]}}).entropy.targets_nats


@pytest.mark.parametrize(
    ("text", "widths"), [("128x64", (128, 64)), ('"32"', (32,)), ("[8]", (8,))]
)
def test_layer_widths_are_a_list_or_numbers_with_crosses(text, widths):
    flags = {}
    assign(flags, f"flow.hidden={text}")
    assert resolve(flags).flow.hidden == widths


@pytest.mark.parametrize(
    ("hidden", "words"),
    [("8x", "is '8x'; give a list such as [1, 2]"), (8, "is 8; give a list"), ("8x0", "greater")],
)
def test_widths_of_another_form_are_refused_with_the_form(hidden, words):
    with pytest.raises(InputError, match=re.escape(words)):
        resolve({"flow": {"hidden": hidden}})


def test_a_config_may_begin_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbfsteps = 7\n")
    assert resolve({}, file=file).steps == 7


def test_a_gaps_target_needs_a_learned_weight():
    learned = {"conservative": {"lagrange": True, "target_gap": 0.8 - math.log(30)}}
    assert resolve(learned, preset="cal-ql").conservative.target_gap < -2.6  # its ant mazes'
    with pytest.raises(InputError, match=r"target_gap is given, .* conservative\.lagrange to true"):
        resolve({"conservative": {"target_gap": 1.0}}, preset="cql")


@pytest.mark.parametrize(
    ("name", "alpha", "gap", "backup", "weighted", "rewards"),
    [
        ("antmaze-large-diverse-v2", 5 * math.e, 0.8, "best", True, (10.0, -5.0)),
        ("maze2d-umaze-v1", 10 * math.e, 5.0, "sample", True, (1.0, 0.0)),
        ("pen-cloned-v1", 1.0, None, "sample", True, (1.0, 0.0)),
        ("kitchen-mixed-v0", 5.0, None, "best", False, (1.0, 0.0)),
        ("hopper-medium-v2", 10.0, None, "sample", True, (1.0, 0.0)),
    ],
)
def test_cql_has_the_published_coefficients(name, alpha, gap, backup, weighted, rewards):
    for preset in ("cql", "cal-ql"):
        config = resolve({"dataset": {"name": name}}, preset=preset)
        settings = config.conservative
        assert settings.alpha == pytest.approx(alpha, rel=2e-3)
        assert settings.lagrange is (gap is not None)
        if gap is not None:
            assert settings.target_gap == pytest.approx(
                gap - math.log(3 * settings.samples), abs=2e-3
            )
        assert (settings.backup, settings.importance_weights) == (backup, weighted)
        assert (config.dataset.reward_scale, config.dataset.reward_shift) == rewards


def test_a_fixed_weight_given_above_needs_no_gap():
    given = {"dataset": {"name": "maze2d-umaze-v1"}, "conservative": {"lagrange": False}}
    assert resolve(given, preset="cql").conservative.target_gap == 0


def test_a_fraction_given_above_takes_the_place_of_targets_in_nats(tmp_path):
    """Of the preset, of a complete config file, and of a suite's settings below an axis."""
    file = tmp_path / "config.toml"
    cube = resolve({"dataset": {"name": "cube-double-play-singletask-task1-v0"}})
    file.write_text(cube.to_toml())
    assert resolve({}, file=file).entropy.targets_nats
    entropy = resolve({"entropy": {"target": 0.5}}, file=file).entropy
    assert (entropy.target, entropy.targets_nats) == (0.5, ())
    suite = tmp_path / "suite.toml"
    suite.write_text(
        '[settings]\npreset = "cube-double+tql"\n[settings.entropy]\n'
        "targets_nats = [[3.0, 3.0], [2.5, 2.5]]\n"
        "[axis.target]\nlow.entropy.target = 0.3\nhigh.entropy.last_target = 0.9\nas_it_is = {}\n"
    )
    targets = [run.config.entropy.targets_nats for run in expand(read_suite(suite), {}, 1)]
    assert [len(target) for target in targets] == [0, 0, 2]


def test_a_complete_config_file_takes_no_other_preset_of_any_kind(tmp_path):
    """Data of one's own have no family, so its preset is empty and nothing clashes by name."""
    file = tmp_path / "config.toml"
    file.write_text(resolve({"dataset": {"name": "mine.npz"}}).to_toml())
    for preset in ("iql", "scene+iql"):
        with pytest.raises(InputError, match="has every setting, so what presets set"):
            resolve({}, file=file, preset=preset)


@pytest.mark.parametrize(
    ("preset", "given", "idle"),
    [
        ("iql", {"flow": {"alpha": 3.0, "hidden": [8]}}, ["flow.alpha"]),
        ("iql", {"implicit": {"samples": 4, "inverse_temperature": 1.0}}, ["implicit.samples"]),
        ("ifql", {"implicit": {"inverse_temperature": 1.0}}, ["implicit.inverse_temperature"]),
        ("bc", {"critic": {"size": "xl"}, "steps": 5}, ["critic.size"]),
        ("fql", {"entropy": {"target": 0.5}}, ["entropy.target"]),
        ("fql", {"entropy": {"mode": "none"}, "critic": {"reduction": "min"}}, []),
        ("cql", {"critic": {"reduction": "min"}}, ["critic.reduction"]),
        ("tql", {"critic": {"counted": "member"}}, ["critic.counted"]),
        ("fql", {"critic": {"counted": "member"}}, []),
        ("floq", {"critic": {"counted": "member", "kind": "transformer"}}, []),
        ("bc", {"discount": 0.9, "n_step": 3}, ["n_step"]),
        ("cal-ql", {"conservative": {"after_cut": "last"}}, []),
    ],
)
def test_settings_that_a_method_does_not_use_are_known(preset, given, idle):
    assert idle_of(resolve(given, preset=preset), given) == idle


def test_a_new_objective_may_read_every_table(monkeypatch):
    """Until it says which it reads: else runs that differ in one would count as copies."""
    monkeypatch.setitem(OBJECTIVES, "awac", "tql_offline.agents.implicit_q:ImplicitQ")
    given = {"implicit": {"inverse_temperature": 3.0}, "critic": {"reduction": "min"}}
    assert idle_of(resolve(given | {"objective": "awac"}), given) == []


def test_every_objective_says_which_tables_it_reads():
    assert set(_TABLES) == set(OBJECTIVES)


def test_settings_without_effect_are_told_and_the_config_is_printed(capsys):
    flags = ["--preset", "iql", "--set", "rebrac.policy_alpha=9", "--print-config"]
    code, output = command(["train", *flags], capsys)
    assert code == 0
    assert output.err == "note: IQL does not use rebrac.policy_alpha, so it has no effect\n"
    assert tomllib.loads(output.out)["rebrac"]["policy_alpha"] == 9


def test_runs_of_a_suite_that_would_train_the_same_are_known():
    def named(preset, **rebrac):
        return resolve({"rebrac": rebrac} if rebrac else {}, preset=preset)

    runs = {
        "a": named("iql", policy_alpha=1.0),
        "b": named("iql", policy_alpha=2.0),
        "c": named("rebrac", policy_alpha=1.0),
        "d": named("rebrac", policy_alpha=2.0),
        "e": named("iql"),
        "f": resolve({"seed": 1}, preset="iql"),
    }
    assert list(copies(runs.items())) == [("a", "b"), ("a", "e")]


@pytest.mark.parametrize(
    ("name", "near"),
    [("cube", "cube-single or cube-double or cube-triple"), ("cube-singel", "cube-single")],
)
def test_a_preset_that_is_none_is_asked_for_by_its_beginning(name, near):
    with pytest.raises(InputError, match=f"did you mean {near}"):
        resolve({}, preset=name)


@pytest.mark.parametrize(
    ("typed", "preset", "method"),
    [
        *(("IQL", "iql", "IQL"), ("FQL", "fql", "FQL"), ("TQL", "tql", "TQL")),
        *(("calql", "cal-ql", "Cal-QL"), ("Cal-QL", "cal-ql", "Cal-QL"), ("cql", "cql", "CQL")),
        *(("flow_bc", "flow-bc", "flow BC"), ("ReBRAC", "rebrac", "ReBRAC")),
        ("Cube_Double+IQL", "cube-double+iql", "IQL"),
    ],
)
def test_a_preset_is_found_whatever_its_case_and_hyphens(typed, preset, method):
    own = {"dataset": {"name": "mine.hdf5"}}  # of no family
    config = resolve(own, preset=typed)
    assert (config.preset, config.method) == (preset, method)
    assert config == resolve(own | {"preset": typed}) == resolve(own, preset=preset)


def test_no_two_presets_differ_in_case_and_hyphens_alone():
    names = [name for kind in ("family", "method") for name in presets()[kind]]
    assert len({re.sub("[-_]", "", name).casefold() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset", "a\udcff.npz"], r"'dataset\.name'.* 'a\\udcff\.npz', not UTF-8; rename the"),
        (
            ["--dataset", "hopper-medium-v2", "--path", "\udcff"],
            r"'dataset\.path'.*; rename the file",
        ),
        (["--env", "\udcff"], r"'dataset\.env_id'.*, not UTF-8; correct it"),
    ],
)
def test_a_name_that_is_not_utf_8_is_to_be_changed(flags, said, capsys):
    """As Python reads a file's name of other bytes from the command line."""
    code, output = command(["train", *flags], capsys)
    assert (code, output.err.count("\n")) == (2, 1)
    assert re.search(said, output.err)


def test_numbers_of_numpy_are_numbers():
    config = resolve({"steps": np.int64(5), "discount": np.float64(0.5), "seed": np.int32(1)})
    assert (config.steps, config.discount, config.seed) == (5, 0.5, 1)
    assert resolve({"flow": {"hidden": np.array([5, 6])}}).flow.hidden == (5, 6)
    assert resolve({"flow": {"hidden": [np.int64(5)]}}).flow.hidden == (5,)
    with pytest.raises(InputError, match=r"steps"):
        resolve({"steps": np.add})
    with pytest.raises(InputError, match=r"settings are 'cfg\.toml' and no dict; .*file=Path"):
        resolve("cfg.toml")


def test_targets_of_entropies_bind_the_depth_of_controlled_transformers_alone():
    """The family's preset lists two layers of targets in nats."""
    deep = {"dataset": {"name": "cube-double-play-singletask-task1-v0"}, "critic": {"depth": 3}}
    for method in ("fql", "bc", "floq"):
        assert resolve(deep, preset=method).critic.depth == 3
    without = resolve(deep | {"entropy": {"mode": "none"}})
    assert len(make_control(without, make_critic(without, 28, 5)).targets) == 3
    with pytest.raises(InputError, match=r"lists 2 layers where critic\.depth is 3; give 3 pairs"):
        resolve(deep)
    assert resolve(deep | {"entropy": {"targets_nats": []}}).critic.depth == 3


def test_a_last_reward_that_goes_on_forever_needs_a_discount():
    settings = {"discount": 1.0, "conservative": {"after_cut": "last"}}
    assert resolve(settings, preset="cql").discount == 1.0
    with pytest.raises(InputError, match="infinite where discount is 1; lower discount"):
        resolve(settings, preset="cal-ql")


def test_floqs_alpha_is_lower_on_large_humanoid_mazes():
    for maze, floq in (("medium", 30.0), ("large", 20.0)):
        task = {"dataset": {"name": f"humanoidmaze-{maze}-navigate-singletask-task1-v0"}}
        assert resolve(task, preset="floq").flow.alpha == floq
        assert resolve(task, preset="fql").flow.alpha == 30.0
        assert resolve(task).rebrac.policy_alpha == 0.01


def test_floqs_values_are_means_on_ant_mazes_where_fqls_are_minima():
    for name, floq in (("antmaze-large", "mean"), ("antmaze-giant", "min")):
        task = {"dataset": {"name": f"{name}-navigate-singletask-task1-v0"}}
        assert resolve(task, preset="floq").critic.reduction == floq
        assert resolve(task, preset="fql").critic.reduction == "min"


def test_the_mlp_methods_published_size_is_medium():
    """Four hidden layers of 512, by cube-double's 37 and 5 dims."""
    critic = MLPCritic.of_size("medium", 37, 5)
    widths = [p.shape[0] for p in critic.members[0].parameters() if p.ndim == 2]
    assert widths == [pytest.approx(512, rel=0.02)] * 4 + [1]


def test_the_sizes_told_are_those_of_a_transformer_for_cube_double():
    millions = {size: parameters_of_size(size, 37, 5, 2, 2) / 1e6 for size in SIZES}
    told = ", ".join(f"{s} {m:.{0 if m > 10 else 1}f}M" for s, m in millions.items())
    assert told == SIZES_TOLD


def test_a_method_lies_over_the_datasets_family_and_under_the_flags():
    scene = {"dataset": {"name": "scene-play-singletask-task1-v0"}}
    config = resolve(scene, preset="iql")
    assert (config.preset, config.objective, config.critic.kind) == (
        "scene+iql",
        "implicit",
        "mlp",
    )
    assert config.implicit.inverse_temperature == 10.0
    config = resolve(scene | {"critic": {"kind": "transformer"}}, preset="puzzle+iql")
    assert (config.preset, config.critic.kind) == ("puzzle+iql", "transformer")
    own = resolve({"dataset": {"name": "mine.hdf5"}}, preset="rebrac")
    assert own.preset == "rebrac"


@pytest.mark.parametrize("bad", ["iql+fql", "scene+puzzle", "iql+", "+", "bogus"])
def test_a_preset_that_is_none_is_refused_with_all_that_are(bad):
    with pytest.raises(InputError, match=r"cube-double.*rebrac"):
        resolve({}, preset=bad)


def test_a_complete_config_is_not_for_another_familys_data(tmp_path):
    """Nothing of that family's preset would take effect, whose name the run would bear."""
    file = tmp_path / "config.toml"
    file.write_text(resolve({"dataset": {"name": "mine.hdf5"}}, preset="fql").to_toml())
    antmaze = {"dataset": {"name": "antmaze-medium-play-v2"}}
    with pytest.raises(InputError, match="every setting.*what presets set for this dataset"):
        resolve(antmaze, file=file)
    assert resolve({"dataset": {"name": "other.hdf5"}}, file=file).preset == "fql"
    file.write_text(resolve({"dataset": {"name": "hopper-medium-v2"}}, preset="rebrac").to_toml())
    for other in ({"dataset": {"name": "hopper-medium-replay-v2"}}, {"objective": "implicit"}):
        with pytest.raises(InputError, match="presets set for this dataset, objective"):
            resolve(other, file=file)
    cube = {"dataset": {"name": "cube-double-play-singletask-task1-v0"}}
    file.write_text(resolve(cube).to_toml())
    with pytest.raises(InputError, match="presets set for this dataset"):
        resolve(antmaze, file=file)
    for other in ({"dataset": {"name": "mine.hdf5"}}, {"critic": {"size": "xl"}}, {"seed": 3}):
        assert resolve(other, file=file).flow.alpha == 300.0, "its own preset's, which it names"
    triple = {"dataset": {"name": "cube-triple-play-singletask-task1-v0"}}
    file.write_text(resolve(triple).to_toml())
    with pytest.raises(InputError, match="objective and size"):
        resolve({"critic": {"size": "xl"}}, file=file)
    own = {"critic": {"size": "xl"}, "optimizer": {"critic_lr": 5e-4}}
    assert resolve(own, file=file).optimizer.critic_lr == 5e-4
    file.write_text('preset = "fql"\n')
    assert resolve(antmaze, file=file).dataset.reward_shift == -1.0


def test_a_preset_named_in_a_file_is_applied(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('preset = "scene"\nseed = 4\n')
    config = resolve({}, file=file)
    assert (config.preset, config.flow.alpha, config.seed) == ("scene", 300.0, 4)
    file.write_text('preset = "bogus"\n')
    with pytest.raises(InputError, match="bogus"):
        resolve({}, file=file)


def test_presets_know_sizes_and_yield_to_what_was_asked_for():
    triple = {"dataset": {"name": "cube-triple-play-singletask-task1-v0"}}
    assert resolve(triple | {"critic": {"size": "xl"}}).optimizer.critic_lr == 4e-4
    for mlp in ({"preset": "fql"}, {"entropy": {"mode": "none"}, "critic": {"kind": "mlp"}}):
        given = triple | mlp | {"critic": {"size": "xl", **mlp.get("critic", {})}}
        assert resolve(given).optimizer.critic_lr == 1e-4, "it is the transformer's"
    assert resolve(triple | {"critic": {"size": "large"}}).optimizer.critic_lr == 1e-4
    fractions = resolve(triple | {"entropy": {"target": 0.5}})
    assert (fractions.entropy.targets_nats, fractions.entropy.target) == ((), 0.5)
    with pytest.raises(InputError, match="preset 'cube-triple'"):
        resolve(triple | {"critic": {"depth": 3}})
    assert family_of("scene_logs.hdf5") == family_of("puzzle.npz") == ""


def test_preset_follows_the_dataset_family():
    assert family_of("cube-double-play-singletask-task1-v0") == "cube-double"
    giant = resolve({"dataset": {"name": "antmaze-giant-navigate-singletask-v0"}})
    assert (giant.flow.alpha, giant.discount, giant.critic.reduction) == (10.0, 0.995, "min")
    assert resolve({"dataset": {"name": "antmaze-large-diverse-v2"}}).flow.alpha == 3.0
    assert family_of("antmaze-large-navigate-singletask-v0") == "antmaze"
    assert family_of("antmaze-medium-play-v2") == "antmaze-medium-play"
    assert family_of("humanoidmaze-medium-navigate-singletask-task2-v0") == "humanoidmaze"
    assert family_of("powderworld-easy-play-v0") == ""
    puzzle = resolve({"dataset": {"name": "puzzle-3x3-play-singletask-task1-v0"}})
    assert puzzle.flow.alpha == 1000.0


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"stepss": 1}, ["stepss", "unknown"]),
        ({"critic": {"width": 3}}, ["critic.width", "unknown"]),
        ({"critic": {"size": "huge"}}, ["critic.size", "huge", "xxl"]),
        ({"steps": 0}, ["steps", "0", "greater"]),
        ({"discount": 1.5}, ["discount", "1.5"]),
        ({"optimizer": {"critic_lr": float("inf")}}, ["optimizer.critic_lr"]),
        ({"seed": -1}, ["seed"]),
        ({"critic": 4}, ["critic"]),
        ({"entropy": {"targets_nats": [[1, 1]]}}, ["targets_nats", "depth"]),
        ({"entropy": {"target": 1.0}}, ["entropy.target", "1.0", "less than 1"]),
        ({"entropy": {"last_target": 1.0}}, ["entropy.last_target", "1.0", "less than 1"]),
        ({"objective": "magic"}, ["objective", "magic"]),
    ],
)
def test_bad_settings_are_named_in_one_sentence(bad, words):
    with pytest.raises(InputError) as caught:
        resolve(bad)
    assert "\n" not in str(caught.value)
    for word in [*words, "the given settings"]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"steps = ", b"\xff\xfe", b"a = [" * 100, b"[dataset]\nname = 5\n"]
)
def test_bad_files_are_named_in_one_sentence(tmp_path, content):
    file = tmp_path / "bad.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match="bad.toml"):
        resolve({}, file=file)


def test_missing_file_and_double_preset(tmp_path):
    with pytest.raises(InputError, match="none.toml"):
        resolve({}, file=tmp_path / "none.toml")
    file = tmp_path / "full.toml"
    file.write_text(resolve({}).to_toml())
    with pytest.raises(InputError, match="pointmaze"):
        resolve({}, file=file, preset="scene")
    with pytest.raises(InputError, match="not a family"):
        resolve({}, preset="nope")


def test_complete_settings_of_an_earlier_version_mean_what_they_did(tmp_path):
    now = resolve({"dataset": {"name": "cube-single-play-singletask-v0"}}, preset="iql")
    assert (now.optimizer.policy_weight_decay, now.implicit.deviation) == (0.01, "unit")
    lines = ("policy_weight_decay = 0.01\n", 'deviation = "unit"\n')
    text = now.to_toml()
    for line in lines:
        assert line in text
        text = text.replace(line, "")
    file = tmp_path / "config.toml"
    file.write_text(text)
    then = resolve({}, file=file)
    assert (then.optimizer.policy_weight_decay, then.implicit.deviation) == (0.0, "learned")
    file.write_text("[optimizer]\nweight_decay = 0.01\n")
    assert resolve({}, file=file).optimizer.policy_weight_decay == 0.01, "a user's own file"


def test_settings_that_came_later_mean_in_an_earlier_file_what_was_then(tmp_path):
    earlier = tomllib.loads(
        resolve({"dataset": {"name": "kitchen-mixed-v0"}}, preset="cql").to_toml()
    )
    for table, settings in _EARLIER.items():
        for name in settings:
            del earlier[table][name]
    for later in ("pac", "floq", "rebrac", "cloning", "watch", "execution", "own"):
        del earlier[later]
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(earlier))
    for then in (resolve({}, file=file), read_complete(file)):
        assert (then.conservative.backup, then.conservative.importance_weights) == ("sample", True)
        for table, settings in _EARLIER.items():
            assert {name: getattr(getattr(then, table), name) for name in settings} == settings
    assert as_its_version(earlier)["optimizer"]["policy_weight_decay"] == 0


def test_an_earlier_run_of_pac_keeps_the_values_that_rewards_allow(tmp_path):
    scene = {"dataset": {"name": "scene-play-singletask-task1-v0"}}
    earlier = tomllib.loads(resolve(scene, preset="pac").to_toml())
    assert earlier["pac"].pop("least") == -400.0
    file = tmp_path / "config.toml"
    file.write_text(tomli_w.dumps(earlier))
    assert resolve({}, file=file).pac.least == read_complete(file).pac.least == 0.0


def test_many_flags_are_no_file_of_an_earlier_version():
    given = {"seed": 1, "steps": 100, "batch_size": 256, "discount": 0.99, "n_step": 1}
    given |= {"device": "cpu", "tracker": "none", "optimizer": {"critic_lr": 1e-3}}
    for preset in ("", "tql"):
        assert resolve(given, preset=preset).optimizer.policy_weight_decay == 0.01
    assert validate(given | {"preset": ""}, "here").optimizer.policy_weight_decay == 0.01


def test_the_settings_page_is_up_to_date():
    page = Path(__file__).parent.parent / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == reference(), "run `make docs`"


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("batchsize", "did you mean batch_size?"),
        ("critic.siz", "did you mean critic.size or "),
        ("alpha", "did you mean flow.alpha or conservative.alpha?"),
        ("zzz", "docs/config.md lists all settings"),
        ("y" * 10**6, "docs/config.md lists all settings"),
    ],
)
def test_an_unknown_setting_names_the_nearest_ones(setting, meant):
    table, _, name = setting.rpartition(".")
    with pytest.raises(InputError, match=re.escape(meant)):
        resolve({table: {name: 1}} if table else {name: 1})
