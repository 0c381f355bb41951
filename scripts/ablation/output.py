"""Writes the results of an ablation as JSON, as a table and as a picture."""

import json
import statistics

from matplotlib.figure import Figure

from pkm_fairseq.files import atomic_write
from pkm_fairseq.usage.report.render import HISTORY, as_png

PICTURE = ("ppl", "pkm_top1_usage", "pkm_topk_usage", "pkm_kl", "pkm_stale_top1", "pkm_drift")
COLOURS, STYLES = 10, ("-", "--", ":", "-.")


def write_results(results, dest):
    """Writes results.json, results.md and results.png, each whole or not at all."""
    atomic_write(dest / "results.json", as_json(results))
    atomic_write(dest / "results.md", make_table(results))
    atomic_write(dest / "results.png", as_png(draw(results)))
    for ending in ("json", "md", "png"):
        print(f"wrote {dest / f'results.{ending}'}")


def as_json(results):
    """Returns JSON with a line for each run, without what only the picture needs."""
    runs = [{key: run[key] for key in run if key != "history"} for run in results["runs"]]
    head = [
        f" {json.dumps(key)}: {json.dumps(results[key])},\n" for key in results if key != "runs"
    ]
    lines = ",\n".join(f"  {json.dumps(run)}" for run in runs)
    return "{\n" + "".join(head) + ' "runs": [\n' + lines + "\n ]\n}\n"


def make_table(results):
    """Returns the table in Markdown; rows that lack a seed are left out.

    Validations are of each seed; all else is the median over seeds.
    """
    columns = {
        "row": lambda runs: f"({runs[0]['row']}) {runs[0]['title']}",
        "updates": _median("updates", ",.0f"),
        "learning rate": _median("lr", "g"),
        "parameters": _median("parameters", ",.0f"),
        "perplexity": _each("ppl", ".1f"),
        "values zero": _each("ppl_values_zero", ".1f"),
        "worth": _each("pkm_worth", ".4f"),
        "read ratio": _each("pkm_read_ratio", ".3f"),
        "top-1 usage": _each("pkm_top1_usage", ".3f"),
        "top-k usage": _each("pkm_topk_usage", ".3f"),
        "KL": _each("pkm_kl", ".2f"),
        "stale": _median("pkm_stale_top1", ".3f"),
        "drift": _median("pkm_drift", ".3f"),
    }
    for task in results["settings"]["finetuning"]["tasks"]:
        columns[task] = _median(f"{task}", ".1f")
        columns[f"{task}: spread"] = _spread(task)
        columns[f"{task}: values zero"] = _median(f"{task}_values_zero", ".1f")
        columns[f"{task}: drift"] = _median(f"{task}_drift", ".3f")
    columns["words/s"] = _median("words_per_second", ".0f")
    columns["ratio"] = _median("times_first", ".2f")
    lines = [[*columns], ["---"] * len(columns)]
    rows = dict.fromkeys(run["row"] for run in results["runs"])
    for name in (name for name in rows if name not in results["not_run"]):
        runs = [run for run in results["runs"] if run["row"] == name]
        lines.append([make(runs) for make in columns.values()])
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    missing = ", ".join(results["not_run"])
    return table + (f"\nNot run: {missing}.\n" if missing else "")


def draw(results):
    """Draws perplexity and usage over training, all runs in one picture."""
    figure = Figure(figsize=(15, 9), dpi=90, layout="constrained")
    rows, lines = [*results["settings"]["rows"]], {}
    for axes, of in zip(figure.subplots(2, 3).flat, PICTURE):
        axes.set(title=HISTORY[of], xlabel="updates, those before included")
        for run in results["runs"]:
            number = rows.index(run["row"])
            style = {"color": f"C{number % COLOURS}", "linestyle": STYLES[number // COLOURS]}
            if entries := run["history"].get(of):
                (line,) = axes.plot(*zip(*entries), marker=".", **style)
                lines.setdefault(f"({run['row']}) {run['title']}", line)
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


def _each(name, form):
    """Writes a figure of each seed."""
    return lambda runs: " / ".join(format(run[name], form) for run in runs if name in run)


def _median(name, form):
    """Writes the median over seeds and, of finetuning, over its seeds."""

    def write(runs):
        found = _found(runs, name)
        return format(statistics.median(found), form) if found else ""

    return write


def _spread(task):
    """Writes the lowest and the highest score of the finetunings."""

    def write(runs):
        scores = _found(runs, task)
        return f"{min(scores):.1f} to {max(scores):.1f}" if len(scores) > 1 else ""

    return write


def _found(runs, name):
    """Returns a figure of all runs, a list's values one by one; none if a run lacks it."""
    of_runs = [run.get(name) for run in runs]
    if any(of_run is None for of_run in of_runs):
        return []
    return [value for of in of_runs for value in (of if isinstance(of, list) else [of])]
