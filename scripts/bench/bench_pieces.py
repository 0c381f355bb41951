"""Measures what pieces that complicate the code gain or cost on a CPU, each with and without.

Huge pages for the values' table speed up reading rows far apart. A gradient table that is kept, and
cleared only where it was written, saves making a new one at each update. Rows that are trained in
a parameter of their own, of 1 slot in 32, save gradients, moments and steps of all others. Reads
are random, as those of a memory whose slots are all in use. Looking through all binary text when it
is loaded, for numbers that the dictionary lacks, costs time.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from fairseq.data.indexed_dataset import MMapIndexedDataset, make_builder
from measure import add_machine, interleaved, make_parser, median_ratio, quartiles_ms, write_json
from torch import nn

from pkm_fairseq.modules import ValueTable
from pkm_fairseq.ops import KeptDenseGradient, dense_gradient, weighted_bag
from pkm_fairseq.ops.cpu import with_huge_pages
from pkm_fairseq.tasks.binary_text import check_binary_text

SLOTS_OF_ONE_TRAINED = 32


def main():
    args = parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for piece, works in make_pieces(args, Path(folder)):
            seconds = interleaved(works, args.repeats)
            results[piece] = median_ratio(seconds["without"], seconds["with"])
            times = [quartiles_ms(seconds[name])[1] for name in ("with", "without")]
            print(
                f"{piece}: {times[0]:.1f} ms, without {times[1]:.1f} ms, {results[piece]:.2f} times"
            )
    if args.json:
        write_json(args.json, args, results=results)


def parse_args():
    numbers = {"slots": 2**18, "dim": 768, "tokens": 1024, "reads": 128, "repeats": 7}
    numbers["text"] = 2**24  # tokens
    parser = make_parser(__doc__, numbers)
    add_machine(parser)
    return parser.parse_args()


def make_pieces(args, folder):
    """Yields the pieces, each with the works to time with and without it."""
    shape = args.slots, args.dim
    large, small = with_huge_pages(torch.empty(shape)).normal_(), torch.empty(shape).normal_()
    slots = torch.randint(args.slots, (args.tokens, args.reads))
    weights = torch.rand(slots.shape, requires_grad=True)
    table = nn.Parameter(large)

    def read(values):
        return lambda: weighted_bag(values, slots, weights.detach())

    def step(gradient):
        def work():
            table.grad = weights.grad = None
            weighted_bag(table, slots, weights, gradient).sum().backward()

        return work

    yield "huge pages, forward", {"with": read(large), "without": read(small)}
    kept, new = step(KeptDenseGradient()), step(dense_gradient)
    yield "kept gradient, forward and backward", {"with": kept, "without": new}
    own, all_rows = (train_some(args, slots, weights, own) for own in (True, False))
    yield "trained rows, update", {"with": own, "without": all_rows}
    yield "looking through binary text, loading", load_text(args.text, folder / "text")


def train_some(args, slots, weights, own):
    """Returns an update of some rows: ``own``, or all, the gradients of the others set to zero."""
    table = ValueTable(args.slots, args.dim, "normal")
    chosen = torch.arange(0, args.slots, SLOTS_OF_ONE_TRAINED)
    others = torch.ones(args.slots, dtype=torch.bool).index_fill_(0, chosen, False).nonzero()[:, 0]
    if own:
        table.train_rows(chosen)
    optimizer = torch.optim.Adam([table.trained])

    def work():
        optimizer.zero_grad()
        table(slots, weights).sum().backward()
        if not own:
            table.weight.grad.index_fill_(0, others, 0)
        optimizer.step()

    return work


def load_text(tokens, prefix):
    """Returns the works that load binary text, checked and as fairseq does by itself."""
    dictionary = range(50_000)
    builder = make_builder(f"{prefix}.bin", "mmap", vocab_size=len(dictionary))
    text = np.random.default_rng(1).integers(len(dictionary), size=tokens)
    for sentence in np.array_split(text, max(1, tokens // 32)):
        builder.add_item(torch.from_numpy(sentence))
    builder.finalize(f"{prefix}.idx")

    def load():
        MMapIndexedDataset(str(prefix))

    def checked():
        check_binary_text(str(prefix), dictionary)
        load()

    return {"with": checked, "without": load}


if __name__ == "__main__":
    main()
