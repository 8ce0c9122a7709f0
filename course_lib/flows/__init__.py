"""Normalizing flows, and score networks made of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from course_lib.flows.activations import ACTIVATIONS, Activation, find_activation
from course_lib.flows.coupling_layers import ActNorm, AffineCoupling, Coupling, SplineCoupling
from course_lib.flows.flow import Composition, Flow, standard_normal_log_prob
from course_lib.flows.layers import FlowLayer
from course_lib.flows.linear import LinearMap, OrthogonalLinear, PLULinear
from course_lib.flows.normalizing_flow import NeuralSplineFlow, NormalizingFlow, RealNVP
from course_lib.flows.objectives import LikelihoodAt, flow_likelihood, flow_score_matching
from course_lib.flows.score_flow import ScoreFlowNetwork, direct
from course_lib.flows.splines import rational_quadratic_spline
from course_lib.flows.transformer_flow import CausalTransformerBlock, TransformerFlow

if TYPE_CHECKING:
    from course_lib.flows.engine import FlowDiffusionEngine

__all__ = [
    "ACTIVATIONS",
    "ActNorm",
    "Activation",
    "AffineCoupling",
    "CausalTransformerBlock",
    "Composition",
    "Coupling",
    "Flow",
    "FlowDiffusionEngine",
    "FlowLayer",
    "LikelihoodAt",
    "LinearMap",
    "NeuralSplineFlow",
    "NormalizingFlow",
    "OrthogonalLinear",
    "PLULinear",
    "RealNVP",
    "ScoreFlowNetwork",
    "SplineCoupling",
    "TransformerFlow",
    "direct",
    "find_activation",
    "flow_likelihood",
    "flow_score_matching",
    "rational_quadratic_spline",
    "standard_normal_log_prob",
]


def __getattr__(name: str) -> Any:
    """The engine is imported when it is asked for, and Lightning with it."""
    if name == "FlowDiffusionEngine":
        from course_lib.flows.engine import FlowDiffusionEngine

        return FlowDiffusionEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
