"""A run's settings: frozen, validated, TOML in and out.

A run's config is built in layers, each overriding the previous one: the defaults below (the
paper's), the preset of the dataset's family (presets.py), a config file, flags. The result is
complete and is written to the run folder; it is enough to repeat the run without the layers.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tql_offline.documents import MAX_CONFIG_BYTES, parse_toml, read_bounded
from tql_offline.errors import InputError, did_you_mean, quoted, shown
from tql_offline.number_lists import split_numbers
from tql_offline.presets import (
    DEFAULT_DATASET,
    DEFAULT_OBJECTIVE,
    dataset_name,
    family_of,
    layered,
    merge,
    preset_overrides,
    presets,
    spelt,
    split_preset,
)

OBJECTIVES = {
    "flow": "tql_offline.agents.flow_q:FlowQ",
    "implicit": "tql_offline.agents.implicit_q:ImplicitQ",
    "conservative": "tql_offline.agents.conservative_q:ConservativeQ",
    "rebrac": "tql_offline.agents.rebrac:ReBRAC",
    "floq": "tql_offline.agents.floq:FloQ",
    "pac": "tql_offline.agents.pac:PAC",
    "cloning": "tql_offline.agents.cloning:BehaviourCloning",
}
"""Objective → its agent. A new method is one line here, or an entry added by your own code."""
_OWN_OBJECTIVE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", re.ASCII)
"""`module:Class`."""
_OWN_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
_METHODS = ("TQL", "FQL", "IQL", "IFQL", "CQL", "ReBRAC", "floq", "PAC", "BC")
"""Names of methods that a class of one's own could have."""
FLOW_POLICIES = ("flow", "floq", "pac")
"""Objectives with FQL's policies: a behaviour flow, and a policy weighted by `flow.alpha`."""
WITHOUT_CRITIC = ("cloning",)
"""Objectives that train a policy alone."""

# Someone else's config may ask for a network that fits in no memory, or for endless work.
MAX_WEIGHTS = 2**30
"""Most weights of one policy network, computed from its layer widths: 4 GiB."""

MAX_COUNT = 10**9
MAX_OWN = 64
"""Most settings of a method of one's own."""
MAX_ACTION = 1e30
MIN_ACTION_RANGE = 1e-30
_SUITE_TABLES = ("axis", "settings", "collect")
"""Tables that a suite has and a config has not."""
_IN_COMPLETE = {"seed", "steps", "batch_size", "discount", "n_step", "device", "tracker", "preset"}
"""Settings that complete ones of any version have."""
_IN_WRITTEN = _IN_COMPLETE | {
    *("dataset", "critic", "entropy", "flow", "implicit", "conservative", "optimizer"),
    "evaluation",
}
"""With tables, by which a run's config.toml is told from a file of a user's own."""
_EARLIER: dict[str, dict[str, Any]] = {
    "critic": {"counted": "ensemble"},
    "conservative": {"backup": "sample", "importance_weights": True},
    "floq": {"critic_width": 0},
    "implicit": {"deviation": "learned"},
    "optimizer": {"policy_weight_decay": 0.0},
    "pac": {"least": 0.0},
}
"""What versions did that did not have a setting yet."""
MAX_TEXT = 4096
"""Most characters in a path or a name."""

Positive = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Few = Annotated[int, Field(gt=0, le=64)]
Many = Annotated[int, Field(gt=0, le=2**14)]
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, lt=1)]
Pair = Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]


class Table(BaseModel):
    """A table of settings: frozen; unknown keys and values of another type are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, values: Any) -> Any:
        """Take 1e6 for 1000000, and NumPy's numbers for Python's."""
        if not isinstance(values, dict):
            return values
        values = {name: _plain(value) for name, value in values.items()}
        counts = {name for name, field in cls.model_fields.items() if field.annotation is int}
        whole = {n: int(v) for n, v in values.items() if type(v) is float and v.is_integer()}
        return values | {name: whole[name] for name in whole.keys() & counts}


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's own, also those in a list."""
    if isinstance(value, list | tuple):
        return [*map(_plain, value)]
    is_of_numpy = type(value).__module__ == "numpy" and hasattr(value, "tolist")
    return value.tolist() if is_of_numpy else value


def is_own(objective: str) -> bool:
    """Whether an objective is an agent outside this package.

    >>> is_own("flow"), is_own("my_methods:MyQ")
    (False, True)
    """
    return not OBJECTIVES.get(objective, objective).startswith("tql_offline.agents.")


