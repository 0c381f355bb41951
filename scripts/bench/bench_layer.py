"""Compares the memory layer with a plain torch baseline, PyPI's product-key-memory and an FFN.

The baseline and PyPI's train as people train them: with torch.optim.Adam and clip_grad_norm_.
What is read, gradients and updates are compared first, in float32 and on few slots; where they
differ, the benchmark stops. Then the layers run in turn, on new tokens in each round:

forward  the layer, without gradients, in evaluation mode
step     forward, backward, clipping to norm 1, optimizer, clearing of the gradients

Each value of --tokens is measured with the first of --subkeys, and the other way round; --table
adds what the page's table needs. Peak memory is what a step needs beside the layer's parameters
and buffers and Adam's moments. Layers that do not fit into memory side by side run one by one.
"""

import logging
from dataclasses import asdict
from pathlib import Path

import torch
from contestants import (
    BASELINE,
    FFN,
    PYPI,
    TABLES,
    Contestant,
    Work,
    check,
    dtype_of,
    is_installed,
    make_layer,
)
from measure import (
    DTYPES,
    Memory,
    add_machine,
    interleaved,
    make_parser,
    print_figures,
    quartiles_ms,
    write_json,
)
from targets import KINDS, TARGETS, Result
from tqdm import tqdm

WARMUPS = 2
USABLE_MEMORY = 0.85


