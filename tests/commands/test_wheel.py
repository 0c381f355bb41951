"""A wheel, in an empty folder and without the clone: from text to a report and to predictions."""

import shutil
import sys

from tests.commands.commands import MEMORY, MODEL, ROOT, flags, run

PACKAGED = ["LICENSE", "README.md", "pkm_fairseq", "setup.py", "user_dir_examples"]
UPDATES = {"max-update": 2, "batch-size": 8, "cpu": None}
# The shipped configuration, for a model as small.
SMALL = [
    *("common.cpu=true", "optimization.max_update=2", "optimization.max_epoch=0"),
    *("model._name=pkm_roberta", "model.pkm_layers=[1]", "task.max_positions=32"),
    *(f"model.{name.replace('-', '_')}={MEMORY[name]}" for name in MEMORY if name != "pkm-layers"),
    *(f"+model.{name.replace('-', '_')}={MODEL[name]}" for name in MODEL if "encoder" in name),
]


def test_it_walks_from_text_to_report_and_prediction(text, tmp_path):
    source, site, empty = (tmp_path / name for name in ("source", "site", "empty"))
    for folder in (source, empty):
        folder.mkdir()
    for name in PACKAGED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", source, "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("pkm_fairseq-*.whl")
    run(*pip, "install", "--no-deps", "--target", site, wheel)

    def do(command, *args):
        return run(command, *args, cwd=empty, PYTHONPATH=str(site))

    user_dir = do("pkm-fairseq", "user-dir").splitlines()[-1]
    configs = do("pkm-fairseq", "configs").splitlines()[-1]
    assert user_dir == str(site / "pkm_fairseq")
    assert configs == str(site / "pkm_fairseq/configs")
    texts = ("--train", text / "train.txt", "--valid", text / "valid.txt")
    do("pkm-fairseq", "prepare-text", *texts, "--dest", "bin", "--vocab-size", 300)
    do(
        *("fairseq-train", "bin", "--user-dir", user_dir, "--arch", "pkm_roberta"),
        *("--task", "pkm_masked_lm", "--criterion", "pkm_masked_lm", "--optimizer", "pkm_adam"),
        *("--lr", 0.001, "--tokens-per-sample", 16, "--save-dir", "run"),
        *flags({**MODEL, **MEMORY, **UPDATES}),
    )
    do("pkm-fairseq", "report", "bin", "run", "--dest", "report", "--cpu")
    assert (empty / "report/report.html").stat().st_size > 10_000

    run("python", ROOT / "scripts/sample_task.py", "--text", text / "train.txt", "--dest", empty)
    encoder = ("--dict", "bin/dict.txt", "--sentencepiece-model", "bin/sentencepiece.bpe.model")
    do("pkm-fairseq", "prepare-task", "--glue", ".", "--dest", "glue", *encoder)
    do(
        *("fairseq-hydra-train", "--config-dir", f"{configs}/glue", "--config-name", "cola"),
        *(f"common.user_dir={user_dir}", f"task.data={empty / 'glue/CoLA-bin'}"),
        f"checkpoint.finetune_from_model={empty / 'run/checkpoint_last.pt'}",
        f"checkpoint.save_dir={empty / 'cola'}",
        *SMALL,
    )
    of_task = ("--task", "CoLA", "--data", "glue/CoLA-bin", "--dest", "submission", "--cpu")
    do("pkm-fairseq", "predict", "--checkpoint", "cola/checkpoint_best.pt", *of_task)
    assert (empty / "submission/CoLA.tsv").read_text().startswith("index\tprediction\n0\t")