def are_bounds(bounds: Sequence[float]) -> bool:
    """Whether `bounds` are least actions and then as many greatest, as float32 can hold.

    >>> are_bounds([-2, 2]), are_bounds([-2, -1, 2, 1]), are_bounds([-2, 2, -1, 1])
    (True, True, False)
    """
    dims, rest = divmod(len(bounds), 2)
    return not rest and all(
        -MAX_ACTION < low < high < MAX_ACTION and high - low > MIN_ACTION_RANGE
        for low, high in zip(bounds[:dims], bounds[dims:], strict=True)
    )


class DataConfig(Table):
    """What to train on."""

    name: Text = Field(DEFAULT_DATASET, description="dataset name, or a .npz or HDF5 file")
    path: Text = Field("", description="file to use for that name; empty: the installed one")
    env_id: Text = Field("", description="environment to score policies in, for your own file")
    slices: int = Field(
        0, ge=0, le=10_000, description="how many of a folder's first slices to use; 0: all"
    )
    normalise: bool = Field(
        False, description="standardise observations to zero mean and unit standard deviation"
    )
    action_bounds: tuple[float, ...] = Field(
        (),
        description="least and greatest action of your own file and its environment, mapped to -1 "
        "and 1, or all dims' least ones and then all dims' greatest; empty: already -1 and 1",
        strict=False,  # TOML has lists
    )
    return_range: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="scales rewards in training so that whole-episode returns span this range, "
        "times `reward_scale`; 0: off; IQL on D4RL's locomotion: 1000",
    )
    reward_scale: PositiveFloat = Field(1.0, description="multiplies each reward in training")
    reward_shift: float = Field(
        0.0,
        allow_inf_nan=False,
        description="added to each reward in training, after scaling; D4RL's ant mazes: -1",
    )
    allow_broken: bool = Field(False, description="train on data known to be broken")

    @field_validator("action_bounds")
    @classmethod
    def _are_bounds(cls, bounds: tuple[float, ...]) -> tuple[float, ...]:
        if not are_bounds(bounds):
            raise ValueError("must be the least and the greatest action, or those of each dim")
        return bounds


Size = Literal["tiny", "small", "medium", "large", "xl", "xxl"]
SIZES: tuple[str, ...] = get_args(Size)
SIZES_TOLD = "tiny 0.1M, small 0.4M, medium 1.7M, large 6.6M, xl 26M, xxl 105M"
"""Parameters of a transformer critic of each size, for help."""


class CriticConfig(Table):
    """The critic's shape."""

    kind: Literal["transformer", "mlp", "perceiver"] = Field(
        "transformer", description="architecture; perceiver: PAC's, for objective pac"
    )
    size: Size = Field("small", description=SIZES_TOLD)
    counted: Literal["ensemble", "member"] = Field(
        "ensemble",
        description="of an MLP or value flow: whether all members together have the parameters of "
        "the size, or each member has",
    )
    depth: Few = Field(2, description="blocks; an MLP gets the width of as many parameters")
    ensemble: Few = Field(
        2, description="heads on the [VALUE] output; of an MLP or floq, whole networks; pac has one"
    )
    reduction: Literal["mean", "min"] = Field(
        "mean",
        description="of the ensemble in flow's and floq's targets; others take the minimum",
    )


class EntropyConfig(Table):
    """Attention-entropy control."""

    mode: Literal["none", "fixed", "single", "layerwise"] = Field(
        "layerwise", description="how entropy is controlled"
    )
    # Only uniform attention reaches ln(tokens): a temperature would grow without bound.
    target: ProperFraction = Field(0.8, description="target entropy as a fraction of ln(tokens)")
    last_target: ProperFraction = Field(0.65, description="the same for the last layer")
    targets_nats: tuple[Pair, ...] = Field(
        (),
        description="([VALUE], others) per layer in nats, instead of the fractions; "
        "V takes the same fractions of its own ln(tokens)",
        strict=False,  # TOML has lists
    )


