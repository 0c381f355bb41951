"""Models that are loaded to be evaluated, with their values in fewer bits."""

import io

import pytest
import torch
from fairseq.models import build_model

from pkm_fairseq.ops import quantise_rows
from tests.models.tiny import draw_tokens, make_memory_model, make_model, make_task
from tests.tolerances import assert_close

DTYPES = {"bf16": torch.bfloat16, "int8": torch.int8}
OPTIONS = [{}, {"pkm_value_dim": 6}, {"pkm_layers": [0, 2], "pkm_share_values": True}]


def rounded(values, dtype):
    if dtype == "bf16":
        return values.bfloat16().float()
    rows, scales = quantise_rows(values)
    return rows * scales.unsqueeze(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_it_computes_what_the_model_with_rounded_values_computes(options, dtype, precision):
    trained = make_memory_model(**options)
    for parameter in trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = make_memory_model(**options, pkm_table_dtype=dtype).eval().to(precision)
    model.load_state_dict(trained.state_dict())
    for memory in trained.memories().values():
        memory.values.weight.data = rounded(memory.values.weight.data, dtype)
    tokens = draw_tokens(3, 7)
    output = model(tokens)[0]
    assert output.dtype == precision
    if precision == torch.float32:
        assert_close(output, trained.eval()(tokens)[0])
    tables = {memory.values for memory in model.memories().values()}
    assert len(tables) == (1 if "pkm_share_values" in options else len(model.memories()))
    for table in tables:
        assert table.weight.dtype == DTYPES[dtype]
        assert not list(table.parameters())
        assert dtype == "bf16" or table.scales.dtype == torch.float32
        expected = next(iter(trained.memories().values())).values.weight
        scales = 1 if table.scales is None else table.scales.unsqueeze(1)
        assert_close(table.weight.float() * scales, expected.data)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_it_saves_opens_again_where_it_can(dtype):
    model = make_memory_model(pkm_table_dtype=dtype).eval()
    file = io.BytesIO()
    torch.save({"args": model.args, "model": model.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    torch.manual_seed(1)
    loaded = build_model(checkpoint["args"], make_task()).eval()
    loaded.load_state_dict(checkpoint["model"])
    tokens = draw_tokens(3, 7)
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])

    trainable = make_memory_model().eval()
    if dtype == "int8":
        with pytest.raises(ValueError, match=r"made with --pkm-table-dtype int8 \(not model\)"):
            trainable.load_state_dict(model.state_dict())
    else:
        trainable.load_state_dict(model.state_dict())
        assert_close(trainable(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fresh_memory_is_rounded_too(dtype):
    dense = make_model()
    model = make_memory_model(pkm_table_dtype=dtype).eval()
    model.load_state_dict(dense.state_dict())
    expected = make_memory_model().eval()
    expected.load_state_dict(dense.state_dict())
    table = expected.memories()[1].values.weight
    table.data = rounded(table.data, dtype)
    assert_close(model(draw_tokens(3, 7))[0], expected(draw_tokens(3, 7))[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_is_refused(dtype):
    model = make_memory_model(pkm_table_dtype=dtype, pkm_grad="sparse").train()
    slots = {layers: torch.tensor([0]) for layers in model.tables()}
    for train in (
        lambda: model(draw_tokens(3, 7)),
        model.freeze_rest,
        lambda: model.train_slots(slots),
    ):
        with pytest.raises(ValueError, match=f"--pkm-table-dtype {dtype} is for eval.*remove"):
            train()
    with torch.no_grad():
        model(draw_tokens(3, 7))
