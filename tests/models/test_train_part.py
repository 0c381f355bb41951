"""Training listed slots alone, and nothing but values; through the commands in tests/commands."""

import io
from types import SimpleNamespace

import pytest
import torch
from fairseq.dataclass.configs import EMAConfig
from fairseq.models.ema.ema import EMA
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

from pkm_fairseq.optim import PKMAdam, PKMAdamConfig
from pkm_fairseq.tasks.train_part import TrainPartTask
from tests.commands.commands import assert_same_state
from tests.models.tiny import draw_tokens, make_memory_model
from tests.tolerances import assert_close

SHARED = {"pkm_layers": [0, 2], "pkm_share_values": True}
LISTED = torch.tensor([0, 5, 6, 17, 40, 63])
ADAM = {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.5}


def make_model(listed=LISTED, **options):
    model = make_memory_model(**options)
    model.train_slots(dict.fromkeys(model.tables(), listed))
    return model.train()


def go_back(model, scale=1.0, seed=0):
    torch.manual_seed(seed)
    (scale * model(draw_tokens(3, 8))[0].float().square().sum()).backward()


def make_optimizer(model, **options):
    config = {
        "lr": [0.01],
        "amp": False,
        "zero_sharding": "none",
        "store_ema": False,
        "use_bmuf": False,
        **ADAM,
        **options,
    }
    config = OmegaConf.merge(OmegaConf.structured(PKMAdamConfig), config)
    return PKMAdam(config, [param for param in model.parameters() if param.requires_grad])


def rows_of(table):
    return torch.zeros(len(table), dtype=torch.bool).index_fill(0, LISTED, True)


@pytest.mark.parametrize("options", [{}, SHARED, {"pkm_grad": "sparse"}], ids=str)
def test_the_gradient_is_that_of_the_listed_rows_of_all(options):
    model, whole = make_model(**options), make_memory_model(**options).train()
    for values in whole._shared_by_optimizer.values():
        values.taken_by_lazy_adam = True
    for values in model._shared_by_optimizer.values():
        values.taken_by_lazy_adam = True
    for _ in range(2):  # two batches of an update
        go_back(model)
        go_back(whole)
    for name, param in whole.named_parameters():
        if name.endswith("values.weight"):
            rows = model.get_parameter(name.replace("weight", "rows")).grad
            assert rows.is_sparse == ("pkm_grad" in options)
            assert_close(rows.to_dense(), param.grad.to_dense()[LISTED])
            assert model.get_parameter(name).grad is None
        elif param.grad is not None:
            assert_close(model.get_parameter(name).grad, param.grad)


def test_a_batch_that_counts_for_nothing_touches_no_row():
    model = make_model(pkm_grad="sparse")
    model.tables()[(1,)].rows.taken_by_lazy_adam = True
    go_back(model, scale=0.0)
    assert model.tables()[(1,)].rows.grad._nnz() == 0


@pytest.mark.parametrize("grad", ["dense", "sparse"])
@pytest.mark.parametrize("options", [{}, SHARED], ids=str)
@pytest.mark.parametrize("half", [False, True])
def test_other_rows_stay_to_the_bit_and_count_for_nothing(grad, options, half):
    model = make_model(pkm_grad=grad, pkm_topk=8, **options)  # so that each row is read
    if half:
        model.bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model, pkm_values_weight_decay=0.5)
    for seed in range(3):
        go_back(model, seed=seed)
        grads = [p.grad.to_dense().float() for p in model.parameters() if p.grad is not None]
        norm = optimizer.clip_grad_norm(0.1)
        assert_close(norm, torch.stack([grad.norm() for grad in grads]).norm())
        optimizer.step()
        optimizer.zero_grad()
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, table in after.items():
        if name.endswith("values.weight"):
            assert torch.equal((before[name] != table).any(1), rows_of(table))
    for table in model.tables().values():
        assert optimizer.optimizer.state[table.rows]["exp_avg"].shape == table.rows.shape
        assert table.weight not in optimizer.optimizer.state