class FlowConfig(Table):
    """The flow objective (FQL)."""

    alpha: PositiveFloat = Field(300.0, description="weight of staying near the behaviour flow")
    flow_steps: Many = Field(10, description="Euler steps of the behaviour flow")
    hidden: tuple[Many, ...] = Field(
        (512, 512, 512, 512),
        max_length=32,
        description="policy layer widths; also as 512x512",
        strict=False,  # TOML has lists
    )

    @field_validator("hidden", mode="before")
    @classmethod
    def _by_crosses(cls, hidden: object) -> object:
        """Widths written as `bench --hidden` takes them."""
        numbers = split_numbers(hidden, "x") if isinstance(hidden, str) else None
        return hidden if numbers is None else numbers

    @field_validator("hidden")
    @classmethod
    def _fits_memory(cls, hidden: tuple[int, ...]) -> tuple[int, ...]:
        weights = sum(wide * wider for wide, wider in pairwise(hidden))
        if weights > MAX_WEIGHTS:
            raise ValueError(f"makes {weights:,} weights, more than {MAX_WEIGHTS:,}")
        return hidden


class ImplicitConfig(Table):
    """The implicit objective (IQL); its policies have the layer widths of `flow.hidden`."""

    expectile: ProperFraction = Field(0.9, description="expectile of Q over actions that V fits")
    extraction: Literal["awr", "best-of-n"] = Field("awr", description="how the policy is obtained")
    inverse_temperature: PositiveFloat = Field(10.0, description="β of the advantage weights (awr)")
    deviation: Literal["learned", "unit"] = Field(
        "learned",
        description="the Gaussian's standard deviation (awr): learned for each state, or 1, for "
        "which FQL tuned β",
    )
    samples: Many = Field(32, description="flow samples (best-of-n)")


class ConservativeConfig(Table):
    """The conservative objective (CQL); its policy has the layer widths of `flow.hidden`."""

    alpha: PositiveFloat = Field(
        5.0, description="weight of the conservative gap, or its initial value"
    )
    samples: Many = Field(
        10,
        description="n, for 3n critic evaluations per transition, and n of the target's with "
        "backup best",
    )
    backup: Literal["sample", "best"] = Field(
        "sample",
        description="next value in the target: of one action of the policy, or the best of n, "
        "CQL's max-backup",
    )
    importance_weights: bool = Field(
        True,
        description="weight sampled actions by their densities; without, the data's action is one "
        "of them",
    )
    lagrange: bool = Field(False, description="learn the weight, so that the gap is `target_gap`")
    target_gap: float = Field(
        0.0,
        allow_inf_nan=False,
        description="gap that a learned weight maintains: CQL's τ - ln 3n, which may be negative",
    )
    calibrated: bool = Field(False, description="Cal-QL: policy Q floored at the return-to-go")
    after_cut: Literal["worst", "last", "nothing"] = Field(
        "worst",
        description="Cal-QL: what follows an episode's cut: the data's worst reward forever, the "
        "episode's last forever, or nothing",
    )
    rows_at_once: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="to save memory: sampled actions per critic pass, recomputed backward; 0: all",
    )


class RebracConfig(Table):
    """The rebrac objective; its policy has the layer widths of `flow.hidden`."""

    policy_alpha: float = Field(
        0.1, ge=0, allow_inf_nan=False, description="weight of the policy's behaviour penalty"
    )
    critic_alpha: float = Field(
        0.01, ge=0, allow_inf_nan=False, description="weight of the target's behaviour penalty"
    )
    smoothing: float = Field(
        0.2,
        ge=0,
        allow_inf_nan=False,
        description="standard deviation of the noise on target actions",
    )
    smoothing_bound: PositiveFloat = Field(0.5, description="bound of that noise")


class FloqConfig(Table):
    """The floq objective; its policies and their `flow.alpha` are those of the flow objective."""

    steps: Few = Field(8, description="Euler steps of the value's flow")
    samples: Few = Field(8, description="flow starts that a value is averaged over")
    coverage: Fraction = Field(
        0.1, description="starts are drawn from the value range scaled by this fraction"
    )
    critic_width: int = Field(
        0,
        ge=0,
        le=2**14,
        description="of the distilled critic's four layers, whatever the size; 0: it has the size",
    )


class PacConfig(Table):
    """The pac objective; its policies and their `flow.alpha` are those of the flow objective."""

    atoms: Annotated[int, Field(ge=2, le=2**12)] = Field(
        201, description="values over which Q is a distribution"
    )
    least: float = Field(
        0.0,
        le=0,
        allow_inf_nan=False,
        description="of these values; 0: the least return that the data's rewards allow",
    )
    latents: Many = Field(32, description="vectors through which the critic sees the state")


