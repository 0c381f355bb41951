import copy

import pytest
import torch
import torch.nn.functional as F
from fairseq.dataclass.configs import EMAConfig
from fairseq.models import build_model
from fairseq.models.ema.ema import EMA
from fairseq.nan_detector import NanDetector
from torch import nn

from pkm_fairseq.config import PKMConfig
from pkm_fairseq.optim import LazyAdam
from tests.models.tiny import (
    TINY,
    TINY_MEMORY,
    draw_tokens,
    make_args,
    make_memory_model,
    make_model,
    make_task,
)
from tests.tolerances import assert_close

PAD = 1


def pad_tokens(tokens, *lengths):
    """Returns ``tokens`` with all that lies behind each row's length padded."""
    padded = tokens.clone()
    for row, length in zip(padded, lengths):
        row[length:] = PAD
    return padded


def layer_of(model, index=1):
    return model.encoder.sentence_encoder.layers[index]


@pytest.mark.parametrize("training", [True, False])
def test_without_memory_it_computes_exactly_what_roberta_computes(training):
    roberta = make_model("roberta", dropout=0.1)
    ours = make_model("pkm_roberta", dropout=0.1)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, roberta.state_dict()[name]), name
    tokens = pad_tokens(draw_tokens(3, 7), 7, 4, 2)
    outputs = []
    for model in (roberta, ours):
        torch.manual_seed(3)
        output = model.train(training)(tokens)[0]
        output.sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    stock = dict(roberta.named_parameters())
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (stock[name].grad is None), name
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, stock[name].grad), name


# The later forms of the memory.
FORMS = [
    {"pkm_gate": "silu"},
    {"pkm_gate": "sigmoid"},
    {"pkm_score": "cosine"},
    {"pkm_weights": "relu"},
    {"pkm_weights": "sigmoid"},
    {"pkm_heads_merge": "concat"},
]
ALL_FORMS = {
    "pkm_gate": "silu",
    "pkm_score": "cosine",
    "pkm_weights": "relu",
    "pkm_heads_merge": "concat",
}


