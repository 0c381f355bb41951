"""Gates: what is read, multiplied by a function of the token that reads.

T tokens, D width of a token, R width of what it read.
"""

import torch
import torch.nn.functional as F
from torch import nn


class SiLUGate(nn.Module):
    """Multiplies each number that was read by SiLU of a projection of the token.

    Source: Berges et al. 2024 (arXiv 2412.09764), section 3, the gating of Memory+.
    """

    def __init__(self, input_dim, read_dim):
        super().__init__()
        self.projection = nn.Linear(input_dim, read_dim, bias=False)

    def reset_parameters(self):
        """Draws a projection that keeps the scale of the tokens."""
        nn.init.normal_(self.projection.weight, std=self.projection.in_features**-0.5)

    def forward(self, read, tokens):
        """Returns ``read``, (T, R), gated by ``tokens``, (T, D)."""
        return read * F.silu(self.projection(tokens))


class SigmoidGate(nn.Module):
    """Multiplies all that a token read by one number between 0 and 1."""

    def __init__(self, input_dim):
        super().__init__()
        self.projection = nn.Linear(input_dim, 1)

    def reset_parameters(self):
        """Opens the gate for all tokens alike to sigmoid(2), or 0.88.

        The memory then reads nearly what it reads without a gate, and the sigmoid still has 0.4 of
        its steepest slope, to learn which tokens to close it for.
        """
        nn.init.zeros_(self.projection.weight)
        nn.init.constant_(self.projection.bias, 2.0)

    def forward(self, read, tokens):
        """Returns ``read``, (T, R), gated by ``tokens``, (T, D)."""
        return read * torch.sigmoid(self.projection(tokens))


def build_gate(kind, input_dim, read_dim):
    """Builds the gate for what tokens read, None for the kind none."""
    if kind == "silu":
        return SiLUGate(input_dim, read_dim)
    return SigmoidGate(input_dim) if kind == "sigmoid" else None
