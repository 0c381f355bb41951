"""Measures what values kept in fewer bits lose in perplexity, and gain in memory and words/s.

Memory and words per second are of models with random weights, in turn in one process, as
bench_models.py measures inference; it takes that script's options as well. Perplexity is what
fairseq-validate says of a checkpoint on its data.
"""

import argparse
import json
import subprocess
import sys

import bench_models
import torch
from measure import ROOT, Memory, interleaved, median_ratio, quartiles_ms, write_json
from roberta import make_task

TABLES = ("model", "bf16", "int8")


def main(argv=None):
    args, of_models = parse_args(argv)
    results = {table: {} for table in TABLES}
    measure_models(args, of_models, results)
    if args.checkpoint:
        for table in TABLES:
            results[table]["perplexity"] = perplexity(args, of_models.device, table)
    for table, of_table in results.items():
        print(f"{table:6}", *(f"{name} {value:.6g}" for name, value in of_table.items()), sep="  ")
    if of_models.json:
        options = argparse.Namespace(**vars(args), **vars(of_models))
        write_json(of_models.json, options, results=results)


def measure_models(args, of_models, results):
    """Adds the MiB of each model and of its values, its words/s and how many times the first's."""
    torch.set_num_threads(of_models.threads)
    task = make_task(of_models.vocabulary, of_models.length)
    memory = Memory(of_models.device)
    runners = {}
    for table in TABLES:
        before = memory.now()
        name = f"{args.arch}:pkm_table_dtype={table}"
        runner = runners[table] = bench_models.Runner(name, task, of_models)
        values = {
            tensor.data_ptr(): tensor.nbytes
            for name, tensor in runner.model.state_dict().items()
            if ".pkm.values." in name
        }
        results[table]["model MiB"] = (memory.now() - before) / 2**20
        results[table]["values MiB"] = sum(values.values()) / 2**20

    def draw(number):
        sample = bench_models.make_sample(task, of_models, number)
        for runner in runners.values():
            runner.sample = sample

    works = {table: runner.infer for table, runner in runners.items()}
    seconds = interleaved(works, of_models.repeats, of_models.device, draw)
    words = of_models.batch * of_models.length
    for table, of_table in results.items():
        of_table["words/s"] = 1000 * words / quartiles_ms(seconds[table])[1]
        of_table["times"] = median_ratio(seconds[TABLES[0]], seconds[table])


def perplexity(args, device, table):
    """Returns the perplexity of the checkpoint on its validation set."""
    option = {"pkm_table_dtype": table}
    command = [
        *(sys.executable, "-m", "fairseq_cli.validate", args.data),
        *("--user-dir", ROOT / "pkm_fairseq", "--task", args.task, "--path", args.checkpoint),
        *("--model-overrides", option),
        *("--batch-size", 32, "--skip-invalid-size-inputs-valid-test", "--log-format", "json"),
        *(["--cpu"] if device == "cpu" else []),
    ]
    run = subprocess.run(map(str, command), capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(run.stderr + run.stdout)
    (figures,) = (line for line in (run.stdout + run.stderr).splitlines() if "valid_ppl" in line)
    return float(json.loads(figures[figures.index("{") :])["valid_ppl"])


def parse_args(argv):
    """Returns the options, and those of bench_models.py."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="pkm_roberta_base", help="(default: pkm_roberta_base)")
    parser.add_argument("--checkpoint", metavar="FILE", help="one with a memory")
    parser.add_argument("--data", metavar="DIR", help="the data it was trained on")
    parser.add_argument("--task", default="pkm_masked_lm", help="its task (default: pkm_masked_lm)")
    args, rest = parser.parse_known_args(argv)
    if (args.checkpoint is None) != (args.data is None):
        parser.error("--checkpoint and --data belong together")
    return args, bench_models.parse_args([*rest, "--inference", "--training"])


if __name__ == "__main__":
    main()