@pytest.mark.parametrize("layers", [[0], [1], [2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_memory_is_in_the_named_layers_and_the_ffn_where_it_should_be(layers, mode):
    model = make_memory_model(pkm_layers=layers, pkm_mode=mode)
    for index in range(TINY["encoder_layers"]):
        names = {name.split(".")[0] for name in layer_of(model, index).state_dict()}
        assert ("pkm" in names) == (index in layers)
        has_ffn = mode == "residual" or index not in layers
        assert ("fc1" in names) == ("fc2" in names) == has_ffn
    assert list(model.memories()) == layers


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_a_layer_reads_its_memory_inside_the_dropout_residual_and_norm_of_its_ffn(
    mode, normalize_before
):
    options = {"encoder_normalize_before": normalize_before, "dropout": 0.3}
    layer = layer_of(make_memory_model(pkm_mode=mode, pkm_query_norm="layer", **options))
    x = torch.randn(5, 2, 16)
    padding = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    torch.manual_seed(7)
    actual = layer(x, padding)

    torch.manual_seed(7)
    attended = layer.self_attn_layer_norm(x) if normalize_before else x
    attended, _ = layer.self_attn(attended, attended, attended, key_padding_mask=padding)
    x = x + F.dropout(attended, 0.3)
    x = x if normalize_before else layer.self_attn_layer_norm(x)
    inner = layer.final_layer_norm(x) if normalize_before else x
    memory = layer.pkm(inner, padding.t())
    if mode == "residual":
        memory = (
            F.linear(
                F.gelu(F.linear(inner, layer.fc1.weight, layer.fc1.bias)),
                layer.fc2.weight,
                layer.fc2.bias,
            )
            + memory
        )
    x = x + F.dropout(memory, 0.3)
    assert_close(actual, x if normalize_before else layer.final_layer_norm(x))


@pytest.mark.parametrize("normalize_before", [False, True])
@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize("layers", [[0], [1], [0, 2]])
def test_train_and_eval_mode_agree_also_after_loading_and_with_padding(
    layers, mode, normalize_before
):
    # fairseq 0.12.2 switches to a path without memory in evaluation, once weights were loaded.
    options = {
        "pkm_layers": layers,
        "pkm_mode": mode,
        "pkm_query_norm": "layer",
        "encoder_normalize_before": normalize_before,
    }
    model = make_memory_model(**options)
    loaded = make_memory_model(**options).eval()
    loaded.load_state_dict(copy.deepcopy(model.state_dict()))
    tokens = pad_tokens(draw_tokens(3, 7), 7, 4, 2)
    real = tokens.ne(PAD)
    with torch.no_grad():
        assert_close(loaded(tokens)[0][real], model(tokens)[0][real])


def test_padding_a_batch_changes_nothing_for_its_sentences():
    model = make_memory_model(encoder_normalize_before=True).eval()
    tokens = draw_tokens(1, 4)
    padded = torch.cat([tokens, torch.full((1, 3), PAD)], 1)
    assert_close(model(padded)[0][:, :4], model(tokens)[0])


def test_the_memories_keep_their_own_initialisation():
    # fairseq redraws every nn.Linear with a standard deviation of 0.02.
    options = {"pkm_heads_merge": "concat", "pkm_value_dim": 32}
    for gate in ("silu", "sigmoid"):
        memory = make_memory_model(
            encoder_embed_dim=64, pkm_key_dim=64, pkm_gate=gate, **options
        ).memories()[1]
        for linear in (memory.query, memory.output):
            assert linear.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
        projection = memory.gate.projection
        if gate == "silu":
            assert projection.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
        else:
            assert not projection.weight.any()
            assert projection.bias.item() == 2


@pytest.mark.parametrize(("share", "tables"), [(False, 3), (True, 1)])
def test_each_table_is_drawn_once(share, tables, monkeypatch):
    drawn, draw = [], nn.init.normal_

    def count(tensor, *args, **options):
        drawn.append(tensor.shape)
        return draw(tensor, *args, **options)

    monkeypatch.setattr(nn.init, "normal_", count)
    model = make_memory_model(pkm_layers=[0, 1, 2], pkm_share_values=share)
    assert drawn.count((64, 16)) == tables == len(model.tables())
    for table in model.tables().values():
        assert table.weight.std().item() == pytest.approx(16**-0.5, rel=0.1)


@pytest.mark.parametrize("mode", ["residual", "replace"])
@pytest.mark.parametrize(
    "options",
    [
        {"encoder_normalize_before": True},
        {"layernorm_embedding": False},
        {"encoder_layerdrop": 0.01},
        {"checkpoint_activations": True},
        {"checkpoint_activations": True, "offload_activations": True},
        {"untie_weights_roberta": True},
        {"spectral_norm_classification_head": True},
        {"quant_noise_pq": 0.1, "quant_noise_pq_block_size": 4},
        {"activation_fn": "relu"},
        {"activation_dropout": 0.1},
        {"mha_reg_scale_factor": 0.1},
        {"max_positions": 40},
        {"pkm_value_dim": 6},
        {"pkm_share_values": True, "pkm_layers": [0, 2]},
        {"pkm_query_dropout": 0.1, "pkm_value_dropout": 0.1},
        {"pkm_key_dropout": 0.5, "pkm_share_values": True, "pkm_layers": [0, 2]},
        *FORMS,
        {**ALL_FORMS, "pkm_share_values": True, "pkm_layers": [0, 2]},
    ],
    ids=lambda options: ",".join(options),
)
def test_every_part_of_it_learns_under_robertas_own_flags(options, mode):
    model = make_memory_model(pkm_mode=mode, **options)
    model.register_classification_head("sentence", num_classes=2)
    tokens = pad_tokens(draw_tokens(3, 7), 7, 4, 2)
    model(tokens)[0].float().square().mean().backward()
    model(tokens, classification_head_name="sentence")[0].sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    for memory in model.memories().values():
        assert memory.values.weight.grad.any()
        assert memory.subkeys.grad.any()
        assert memory.query.weight.grad.any()


@pytest.mark.parametrize("dropout", [0, 0.25])
def test_activation_checkpointing_changes_no_gradient_and_no_statistic(dropout):
    results = []
    for checkpoint_activations in (False, True):
        model = make_memory_model(
            checkpoint_activations=checkpoint_activations, pkm_key_dropout=dropout
        )
        for _ in range(2):
            model(draw_tokens(3, 7))[0].square().sum().backward()
        results.append((dict(model.named_parameters()), dict(model.named_buffers())))
    (parameters, buffers), (expected_parameters, expected_buffers) = results
    for name, parameter in parameters.items():
        assert_close(parameter.grad, expected_parameters[name].grad)
    for name, buffer in buffers.items():
        assert torch.equal(buffer, expected_buffers[name]), name


def test_a_model_without_some_of_its_attention_heads_comes_back_from_its_checkpoint():
    models = []
    for seed in range(2):
        model = make_memory_model(mha_reg_scale_factor=0.1, mha_heads_to_keep=1)
        for parameter in model.parameters():
            parameter.data.add_(0.01 * seed)
        # As fairseq's trainer does before it loads such a checkpoint.
        for layer in model.encoder.sentence_encoder.layers:
            kept = layer.self_attn._get_reserve_head_index(num_heads_to_keep=1)
            layer.self_attn._adaptive_prune_heads(reserve_head_index=kept)
            layer.self_attn._set_skip_embed_dim_check()
        models.append(model.eval())
    models[0].load_state_dict(models[1].state_dict())
    tokens = draw_tokens(3, 7)
    assert torch.equal(*(model(tokens)[0] for model in models))


@pytest.mark.parametrize("share", [False, True])
def test_fairseqs_ema_averages_the_memory(share):
    # What the model holds under two names fairseq averages twice, as its tied embeddings.
    model = make_memory_model(pkm_layers=[0, 2], pkm_share_values=share)
    ema = EMA(model, EMAConfig(store_ema=True, ema_decay=0.9))
    before = copy.deepcopy(model.state_dict())
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.add_(1)
    ema.step(model, updates=1)
    for name, tensor in ema.get_model().state_dict().items():
        if ".pkm." in name:
            old = 0.9**2 if share and "values" in name else 0.9
            assert_close(tensor, old * before[name] + (1 - old) * model.state_dict()[name])


@pytest.mark.filterwarnings("ignore:.*backward hook")
def test_fairseq_tells_where_a_nan_comes_from(caplog):
    model = make_memory_model()
    model.memories()[1].values.weight.data.fill_(float("nan"))
    with NanDetector(model):
        model(draw_tokens(3, 7))[0].sum().backward()
    (where, *_) = (line for line in caplog.messages if line.startswith("NaN detected in output of"))
    assert "layers.1" in where


def test_sparse_gradients_that_torch_cannot_add_up_are_refused():
    model = make_memory_model(pkm_grad="sparse").half().train()
    LazyAdam(model.parameters())
    for _ in range(2):
        model.zero_grad()
        model(draw_tokens(2, 9))[0].sum().backward()
    message = "float16 on a CPU: choose --pkm-grad dense, bfloat16 or "
    with pytest.raises(ValueError, match=f"{message}--update-freq 1"):
        model(draw_tokens(2, 9))
    shared = make_memory_model(pkm_grad="sparse", pkm_layers=[0, 1], pkm_share_values=True)
    LazyAdam(shared.half().train().parameters())
    with pytest.raises(ValueError, match=f"{message}no --pkm-share-values"):
        shared(draw_tokens(2, 9))


@pytest.mark.parametrize(
    "options", [{"pkm_grad": "sparse"}, {"pkm_mode": "replace"}, ALL_FORMS], ids=str
)
def test_it_computes_the_same_when_torch_compiles_it(options):
    model = make_memory_model(**options).train()
    LazyAdam(model.parameters())  # which takes sparse gradients
    compiled = torch.compile(model, backend="aot_eager")
    tokens = draw_tokens(2, 9)
    tokens[0, 6:] = model.encoder.dictionary.pad()
    results = []
    for network in (model, compiled, compiled):
        model.zero_grad()
        logits, _ = network(tokens)
        logits.square().sum().backward()
        grads = [param.grad.to_dense().clone() for param in model.parameters()]
        results.append([logits.detach(), *grads])
    for result in results[1:]:
        for actual, expected in zip(result, results[0]):
            assert_close(actual, expected)


def test_a_copy_of_the_model_reads_its_own_memory():
    # fairseq's EMA deep-copies the model.
    model = make_memory_model(pkm_query_norm="layer").eval()
    duplicate = copy.deepcopy(model)
    tokens = draw_tokens(2, 5)
    with torch.no_grad():
        before = model(tokens)[0]
        duplicate.memories()[1].values.weight.zero_()
        assert torch.equal(model(tokens)[0], before)
        assert not torch.equal(duplicate(tokens)[0], before)


@pytest.mark.parametrize("options", [{}, {"pkm_value_dim": 6}, *FORMS, ALL_FORMS], ids=str)
def test_zero_values_make_a_residual_model_start_as_the_dense_one(options):
    dense = make_model("roberta").eval()
    model = make_memory_model(pkm_value_init="zero", **options).eval()
    model.load_state_dict({**model.state_dict(), **without_copies(dense)})
    tokens = pad_tokens(draw_tokens(3, 7), 7, 4, 2)
    assert torch.equal(model(tokens)[0], dense.train()(tokens)[0])


def without_copies(dense):
    ours = make_model("pkm_roberta").state_dict()
    return {name: tensor for name, tensor in dense.state_dict().items() if name in ours}


def test_memories_share_one_table_when_told_to_also_after_loading():
    model = make_memory_model(pkm_layers=[0, 2], pkm_share_values=True)
    first, second = model.memories().values()
    assert first.values.weight is second.values.weight
    assert sum("values" in name for name, _ in model.named_parameters()) == 1
    other = make_memory_model(pkm_layers=[0, 2], pkm_share_values=True)
    other.memories()[0].values.weight.data.add_(1)
    model.load_state_dict(other.state_dict())
    assert torch.equal(first.values.weight, other.memories()[2].values.weight)
    apart = make_memory_model(pkm_layers=[0, 2])
    apart.memories()[0].values.weight.data.add_(1)
    with pytest.raises(ValueError, match="remove --pkm-share-values"):
        model.load_state_dict(apart.state_dict())
    apart.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pkm_layers": [0, 1]}, r"made with --pkm-layers 1 \(not 0,1\)"),
        ({"pkm_subkeys": 9, "pkm_heads": 3}, r"--pkm-subkeys 8 \(not 9\), --pkm-heads 2 \(not 3\)"),
        ({"pkm_key_dim": 6}, r"--pkm-key-dim 8 \(not 6\)"),
        ({"pkm_value_dim": 6}, r"--pkm-value-dim 16 \(not 6\)"),
        ({"pkm_query_norm": "layer"}, r"--pkm-query-norm batch \(not layer\)"),
        ({"pkm_query_norm": "none"}, r"--pkm-query-norm batch \(not none\)"),
        ({"pkm_mode": "replace"}, r"--pkm-mode residual \(not replace\)"),
        ({"pkm_gate": "silu"}, r"--pkm-gate none \(not silu\)$"),
        ({"pkm_gate": "sigmoid"}, r"--pkm-gate none \(not sigmoid\)$"),
        ({"pkm_score": "cosine"}, r"--pkm-score dot \(not cosine\)$"),
        ({"pkm_weights": "relu"}, r"--pkm-weights softmax \(not relu\)$"),
        ({"pkm_weights": "sigmoid"}, r"--pkm-weights softmax \(not sigmoid\)$"),
        (
            {"pkm_heads_merge": "concat", "pkm_value_dim": 16},
            r"made with --pkm-heads-merge sum \(not concat\)$",
        ),
        ({"pkm_layers": []}, "the checkpoint has a memory: add --pkm-layers 1"),
    ],
)
def test_a_checkpoint_of_another_memory_is_refused_naming_the_options(options, message):
    saved, other = make_memory_model(), make_memory_model(**options)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(saved.state_dict())
    if other.memories():
        with pytest.raises(ValueError, match="the checkpoint's memory was made with"):
            saved.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quant_noise_scalar": 0.1}, "--quant-noise-scalar fails on every RoBERTa"),
        ({"quant_noise_scalar": 0.1, "pkm_layers": []}, "--quant-noise-scalar fails on every"),
        ({"encoder_layers_to_keep": "0,1"}, "--encoder-layers-to-keep renumbers"),
        ({"ffn_blocks_to_remove": 4}, "--ffn-blocks-to-remove rebuilds"),
        ({"ffn_reg_scale_factor": 0.1, "pkm_mode": "replace"}, "--ffn-reg-scale-factor needs"),
        (
            {"pkm_sync_query_norm": True, "encoder_layerdrop": 0.5},
            "--encoder-layerdrop drops other layers on each worker.*--pkm-sync-query-norm",
        ),
        ({"pkm_layers": [3]}, "--pkm-layers 3 does not exist"),
        ({"pkm_topk": 9}, "topk=9 exceeds subkeys=8"),
    ],
)
def test_what_memory_cannot_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_memory_model(**options)


