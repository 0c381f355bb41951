"""Exact search for the best slots of a product-key memory, from queries and sub-keys."""

from pkm_fairseq.ops.compiling import not_compiled

from .autograd import SlotSearch, kernels_serve


@not_compiled
def product_key_search(query, subkeys, k, softmax=False):
    """Finds, for each token and head, the ``k`` best of all ``subkeys ** 2`` slots.

    Slot ``i * subkeys + j`` scores the product of the query's first half with sub-key ``i`` of the
    first half, plus that of its second half with sub-key ``j`` of the second.

    Args:
        query: the halves of each head's query, (tokens, heads, 2, half-query width), floating
            point; (tokens, 1, 1, half-query width) where all are the same.
        subkeys: the sub-keys of each head's halves, (heads, 2, subkeys, half-query width).
        k: how many slots to select, from 1 to ``subkeys``.
        softmax: whether to return the softmax of each head's ``k`` scores in their place, in
            float32 or better.

    Returns:
        The scores of the selected slots, best first, (tokens, heads, k), differentiable, once, in
        ``query`` and ``subkeys``, and the slots themselves, (tokens, heads, k), int64. Which of
        several slots with equal scores is selected is left open.

    Raises:
        ValueError: if the shapes do not fit or ``k`` is out of range.

    Source: Lample et al. 2019 (arXiv 1907.05242), section 3.1, "Product keys".
    """
    if (
        query.dim() != 4
        or subkeys.dim() != 4
        or subkeys.shape[1] != 2
        or query.shape[3] != subkeys.shape[3]
        or query.shape[1:3] not in (subkeys.shape[:2], (1, 1))
    ):
        raise ValueError(
            "product_key_search takes query (tokens, heads, 2, width) and subkeys "
            f"(heads, 2, subkeys, width), not {tuple(query.shape)} and {tuple(subkeys.shape)}"
        )
    if not 1 <= k <= subkeys.shape[2]:
        raise ValueError(f"k={k} is not between 1 and the number of sub-keys, {subkeys.shape[2]}")
    if not kernels_serve(query, subkeys):
        query = query.expand(-1, len(subkeys), 2, -1)
    return SlotSearch.apply(query, subkeys, k, softmax)


__all__ = ["product_key_search"]