class CloningConfig(Table):
    """The cloning objective (behaviour cloning); layer widths of `flow.hidden`, no critic."""

    policy: Literal["flow", "gaussian"] = Field("gaussian", description="kind of policy")


Schedule = Literal["cosine", "constant"]


class OptimizerConfig(Table):
    """AdamW and its schedule."""

    critic_lr: PositiveFloat = Field(1e-4, description="critic and temperatures")
    policy_lr: PositiveFloat = Field(5e-4, description="policies, and CQL's temperature of actions")
    weight_decay: float = Field(
        0.01,
        ge=0,
        allow_inf_nan=False,
        description="on the matrices of the critic's blocks and heads, and on all of an MLP "
        "critic's, of V's and of a value flow's; in FQL's and CORL's code 0",
    )
    policy_weight_decay: float = Field(
        0.01, ge=0, allow_inf_nan=False, description="on the policies' matrices only"
    )
    warmup: int = Field(
        10_000,
        ge=0,
        le=MAX_COUNT,
        description="updates of linear warm-up from 1%, at most a tenth of the schedule",
    )
    schedule: Schedule = Field(
        "cosine",
        description="learning rates after warm-up: cosine to 10% at its end (the paper's), "
        "or constant (with warmup 0, FQL's and CORL's but for IQL's policy)",
    )
    schedule_steps: int = Field(
        0,
        ge=0,
        le=MAX_COUNT,
        description="updates of the schedule, whose last rate is kept from there; 0: the run's",
    )


class ExecutionConfig(Table):
    """How updates are run: speed and rounding, nothing else."""

    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="for matrix products; weights, entropies, targets and losses stay float32; "
        "policies are scored in tf32 where it is chosen, and else in float32",
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="torch.compile of the losses; auto: on a GPU"
    )
    updates_per_launch: int = Field(
        10, ge=0, le=1000, description="updates per CUDA graph on a GPU; 0: no graph"
    )
    data: Literal["device", "host"] = Field(
        "device",
        description="where the dataset lies; host: main memory, for data larger than a GPU's, "
        "without CUDA graphs and with batches of other random numbers",
    )


Reaction = Literal["warn", "stop", "off"]


class WatchConfig(Table):
    """What to do when training goes wrong; a NaN or infinite metric always stops the run."""

    exploding_q: Reaction = Field("warn", description="mean Q beyond what the data's rewards allow")
    q_factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = Field(
        3.0, description="multiple of the data's largest return beyond which Q explodes"
    )
    collapsed_entropy: Reaction = Field(
        "warn", description="a layer's mean attention entropy below 0.5 nats"
    )
    patience: Few = Field(3, description="consecutive log lines before a rule takes effect")


class EvaluationConfig(Table):
    """How policies are scored."""

    enabled: bool = Field(
        True, description="score policies while training; if not, `eval --missing` does it later"
    )
    protocol: Text = Field(
        "ogbench-singletask", description="one from docs/evaluation.md, or `NAME:EPISODES@UPDATES`"
    )
    success_timing: Literal["", "pre", "post"] = Field(
        "",
        description="judge OGBench success on s ('pre') or s' ('post'); empty: the environment's",
    )
    processes: int = Field(0, ge=0, le=4096, description="environment processes; 0: one per core")
    overlap: Literal["auto", "on", "off"] = Field(
        "auto", description="score while training continues; auto: on a GPU"
    )


def _is_plain(value: Any) -> bool:
    """Whether a value can be a setting of one's own."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, int):
        return abs(value) < 2**63  # what TOML holds
    return isinstance(value, float) and math.isfinite(value)


class OwnConfig(Table):
    """Settings of a method of one's own, whatever it calls them.

    >>> OwnConfig(beta=3.0)["beta"]
    3.0
    """

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="after")
    def _are_named(self) -> Self:
        if len(self.names) > MAX_OWN:
            raise ValueError(f"may have {MAX_OWN} settings at most")
        for name in self.names:
            if not _OWN_NAME.fullmatch(name):
                raise ValueError(f"{shown(name)} must be a name of letters, digits and underscores")
            if not _is_plain(self[name]):
                raise ValueError(f"{name} must be a finite number, a text, true or false")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that were given."""
        return tuple(self.__pydantic_extra__ or ())

    def __getitem__(self, name: str) -> Any:
        """A setting's value.

        Raises:
            InputError: it was not given.
        """
        given = self.__pydantic_extra__ or {}
        if name not in given:
            raise InputError(
                f"setting own.{name}, which the objective reads, is not given; "
                f"give it as --set own.{name}=VALUE, or in the table [own] of a config file"
            )
        return given[name]

    def get(self, name: str, default: Any) -> Any:
        """A setting's value, or `default` if it was not given."""
        return (self.__pydantic_extra__ or {}).get(name, default)


