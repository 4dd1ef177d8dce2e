"""Looking inside: what a model looks at, what speaks for a class, and what its first layer and positions have learned."""

from vitscale.explain.distance import attention_distance
from vitscale.explain.features import feature_colours, feature_similarity
from vitscale.explain.filters import embedding_filters, position_similarity
from vitscale.explain.flow import attention_flow
from vitscale.explain.gradcam import grad_cam
from vitscale.explain.look import Look, Unexplained
from vitscale.explain.methods import METHODS
from vitscale.explain.pictures import heated, visualize_attention_weights, visualize_patches
from vitscale.explain.rollout import gradient_rollout, relevance, rollout

__all__ = [
    "METHODS", "Look", "Unexplained", "attention_distance", "attention_flow", "embedding_filters", "feature_colours",
    "feature_similarity", "grad_cam", "gradient_rollout", "heated", "position_similarity", "relevance", "rollout",
    "visualize_attention_weights", "visualize_patches",
]
