"""Measures the CPU kernels of the ops against their form in torch operations.

Checks first that both agree with each other, and with the definition on some of the tokens. Then
runs them in turn and prints the median time of each, how far its runs lie apart (the middle half),
and the median ratio of the torch form's time to the kernels'.
"""

import argparse
import os
from functools import partial

import torch
from measure import in_turn, median_ratio, quartiles_ms, write_json

from pkm_fairseq.ops import (
    new_row_state,
    product_key_search,
    row_adam_,
    touched_row_gradients,
    weighted_bag,
)
from pkm_fairseq.ops.cpu import numba_imports
from pkm_fairseq.ops.product_key_search.reference import reference_product_key_search
from pkm_fairseq.ops.weighted_bag.reference import reference_weighted_bag

FORMS = {"torch": "0", "kernels": "1"}
CHECKED_TOKENS = 4
ADAM = {"lr": 1e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.01}


def main():
    args = parse_args()
    if not numba_imports():
        raise SystemExit('numba is not installed: pip install --editable ".[cpu]"')
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    works = make_works(args)
    for name, work in works.items():
        check(name, *(in_form(form, work) for form in FORMS))
    check_by_definition(args)

    in_forms = {
        (name, form): partial(in_form, form, work) for name, work in works.items() for form in FORMS
    }
    report(args, works, in_turn(in_forms, args.repeats))


def make_works(args):
    """Returns what is measured, by name: functions that return what to compare."""
    slots_total, n = args.subkeys**2, args.heads * args.topk
    inputs = draw_search(args, args.tokens)
    grad_scores = torch.randn(args.tokens, args.heads, args.topk)

    values = torch.randn(slots_total, args.dim)
    slots = torch.randint(slots_total, (args.tokens, n))
    weights = torch.rand(args.tokens, n)
    grad_output = torch.randn(args.tokens, args.dim)
    kept = torch.zeros_like(values)

    def search():
        with torch.no_grad():
            return product_key_search(*inputs, args.topk)[:1]

    def search_and_backward():
        scores, _ = product_key_search(*inputs, args.topk)
        # Where scores tie, forms may choose other slots: gradients are checked by definition.
        torch.autograd.grad(scores, inputs, grad_scores)
        return (scores.detach(),)

    def bag_gradients():
        rows, _, grad_weights = touched_row_gradients(values, slots, weights, grad_output, kept)
        return rows, grad_weights, kept[rows[:1000]]

    rows, row_grads, _ = touched_row_gradients(values, slots, weights, grad_output)
    # A table for each form: a step changes it.
    tables = {form: (values.clone(), new_row_state(values)) for form in FORMS.values()}

    def row_adam():
        table, state = tables[os.environ["PKM_KERNELS"]]
        row_adam_(table, rows, row_grads, state, step=1, **ADAM)
        return table[rows[:1000]], state["exp_avg"][rows[:1000]]

    return {
        "search": search,
        "search and its backward": search_and_backward,
        "bag": lambda: (weighted_bag(values, slots, weights),),
        "bag backward, kept buffer": bag_gradients,
        "bag backward, touched rows": lambda: touched_row_gradients(
            values, slots, weights, grad_output
        ),
        "Adam of the touched rows": row_adam,
    }


def draw_search(args, tokens):
    """Returns queries, scaled so that scores are of order 1, and sub-keys."""
    width = args.key_dim // 2
    query = torch.randn(tokens, args.heads, 2, width) / width**0.5
    subkeys = torch.randn(args.heads, 2, args.subkeys, width)
    return query.requires_grad_(), subkeys.requires_grad_()


def in_form(form, work):
    """Returns what ``work`` returns in a form."""
    os.environ["PKM_KERNELS"] = FORMS[form]
    return work()


def check(name, results, others):
    for result, other in zip(results, others):
        torch.testing.assert_close(
            result, other, rtol=1e-4, atol=1e-4, msg=lambda text: f"{name}: {text}"
        )


def check_by_definition(args):
    inputs = draw_search(args, CHECKED_TOKENS)
    expected, slots = reference_product_key_search(*inputs, args.topk)
    expected_grads = torch.autograd.grad(expected.square().sum(), inputs)
    expected = expected.detach()
    values = torch.randn(args.subkeys**2, args.dim)
    slots, weights = slots.flatten(1), expected.softmax(-1).flatten(1)

    def search_and_backward():
        scores, _ = product_key_search(*inputs, args.topk)
        return scores.detach(), torch.autograd.grad(scores.square().sum(), inputs)

    for form in FORMS:
        scores, grads = in_form(form, search_and_backward)
        check(f"search, {form}", [scores], [expected])
        check(f"{form} gradient", grads, expected_grads)
        read = in_form(form, lambda: weighted_bag(values, slots, weights))
        check(f"bag, {form}", [read], [reference_weighted_bag(values, slots, weights)])


def report(args, works, seconds):
    results = {}
    print(f"{'median (middle half), ms':30}" + "".join(f"{form:>24}" for form in FORMS) + "  ratio")
    for name in works:
        quartiles = {form: quartiles_ms(seconds[name, form]) for form in FORMS}
        ratio = median_ratio(*(seconds[name, form] for form in FORMS))
        results[name] = {"quartiles_ms": quartiles, "ratio": ratio}
        cells = (f"{q2:8.1f} ({q1:.1f}-{q3:.1f})" for q1, q2, q3 in quartiles.values())
        print(f"{name:30}" + "".join(f"{cell:>24}" for cell in cells) + f"{ratio:7.2f}")
    if args.json:
        write_json(args.json, args, results=results)


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "tokens": 2048,
        "dim": 768,
        "subkeys": 512,
        "heads": 4,
        "topk": 32,
        "key-dim": 256,
        "repeats": 15,
        "threads": torch.get_num_threads(),
        "seed": 1,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument("--json", help="file to write the results to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
