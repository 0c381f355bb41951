"""Every precision that fairseq knows, with its own Adam and with ours."""

import pytest
import torch

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
ON_GPU = pytest.param(
    "gpu",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    ],
)
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


@pytest.mark.parametrize("device", ["cpu", ON_GPU])
@pytest.mark.parametrize(
    ("precision", "optimizer"),
    [
        *((precision, "pkm_adam") for precision in PRECISIONS),
        *((precision, "adam") for precision in PRECISIONS[::3]),
        *((precision, "sparse") for precision in PRECISIONS[1:3]),
    ],
)
def test_training_follows_full_precision_or_is_refused(
    data, tmp_path, in_full_precision, precision, optimizer, device
):
    refused = optimizer == "sparse" and "memory-efficient" not in precision
    options = {**OPTIMIZERS[optimizer], "precision": precision}
    if device == "gpu":
        options["cpu"] = False
    output = train(data, tmp_path, fails=refused, **options)
    if refused:
        error = "pkm_fairseq: --pkm-grad sparse needs --optimizer pkm_adam, and half precision"
        assert output.splitlines()[-1].startswith(error)
    else:
        assert list(map(float, logged(output, "loss"))) == pytest.approx(
            in_full_precision, rel=0.01
        )
