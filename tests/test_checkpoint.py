"""Checkpoints of every kind that people have become the state dict of a model with memory."""

import pytest
import torch

from pkm_fairseq.checkpoints.conversion import fit_checkpoint
from tests.checkpoints import as_fairseq_0_12_2, as_published, without_copies
from tests.models.tiny import TINY_MEMORY, draw_tokens, make_memory_model, make_model

EMBED = "encoder.sentence_encoder.embed_tokens.weight"


def dense_state(**options):
    """A RoBERTa checkpoint as the installed fairseq writes it."""
    return make_model("roberta", **options).state_dict()


def with_bias_only_head(state):
    kept = without_copies(state)
    return {key: kept[key] for key in kept if "lm_head" not in key or key == "encoder.lm_head.bias"}


def with_tied_head(state):
    state = without_copies(state)
    del state["encoder.lm_head.weight"]
    return state


LAYOUTS = [without_copies, as_fairseq_0_12_2, as_published, with_tied_head, with_bias_only_head]


@pytest.mark.parametrize("layers", [[1], [0, 2]])
@pytest.mark.parametrize(
    ("layout", "normalize_before"),
    # A published checkpoint is one without a LayerNorm after the last layer.
    [*((layout, False) for layout in LAYOUTS), *((x, True) for x in LAYOUTS if x != as_published)],
)
def test_a_residual_model_with_zero_values_starts_as_the_dense_model(
    layout, layers, normalize_before
):
    options = {"encoder_normalize_before": normalize_before}
    dense = make_model("roberta", **options).train()
    model = make_memory_model(pkm_layers=layers, pkm_value_init="zero", **options).train()
    for parameter in model.parameters():
        if parameter.dim() == 2 and parameter.shape[0] == 64:
            continue  # the values
        parameter.data.add_(1)  # nothing but what is loaded can make the models alike
    head = model.state_dict()
    model.load_state_dict(layout(dense.state_dict()))
    if layout is with_bias_only_head:
        for key in head:
            if ".lm_head." in key and not key.endswith((".weight", "lm_head.bias")):
                assert torch.equal(model.state_dict()[key], head[key])
        return
    tokens = draw_tokens(3, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], dense(tokens)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mode", ["residual", "replace"])
def test_every_dense_tensor_arrives_unchanged_and_the_memory_is_left_as_it_was(layout, mode):
    dense = dense_state()
    model = make_memory_model(pkm_mode=mode)
    memory = {key: tensor.clone() for key, tensor in model.state_dict().items() if ".pkm." in key}
    model.load_state_dict(layout(dense))
    loaded = model.state_dict()
    for key, tensor in memory.items():
        assert torch.equal(loaded[key], tensor), key
    gone = {key for key in dense if ".layers.1.fc" in key} if mode == "replace" else set()
    for key in without_copies(dense).keys() - gone:
        if key.endswith("version") or (layout is with_bias_only_head and ".lm_head." in key):
            continue
        assert torch.equal(loaded[key], dense[key]), key
    assert not gone & loaded.keys()


def test_saved_and_loaded_again_it_is_the_same_model():
    model = make_memory_model()
    model.load_state_dict(dense_state())
    again = make_memory_model()
    again.memories()[1].values.weight.data.add_(1)
    again.load_state_dict({key: tensor.clone() for key, tensor in model.state_dict().items()})
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


def test_the_function_changes_neither_of_its_arguments():
    loaded, model = as_fairseq_0_12_2(dense_state()), make_memory_model().state_dict()
    keys = list(loaded), list(model)
    fit_checkpoint(loaded, model)
    assert (list(loaded), list(model)) == keys


def test_the_notes_say_what_was_taken_made_fresh_and_dropped():
    loaded = as_fairseq_0_12_2(with_tied_head(dense_state()))
    model = make_memory_model(pkm_layers=[0, 2], pkm_mode="replace").state_dict()
    state, notes = fit_checkpoint(loaded, model)
    taken = sum(key in model for key in loaded)
    assert notes == [
        f"taken from the checkpoint: {taken} of {len(loaded)} tensors",
        "made fresh: the memory of layers 0,2, encoder.lm_head.weight, as the embeddings",
        "dropped: the copies that fairseq 0.12.2 keeps of each layer, "
        "the feed-forward networks of layers 0,2",
    ]
    assert fit_checkpoint(model, model)[1] == []


@pytest.mark.parametrize("layout", [without_copies, as_published])
def test_the_log_counts_the_tensors_of_the_file_and_names_a_fresh_head(layout, caplog):
    """Though fairseq adds its head, splits attention's projections and drops another's head."""
    dense = make_model("roberta")
    dense.register_classification_head("old", num_classes=3)
    loaded = layout(dense.state_dict())
    model = make_memory_model()
    model.register_classification_head("glue", num_classes=2)
    with caplog.at_level("INFO"):
        model.load_state_dict(dict(loaded))
    notes = [record.message for record in caplog.records if "pkm_fairseq" in record.name]
    head = sum("classification_heads.old" in key for key in loaded)
    assert head == 4
    assert notes[-2:] == [
        f"taken from the checkpoint: {len(loaded) - head} of {len(loaded)} tensors",
        "made fresh: the memory of layers 1, the classification head glue",
    ]