def test_fully_sharded_parameters_are_refused(monkeypatch):
    monkeypatch.setattr(
        "pkm_fairseq.models.unsupported.fsdp_wrap",
        lambda module, **options: torch.nn.Sequential(module),  # as fairscale would
    )
    make_model()
    with pytest.raises(ValueError, match="--ddp-backend fully_sharded.*choose legacy_ddp"):
        make_memory_model()


@pytest.mark.parametrize("wanted", [True, False])
def test_bf16_on_the_command_line_does_not_mean_a_tpu(wanted):
    # fairseq-train says tpu wherever it reads --bf16.
    args = make_args("pkm_roberta", bf16=wanted, tpu=wanted)
    assert not args.tpu


@pytest.mark.parametrize(
    ("arch", "layers", "embed_dim", "memory"),
    [
        ("pkm_roberta", 12, 768, None),
        ("pkm_roberta_base", 12, 768, [4, 8]),
        ("pkm_roberta_large", 24, 1024, [8, 16]),
    ],
)
def test_architectures_are_robertas_with_memory_in_the_middle(arch, layers, embed_dim, memory):
    args = make_args(arch)
    assert (args.encoder_layers, args.encoder_embed_dim) == (layers, embed_dim)
    assert getattr(args, "pkm_layers", None) == memory
    assert make_args(arch, pkm_layers=[1]).pkm_layers == [1]
    assert make_args(arch, pkm_layers=[]).pkm_layers == []


