"""Explicit bounds for a feed-forward network, and what they say about the gap.

A network is z_l = W_l h_{l−1} + b_l, h_l = σ(z_l) for l < L, with outputs z_L and h_0 the input. That the gap
has an explicit bound for such networks is a claim of Zhou et al., *On Task Vectors and Gradients*, UniReps
2025 (arXiv:2508.16082); the constants here were derived afresh and are held against the truth by the tests.

weights   `network_bounds`: gradient and Hessian from the norms of weights and inputs
local     `local_bounds`: the same from what each example does in the network, far tighter
gap       `drift_bound` and `gap_bound`: from those numbers to the gap, at every learning rate; and
          `curvature_range`: the curvature that Lanczos finds, for comparison
ladder    `gap_ladder`: all of them side by side on one comparison
"""

from taskvec_mini.bounds.gap import curvature_range, drift_bound, gap_bound
from taskvec_mini.bounds.ladder import Rung, gap_ladder
from taskvec_mini.bounds.local import LocalBounds, local_bounds
from taskvec_mini.bounds.weights import NetworkBounds, network_bounds

__all__ = [
    "LocalBounds",
    "NetworkBounds",
    "Rung",
    "curvature_range",
    "drift_bound",
    "gap_bound",
    "gap_ladder",
    "local_bounds",
    "network_bounds",
]
