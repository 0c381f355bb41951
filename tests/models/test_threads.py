"""Threads that share a model in evaluation get what one thread gets."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from pkm_fairseq.ops.cpu import numba_imports
from pkm_fairseq.usage.monitor import observe_reads
from tests.models.tiny import draw_tokens, make_memory_model
from tests.tolerances import assert_close

PAD = 1
THREADS, CALLS = 4, 50
# Wide values and int8 are read by kernels of our own, others by torch's.
MODELS = {
    "residual": {"pkm_value_dim": 512},
    "replace": {"pkm_mode": "replace", "pkm_layers": [0, 2], "pkm_share_values": True},
    "forms": {
        **{"pkm_gate": "silu", "pkm_score": "cosine", "pkm_weights": "relu"},
        **{"pkm_heads_merge": "concat", "pkm_query_norm": "layer"},
    },
    "int8": {"pkm_table_dtype": "int8", "encoder_normalize_before": True},
}


def draw_batches():
    """Batches of other sizes and other padding each."""
    batches = []
    for sentences in (1, 2, 5):
        for length in (1, 3, 8, 12):
            batch = draw_tokens(sentences, length)
            for row, tokens in enumerate(batch[1:]):
                tokens[length - row :] = PAD
            batches.append(batch)
    return batches


@torch.no_grad()
def call_from_threads(options):
    """Compares what a model gives to several threads with what it gives to one."""
    model, batches = make_memory_model(**options).eval(), draw_batches()
    features = [model(batch, features_only=True)[0] for batch in batches]

    @torch.no_grad()
    def call(number):
        batch, expected = batches[number % len(batches)], features[number % len(batches)]
        assert_close(model(batch, features_only=True)[0], expected)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(THREADS) as threads:
            list(threads.map(call, range(THREADS * CALLS)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_threads_that_share_a_model_get_what_one_gets(options):
    call_from_threads(options)


@pytest.mark.skipif(not numba_imports(), reason="numba is not installed")
def test_they_do_with_the_threads_of_numba_that_cannot_be_shared():
    # Two threads that run kernels of this threading layer at once abort the process.
    code = (
        "import numba; from tests.models.test_threads import MODELS, call_from_threads\n"
        "call_from_threads(MODELS['residual'])\n"
        "assert numba.threading_layer() == 'workqueue'"
    )
    environment = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_what_another_thread_reads_is_not_observed():
    model, (one, *_, other) = make_memory_model().eval(), draw_batches()
    with observe_reads(model.memories()) as reads, ThreadPoolExecutor() as threads:
        model(one)
        threads.submit(model, other).result()
    (((slots, _),),) = reads.values()
    assert len(slots) == one.numel()