def test_a_checkpoint_from_before_the_later_forms_comes_back_as_it_was():
    model, args = make_memory_model().eval(), make_args(**TINY, **TINY_MEMORY)
    assert not ALL_FORMS.keys() & vars(args).keys()
    loaded = build_model(args, make_task()).eval()
    loaded.load_state_dict(model.state_dict())
    tokens = draw_tokens(3, 7)
    assert torch.equal(loaded(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("weights", ["relu", "sigmoid"])
def test_a_checkpoint_whose_values_were_divided_by_topk_reads_as_it_did(weights):
    model, loaded = (make_memory_model(pkm_weights=weights).eval() for _ in range(2))
    memory = "encoder.sentence_encoder.layers.1.pkm."
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state[f"{memory}values.weight"] *= state.pop(f"{memory}search.{weights}_scale")
    state[f"{memory}search.{weights}"] = torch.zeros(1)
    loaded.load_state_dict(state)
    tokens = draw_tokens(3, 7)
    assert_close(loaded(tokens)[0], model(tokens)[0])


def test_every_option_goes_into_the_checkpoint():
    args = make_memory_model(pkm_heads=3).args
    assert PKMConfig.from_args(args) == PKMConfig(
        pkm_layers=[1], pkm_subkeys=8, pkm_topk=4, pkm_heads=3, pkm_key_dim=8
    )
    assert all(hasattr(args, name) for name in vars(PKMConfig()) if name.startswith("pkm_"))


@pytest.mark.parametrize(
    ("width", "given", "key_dim"), [(16, None, 16), (6, 256, 256), (300, None, 256), (9, None, 8)]
)
def test_keys_are_as_wide_as_the_model_up_to_256_unless_given(width, given, key_dim):
    options = {**TINY_MEMORY, "pkm_key_dim": given, "encoder_attention_heads": 1}
    model = make_model(**{**options, "encoder_embed_dim": width})
    assert layer_of(model).pkm.subkeys.shape == (2, 2, 8, key_dim // 2)
    # What a checkpoint holds: another default would not change the model.
    assert model.args.pkm_key_dim == key_dim
    assert layer_of(build_model(model.args, make_task())).pkm.subkeys.shape[-1] == key_dim // 2
