"""Measures words per second of whole models: RoBERTa with and without memories.

The models are built as fairseq builds them, with random weights, and run in turn, on new tokens in
each round, none of them padding:

inference  the features of the last layer, without gradients, in evaluation mode
training   fairseq's masked language model loss on 15 % of the tokens, backward, clipping to norm 1,
           optimizer, clearing of the gradients

All train with pkm_adam, which is torch's fused AdamW but for sparse gradients, and in bfloat16 as
with --memory-efficient-bf16. A model is an architecture, which options may follow:
pkm_roberta_base:pkm_grad=sparse, or, for inference, pkm_roberta_base:pkm_table_dtype=int8. MiB are
those of the model itself.
"""

from ast import literal_eval

import torch
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from measure import (
    DTYPES,
    Memory,
    add_machine,
    figure,
    interleaved,
    make_parser,
    median_ratio,
    print_figures,
    quartiles_ms,
    write_json,
)
from roberta import make_model, make_task

from pkm_fairseq.optim import PKMAdam, PKMAdamConfig

MASKED = 0.15
MAX_NORM = 1.0
BASE, LARGE, MEMORY = "roberta_base", "roberta_large", "pkm_roberta_base"
# Kind, model, the model it is measured against, its speed as a multiple.
FIGURES = (
    ("inference", MEMORY, BASE, 0.88),
    ("inference", MEMORY, LARGE, 2.5),
    ("training", MEMORY, BASE, 0.85),
    ("training", MEMORY, LARGE, 2.0),
)


def main(argv=None):
    """Runs the benchmark with command line options; returns its figures."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    task = make_task(args.vocabulary, args.length)
    runners = {
        name: Runner(name, task, args) for name in dict.fromkeys([*args.inference, *args.training])
    }
    works = {("inference", name): runners[name].infer for name in args.inference}
    works.update({("training", name): runners[name].train for name in args.training})

    def draw(number):
        sample = make_sample(task, args, number)
        for runner in runners.values():
            runner.sample = sample

    seconds = interleaved(works, args.repeats, args.device, draw)
    firsts = {"inference": args.inference[:1], "training": args.training[:1]}
    records = [record_of(work, seconds, firsts, args) for work in works]
    for record in records:
        record["mib"] = runners[record["model"]].mib
        slow, median, fast = record["words_per_second"]
        print(
            f"{record['kind']:10}{record['model']:26}{median:9.0f} words/s ({slow:.0f}-{fast:.0f})"
            f"   step {record['milliseconds'][1]:.0f} ms   {record['mib']:.1f} MiB"
        )
    table = figures_of(seconds)
    print_figures(table)
    if args.json:
        write_json(args.json, args, results=records, table=table)
    return table


class Runner:
    """A model at work, with its loss and, if it is to train, its optimizer."""

    def __init__(self, name, task, args):
        arch, *options = name.split(":")
        options = {**dict(args.set), **dict(map(option, options))}
        memory = Memory(args.device)
        before = memory.now()
        self.model = make_model(arch, task, **options).to(args.device, DTYPES[args.dtype])
        self.mib = (memory.now() - before) / 2**20
        self.criterion = MaskedLmLoss(MaskedLmConfig(tpu=False), task)
        if name in args.training:
            config = PKMAdamConfig(lr=[1e-4], adam_betas=(0.9, 0.98), amp=False, use_bmuf=False)
            self.optimizer = PKMAdam(config, self.model.parameters())
        self.sample = None

    def infer(self):
        with torch.no_grad():
            self.model.eval()(**self.sample["net_input"], features_only=True)

    def train(self):
        """Makes an update as fairseq's trainer does."""
        loss, sample_size, _ = self.criterion(self.model.train(), self.sample)
        self.optimizer.backward(loss)
        self.optimizer.multiply_grads(1 / sample_size)
        self.optimizer.clip_grad_norm(MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()


def make_sample(task, args, seed):
    """Draws a batch as fairseq's masked language model task hands it to a model."""
    dictionary = task.source_dictionary
    generator = torch.Generator().manual_seed(seed)
    shape = (args.batch, args.length)
    words = torch.randint(dictionary.nspecial, len(dictionary), shape, generator=generator)
    masked = torch.rand(shape, generator=generator) < MASKED
    target = words.where(masked, torch.full_like(words, dictionary.pad()))
    return {
        "net_input": {"src_tokens": words.to(args.device)},
        "target": target.to(args.device),
        "ntokens": words.numel(),
        "nsentences": args.batch,
    }


def record_of(work, seconds, firsts, args):
    kind, name = work
    (first,) = firsts[kind]
    milliseconds = quartiles_ms(seconds[work])
    words = args.batch * args.length
    return {
        "kind": kind,
        "model": name,
        "milliseconds": milliseconds,
        "words_per_second": [1000 * words / ms for ms in reversed(milliseconds)],
        "times_first": median_ratio(seconds[kind, first], seconds[work]),
    }


def figures_of(seconds):
    """Returns the figures whose models were measured."""
    return [
        figure(
            *(f"{kind}, words/s of {name} against {other}", "at least", value),
            median_ratio(seconds[kind, other], seconds[kind, name]),
        )
        for kind, name, other, value in FIGURES
        if (kind, name) in seconds and (kind, other) in seconds
    ]


def option(text):
    """Reads one option of the models: name=value."""
    name, _, value = text.partition("=")
    try:
        return name, literal_eval(value)
    except (SyntaxError, ValueError):  # a word
        return name, value


def parse_args(argv):
    numbers = {"batch": 8, "length": 256, "vocabulary": 50265, "repeats": 7}
    parser = make_parser(__doc__, numbers)
    for name, default in {"inference": [BASE, LARGE, MEMORY], "training": [BASE, MEMORY]}.items():
        text = f"models to measure (default: {' '.join(default)})"
        parser.add_argument(f"--{name}", nargs="*", default=default, metavar="MODEL", help=text)
    parser.add_argument(
        "--set",
        type=option,
        nargs="*",
        default=[],
        metavar="NAME=VALUE",
        help="options of all models, as pkm_subkeys=1024 or encoder_layers=2",
    )
    add_machine(parser)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
