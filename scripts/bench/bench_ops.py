"""Measures the kernels of the ops against their form in torch operations.

Checks first that both agree with each other, and with the definition on some of the tokens. Then
runs them in turn and prints the median time of each, how far its runs lie apart (the middle half),
the median ratio of the torch form's time to the kernels', and how fast the kernels move the fewest
bytes that they have to, beside a copy of the table. Without gradients, the torch form of the bag is
torch's EmbeddingBag; with them, that stands beside both.
"""

import os
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from contestants import BASELINE, dtype_of
from measure import (
    DTYPES,
    add_machine,
    compare,
    interleaved,
    make_parser,
    median_ratio,
    quartiles_ms,
    write_json,
)

from pkm_fairseq.ops import (
    KeptDenseGradient,
    new_row_state,
    product_key_search,
    row_adam_,
    touched_row_gradients,
    weighted_bag,
)
from pkm_fairseq.ops.gpu import use_gpu_kernels
from pkm_fairseq.ops.product_key_search.reference import reference_product_key_search
from pkm_fairseq.ops.weighted_bag.autograd import has_kernels
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag

FORMS = {"torch": "0", "kernels": "1"}
EMBEDDING_BAG = "EmbeddingBag"
SEARCH, SEARCH_BACKWARD = "search", "search and its backward"
BAG, BAG_BACKWARD = "bag", "bag backward, touched rows"
DENSE_BACKWARD, ADAM, COPY = "bag backward, dense", "Adam of the touched rows", "copy of the table"
CHECKED_TOKENS = 4
COMPARED_ROWS = 1000
OPTIONS = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.01}


