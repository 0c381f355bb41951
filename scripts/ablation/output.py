"""Writes the results of an ablation as JSON, as a table and as a picture."""

import json
import statistics

from matplotlib.figure import Figure
from results import all_of, median

from pkm_fairseq.files import atomic_write
from pkm_fairseq.usage.report.render import HISTORY, as_png

PICTURE = ("ppl", "pkm_top1_usage", "pkm_topk_usage", "pkm_kl", "pkm_stale_top1", "pkm_drift")
COLOURS, STYLES = 10, ("-", "--", ":", "-.")


def write_results(results, dest):
    """Writes results.json, results.md and results.png, each whole or not at all."""
    atomic_write(dest / "results.json", json.dumps(results, indent=1) + "\n")
    atomic_write(dest / "results.md", make_table(results))
    atomic_write(dest / "results.png", as_png(draw(results)))
    for ending in ("json", "md", "png"):
        print(f"wrote {dest / f'results.{ending}'}")


def make_table(results):
    """Returns the table in Markdown; rows that lack a seed are left out.

    Validations are of each seed; all else is the median over seeds.
    """
    tasks = [*results["settings"]["finetuning"]["tasks"]]
    columns = {
        "row": lambda name, row: f"({name}) {row['title']}",
        "updates": lambda name, row: f"{row['updates']:,}",
        "learning rate": lambda name, row: _number(row["lr"], "g"),
        "parameters": lambda name, row: _number(median(row["runs"], "parameters"), ",.0f"),
        "perplexity": lambda name, row: _valid(row, "ppl", ".1f"),
        "values zero": lambda name, row: _each(row, ".1f", "without_memory", "ppl"),
        "worth": lambda name, row: _valid(row, "pkm_worth", ".4f"),
        "read ratio": lambda name, row: _valid(row, "pkm_read_ratio"),
        "top-1 usage": lambda name, row: _valid(row, "pkm_top1_usage"),
        "top-k usage": lambda name, row: _valid(row, "pkm_topk_usage"),
        "KL": lambda name, row: _valid(row, "pkm_kl", ".2f"),
        "stale": lambda name, row: _number(_last(row, "pkm_stale_top1"), ".3f"),
        "drift": lambda name, row: _number(_last(row, "pkm_drift"), ".3f"),
    }
    for task in tasks:
        columns[task] = lambda name, row, task=task: _tuned(row, task, "best", ".1f")
        columns[f"{task}: spread"] = lambda name, row, task=task: _spread(row, task)
        columns[f"{task}: values zero"] = lambda name, row, task=task: _tuned(
            row, task, "without_memory", ".1f"
        )
        columns[f"{task}: drift"] = lambda name, row, task=task: _tuned(row, task, "drift", ".3f")
    columns["words/s"] = lambda name, row: _number(_speed(row, "words_per_second"), ".0f")
    columns["ratio"] = lambda name, row: _number(_speed(row, "times_first"), ".2f")
    done = {name: row for name, row in results["rows"].items() if all(row["runs"].values())}
    lines = [[*columns], ["---"] * len(columns)]
    lines += [[make(*row) for make in columns.values()] for row in done.items()]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    missing = ", ".join(name for name in results["rows"] if name not in done)
    return table + (f"\nNot run: {missing}.\n" if missing else "")


def draw(results):
    """Draws perplexity and usage over training, all runs in one picture."""
    figure = Figure(figsize=(15, 9), dpi=90, layout="constrained")
    lines = {}
    for axes, of in zip(figure.subplots(2, 3).flat, PICTURE):
        axes.set(title=HISTORY[of], xlabel="updates, those before included")
        for number, (name, row) in enumerate(results["rows"].items()):
            style = {"color": f"C{number % COLOURS}", "linestyle": STYLES[number // COLOURS]}
            for run in filter(None, row["runs"].values()):
                if entries := run["history"].get(of):
                    (line,) = axes.plot(*zip(*entries), marker=".", **style)
                    lines.setdefault(f"({name}) {row['title']}", line)
        if of == "ppl":
            axes.set_yscale("log")
        if of.endswith("usage"):
            axes.set_ylim(0, 1.05)
        if of == "ppl" and "unigram_perplexity" in results["data"]:
            alone = axes.axhline(results["data"]["unigram_perplexity"], color="black", ls=":")
            lines["each word by how frequent it is"] = alone
    if lines:
        figure.legend(lines.values(), lines, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _valid(row, name, form=".3f"):
    return _each(row, form, "validation", "figures", name)


def _each(row, form, *keys):
    """Writes a figure of each seed."""
    return " / ".join(format(value, form) for value in all_of(row["runs"], *keys))


def _tuned(row, task, name, form):
    """Writes the median over finetunings, once all of them are done."""
    tuned = [run["finetuning"].get(task, {name: {}, "steps": {}}) for run in row["runs"].values()]
    if any(len(of_run[name]) < len(of_run["steps"]) for of_run in tuned):
        return ""
    return _number(median(row["runs"], "finetuning", task, name), form)


def _spread(row, task):
    """Writes the lowest and the highest score of the finetunings."""
    scores = all_of(row["runs"], "finetuning", task, "best")
    return f"{min(scores):.1f} to {max(scores):.1f}" if len(scores) > 1 else ""


def _last(row, name):
    """Returns the median over runs of what was logged last."""
    histories = [run["history"].get(name) for run in row["runs"].values()]
    last = [history[-1][1] for history in histories if history]
    return statistics.median(last) if last else None


def _speed(row, name):
    """Returns the median words per second in training, or as a multiple of the first model's."""
    record = row["speed"]["training"]
    value = record and record[name]
    return value[1] if isinstance(value, list) else value


def _number(value, form):
    return "" if value is None else format(value, form)
