"""Cosines in the place of dot products.

T tokens, H heads, N sub-keys per half, Q half the width of a query.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable


class CosineScores(nn.Module):
    """Scales queries and sub-keys so that their dot products are cosines times a temperature.

    A slot then scores the sum of two cosines, one for each half, times a temperature that its head
    learns (Henry et al. 2020, arXiv 2010.04245; Berges et al. 2024, arXiv 2412.09764, normalise
    queries and keys of their memories, too). The temperature is positive, as the exponential of
    what is learned.

    It begins at sqrt(Q / 3). The cosine of two random vectors has the variance 1 / Q, so the score
    of a slot has 2 / 3, as the dot product of a normalised query with a new key: the best slots
    begin with about the same weights as with dot products, nearly equal ones. Halves that come to
    point where the query does score up to 2 sqrt(Q / 3), 13 for keys of 256 numbers, which is
    enough to take all of the weight.

    Args:
        heads: queries per token.
        eps: added to the squared lengths, so that a zero vector has a score, 0, and a gradient.
    """

    def __init__(self, heads, eps=1e-6):
        super().__init__()
        self.eps = eps
        # Beside the start, towards which weight decay then pulls.
        self.log_temperature = nn.Parameter(torch.zeros(heads))

    def reset_parameters(self):
        """Sets the temperature to where it begins."""
        nn.init.zeros_(self.log_temperature)

    def forward(self, query, subkeys):
        """Returns ``query``, (T, H, 2, Q), and ``subkeys``, (H, 2, N, Q), as scaled."""
        temperature = _exact(self.log_temperature).exp() * (query.shape[-1] / 3) ** 0.5  # (H,)
        # Of the two, sub-keys are fewer.
        scaled = self._unit(subkeys) * temperature.view(-1, 1, 1, 1)
        return self._unit(query).to(query.dtype), scaled.to(subkeys.dtype)

    def _unit(self, vectors):
        """Divides each vector by its length."""
        return Unit.apply(_exact(vectors), self.eps)


class Unit(torch.autograd.Function):
    """Divides vectors by their lengths: half of what autograd takes of the same steps."""

    @staticmethod
    def forward(ctx, vectors, eps):
        length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
        inverse = (length.square() + eps).rsqrt()
        ctx.save_for_backward(vectors, inverse)
        return vectors * inverse

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        vectors, inverse = ctx.saved_tensors
        along = (grad_output * vectors).sum(-1, keepdim=True) * inverse.pow(3)
        return (grad_output * inverse).addcmul_(vectors, along, value=-1), None


def _exact(tensor):
    """Returns ``tensor`` in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