class Config(Table):
    """Everything needed to repeat a run."""

    objective: str = Field(
        DEFAULT_OBJECTIVE, description=f"one of {', '.join(OBJECTIVES)}, or `module:Class`"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="seed of initial weights and all sampling")
    steps: Positive = Field(1_000_000, description="updates")
    batch_size: int = Field(256, gt=0, le=2**20, description="transitions per update")
    discount: Fraction = Field(0.99, description="γ")
    n_step: Positive = Field(1, description="n of the n-step returns")
    polyak: Fraction = Field(0.005, description="Polyak rate τ of the target networks")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    log_every: Positive = Field(100, description="updates between lines of metrics.jsonl")
    checkpoint_every: Positive = Field(
        50_000,
        description="updates between checkpoints; every evaluation step gets one, too, and, where "
        "nothing is scored and there would be fewer than two, every tenth of the run",
    )
    keep_checkpoints: int = Field(
        0, ge=0, le=MAX_COUNT, description="number of newest checkpoints to keep; 0: all"
    )
    tracker: Literal["none", "tensorboard", "wandb"] = Field(
        "none", description="where metrics go besides metrics.jsonl"
    )
    preset: Text = Field("", description="preset these settings started from")
    dataset: DataConfig = DataConfig()
    critic: CriticConfig = CriticConfig()
    entropy: EntropyConfig = EntropyConfig()
    flow: FlowConfig = FlowConfig()
    implicit: ImplicitConfig = ImplicitConfig()
    conservative: ConservativeConfig = ConservativeConfig()
    rebrac: RebracConfig = RebracConfig()
    floq: FloqConfig = FloqConfig()
    pac: PacConfig = PacConfig()
    cloning: CloningConfig = CloningConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    execution: ExecutionConfig = ExecutionConfig()
    watch: WatchConfig = WatchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    own: OwnConfig = OwnConfig()

    @field_validator("objective")
    @classmethod
    def _known(cls, objective: str) -> str:
        if objective not in OBJECTIVES and not _OWN_OBJECTIVE.fullmatch(objective):
            method = spelt(objective, presets()["method"])
            hint = f"; --preset {method} is a method" if method else ""
            raise ValueError(
                f"must be one of {', '.join(OBJECTIVES)}, or module:Class of an agent of your own"
                f"{hint}"
            )
        return objective

    @model_validator(mode="after")
    def _own_settings_are_read(self) -> Self:
        if self.own.names and not is_own(self.objective):
            raise ValueError(
                f"own.{self.own.names[0]} is given, and objective {self.objective!r} reads no "
                "settings of your own"
            )
        return self

    @model_validator(mode="after")
    def _target_gap_is_used(self) -> Self:
        if self.conservative.target_gap and not self.conservative.lagrange:
            raise ValueError(
                "conservative.target_gap is given, but the weight is not learned; set "
                "conservative.lagrange to true, or leave target_gap out"
            )
        return self

    @model_validator(mode="after")
    def _targets_fit_depth(self) -> Self:
        listed, depth = len(self.entropy.targets_nats), self.critic.depth
        is_controlled = self.has_critic and self.critic.kind == "transformer"
        if is_controlled and self.entropy.mode != "none" and listed not in (0, depth):
            raise ValueError(
                f"entropy.targets_nats lists {listed} layers where critic.depth is {depth}; give "
                f"{depth} pairs, or [] for shares of ln L (entropy.target)"
            )
        return self

    @model_validator(mode="after")
    def _has_width(self) -> Self:
        has_width = self.objective == "floq" and self.floq.critic_width
        if has_width and self.critic.kind != "mlp":
            raise ValueError(
                f"floq.critic_width is given, but critic.kind is {self.critic.kind!r}; set "
                "critic.kind to 'mlp', or leave critic_width out"
            )
        return self

    @model_validator(mode="after")
    def _critic_fits(self) -> Self:
        is_perceiver = self.critic.kind == "perceiver"
        if self.objective == "pac" and not is_perceiver:
            raise ValueError(
                f"objective 'pac' learns distributions, but critic.kind is {self.critic.kind!r}; "
                "set critic.kind to 'perceiver' (--preset pac does)"
            )
        may_be = self.objective in ("pac", *WITHOUT_CRITIC) or is_own(self.objective)
        if is_perceiver and not may_be:
            raise ValueError(
                f"critic.kind 'perceiver' is of objective 'pac', not {self.objective!r}; set "
                "critic.kind to 'transformer' or 'mlp'"
            )
        return self

    @model_validator(mode="after")
    def _values_are_bounded(self) -> Self:
        if self.objective in ("floq", "pac") and self.discount == 1:
            raise ValueError(
                f"since values lie within rewards/(1 - discount), objective {self.objective!r} "
                "needs a discount below 1, but discount is 1"
            )
        return self

    @model_validator(mode="after")
    def _floor_is_finite(self) -> Self:
        settings = self.conservative
        calibrates = self.objective == "conservative" and settings.calibrated
        if calibrates and settings.after_cut == "last" and self.discount == 1:
            raise ValueError(
                "conservative.after_cut 'last' lets the last reward go on forever, which is "
                "infinite where discount is 1; lower discount, or choose another after_cut"
            )
        return self

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained; behaviour cloning ignores its size and entropy mode."""
        return self.objective not in WITHOUT_CRITIC

    @property
    def schedule_steps(self) -> int:
        """Updates over which learning rates warm up and fall."""
        return self.optimizer.schedule_steps or self.steps

    @property
    def method(self) -> str:
        """The method's name in the literature, with what differs from it.

        >>> resolve({}).method, resolve({}, preset="fql").method
        ('TQL', 'FQL')
        """
        names = {
            "flow": "FQL",
            "implicit": {"awr": "IQL", "best-of-n": "IFQL"}[self.implicit.extraction],
            "conservative": "Cal-QL" if self.conservative.calibrated else "CQL",
            "rebrac": "ReBRAC",
            "floq": "floq",
            "pac": "PAC",
            "cloning": {"gaussian": "BC", "flow": "flow BC"}[self.cloning.policy],
        }
        own = self.objective.rpartition(":")[2]
        # A class that is called FQL is not the package's.
        named = self.objective if own in _METHODS else own
        name, mode = names.get(self.objective, named), self.entropy.mode
        if self.critic.kind != "transformer" or not self.has_critic:
            return name
        if self.objective == "flow":
            return "TQL" if mode == "layerwise" else f"TQL-{mode}"
        return f"{name}-transformer" if mode == "layerwise" else f"{name}-transformer-{mode}"

    def to_toml(self) -> str:
        """The full settings as TOML."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def resolve(
    flags: Mapping[str, Any],
    *,
    file: Path | None = None,
    preset: str = "",
    flags_are: str = "the given settings",
) -> Config:
    """Merge defaults, preset, config file and flags; later ones take precedence.

    Args:
        flags: nested overrides, as from the command line.
        file: a TOML config file.
        preset: a family, a method, or both as `family+method`; if empty, the one the file names.
            The family defaults to the dataset's.
        flags_are: how errors refer to `flags`.

    Raises:
        InputError: an unknown key or preset, or a value out of range, named in one sentence.
    """
    if not isinstance(flags, Mapping):
        raise InputError(
            f"settings are {shown(flags)} and no dict; give a file of them as "
            "resolve({}, file=Path(...))"
        )
    from_file = _read_config(file) if file else {}
    if (preset or flags.get("preset")) and from_file.get("preset"):
        raise InputError(
            f"config file {file} already builds on preset {shown(from_file['preset'])}; "
            "leave --preset out, or take the 'preset' line out of the file"
        )
    given = layered(from_file, flags)
    family, method = split_preset(preset or given.get("preset", ""), dataset_name(given))
    name = "+".join(part for part in (family, method) if part)
    asked = {**flags, "preset": preset} if preset else flags
    _refuse_other_preset(from_file, asked, file)
    overrides = merge(preset_overrides(family, method, given), {"preset": name})
    sources = [flags_are, *([f"config file {file}"] if file else [])]
    sources += [f"preset {name!r}"] if name else []
    given = {key: value for key, value in given.items() if key != "preset"}
    return validate(layered(overrides, given), source=" or ".join(sources))