def test_a_dictionary_without_mask_gains_its_row():
    dense = without_copies(dense_state())
    shorter = dict(dense)
    for key in (EMBED, "encoder.lm_head.weight", "encoder.lm_head.bias"):
        shorter[key] = dense[key][:-1]
    model = make_memory_model().state_dict()
    state, notes = fit_checkpoint(shorter, model)
    assert torch.equal(state[EMBED][:-1], dense[EMBED][:-1])
    assert torch.equal(state[EMBED][-1], model[EMBED][-1])
    assert "the last entry of the dictionary, <mask>" in notes[1]


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({"encoder_layers": 2}, r"has 2 encoder layers \(not 3\): change --encoder-layers"),
        (
            {"encoder_embed_dim": 12},
            r"\(24, 12\) in the .*\(24, 16\).*--encoder-embed-dim 12",
        ),
        ({"encoder_ffn_embed_dim": 20}, "fc1.weight is .*: use --encoder-ffn-embed-dim 20"),
        ({"max_positions": 30}, "embed_positions.weight is .*: use --max-positions 30"),
        ({"encoder_normalize_before": True}, "trained otherwise: add --encoder-normalize-before"),
        ({"layernorm_embedding": False}, "trained otherwise: remove --layernorm-embedding"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_naming_the_flag(trained, message):
    with pytest.raises(ValueError, match=message):
        make_memory_model().load_state_dict(dense_state(**trained))


def test_the_layers_of_the_checkpoint_are_counted_without_the_fresh_memory():
    model = make_memory_model(encoder_layers=6, pkm_layers=[4])
    with pytest.raises(ValueError, match=r"has 3 encoder layers \(not 6\)"):
        model.load_state_dict(dense_state())


def test_a_last_norm_that_fairseq_would_drop_is_missed():
    # fairseq takes a checkpoint as published for one without a LayerNorm after the last layer.
    model = make_memory_model(encoder_normalize_before=True)
    with pytest.raises(ValueError, match="remove --encoder-normalize-before"):
        model.load_state_dict(as_published(dense_state()))


def test_a_memory_checkpoint_must_have_everything():
    saved = make_memory_model().state_dict()
    for key in (EMBED, "encoder.lm_head.weight", "encoder.lm_head.bias"):
        with pytest.raises(ValueError, match="use the dict.txt"):
            make_memory_model().load_state_dict({**saved, key: saved[key][:-1]})
    for name in ("subkeys", "values.weight", "query.bias"):
        lacking = dict(saved)
        del lacking[f"encoder.sentence_encoder.layers.1.pkm.{name}"]
        with pytest.raises(ValueError, match=f"lacks .*pkm.{name}"):
            make_memory_model().load_state_dict(lacking)
    headless = {key: tensor for key, tensor in saved.items() if "lm_head" not in key}
    with pytest.raises(ValueError, match="lacks encoder.lm_head"):
        make_memory_model().load_state_dict(headless)


def test_a_checkpoint_of_another_dictionary_is_refused():
    dense = without_copies(dense_state())
    dense[EMBED] = dense["encoder.lm_head.weight"] = torch.zeros(50, 16)
    with pytest.raises(ValueError, match=r"\(50, 16\) in the checkpoint.*use the dict.txt"):
        make_memory_model().load_state_dict(dense)


def test_what_is_no_roberta_is_refused():
    with pytest.raises(ValueError, match="the checkpoint is no RoBERTa: it lacks"):
        make_memory_model().load_state_dict({"decoder.weight": torch.zeros(2)})


def test_classification_heads_come_along():
    dense = make_model("roberta")
    dense.register_classification_head("glue", num_classes=3)
    model = make_memory_model()
    model.register_classification_head("glue", num_classes=3)
    model.load_state_dict(dense.state_dict())
    key = "classification_heads.glue.dense.weight"
    assert torch.equal(model.state_dict()[key], dense.state_dict()[key])
    assert TINY_MEMORY["pkm_layers"] == [1]


DAMAGES = {
    "lacks it": lambda state, key: state.pop(key),
    "renames it": lambda state, key: state.update({key + "_old": state.pop(key)}),
    "moves it": lambda state, key: state.update({"module." + key: state.pop(key)}),
    "has one entry more": lambda state, key: state.update(
        {key: torch.cat([state[key], state[key][:1]])}
    ),
    "has a dimension more": lambda state, key: state.update({key: state[key][None]}),
    "has no dimension": lambda state, key: state.update({key: torch.tensor(1.0)}),
    "has nothing in it": lambda state, key: state.update({key: torch.zeros(0)}),
    "is absurdly large": lambda state, key: state.update({key: torch.zeros(1).expand(2**50)}),
    "is no tensor": lambda state, key: state.update({key: "0"}),
    "is None": lambda state, key: state.update({key: None}),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["memory", "dense"])
def test_a_damaged_checkpoint_is_refused_in_one_line_whatever_is_damaged(kind, damage):
    state = make_memory_model().state_dict() if kind == "memory" else without_copies(dense_state())
    model = make_memory_model()
    for key in state:
        if key.endswith("version") or (kind == "dense" and "lm_head" in key):
            continue  # fairseq makes these itself where they are missing
        damaged = dict(state)
        DAMAGES[damage](damaged, key)
        with pytest.raises(ValueError, match="checkpoint|model") as refusal:
            model.load_state_dict(damaged)
        assert len(str(refusal.value).splitlines()) == 1, key


@pytest.mark.parametrize("state", [None, [], "model", {}, {1: torch.zeros(1)}])
def test_what_is_no_state_dict_is_refused(state):
    with pytest.raises(ValueError, match="checkpoint"):
        make_memory_model().load_state_dict(state)