def main(argv=None):
    """Runs the benchmark with command line options; returns its records."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    works = works_to_sweep(args)
    layers = [layer for layer in args.layers if can_train(layer, works[0].shrunk(), args)]
    sweep = [tuple((layer, work) for layer in layers) for work in works]
    targets = TARGETS if args.table else ()
    groups = dict.fromkeys([*sweep, *(target.group(layers) for target in targets)])
    for layer, work in dict.fromkeys((layer, work.shrunk()) for g in groups for layer, work in g):
        if layer not in (BASELINE, FFN):
            check(layer, work, args.device)

    results = {group: measure(group, args) for group in tqdm(groups)}
    for measured in results.values():
        report(measured)
    table = [row for target in targets for row in target.figures(results[target.group(layers)])]
    print_figures(table)
    records = [record for measured in results.values() for record in records_of(measured)]
    if args.json:
        write_json(args.json, args, results=records, table=table)
    if args.plot:
        plot(args, [results[group] for group in sweep])
    return records


def can_train(layer, work, args):
    """Returns whether a layer can be measured; says why if not."""
    if not is_installed(layer):
        print(f'{layer} is left out: it is not installed (pip install --editable ".[bench]")')
        return False
    dtype = dtype_of(layer, DTYPES[args.dtype], args.device)
    if dtype != DTYPES[args.dtype]:
        print(f"{layer} is measured in {dtype}: torch cannot train it in {args.dtype}")
    try:
        Contestant(make_layer(layer, work), work, args.device, dtype).step()
    except RuntimeError as error:
        # Stock torch lacks some operations in some dtypes; anything else is a mistake.
        if "not implemented for" not in str(error):
            raise
        print(f"{layer} is left out: {error}")
        return False
    return True


def works_to_sweep(args):
    sizes = {"dim": args.dim, "heads": args.heads, "topk": args.topk, "key_dim": args.key_dim}
    pairs = [(tokens, args.subkeys[0]) for tokens in args.tokens]
    pairs += [(args.tokens[0], subkeys) for subkeys in args.subkeys[1:]]
    return [Work(tokens=tokens, subkeys=subkeys, **sizes) for tokens, subkeys in pairs]


def measure(group, args):
    """Measures entries in turn, or one by one if they do not fit; returns results by entry."""
    if fit(group, args):
        return measure_in_turn(group, args)
    results = {}
    for entry in group:
        if fit([entry], args):
            results.update(measure_in_turn([entry], args))
        else:
            tqdm.write(f"{entry[0]} is left out at {entry[1]}: too little memory")
    return results


def fit(entries, args):
    held = beyond = 0
    for layer, work in entries:
        table_bytes = work.table_bytes(DTYPES[args.dtype])
        between_steps, peak = TABLES[layer]
        held += between_steps * table_bytes
        beyond = max(beyond, (peak - between_steps) * table_bytes)
    return held + beyond < USABLE_MEMORY * Memory(args.device).available()


def measure_in_turn(entries, args):
    contestants, step_bytes = {}, {}
    for entry in entries:
        contestants[entry], step_bytes[entry] = make_contestant(*entry, args)

    def draw(number):
        for contestant in contestants.values():
            contestant.draw(number)

    works = {
        (entry, kind): getattr(contestant, kind)
        for entry, contestant in contestants.items()
        for kind in KINDS
    }
    seconds = interleaved(works, args.repeats, args.device, draw)
    return {
        entry: Result(
            *(seconds[entry, kind] for kind in KINDS),
            step_bytes=step_bytes[entry],
            table_bytes=entry[1].table_bytes(DTYPES[args.dtype]),
            dtype=str(contestants[entry].x.dtype),
        )
        for entry in entries
    }


def make_contestant(layer, work, args):
    """Returns a contestant that has run some steps, and the bytes that its next step needs."""
    memory = Memory(args.device)
    before = memory.now()
    dtype = dtype_of(layer, DTYPES[args.dtype], args.device)
    contestant = Contestant(make_layer(layer, work), work, args.device, dtype)
    for number in range(WARMUPS + 1):
        contestant.draw(number)
        contestant.forward()
        contestant.step()
    for tensor in contestant.state():
        # Zeros become resident when they are first written: not in the step that is measured.
        tensor.data.mul_(1)
    memory.reset_peak()
    contestant.step()
    return contestant, memory.peak() - before - contestant.bytes_expected()


def records_of(measured):
    """Returns plain records of results by entry, with how many times faster than others it was."""
    return [
        {
            "layer": layer,
            **asdict(work),
            **{f"{kind}_ms": quartiles_ms(getattr(result, kind)) for kind in KINDS},
            "step_bytes": result.step_bytes,
            "table_bytes": result.table_bytes,
            "dtype": result.dtype,
            "times_faster_than": {
                other: result.times_faster(measured[other, work])
                for other in (BASELINE, PYPI)
                if (other, work) in measured
            },
        }
        for (layer, work), result in measured.items()
    ]


def report(measured):
    """Prints the results of entries that were measured together, a work at a time."""
    for work in dict.fromkeys(work for _, work in measured):
        others = [other for other in (BASELINE, PYPI) if (other, work) in measured]
        brackets = f"; in brackets: times faster than {' and '.join(others)}" if others else ""
        print(f"\n{work}{brackets}")
        print(f"{'median, middle half of the rounds':36}{'forward, ms':26}{'step, ms':32}step, MiB")
        for record in records_of({entry: r for entry, r in measured.items() if entry[1] == work}):
            line = f"{record['layer']:22}"
            for kind in KINDS:
                first, median, third = record[f"{kind}_ms"]
                times = [f"{record['times_faster_than'][other][kind]:.2f}" for other in others]
                spread, brackets = (
                    f"{first:.2f}-{third:.2f}",
                    f"[{' '.join(times)}]" if times else "",
                )
                line += f"{median:9.2f} {spread:18}{brackets:14}"
            print(f"{line}{record['step_bytes'] / 2**20:9.1f}")


def plot(args, sweep):
    """Draws the medians over slots and over tokens, with the middle half of the rounds."""
    # fairseq leaves the root logger at DEBUG, at which matplotlib logs each font it finds.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.figure import Figure

    results = {entry: result for measured in sweep for entry, result in measured.items()}
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(len(KINDS), 2, sharex="col", sharey="row")
    columns = (
        (lambda work: work.subkeys**2, lambda work: work.tokens == args.tokens[0]),
        (lambda work: work.tokens, lambda work: work.subkeys == args.subkeys[0]),
    )
    for row, kind in zip(axes, KINDS):
        row[0].set_ylabel(f"{kind}, ms")
        for axis, (size, belongs) in zip(row, columns):
            axis.set(xscale="log", yscale="log")
            axis.grid(alpha=0.3)
            sizes = sorted({size(work) for _, work in results if belongs(work)})
            axis.set_xticks(sizes, labels=[f"{n:,}" for n in sizes])
            axis.set_xticks([], minor=True)
            for layer in args.layers:
                points = sorted(
                    (size(work), *quartiles_ms(getattr(result, kind)))
                    for (name, work), result in results.items()
                    if name == layer and belongs(work)
                )
                if points:
                    places, first, median, third = zip(*points)
                    (line,) = axis.plot(places, median, marker="o", label=layer)
                    axis.fill_between(places, first, third, color=line.get_color(), alpha=0.2)
    for axis, label in zip(axes[-1], ("slots", "tokens")):
        axis.set_xlabel(label)
    axes[0, 0].set_title(f"{args.tokens[0]:,} tokens, dim {args.dim}")
    axes[0, 1].set_title(f"{args.subkeys[0] ** 2:,} slots, dim {args.dim}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
    Path(args.plot).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=120)


def parse_args(argv):
    sweeps = {"tokens": [256, 64, 1024, 4096], "subkeys": [512, 256, 1024, 2048]}
    sizes = {"dim": 64, "heads": 4, "topk": 32, "key-dim": 256, "repeats": 15}
    parser = make_parser(__doc__, {**sweeps, **sizes})
    add_machine(parser)
    parser.add_argument("--layers", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--table", action="store_true", help="measure the page's table too")
    parser.add_argument("--plot", help="picture of the medians to write, .png")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