def _read_config(file: Path) -> dict[str, Any]:
    """Read a config file; a suite is refused by what it is.

    Raises:
        InputError: it cannot be read, or is a suite.
    """
    document = read_toml(file)
    if tables := [f"[{key}]" for key in _SUITE_TABLES if isinstance(document.get(key), dict)]:
        raise InputError(
            f"{file} is a suite of runs, with tables {', '.join(tables)}, and no settings of one; "
            f"train them by `tql-offline sweep {quoted(file)}`"
        )
    return as_its_version(document) if document.keys() >= _IN_WRITTEN else document


def _refuse_other_preset(
    from_file: Mapping[str, Any], flags: Mapping[str, Any], file: Path | None
) -> None:
    """Refuse flags that call for preset values which a complete config file overrides.

    The file sets everything, so what a preset sets for the new data, objective or size would not
    take effect, except where the flags set the same.
    """
    if not from_file.keys() >= _IN_WRITTEN:
        return
    documents = from_file, merge(from_file, flags)
    before, now = (merge(_what_presets_set(document), flags) for document in documents)
    if before != now:
        raise InputError(
            f"config file {file} has every setting, so what presets set for this dataset, "
            "objective and size would not take effect; take lines out of the file for them to set"
        )


def _what_presets_set(complete: Mapping[str, Any]) -> dict[str, Any]:
    """What presets set for a complete config, by its data's family, or else its preset's."""
    dataset = dataset_name(complete)
    family, method = split_preset(complete["preset"], dataset)
    return preset_overrides(family_of(dataset) or family, method, complete)


