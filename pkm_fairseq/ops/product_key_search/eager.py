"""The gradients of the search as torch operations.

T tokens, H heads, N sub-keys per half, Q half the width of a query, K selected slots.
"""

import torch

from ..weighted_bag import weighted_bag
from ..weighted_bag.eager import row_gradients


def eager_search_gradients(query, subkeys, slots, grad_scores):
    """Returns the gradients of ``query`` and ``subkeys``, given those of the scores, (T, H, K).

    The gradient of half a query is a bag of the sub-keys that its head selected, and that of the
    sub-keys is a bag the other way.
    """
    heads, _, n, width = subkeys.shape
    table = subkeys.flatten(0, 2)  # (H * 2 * N, Q)
    first_rows = n * torch.arange(2 * heads, device=slots.device).view(heads, 2, 1)
    rows = torch.stack((slots // n, slots % n), 2) + first_rows  # (T, H, 2, K)
    weights = grad_scores.unsqueeze(2).expand(rows.shape)
    rows, weights = rows.flatten(0, 2), weights.flatten(0, 2)  # (T * H * 2, K) each

    grad_query = weighted_bag(table, rows, weights).to(query.dtype)
    grad_table = torch.zeros_like(table)
    row_gradients(table, rows, weights, query.reshape(-1, width), grad_table)
    return grad_query.view(query.shape), grad_table.view(subkeys.shape)
