"""Measures what two pieces that complicate the values' table gain on a CPU, each with and without.

Huge pages for the table speed up reading rows far apart; a gradient table that is kept, and cleared
only where it was written, saves making a new one at each update. Reads are random, as those of a
memory whose slots are all in use.
"""

import torch
from measure import add_machine, interleaved, make_parser, median_ratio, quartiles_ms, write_json
from torch import nn

from pkm_fairseq.ops import KeptDenseGradient, dense_gradient, weighted_bag
from pkm_fairseq.ops.cpu import with_huge_pages


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    works = make_works(args)
    seconds = interleaved(works, args.repeats)
    results = {}
    for piece, (read, other) in {
        "huge pages, forward": ("forward", "forward, small pages"),
        "kept gradient, forward and backward": ("step", "step, a new table"),
    }.items():
        results[piece] = median_ratio(seconds[other], seconds[read])
        times = [quartiles_ms(seconds[name])[1] for name in (read, other)]
        print(f"{piece}: {times[0]:.0f} ms, without {times[1]:.0f} ms, {results[piece]:.2f} times")
    if args.json:
        write_json(args.json, args, results=results)


def parse_args():
    numbers = {"slots": 2**18, "dim": 768, "tokens": 1024, "reads": 128, "repeats": 7}
    parser = make_parser(__doc__, numbers)
    add_machine(parser)
    return parser.parse_args()


def make_works(args):
    """Returns the works to time, by name."""
    shape = args.slots, args.dim
    table = nn.Parameter(with_huge_pages(torch.empty(shape)).normal_())
    small = torch.empty(shape).normal_()
    slots = torch.randint(args.slots, (args.tokens, args.reads))
    weights = torch.rand(slots.shape, requires_grad=True)

    def step(gradient):
        table.grad = weights.grad = None
        weighted_bag(table, slots, weights, gradient).sum().backward()

    kept = KeptDenseGradient()
    return {
        "forward": lambda: weighted_bag(table.detach(), slots, weights.detach()),
        "forward, small pages": lambda: weighted_bag(small, slots, weights.detach()),
        "step": lambda: step(kept),
        "step, a new table": lambda: step(dense_gradient),
    }


if __name__ == "__main__":
    main()
