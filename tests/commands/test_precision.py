"""Every precision that fairseq knows, with its own Adam and with ours."""

import pytest

from tests.commands.commands import MEMORY, MODEL, logged, pretraining, run

PRECISIONS = [
    "fp16 fp16-no-flatten-grads",  # fairseq flattens gradients on GPUs only
    "bf16",
    "memory-efficient-fp16",
    "memory-efficient-bf16",
]
OPTIMIZERS = {
    "adam": {"optimizer": "adam"},
    "pkm_adam": {"optimizer": "pkm_adam"},
    "sparse": {"optimizer": "pkm_adam", "pkm-grad": "sparse"},
}
UPDATES = 5


def train(data, folder, *, fails=False, precision="", **options):
    # A loss scale that does not overflow: fairseq repeats an overflow on a GPU only.
    flags = {**dict.fromkeys(precision.split()), "fp16-init-scale": 4, "no-save": None}
    options = {"arch": "pkm_roberta", **MODEL, **MEMORY, **flags, **options}
    arguments = pretraining(data, folder, updates=UPDATES, **options)
    return run("fairseq-train", *arguments, fails=fails)


@pytest.fixture(scope="module")
def in_full_precision(data, tmp_path_factory):
    output = train(data, tmp_path_factory.mktemp("full"), **OPTIMIZERS["adam"])
    return list(map(float, logged(output, "loss")))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_follows_full_precision_or_is_refused(
    data, tmp_path, in_full_precision, precision, optimizer
):
    refused = optimizer == "sparse" and "memory-efficient" not in precision
    output = train(data, tmp_path, fails=refused, precision=precision, **OPTIMIZERS[optimizer])
    if refused:
        error = "ValueError: --pkm-grad sparse needs --optimizer pkm_adam, and half precision needs"
        assert output.splitlines()[-1].startswith(error)
    else:
        assert list(map(float, logged(output, "loss"))) == pytest.approx(
            in_full_precision, rel=0.01
        )
