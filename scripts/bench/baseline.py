"""Product-key memory as a reader of the paper writes it, with stock torch operations.

T tokens, D width, H heads, N sub-keys per half, Q half the width of a query, K slots per head.
"""

import torch
from torch import nn


class BaselineMemory(nn.Module):
    """The memory layer of Lample et al. 2019 (arXiv 1907.05242), section 3.

    Its parameters have the names and shapes of ``pkm_fairseq.modules.ProductKeyMemory``.
    """

    def __init__(self, dim, *, subkeys, heads, topk, key_dim, query_norm=None):
        super().__init__()
        self.heads, self.topk, self.n = heads, topk, subkeys
        self.query = nn.Linear(dim, heads * key_dim)
        self.query_norm = query_norm or nn.BatchNorm1d(heads * key_dim)
        bound = (key_dim // 2) ** -0.5
        self.subkeys = nn.Parameter(
            torch.empty(heads, 2, subkeys, key_dim // 2).uniform_(-bound, bound)
        )
        self.values = nn.EmbeddingBag(subkeys**2, dim, mode="sum")
        nn.init.normal_(self.values.weight, std=dim**-0.5)

    def forward(self, x):
        """Reads the memory for the tokens ``x``, (T, D)."""
        query = self.query_norm(self.query(x)).view(len(x), self.heads, 2, -1)  # (T, H, 2, Q)
        scores1, scores2 = torch.einsum("thcq,hcnq->cthn", query, self.subkeys)  # (T, H, N) each
        best1, rows = scores1.topk(self.topk)  # (T, H, K)
        best2, columns = scores2.topk(self.topk)  # (T, H, K)
        candidates = (best1.unsqueeze(-1) + best2.unsqueeze(-2)).flatten(-2)  # (T, H, K * K)
        scores, pairs = candidates.topk(self.topk)  # (T, H, K)
        rows = rows.gather(-1, pairs // self.topk)
        columns = columns.gather(-1, pairs % self.topk)
        slots = rows * self.n + columns  # (T, H, K)
        weights = scores.softmax(-1)
        return self.values(slots.flatten(1), per_sample_weights=weights.flatten(1))  # (T, D)
