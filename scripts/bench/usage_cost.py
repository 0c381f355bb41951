"""Measures what counting memory usage adds to a training update.

Trains a small pkm_roberta with Adam, one update with counting and one without in turn, and prints
the ratio of their times and of the counting's own time to an update.
"""

import argparse
import statistics
import time
from argparse import Namespace
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, build_model
from tqdm import tqdm

import pkm_fairseq.models  # noqa: F401 - registers the model
from pkm_fairseq.monitor import UsageMonitor, observe_reads
from pkm_fairseq.usage import add_reads, make_counts

VOCABULARY = 8000
LENGTH = 128


def main():
    args = parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    model = make_model(args).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tokens = torch.randint(4, VOCABULARY, (args.tokens // LENGTH, LENGTH), device=device)
    monitor = UsageMonitor(per_head=args.per_head)

    def update(watch):
        with watch:
            model(tokens, features_only=True)[0].float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def timed(work, *inputs):
        start = time.perf_counter()
        work(*inputs)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with observe_reads(model.memories()) as reads:
        update(nullcontext())
    counts = {
        layer: make_counts(args.heads if args.per_head else 1, args.subkeys**2, device)
        for layer in reads
    }

    def count():
        for layer, (read,) in reads.items():
            add_reads(counts[layer], *read)

    update(monitor.watch_training(model))
    plain, counted, counting = zip(
        *(
            (
                timed(update, nullcontext()),
                timed(update, monitor.watch_training(model)),
                timed(count),
            )
            for _ in tqdm(range(args.updates))
        )
    )
    print(f"update without counting   {1000 * statistics.median(plain):9.1f} ms (median)")
    print(f"update with counting      {1000 * statistics.median(counted):9.1f} ms")
    print(f"counting alone            {1000 * statistics.median(counting):9.1f} ms")
    ratio = statistics.median(b / a for a, b in zip(plain, counted))
    print(f"with / without            {ratio:9.4f} (median of ratios)")
    ratio = statistics.median(b / a for a, b in zip(plain, counting))
    print(f"counting alone / without  {ratio:9.4f}")


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "tokens": 4096,
        "dim": 256,
        "layers": 4,
        "memories": 1,
        "subkeys": 128,
        "heads": 4,
        "topk": 32,
        "updates": 20,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"(default: {default})")
    parser.add_argument("--per-head", action="store_true", help="count each head by itself")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    return parser.parse_args()


def make_model(args):
    dictionary = Dictionary()
    for i in range(VOCABULARY):
        dictionary.add_symbol(str(i))
    options = Namespace(
        arch="pkm_roberta",
        min_params_to_wrap=10**8,
        encoder_layers=args.layers,
        encoder_embed_dim=args.dim,
        encoder_ffn_embed_dim=4 * args.dim,
        encoder_attention_heads=args.dim // 64,
        max_positions=LENGTH,
        pkm_layers=list(range(args.layers - args.memories, args.layers)),
        pkm_subkeys=args.subkeys,
        pkm_heads=args.heads,
        pkm_topk=args.topk,
    )
    ARCH_CONFIG_REGISTRY[options.arch](options)
    torch.manual_seed(1)
    task = SimpleNamespace(source_dictionary=dictionary, max_positions=lambda: LENGTH)
    return build_model(options, task)


if __name__ == "__main__":
    main()