def as_its_version(document: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, with what their version did where it lacked a setting of today's.

    Those that are not complete stay as they are.
    """
    if not document.keys() >= _IN_COMPLETE:
        return dict(document)
    tables = {
        name: earlier | document[name]
        for name, earlier in _EARLIER.items()
        if isinstance(document.get(name), dict)
    }
    return {**document, **tables}


def read_complete(path: Path) -> Config:
    """The settings of a run, as the version meant them that wrote the file.

    Raises:
        InputError: the file is missing or damaged, or a setting is unknown or out of range.
    """
    return validate(as_its_version(read_toml(path)), source=str(path))


def validate(document: Mapping[str, Any], source: str) -> Config:
    """Make a Config from nested dictionaries.

    Raises:
        InputError: the first thing wrong with it, in one sentence naming the key and `source`.
    """
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        raise InputError(_sentence(error.errors()[0], source)) from error


def _sentence(error: Mapping[str, Any], source: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        if "." in str(error["loc"][-1]):
            return (
                f"{shown(key)} in {source} is one key with a dot in it; write a table with a key, "
                "which in TOML is the dotted key without quotes"
            )
        return f"unknown setting {shown(key)} in {source}; {_nearest(key)}"
    if not key:  # a check across settings, which names them itself
        return f"{error['msg'].removeprefix('Value error, ')} in {source}; correct one of them"
    if error["type"] == "string_unicode":  # as Python reads a file's name that is other bytes
        is_file = key in ("dataset.name", "dataset.path")
        mend = "rename the file or its folder" if is_file else "correct it"
        return f"setting {key!r} in {source} is {shown(error['input'])}, not UTF-8; {mend}"
    if error["type"] == "tuple_type":
        return (
            f"setting {key!r} in {source} is {shown(error['input'])}; give a list such as [1, 2], "
            "with numbers as TOML writes them (0.5, not .5)"
        )
    expected = error["msg"].removeprefix("Input ").removeprefix("Value error, ")
    return f"setting {key!r} in {source} is {shown(error['input'])} but {expected}; correct it"


def _nearest(key: str) -> str:
    """Suggest settings with the same last word or, failing that, a similar name."""
    names = list(_names())
    same = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    if same:
        return f"did you mean {' or '.join(same)}?"
    return did_you_mean(key, names) or "docs/config.md lists all settings"


def _names() -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in Config.model_fields.items():
        if isinstance(field.default, Table):
            yield from (f"{name}.{inner}" for inner in type(field.default).model_fields)
        else:
            yield name


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file of bounded size.

    Raises:
        InputError: the file is missing, too large, or not TOML (with line and column).
    """
    data = read_bounded(path, MAX_CONFIG_BYTES)
    try:
        return parse_toml(data)
    except ValueError as error:
        raise InputError(f"config file {path} is not valid TOML ({error}); correct it") from error
