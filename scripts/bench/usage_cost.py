"""Measures what counting memory usage adds to a training update.

Trains a small pkm_roberta with Adam, one update with counting and one without in turn, and prints
the ratio of their times and of the counting's own time to an update.
"""

from contextlib import nullcontext

import torch
from measure import interleaved, make_parser, median_ratio, quartiles_ms
from roberta import make_model, make_task

from pkm_fairseq.usage.metrics import add_reads, make_counts
from pkm_fairseq.usage.monitor import UsageMonitor
from pkm_fairseq.usage.observe import observe_reads

VOCABULARY = 8000
LENGTH = 128


def main():
    args = parse_args()
    device = "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"
    model = make_small_model(args).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    tokens = torch.randint(4, VOCABULARY, (args.tokens // LENGTH, LENGTH), device=device)
    monitor = UsageMonitor(per_head=args.per_head)

    def update(watch):
        with watch:
            model(tokens, features_only=True)[0].float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with observe_reads(model.memories()) as reads:
        update(nullcontext())
    counts = {
        layer: make_counts(args.heads if args.per_head else 1, args.subkeys**2, device)
        for layer in reads
    }

    def count():
        for layer, (read,) in reads.items():
            add_reads(counts[layer], *read)

    works = {
        "update without counting": lambda: update(nullcontext()),
        "update with counting": lambda: update(monitor.watch_training(model)),
        "counting alone": count,
    }
    seconds = interleaved(works, args.updates, device)
    for name, times in seconds.items():
        print(f"{name:25} {quartiles_ms(times)[1]:9.1f} ms (median)")
    plain, counted, counting = seconds.values()
    print(f"with / without            {median_ratio(counted, plain):9.4f} (median of ratios)")
    print(f"counting alone / without  {median_ratio(counting, plain):9.4f}")


def parse_args():
    sizes = {"tokens": 4096, "dim": 256, "layers": 4, "memories": 1}
    memory = {"subkeys": 128, "heads": 4, "topk": 32}
    parser = make_parser(__doc__, {**sizes, **memory, "updates": 20})
    parser.add_argument("--per-head", action="store_true", help="count each head by itself")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    return parser.parse_args()


def make_small_model(args):
    options = {
        "encoder_layers": args.layers,
        "encoder_embed_dim": args.dim,
        "encoder_ffn_embed_dim": 4 * args.dim,
        "encoder_attention_heads": args.dim // 64,
        "pkm_layers": list(range(args.layers - args.memories, args.layers)),
        "pkm_subkeys": args.subkeys,
        "pkm_heads": args.heads,
        "pkm_topk": args.topk,
    }
    return make_model("pkm_roberta", make_task(VOCABULARY, LENGTH), **options)


if __name__ == "__main__":
    main()
