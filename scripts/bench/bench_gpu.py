"""Measures what the GPU kernels are to reach: figures, what was measured, and whether it is enough.

Runs bench_ops.py and bench_layer.py, which check first that what they compare computes the same,
bench_tiles.py and bench_models.py, or some of them, on a GPU in bfloat16. They print more than the
figures. On a CPU, small sizes show that all of it runs; with TRITON_INTERPRET=1 in the environment,
triton's interpreter runs the kernels there.
"""

import argparse
from pathlib import Path

import bench_layer
import bench_models
import bench_ops
import bench_tiles
from contestants import BASELINE, DENSE, SPARSE
from measure import figure, print_figures, write_json

OPTIONS = {
    "ops": "--tokens 65536",
    "tiles": "--tokens 65536",
    "layer": "--tokens 65536 --dim 768 --subkeys 512",
    "models": "--inference --training roberta_base roberta_large pkm_roberta_base "
    "pkm_roberta_base:pkm_grad=sparse --batch 16 --length 512",
}


def main(argv=None):
    args = parse_args(argv)
    figures = []
    for name in args.only:
        benchmark, figures_of = BENCHMARKS[name]
        options = f"--device {args.device} --dtype bfloat16 {OPTIONS[name]} {getattr(args, name)}"
        print(f"\n{benchmark.__name__}.py {options}")
        if args.dest:
            options += f" --json {args.dest}/{name}.json"
        figures += figures_of(benchmark.main(options.split()))
    print()
    print_figures(figures)
    if args.dest:
        write_json(Path(args.dest, "figures.json"), args, figures=figures)


def figures_of_ops(results):
    share = {name: result.get("of_copy_bandwidth") for name, result in results.items()}
    search = results[bench_ops.SEARCH]["times_as_long"]["torch"]
    return [
        figure("bag forward, bytes/s over the copy's", "at least", 0.8, share[bench_ops.BAG]),
        figure(
            "bag backward, bytes/s over the copy's",
            *("at least", 0.6, share[bench_ops.BAG_BACKWARD]),
        ),
        figure("search, times faster than the torch form", "at least", 5, search),
    ]


def figures_of_layer(records):
    return [
        figure(
            f"layer step, {record['layer']}, times faster than the baseline's",
            *("at least", 6, record["times_faster_than"].get(BASELINE, {}).get("step")),
        )
        for record in records
        if record["layer"] in (DENSE, SPARSE)
    ]


BENCHMARKS = {
    "ops": (bench_ops, figures_of_ops),
    "tiles": (bench_tiles, lambda results: []),
    "layer": (bench_layer, figures_of_layer),
    "models": (bench_models, list),
}


def parse_args(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=OPTIONS, default=[*OPTIONS], help="(default: all)"
    )
    for name in OPTIONS:
        parser.add_argument(
            f"--{name}",
            default="",
            help=f"more options of bench_{name}.py, as --{name}='--repeats 5'",
        )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try it")
    parser.add_argument("--dest", help="folder to write all results to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
