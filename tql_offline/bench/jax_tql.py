"""TQL's flow update in JAX, Flax and Optax: the competitor that our own update is timed against.

Written from the equations of the papers (critic and entropy control: Dong et al. 2026, arXiv
2602.01439; losses: Park et al. 2025, FQL, arXiv 2502.02538), plainly, as one would in JAX: the
whole update with its sampling is one jitted function that donates its state, every token goes
through every block, and the entropies are those of the full L×L weights. XLA removes what a pass
does not need (entropies of the target network, say). tests/test_jax_peer.py shows that it is the
same update as ours, gradients and optimizers included.

Shape suffixes: B batch, S state dims, A action dims, L = 1 + S + A tokens, D width, H heads,
K = D/H width of one head, E ensemble, N blocks.
"""
# ruff: noqa: N803, N806 — shape suffixes

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import Array

from tql_offline.bench.workload import Contender, Transitions, Unavailable, Workload
from tql_offline.errors import first_line
from tql_offline.networks import SIZES

NORM_EPS = 1e-6
Params = dict[str, Any]
token_init = nn.initializers.normal(0.02)


class Block(nn.Module):
    """A pre-norm transformer block that also gives its two token groups' mean entropy."""

    heads: int

    @nn.compact
    def __call__(self, x_BLD: Array) -> tuple[Array, Array]:
        """`x += Out(MHA(LN(x)))`, `x += W2·gelu(W1·LN(x))`; entropy `(2,)`: [VALUE], others."""
        width = x_BLD.shape[-1]
        h_BLD = nn.LayerNorm(NORM_EPS, name="attention_norm")(x_BLD)
        qkv = jnp.split(nn.Dense(3 * width, name="qkv")(h_BLD), 3, axis=-1)
        q, k, v = (part.reshape(*part.shape[:2], self.heads, -1) for part in qkv)
        scores_BHLL = jnp.einsum("blhk,bmhk->bhlm", q, k) * q.shape[-1] ** -0.5
        log_p_BHLL = jax.nn.log_softmax(scores_BHLL)
        p_BHLL = jnp.exp(log_p_BHLL)
        mixed_BLD = jnp.einsum("bhlm,bmhk->blhk", p_BHLL, v).reshape(x_BLD.shape)
        x_BLD = x_BLD + nn.Dense(width, name="out")(mixed_BLD)
        h_BLD = nn.LayerNorm(NORM_EPS, name="mlp_norm")(x_BLD)
        h_BLD = nn.gelu(nn.Dense(4 * width, name="mlp_0")(h_BLD), approximate=True)
        x_BLD = x_BLD + nn.Dense(width, name="mlp_2")(h_BLD)
        entropy_BHL = -(p_BHLL * log_p_BHLL).sum(axis=-1)
        return x_BLD, jnp.stack([entropy_BHL[..., 0].mean(), entropy_BHL[..., 1:].mean()])