def main(argv=None):
    """Runs the benchmark with command line options; returns its results, by name."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with mock.patch.dict(os.environ, PKM_KERNELS="1"):  # and as it was, afterwards
        table = draw(args, 0)
        if not (use_gpu_kernels(table) or has_kernels(table)):
            raise SystemExit(
                f"no kernels are installed for {args.dtype} on {args.device}: cpu needs numba "
                '(pip install --editable ".[cpu]") and float32, cuda needs triton'
            )
        works, moved = make_works(args)
        for name, forms in works.items():
            check(name, forms, args)
        check_by_definition(args)
        timed = {(name, form): work for name in works for form, work in works[name].items()}
        seconds = interleaved(timed, args.repeats, args.device)
    results = {name: result_of(name, forms, seconds, moved) for name, forms in works.items()}
    report(args, results)
    if args.json:
        write_json(args.json, args, results=results)
    return results


def make_works(args):
    """Returns what is measured, and the fewest bytes that it has to move.

    Returns:
        Functions that return what to compare, by name and form; bytes by name, where time follows
        them.
    """
    n = args.heads * args.topk
    inputs = draw_search(args, args.tokens)
    grad_found = draw(args, args.tokens, args.heads, args.topk, dtype=torch.float32)

    values = draw(args, args.subkeys**2, args.dim)
    slots = torch.randint(len(values), (args.tokens, n), device=args.device)
    weights = torch.rand(args.tokens, n, device=args.device)
    grad_output = draw(args, args.tokens, args.dim)

    def search():
        with torch.no_grad():
            return product_key_search(*inputs, args.topk, softmax=True)[:1]

    def search_and_backward():
        found, _ = product_key_search(*inputs, args.topk, softmax=True)
        # Where scores tie, forms may choose other slots: gradients are checked by definition.
        torch.autograd.grad(found, inputs, grad_found)
        return (found.detach(),)

    rows, row_grads, _ = touched_row_gradients(values, slots, weights, grad_output)
    # A table for each form: a step changes it.
    tables = {form: (values.clone(), new_row_state(values)) for form in FORMS.values()}

    def row_adam():
        table, state = tables[os.environ["PKM_KERNELS"]]
        row_adam_(table, rows, row_grads, state, step=1, **OPTIONS)
        return table[rows[:COMPARED_ROWS]], state["exp_avg"][rows[:COMPARED_ROWS]]

    read = partial(weighted_bag, gradient=KeptDenseGradient())
    dense_backward = bag_backward(read, values, slots, weights, grad_output)
    in_forms = {
        SEARCH: search,
        SEARCH_BACKWARD: search_and_backward,
        BAG: lambda: (weighted_bag(values, slots, weights),),
        BAG_BACKWARD: lambda: touched_row_gradients(values, slots, weights, grad_output),
        DENSE_BACKWARD: dense_backward,
        ADAM: row_adam,
    }
    works = {
        name: {form: partial(in_form, form, work) for form in FORMS}
        for name, work in in_forms.items()
    }
    dtype = dtype_of(BASELINE, values.dtype, args.device)
    works[DENSE_BACKWARD][EMBEDDING_BAG] = bag_backward(
        embedding_bag, values.to(dtype), slots, weights, grad_output.to(dtype)
    )
    copied = torch.empty_like(values)
    works[COPY] = {"torch": lambda: (copied.copy_(values),)}
    return works, fewest_bytes(values, rows, slots, weights)


def fewest_bytes(values, rows, slots, weights):
    """Returns the fewest bytes that an op has to move, by name.

    An access joins a row of the table with a token, and whatever the order, one of the two has to
    be fetched for it. Forward goes through the tokens and fetches rows; nothing else is counted.
    Backward goes through the rows, so that it reads each touched row once and writes its gradient
    once, and fetches the upstream gradient of the token. To each access belong a slot and a weight
    that are read and a weight's gradient that is written. What a cache happens to hold counts as
    moved; were each number counted once, as if a cache held all, backward would move a thirteenth
    at the sizes of bench_gpu.py.
    """
    row = values.shape[1] * values.element_size()
    gathered = slots.numel() * row
    of_accesses = slots.numel() * (slots.element_size() + 2 * weights.element_size())
    moments = 2 * values.shape[1] * torch.promote_types(values.dtype, torch.float32).itemsize
    return {
        COPY: 2 * len(values) * row,
        BAG: gathered,
        BAG_BACKWARD: gathered + 2 * len(rows) * row + of_accesses,
        # The gradient is read; values and moments are read and written.
        ADAM: len(rows) * (3 * row + 2 * moments),
    }


def draw(args, *shape, dtype=None):
    return torch.randn(shape, device=args.device, dtype=dtype or DTYPES[args.dtype])


def draw_search(args, tokens):
    """Returns queries, scaled so that scores are of order 1, and sub-keys."""
    width = args.key_dim // 2
    query = draw(args, tokens, args.heads, 2, width) / width**0.5
    subkeys = draw(args, args.heads, 2, args.subkeys, width)
    return query.requires_grad_(), subkeys.requires_grad_()


def embedding_bag(values, slots, weights):
    """Does what torch.nn.EmbeddingBag does."""
    return F.embedding_bag(slots, values, mode="sum", per_sample_weights=weights.to(values.dtype))


def bag_backward(read, values, slots, weights, grad_output):
    """Returns a function that runs the backward pass of what ``read`` returns, alone."""
    inputs = [tensor.detach().requires_grad_() for tensor in (values, weights)]
    output = read(inputs[0], slots, inputs[1])
    compared = slots.flatten()[:COMPARED_ROWS]

    def backward():
        grads = torch.autograd.grad(output, inputs, grad_output, retain_graph=True)
        return grads[0][compared], grads[1]

    return backward


def in_form(form, work):
    """Returns what ``work`` returns in a form."""
    os.environ["PKM_KERNELS"] = FORMS[form]
    return work()


def tolerance(args):
    """Returns how far forms may lie apart: the torch form rounds the scores, too."""
    return max(1e-4, 8 * torch.finfo(DTYPES[args.dtype]).eps)


def check(name, forms, args):
    """Compares what each form returns with what the kernels return."""
    results = {form: work() for form, work in forms.items()}
    expected = results.pop("kernels", ())
    for form in results:
        for result, other in zip(results[form], expected):
            what = f"{name}: {form} differs from the kernels"
            compare(what, result.to(other.dtype), other, tolerance(args))


def check_by_definition(args):
    inputs = draw_search(args, CHECKED_TOKENS)
    wide = [tensor.detach().float().requires_grad_() for tensor in inputs]
    best, _ = reference_product_key_search(*wide, args.topk)
    values = draw(args, args.subkeys**2, args.dim)

    def search_and_backward():
        scores, slots = product_key_search(*inputs, args.topk)
        return scores.detach(), slots, torch.autograd.grad(scores.square().sum(), inputs)

    for form in FORMS:
        scores, slots, grads = in_form(form, search_and_backward)
        # Where scores tie, other slots are as good as long as they earn them.
        earned = scores_of(slots, *wide)
        results, expected = [scores, earned, *grads], [best, best]
        expected += torch.autograd.grad(earned.square().sum(), wide)
        slots, weights = slots.flatten(1), scores.softmax(-1).flatten(1)
        results.append(in_form(form, partial(weighted_bag, values, slots, weights)))
        expected.append(reference_weighted_bag(values.float(), slots, weights))
        for result, other in zip(results, expected):
            what = f"search or bag: {form} differs from the definition"
            compare(what, result.detach().float(), other.detach(), tolerance(args))


def scores_of(slots, query, subkeys):
    """Returns the scores of slots, by definition."""
    scores1, scores2 = torch.einsum("thcq,hcnq->cthn", query, subkeys)
    n = subkeys.shape[2]
    return scores1.gather(-1, slots // n) + scores2.gather(-1, slots % n)


def result_of(name, forms, seconds, moved):
    """Returns a plain record of what was measured under a name."""
    best = "kernels" if "kernels" in forms else "torch"
    result = {
        "quartiles_ms": {form: quartiles_ms(seconds[name, form]) for form in forms},
        "times_as_long": {
            form: median_ratio(seconds[name, form], seconds[name, best])
            for form in forms
            if form != best
        },
    }
    if name in moved:
        share = moved[name] / moved[COPY]
        result["gb_per_second"] = moved[name] / result["quartiles_ms"][best][1] / 1e6
        result["of_copy_bandwidth"] = share * median_ratio(
            seconds[COPY, "torch"], seconds[name, best]
        )
    return result


def report(args, results):
    columns = (*FORMS, EMBEDDING_BAG)
    print(f"{args.tokens:,} tokens, dim {args.dim}, {args.subkeys}² slots, {args.dtype}")
    print(f"{'median (middle half), ms':30}" + "".join(f"{form:>24}" for form in columns))
    for name, result in results.items():
        line = f"{name:30}"
        for form in columns:
            q1, q2, q3 = result["quartiles_ms"].get(form, [None] * 3)
            cell = "" if q2 is None else f"{q2:8.2f} ({q1:.2f}-{q3:.2f})"
            line += f"{cell:>24}"
        for form, ratio in result["times_as_long"].items():
            line += f"   {form} / kernels {ratio:.2f}"
        if "gb_per_second" in result:
            share = result["of_copy_bandwidth"]
            line += f"   {result['gb_per_second']:.1f} GB/s, {share:.2f} of the copy's"
        print(line)


def parse_args(argv):
    sizes = {"tokens": 2048, "dim": 768, "subkeys": 512, "heads": 4, "topk": 32, "key-dim": 256}
    parser = make_parser(__doc__, {**sizes, "repeats": 15, "seed": 1})
    add_machine(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