def test_what_is_saved_has_the_rows_and_loads_with_and_without_a_list():
    model = make_model()
    optimizer = make_optimizer(model)
    go_back(model)
    optimizer.step()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)  # before a forward pass has taken the rows over
    expected = model.eval()(draw_tokens(3, 8))[0]
    for listed in (None, LISTED, torch.tensor([1, 2])):
        file.seek(0)
        loaded = make_memory_model() if listed is None else make_model(listed)
        loaded.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(loaded.eval()(draw_tokens(3, 8))[0], expected)
        assert_same_state(loaded.state_dict(), model.state_dict())


def test_an_average_follows_the_listed_rows():
    model = make_model()
    average = EMA(model, EMAConfig(ema_decay=0.5, ema_start_update=0))
    before = model.state_dict()["encoder.sentence_encoder.layers.1.pkm.values.weight"].clone()
    model.tables()[(1,)].rows.data += 1
    average.step(model, 1)
    after = average.get_model().state_dict()["encoder.sentence_encoder.layers.1.pkm.values.weight"]
    assert_close(after, before + 0.5 * rows_of(after).unsqueeze(1))


@pytest.mark.parametrize("listed", [None, LISTED])
def test_frozen_all_but_values_and_the_head_stays_to_the_bit(listed):
    model = make_memory_model(dropout=0.1)
    model.register_classification_head("new", num_classes=2)
    if listed is not None:
        model.train_slots({(1,): listed})
    model.freeze_rest("new")
    model.register_classification_head("old", num_classes=3)  # as a checkpoint brings it
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = make_optimizer(model.train(), pkm_values_weight_decay=0.5)
    for seed in range(2):
        torch.manual_seed(seed)
        loss = model(draw_tokens(3, 8), classification_head_name="new")[0].square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    values = "encoder.sentence_encoder.layers.1.pkm.values.weight"
    assert moved == {
        values,
        *(name for name in before if name.startswith("classification_heads.new")),
    }
    if listed is not None:
        after = model.state_dict()[values]
        assert torch.equal((before[values] != after).any(1).nonzero().squeeze(1), listed)


def test_frozen_query_norm_normalises_as_in_evaluation_and_dropout_goes_on():
    model = make_memory_model(dropout=0.5)
    model.freeze_rest()
    norm = model.memories()[1].query_norm
    norm.running_var.fill_(3.0)
    query = torch.randn(5, 2, 8)
    evaluated = norm.eval()(query)
    assert torch.equal(model.train().memories()[1].query_norm(query), evaluated)
    first, second = (model(draw_tokens(3, 8))[0] for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    "option", ["checkpoint_activations", "encoder_layerdrop", "quant_noise_pq"]
)
def test_what_needs_all_to_be_trained_is_refused_with_the_rest_frozen(option):
    model = make_memory_model()
    setattr(model.args, option, 0.5)
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}.*--pkm-freeze-rest"):
        model.freeze_rest()


@pytest.mark.parametrize("wrapper", [None, "fp32_optimizer", "wrapped_optimizer"])
def test_the_optimizer_of_another_part_is_refused_whatever_wraps_it(wrapper, monkeypatch):
    optimizer = inner = SimpleNamespace(param_groups=[{}])
    if wrapper:  # of which those around fairseq's composite optimizer have no groups
        optimizer = SimpleNamespace(**{wrapper: inner})
    monkeypatch.setattr(FairseqTask, "train_step", lambda *args: "trained")
    task = TrainPartTask(None)
    task._part = "some slots"
    for update in (0, 1):
        assert task.train_step(None, None, None, optimizer, update) == "trained"
    task._part = "other slots"
    with pytest.raises(ValueError, match="another --pkm-train-slots or --pkm-freeze-rest"):
        task.train_step(None, None, None, optimizer, 2)
