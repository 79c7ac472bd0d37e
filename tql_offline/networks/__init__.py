"""Networks: the transformer critic, its attention and entropy controller, and the policies."""

from tql_offline.networks.attention import attention_with_entropy, group_entropy
from tql_offline.networks.control import ENTROPY_MODES, EntropyController
from tql_offline.networks.flows import integrate_flow
from tql_offline.networks.mlp_critic import MLPCritic
from tql_offline.networks.normaliser import Normaliser
from tql_offline.networks.perceiver import PerceiverCritic
from tql_offline.networks.policies import (
    DeterministicPolicy,
    GaussianPolicy,
    OneStepPolicy,
    TanhGaussianPolicy,
    VelocityField,
)
from tql_offline.networks.transformer import SIZES, Size, TransformerCritic
from tql_offline.networks.value_flow import ValueFlow

__all__ = [
    "ENTROPY_MODES",
    "SIZES",
    "DeterministicPolicy",
    "EntropyController",
    "GaussianPolicy",
    "MLPCritic",
    "Normaliser",
    "OneStepPolicy",
    "PerceiverCritic",
    "Size",
    "TanhGaussianPolicy",
    "TransformerCritic",
    "ValueFlow",
    "VelocityField",
    "attention_with_entropy",
    "group_entropy",
    "integrate_flow",
]
