"""Turns results into one page and its figures into JSON."""

import base64
import io
import json

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from pkm_fairseq.files import atomic_write
from pkm_fairseq.usage.plots import draw_curves, draw_memory

# What to draw over training, and how to call it.
HISTORY = {
    "ppl": "validation perplexity",
    "loss": "validation loss",
    "pkm_worth": "worth: what the loss gains without memories, in bits",
    "pkm_moved": "how far values have moved since the run began or was resumed",
    "pkm_top1_usage": "top-1 usage",
    "pkm_topk_usage": "top-k usage",
    "pkm_kl": "KL from uniform",
    "pkm_stale_top1": "stale: never best since the last validation",
    "pkm_drift": "drift since the last validation",
}


def write_report(results, dest, data, subset, png=False):
    """Writes ``report.html`` and ``report.json``, each whole or not at all.

    Args:
        results: a list with a dict for each checkpoint: ``name``, ``file``, ``updates``,
            ``figures``, ``counts`` by layer, ``slots`` by layer and ``history``.
        dest: folder to write to, which exists.
        data: folder of the data set.
        subset: its name.
        png: whether to write each picture as a file, too.
    """
    pictures = {name: as_png(figure) for name, figure in draw(results)}
    page = (
        Environment(loader=PackageLoader("pkm_fairseq.usage.report", "."), autoescape=True)
        .get_template("report.html")
        .render(
            data=data,
            subset=subset,
            results=results,
            names=list(dict.fromkeys(name for result in results for name in result["figures"])),
            pictures={name: base64.b64encode(file).decode() for name, file in pictures.items()},
        )
    )
    figures = [
        {key: value for key, value in result.items() if key != "counts"} for result in results
    ]
    summary = {"data": str(data), "subset": subset, "checkpoints": figures}
    files = {f"{name.replace('/', '-')}.png": file for name, file in pictures.items() if png}
    files["report.html"] = page
    files["report.json"] = json.dumps(summary, indent=1)
    for name, content in files.items():
        atomic_write(dest / name, content)
        print(f"wrote {dest / name}")


def draw(results):
    """Yields the name and figure of each picture."""
    yield "comparison", draw_comparison(results)
    if any(result["history"] for result in results):
        yield "history", draw_history(results)
    for result in results:
        for layer, counts in result["counts"].items():
            yield f"{result['name']}.l{layer}", draw_memory(counts)


def draw_comparison(results):
    """Draws, for each layer, the sorted usage curves of all checkpoints."""
    layers = sorted({layer for result in results for layer in result["counts"]})
    figure = Figure(figsize=(6 * len(layers), 4.5), layout="constrained")
    for axes, layer in zip(figure.subplots(1, len(layers), squeeze=False)[0], layers):
        draw_curves(
            axes,
            [
                (result["name"], result["counts"][layer][2].sum(0))
                for result in results
                if layer in result["counts"]
            ],
        )
        axes.set_title(f"layer {layer}")
    return figure


def draw_history(results):
    """Draws what was logged over training, all checkpoints' trainings in one picture."""
    names = [name for name in HISTORY if any(name in result["history"] for result in results)]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, columns, squeeze=False).flat, names):
        for result in results:
            if result["history"].get(name):
                axes.plot(*zip(*result["history"][name]), marker=".", label=result["name"])
        axes.set(title=HISTORY[name], xlabel="updates")
        axes.legend()
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    return figure


def as_png(figure):
    """Returns a picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
