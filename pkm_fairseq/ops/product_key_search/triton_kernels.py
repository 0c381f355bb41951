"""The search and its gradients on a GPU.

T tokens, H heads, N sub-keys per half, Q half the width of a query, K slots to select, C candidate
pairs.

Candidates travel as one integer each, so that sorting them keeps them together: the score above,
the place below. Of equal scores the first place wins.
"""

import torch
import triton
import triton.language as tl

from ..gpu import is_interpreted, power_of_two
from ..product_key_topk.eager import candidate_pairs

# Queries of a program, the fewest that tensor cores multiply; sub-keys compared at a time; bytes of
# each that are read at a time.
QUERIES = 16
MOST_SUBKEYS = 128
WIDTH_BYTES = 128
# Score gradients that are written out at a time.
PIECE = 2**27

LOWEST = tl.constexpr(-(2**63))
LAST_PLACE = tl.constexpr(2**31 - 1)


def kernel_search(query, subkeys, k, softmax):
    """Returns the scores or weights, (T, H, K), and the slots, (T, H, K), of the best slots.

    One pass, in float32: nothing else is written. The dtype of the scores is that in which torch
    would multiply.
    """
    dtype = dtype_of_product(query, subkeys)
    query, subkeys = (tensor.to(dtype).contiguous() for tensor in (query, subkeys))
    tokens, heads, _, width = query.shape
    n = subkeys.shape[2]
    found = query.new_empty(tokens, heads, k, dtype=torch.float32 if softmax else dtype)
    slots = torch.empty(tokens, heads, k, dtype=torch.int64, device=query.device)
    ranks1, ranks2 = candidate_pairs(k, query.device)  # (C,) each
    places = power_of_two(k, least=2)
    if is_interpreted():  # triton's interpreter multiplies bfloat16 as if it were whole numbers
        query, subkeys = query.float(), subkeys.float()
    if tokens:
        with torch.cuda.device_of(query):
            find_slots[triton.cdiv(tokens, QUERIES), heads](
                query,
                subkeys,
                ranks1,
                ranks2,
                found,
                slots,
                tokens,
                len(ranks1),
                k,
                HEADS=heads,
                N=n,
                Q=width,
                QUERIES=QUERIES,
                SUBKEYS=power_of_two(min(n, MOST_SUBKEYS), least=max(16, places)),
                WIDTH=power_of_two(min(width, WIDTH_BYTES // query.element_size()), least=16),
                PLACES=places,
                CANDIDATES=power_of_two(len(ranks1), least=places),
                PRECISION="tf32" if multiplies_in_tf32() else "ieee",
                SOFTMAX=softmax,
                num_warps=4 if places <= 32 else 8,
            )
    return found, slots


def dtype_of_product(query, subkeys):
    """Returns the dtype in which torch multiplies queries and sub-keys."""
    if torch.is_autocast_enabled(query.device.type):
        return torch.get_autocast_dtype(query.device.type)
    return torch.promote_types(query.dtype, subkeys.dtype)


def multiplies_in_tf32():
    """Returns whether torch was told to multiply float32 on a GPU with fewer digits."""
    matmul = torch.backends.cuda.matmul
    # Once the setting of newer torches is used, the older one cannot be read.
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


# With another number of tokens at each step, it would be compiled again in the midst of a training.
@triton.jit(do_not_specialize=["tokens"])
def find_slots(
    query,
    subkeys,
    ranks1,
    ranks2,
    found,
    slots,
    tokens,
    candidates,
    k,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    Q: tl.constexpr,
    QUERIES: tl.constexpr,
    SUBKEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLACES: tl.constexpr,
    CANDIDATES: tl.constexpr,
    PRECISION: tl.constexpr,
    SOFTMAX: tl.constexpr,
):
    """Finds the best slots of one head for some tokens."""
    token = tl.program_id(0).to(tl.int64) * QUERIES + tl.arange(0, QUERIES)
    is_token = token < tokens
    head = tl.program_id(1)
    queries = query + (token * HEADS + head) * (2 * Q)
    keys = subkeys + head.to(tl.int64) * (2 * N * Q)
    best1 = best_subkeys(queries, is_token, keys, N, Q, SUBKEYS, WIDTH, PLACES, PRECISION)
    best2 = best_subkeys(
        queries + Q, is_token, keys + N * Q, N, Q, SUBKEYS, WIDTH, PLACES, PRECISION
    )

    c = tl.arange(0, CANDIDATES)
    rank1 = tl.load(ranks1 + c, mask=c < candidates, other=0).to(tl.int32)
    rank2 = tl.load(ranks2 + c, mask=c < candidates, other=0).to(tl.int32)
    half1 = tl.gather(best1, tl.broadcast_to(rank1[None, :], (QUERIES, CANDIDATES)), 1)
    half2 = tl.gather(best2, tl.broadcast_to(rank2[None, :], (QUERIES, CANDIDATES)), 1)
    pairs = packed(score_of(half1) + score_of(half2), c[None, :])
    pairs = tl.where((c < candidates)[None, :], pairs, LOWEST)
    best = take_best(pairs, tl.full((QUERIES, 1), LOWEST, tl.int64), PLACES)
    slot = place_of(half1) * N + place_of(half2)
    slot = tl.gather(slot, place_of(best).to(tl.int32) & (CANDIDATES - 1), 1)
    score = score_of(best)  # (QUERIES, PLACES)

    place = tl.arange(0, PLACES)[None, :]
    if SOFTMAX:
        score = tl.where(place < k, score, float("-inf"))
        score = tl.exp(score - tl.max(score, 1)[:, None])
        score = score / tl.sum(score, 1)[:, None]
    target = (token * HEADS + head)[:, None] * k + place
    is_found = is_token[:, None] & (place < k)
    tl.store(found + target, score, mask=is_found)
    tl.store(slots + target, slot, mask=is_found)


@triton.jit
def best_subkeys(
    queries,
    is_token,
    keys,
    N: tl.constexpr,
    Q: tl.constexpr,
    SUBKEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    PLACES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Returns the best sub-keys of one half for each query, best first, (queries, PLACES)."""
    best = tl.full((is_token.shape[0], PLACES), LOWEST, tl.int64)
    for first in range(0, N, SUBKEYS):
        subkey = first + tl.arange(0, SUBKEYS)
        scores = tl.zeros((is_token.shape[0], SUBKEYS), tl.float32)
        for start in range(0, Q, WIDTH):
            number = start + tl.arange(0, WIDTH)
            left = tl.load(
                queries[:, None] + number[None, :],
                mask=is_token[:, None] & (number < Q)[None, :],
                other=0,
            )
            right = tl.load(
                keys + subkey[None, :].to(tl.int64) * Q + number[:, None],
                mask=(subkey < N)[None, :] & (number < Q)[:, None],
                other=0,
            )
            scores = tl.dot(left, right, scores, input_precision=PRECISION)
        pairs = tl.where((subkey < N)[None, :], packed(scores, subkey[None, :]), LOWEST)
        best = take_best(pairs, best, PLACES)
    return best


@triton.jit
def take_best(pairs, others, PLACES: tl.constexpr):
    """Returns the best of each row of both, best first, (rows, PLACES)."""
    best = tl.full((pairs.shape[0], PLACES), LOWEST, tl.int64)
    for place in range(PLACES):
        top = tl.maximum(tl.max(pairs, 1), tl.max(others, 1))[:, None]
        best = tl.where(tl.arange(0, PLACES)[None, :] == place, top, best)
        pairs = tl.where(pairs == top, LOWEST, pairs)
        others = tl.where(others == top, LOWEST, others)
    return best


@triton.jit
def packed(score, place):
    """Returns integers in the order of the scores, and the other way of the places."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & LAST_PLACE)
    return (ordered.to(tl.int64) << 32) + (place ^ LAST_PLACE).to(tl.int64)


@triton.jit
def score_of(pair):
    ordered = (pair >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & LAST_PLACE)).to(tl.float32, bitcast=True)


@triton.jit
def place_of(pair):
    return (pair & 0xFFFFFFFF) ^ LAST_PLACE


def kernel_search_gradients(query, subkeys, slots, grad_scores, dtype):
    """Returns the gradients of ``query`` and ``subkeys``, given those of the scores, (T, H, K).

    Some hundred sub-keys are each selected often: products of whole matrices, in ``dtype``, move
    fewer bytes than sums over the selected ones.
    """
    heads, _, n, _ = subkeys.shape
    keys = subkeys.to(dtype)
    grad_query = torch.empty_like(query)
    grad_subkeys = torch.zeros_like(subkeys, dtype=torch.float32)
    step = max(1, PIECE // subkeys[..., 0].numel())
    for first in range(0, len(query), step):
        piece = slice(first, first + step)
        queries, found = query[piece].to(dtype), slots[piece]  # (t, H, 2, Q), (t, H, K)
        spread = queries.new_empty(len(queries), heads, 2, n)
        with torch.cuda.device_of(query):
            spread_gradients[len(queries) * heads,](
                found,
                grad_scores[piece].contiguous(),
                spread,
                found.shape[2],
                N=n,
                PLACES=power_of_two(found.shape[2]),
                SUBKEYS=power_of_two(min(n, MOST_SUBKEYS)),
            )
        grad_query[piece] = torch.einsum("thcn,hcnq->thcq", spread, keys)
        grad_subkeys += torch.einsum("thcn,thcq->hcnq", spread, queries)
    return grad_query, grad_subkeys.to(subkeys.dtype)


@triton.jit
def spread_gradients(
    slots,
    grad_scores,
    spread,
    k,
    N: tl.constexpr,
    PLACES: tl.constexpr,
    SUBKEYS: tl.constexpr,
):
    """Writes the gradients of all sub-keys' scores for a token and head, (2, N)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, PLACES)
    is_found = place < k
    slot = tl.load(slots + row * k + place, mask=is_found, other=0)
    grad = tl.load(grad_scores + row * k + place, mask=is_found, other=0).to(tl.float32)
    for half in tl.static_range(2):
        chosen = (slot // N if half == 0 else slot % N).to(tl.int32)
        for first in range(0, N, SUBKEYS):
            subkey = first + tl.arange(0, SUBKEYS)
            mine = tl.where(chosen[:, None] == subkey[None, :], grad[:, None], 0)
            tl.store(spread + (2 * row + half) * N + subkey, tl.sum(mine, 0), mask=subkey < N)
