"""Measures the GPU kernels with other sizes of tiles, each against the size in use.

Takes the options of bench_ops.py. All sizes run in turn, after a check that they give the same. One
with which a kernel does not compile, or gives something else, is named and left out.
"""

import os
from functools import partial
from importlib import import_module
from unittest import mock

import torch
from bench_ops import (
    BAG,
    BAG_BACKWARD,
    SEARCH,
    SEARCH_BACKWARD,
    check,
    make_works,
    parse_args,
)
from measure import interleaved, median_ratio, quartiles_ms, write_json

# Whose kernels, which constant -> the works that it acts on, other sizes.
TILES = {
    ("weighted_bag", "TILE"): ((BAG, BAG_BACKWARD), (1024, 2048, 8192, 16384)),
    ("weighted_bag", "PIECE"): ((BAG_BACKWARD,), (16, 32, 128, 256)),
    ("product_key_search", "QUERIES"): ((SEARCH,), (32, 64)),
    ("product_key_search", "MOST_SUBKEYS"): ((SEARCH,), (64, 256)),
    ("product_key_search", "PIECE"): ((SEARCH_BACKWARD,), (2**25, 2**26, 2**28)),
}


def main(argv=None):
    """Runs the benchmark with command line options; returns its results."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    with mock.patch.dict(os.environ, PKM_KERNELS="1"):
        works = {
            name: forms["kernels"]
            for name, forms in make_works(args)[0].items()
            if "kernels" in forms
        }
        results, timed = [], {}
        for op, constant, size, name in all_sizes():
            module = import_module(f"pkm_fairseq.ops.{op}.triton_kernels")
            result = {"op": op, "constant": constant, "size": size, "work": name}
            results.append({**result, "in_use": getattr(module, constant)})
            work = partial(with_size, module, constant, size, works[name])
            try:
                check(name, {f"{constant}={size}": work, "kernels": works[name]}, args)
            except Exception as error:  # of many kinds, and no reason to measure nothing
                results[-1]["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            timed[name] = works[name]
            timed[op, constant, size, name] = work
        seconds = interleaved(timed, args.repeats, args.device)
    for result in results:
        key = tuple(result[part] for part in ("op", "constant", "size", "work"))
        if key in seconds:
            result["quartiles_ms"] = quartiles_ms(seconds[key])
            result["times_faster"] = median_ratio(seconds[result["work"]], seconds[key])
        print(line_of(result))
    if args.json:
        write_json(args.json, args, results=results)
    return results


def all_sizes():
    for (op, constant), (names, sizes) in TILES.items():
        for name in names:
            for size in sizes:
                yield op, constant, size, name


def with_size(module, constant, size, work):
    """Runs a work with another size of tiles."""
    with mock.patch.object(module, constant, size):
        return work()


def line_of(result):
    what = f"{result['work']}: {result['constant']} {result['size']} for {result['in_use']}, "
    return what + result.get("failed", f"{result.get('times_faster', 0):.2f} times faster")


if __name__ == "__main__":
    main()