class Critic(nn.Module):
    """Q(s, a) from one token per scalar after a learned `[VALUE]` token, with its entropies."""

    width: int
    heads: int
    depth: int = 2
    ensemble: int = 2

    @nn.compact
    def __call__(self, observations: Array, actions: Array) -> tuple[Array, Array]:
        """Q `(B, E)` and entropies `(N, 2)` in nats."""
        tokens_BLD = jnp.concatenate(
            [
                self._embed(observations, "observation"),
                self._embed(actions, "action"),
            ],
            axis=1,
        )
        tokens_BLD += self.param("position", token_init, tokens_BLD.shape[1:])
        value_D = self.param("value_token", token_init, (self.width,))
        value_B1D = jnp.broadcast_to(value_D, (len(observations), 1, self.width))
        x_BLD = jnp.concatenate([value_B1D, tokens_BLD], axis=1)
        entropies = []
        for index in range(self.depth):
            x_BLD, entropy = Block(self.heads, name=f"blocks_{index}")(x_BLD)
            entropies.append(entropy)
        h_BD = nn.LayerNorm(NORM_EPS, name="final_norm")(x_BLD[:, 0])
        heads = [self._head(h_BD, index) for index in range(self.ensemble)]
        return jnp.concatenate(heads, axis=-1), jnp.stack(entropies)

    def _embed(self, scalars: Array, modality: str) -> Array:
        embedded = nn.Dense(self.width, name=f"{modality}_embedding")(scalars[..., None])
        return embedded + self.param(f"{modality}_type", token_init, (self.width,))

    def _head(self, h_BD: Array, index: int) -> Array:
        hidden = nn.relu(nn.Dense(self.width // 2, name=f"heads_{index}_0")(h_BD))
        return nn.Dense(1, name=f"heads_{index}_2")(hidden)


class MLP(nn.Module):
    """Hidden layers of Dense, GELU (tanh form), LayerNorm, then a Dense: both policies."""

    hidden: tuple[int, ...]
    output_dim: int

    @nn.compact
    def __call__(self, *inputs: Array) -> Array:
        """Output of the concatenated inputs."""
        x = jnp.concatenate(inputs, axis=-1)
        dense = partial(nn.Dense, kernel_init=nn.initializers.xavier_uniform())
        for index, width in enumerate(self.hidden):
            x = nn.gelu(dense(width, name=f"dense_{index}")(x), approximate=True)
            x = nn.LayerNorm(NORM_EPS, name=f"norm_{index}")(x)
        return dense(self.output_dim, name=f"dense_{len(self.hidden)}")(x)


class Batch(NamedTuple):
    """B transitions; `discounts` are γ·mask."""

    observations: Array
    actions: Array
    rewards: Array
    next_observations: Array
    discounts: Array


class Noise(NamedTuple):
    """Random numbers of one update: normal `(B, A)`, except `t`, `(B, 1)` uniform in [0, 1)."""

    next_policy: Array
    x_0: Array
    t: Array
    policy: Array


class State(NamedTuple):
    """All that an update changes.

    Attributes:
        critic: `{"critic": …, "log_temperature": (N, 2)}`.
        target: the target critic.
        policies: `{"behaviour": …, "policy": …}`.
        critic_moments: moments of the critic's optimizer.
        policy_moments: moments of the policies' optimizer.
        key: random key of sampling and noise.
    """

    critic: Params
    target: Params
    policies: Params
    critic_moments: optax.OptState
    policy_moments: optax.OptState
    key: Array


@dataclass(frozen=True, kw_only=True)
class TQL:
    """The method's networks and coefficients; the defaults are cube-double's.

    Attributes:
        alpha: weight of the distillation loss.
        flow_steps: Euler steps of the behaviour flow.
        targets: entropies to hold in nats, `([VALUE], others)` per block.
        polyak: step of the target critic.
        critic_lr, policy_lr: peaks of the schedules.
        weight_decay: on the matrices of the critic's blocks and heads.
        policy_weight_decay: on the policies' matrices.
        warmup, steps: updates of the schedules.
    """

    critic: Critic
    behaviour: MLP
    policy: MLP
    alpha: float = 300.0
    flow_steps: int = 10
    targets: tuple[tuple[float, float], ...] = ((3.0, 3.0), (2.5, 2.5))
    polyak: float = 0.005
    critic_lr: float = 1e-4
    policy_lr: float = 5e-4
    weight_decay: float = 0.01
    policy_weight_decay: float = 0.01
    warmup: int = 10_000
    steps: int = 1_000_000

    def critic_loss(
        self, critic: Params, target: Params, policies: Params, batch: Batch, noise: Noise
    ) -> tuple[Array, dict[str, Array]]:
        """Squared TD error, the entropy bonus and the temperatures' loss."""
        # TD loss.
        next_actions = self._one_step(policies, batch.next_observations, noise.next_policy)
        next_q, _ = self.critic.apply(target, batch.next_observations, next_actions.clip(-1, 1))
        y = batch.rewards + batch.discounts * next_q.mean(axis=-1)
        q, entropy = self.critic.apply(critic["critic"], batch.observations, batch.actions)
        td_loss = jnp.square(q - y[:, None]).mean()

        # Entropy control.
        temperature = jnp.exp(critic["log_temperature"])
        held = jax.lax.stop_gradient(temperature).clip(-100, 100)
        bonus = -(held * entropy).mean()
        excess = jax.lax.stop_gradient(entropy) - jnp.asarray(self.targets)
        temperature_loss = (temperature * excess).mean()

        # Total loss.
        loss = td_loss + bonus + temperature_loss
        metrics = {"critic_loss": loss, "td_loss": td_loss, "q_mean": q.mean()}
        return loss, metrics | {"entropy": entropy, "temperature": temperature}

    def policy_loss(
        self, policies: Params, critic: Params, batch: Batch, noise: Noise
    ) -> tuple[Array, dict[str, Array]]:
        """Flow matching, distillation into one step, and the critic's value."""
        # BC flow loss.
        x_t = (1 - noise.t) * noise.x_0 + noise.t * batch.actions
        velocity = self.behaviour.apply(policies["behaviour"], batch.observations, x_t, noise.t)
        behaviour_loss = jnp.square(velocity - (batch.actions - noise.x_0)).mean()

        # Distillation loss.
        fixed = jax.lax.stop_gradient(policies)
        flow_actions = self._flow(fixed, batch.observations, noise.policy)
        one_step = self._one_step(policies, batch.observations, noise.policy)
        distillation_loss = jnp.square(one_step - flow_actions).mean()

        # Q loss.
        policy_q, _ = self.critic.apply(critic["critic"], batch.observations, one_step.clip(-1, 1))

        # Total loss.
        loss = behaviour_loss + self.alpha * distillation_loss - policy_q.mean()
        metrics = {"policy_loss": loss, "behaviour_loss": behaviour_loss}
        return loss, metrics | {"distillation_loss": distillation_loss}

    def update(self, state: State, batch: Batch, noise: Noise) -> tuple[State, dict[str, Array]]:
        """Step both optimizers from the same weights, then the target critic."""
        critic_grad, metrics = jax.grad(self.critic_loss, has_aux=True)(
            state.critic, state.target, state.policies, batch, noise
        )
        policy_grad, policy_metrics = jax.grad(self.policy_loss, has_aux=True)(
            state.policies, state.critic, batch, noise
        )
        critic, critic_moments = _apply(
            self.critic_optimizer(), critic_grad, state.critic_moments, state.critic
        )
        policies, policy_moments = _apply(
            self.policy_optimizer(), policy_grad, state.policy_moments, state.policies
        )
        target = optax.incremental_update(critic["critic"], state.target, self.polyak)
        new = State(critic, target, policies, critic_moments, policy_moments, state.key)
        return new, metrics | policy_metrics

    def critic_optimizer(self) -> optax.GradientTransformation:
        """AdamW with decay on the matrices of blocks and heads only."""
        schedule = self._schedule(self.critic_lr)
        return optax.adamw(schedule, weight_decay=self.weight_decay, mask=decayed)

    def policy_optimizer(self) -> optax.GradientTransformation:
        """AdamW with decay on the matrices only."""
        schedule = self._schedule(self.policy_lr)
        return optax.adamw(schedule, weight_decay=self.policy_weight_decay, mask=kernels)

    def init(self, observation_dim: int, action_dim: int, key: Array) -> State:
        """Initial weights and moments."""
        keys = jax.random.split(key, 4)
        s, a, t = (jnp.zeros((1, dim)) for dim in (observation_dim, action_dim, 1))
        network = self.critic.init(keys[0], s, a)
        policies = {
            "behaviour": self.behaviour.init(keys[1], s, a, t),
            "policy": self.policy.init(keys[2], s, a),
        }
        critic = {"critic": network, "log_temperature": jnp.zeros((self.critic.depth, 2))}
        return State(
            critic=critic,
            target=jax.tree.map(jnp.copy, network),
            policies=policies,
            critic_moments=self.critic_optimizer().init(critic),
            policy_moments=self.policy_optimizer().init(policies),
            key=keys[3],
        )

    def _one_step(self, policies: Params, observations: Array, noise: Array) -> Array:
        return self.policy.apply(policies["policy"], observations, noise)

    def _flow(self, policies: Params, observations: Array, noise: Array) -> Array:
        """Carry noise at t = 0 to actions at t = 1 by Euler steps; unrolled, as they are few."""
        x = noise
        for index in range(self.flow_steps):
            t = jnp.full((len(x), 1), index / self.flow_steps)
            velocity = self.behaviour.apply(policies["behaviour"], observations, x, t)
            x = x + velocity / self.flow_steps
        return x.clip(-1, 1)

    def _schedule(self, peak: float) -> optax.Schedule:
        """Linear from 1% over the warm-up, then cosine to 10% at `steps - warmup`."""
        warmup = min(self.warmup, self.steps // 10)
        return optax.warmup_cosine_decay_schedule(
            0.01 * peak, peak, warmup, self.steps - warmup, 0.1 * peak
        )


def decayed(params: Params) -> Params:
    """True for the kernels of blocks and heads."""

    def is_decayed(path: tuple[Any, ...], _: Array) -> bool:
        names = [part.key for part in path]
        return names[-1] == "kernel" and any(n.startswith(("blocks_", "heads_")) for n in names)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def kernels(params: Params) -> Params:
    """True for all kernels."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _apply(
    optimizer: optax.GradientTransformation, gradient: Params, moments: Any, params: Params
) -> tuple[Params, Any]:
    updates, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments


def draw_noise(key: Array, actions: Array) -> Noise:
    """An update's noise."""
    keys = jax.random.split(key)
    normal = jax.random.normal(keys[0], (3, *actions.shape), actions.dtype)
    t = jax.random.uniform(keys[1], (len(actions), 1), actions.dtype)
    return Noise(next_policy=normal[0], x_0=normal[1], t=t, policy=normal[2])


def sample(data: Batch, batch_size: int, key: Array) -> Batch:
    """Draw transitions uniformly with replacement."""
    index = jax.random.randint(key, (batch_size,), 0, len(data.actions))
    return jax.tree.map(lambda column: column[index], data)


def training_step(
    tql: TQL, batch_size: int, updates_per_call: int = 1, precision: str = "highest"
) -> Callable[[State, Batch], tuple[State, dict[str, Array]]]:
    """One jitted function of state and data, donating the state: sample, draw noise, update.

    Args:
        tql: the method.
        batch_size: B.
        updates_per_call: updates that one call makes in a `lax.scan`.
        precision: precision of matrix products: `highest` is float32, which is PyTorch's default;
            on a GPU, JAX's own default is TF32, here `tensorfloat32`.
    """

    def one(state: State, data: Batch) -> tuple[State, dict[str, Array]]:
        key, sample_key, noise_key = jax.random.split(state.key, 3)
        batch = sample(data, batch_size, sample_key)
        noise = draw_noise(noise_key, batch.actions)
        return tql.update(state._replace(key=key), batch, noise)

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, data: Batch) -> tuple[State, dict[str, Array]]:
        with jax.default_matmul_precision(precision):
            if updates_per_call == 1:
                return one(state, data)
            scanned = jax.lax.scan(lambda s, _: one(s, data), state, length=updates_per_call)
        return scanned[0], jax.tree.map(lambda metric: metric[-1], scanned[1])

    return step


def make_tql(size: str, action_dim: int, hidden: tuple[int, ...] = (512,) * 4) -> TQL:
    """The method with a critic of a named size."""
    chosen = SIZES[size]
    critic = Critic(chosen.width, chosen.heads)
    return TQL(critic=critic, behaviour=MLP(hidden, action_dim), policy=MLP(hidden, action_dim))


class Trainer:
    """State on a device and the function that advances it."""

    def __init__(
        self,
        workload: Workload,
        data: Transitions,
        updates_per_call: int = 1,
        precision: str = "highest",
    ) -> None:
        device = jax_device(workload.device)
        tql = make_tql(workload.size, workload.action_dim)
        key = jax.random.key(workload.seed)
        with jax.default_device(device):
            self.state = tql.init(workload.observation_dim, workload.action_dim, key)
        columns = Batch(*(getattr(data, name) for name in Batch._fields))
        self.data = jax.device_put(columns, device)
        self.run = training_step(tql, workload.batch_size, updates_per_call, precision)
        self.metrics: dict[str, Array] = {}

    def step(self) -> None:
        """Start `updates_per_call` updates."""
        self.state, self.metrics = self.run(self.state, self.data)

    def block(self) -> None:
        """Wait for all updates started."""
        jax.block_until_ready((self.state, self.metrics))

    def peak_gpu_bytes(self) -> int:
        """Most memory that JAX has held on the device; 0 if it does not say."""
        statistics = jax.devices()[0].memory_stats() or {}
        return int(statistics.get("peak_bytes_in_use", 0))


def jax_device(name: str) -> Any:
    """JAX's device for PyTorch's name.

    Raises:
        Unavailable: this JAX has no such device.
    """
    try:
        return jax.devices({"cuda": "gpu"}.get(name, name))[0]
    except RuntimeError as error:
        raise Unavailable(
            f"the JAX installed here has no device {name!r} ({first_line(error)})"
        ) from error


def make_single(workload: Workload, data: Transitions) -> Contender:
    """One call per update."""
    return _contender(workload, data, updates_per_call=1)


def make_scan(workload: Workload, data: Transitions) -> Contender:
    """Ten updates per call in a `lax.scan`."""
    return _contender(workload, data, updates_per_call=10)


def make_tf32_scan(workload: Workload, data: Transitions) -> Contender:
    """Ten updates per call with products in TF32, JAX's own default on a GPU.

    Raises:
        Unavailable: the device is no GPU.
    """
    if workload.device != "cuda":
        raise Unavailable("TF32 is a mode of NVIDIA GPUs")
    return _contender(workload, data, updates_per_call=10, precision="tensorfloat32")


def _contender(
    workload: Workload, data: Transitions, updates_per_call: int, precision: str = "highest"
) -> Contender:
    trainer = Trainer(workload, data, updates_per_call, precision)
    packages = ("jax", "flax", "optax")

    def step() -> int:
        trainer.step()
        return updates_per_call

    return Contender(
        version=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        step=step,
        synchronise=trainer.block,
        tf32=precision == "tensorfloat32",
        warm_up=3 * updates_per_call,
        peak_gpu_bytes=trainer.peak_gpu_bytes,
    )
