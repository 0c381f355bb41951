"""fairseq's side of the optimizer; whole trainings are in tests/commands/test_pkm_adam.py."""

import pytest
import torch
from fairseq.optim import MemoryEfficientFP16Optimizer
from omegaconf import OmegaConf

from pkm_fairseq.optim import PKMAdam, PKMAdamConfig
from tests.models.tiny import draw_tokens, make_memory_model
from tests.tolerances import assert_close

LR = 0.01
NO_MEMORY = dict.fromkeys(["pkm_subkeys", "pkm_topk", "pkm_heads", "pkm_key_dim"])


def make_optimizer(model, **options):
    config = {
        "lr": [LR],
        "amp": False,
        "zero_sharding": "none",
        "store_ema": False,
        "use_bmuf": False,
    }
    config.update(options)
    config = OmegaConf.merge(OmegaConf.structured(PKMAdamConfig), config)
    return PKMAdam(config, model.parameters())


def make_gradients(model):
    torch.manual_seed(0)
    model.zero_grad()
    model(draw_tokens(3, 8))[0].square().sum().backward()


def rates(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


def values_of(model):
    return model.memories()[1].values.weight


def test_values_are_a_group_of_their_own():
    model = make_memory_model()
    groups = make_optimizer(model, pkm_values_weight_decay=0.3, weight_decay=0.1).param_groups
    assert groups[1]["params"] == [values_of(model)]
    assert len(groups[0]["params"]) == len(list(model.parameters())) - 1
    assert [group["weight_decay"] for group in groups] == [0.1, 0.3]


def test_values_learn_at_the_models_rate_unless_told_otherwise():
    optimizer = make_optimizer(make_memory_model())
    assert rates(optimizer) == [LR, LR]
    optimizer.set_lr(LR / 4)
    assert rates(optimizer) == [LR / 4, LR / 4]
    optimizer = make_optimizer(make_memory_model(), pkm_values_lr=0.5)
    optimizer.set_lr(LR / 4)
    assert rates(optimizer) == [LR / 4, 0.5]
    optimizer = make_optimizer(make_memory_model(), pkm_values_lr=0.5, pkm_values_lr_scheduled=True)
    assert rates(optimizer) == [LR, 0.5]
    optimizer.set_lr(LR / 4)
    assert rates(optimizer) == [LR / 4, 0.125]


def test_the_search_learns_at_a_rate_of_its_own_which_follows_the_schedule():
    model = make_memory_model(pkm_score="cosine")
    optimizer = make_optimizer(model, pkm_search_lr=0.1, weight_decay=0.2)
    assert rates(optimizer) == [LR, LR, 0.1]
    optimizer.set_lr(LR / 4)
    assert rates(optimizer) == [LR / 4, LR / 4, 0.025]
    assert optimizer.param_groups[2]["weight_decay"] == 0.2
    names = {id(param): name for name, param in model.memories()[1].named_parameters()}
    assert {names[id(param)] for param in optimizer.param_groups[2]["params"]} == {
        *("subkeys", "query.weight", "query.bias", "query_norm.weight", "query_norm.bias"),
        "search.cosine.log_temperature",
    }
    kept = sum(len(group["params"]) for group in optimizer.param_groups)
    assert kept == len(list(model.parameters()))


def test_a_search_of_rate_zero_stands_still_and_all_else_learns():
    model = make_memory_model()
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = make_optimizer(model, pkm_search_lr=0.0)
    make_gradients(model)
    optimizer.step()
    search = {id(param) for param in model.memories()[1].search_parameters()}
    for name, param in model.named_parameters():
        if param.grad is not None:
            assert torch.equal(param, before[name]) == (id(param) in search), name


@pytest.mark.parametrize("grad", ["dense", "sparse"])
@pytest.mark.parametrize("max_norm", [0.0, 0.1])
def test_factors_and_clipping_reach_the_step_of_all_parameters(grad, max_norm):
    model = make_memory_model(pkm_grad=grad)
    optimizer = make_optimizer(model)
    make_gradients(model)
    grads = [p.grad.to_dense().clone() / 8 for p in model.parameters() if p.grad is not None]
    optimizer.multiply_grads(1 / 4)
    optimizer.multiply_grads(torch.tensor(1 / 2))
    norm = optimizer.clip_grad_norm(max_norm)
    expected = torch.stack([grad.norm() for grad in grads]).norm()
    assert_close(norm, expected)
    if max_norm:
        grads = [grad * max_norm / expected for grad in grads]
    optimizer.step()
    first_moment = 1 - optimizer.param_groups[0]["betas"][0]
    moved = [p for p in model.parameters() if p.grad is not None]
    for param, grad in zip(moved, grads):
        moment = optimizer.optimizer.state[param]["exp_avg"] / first_moment
        torch.testing.assert_close(moment, grad, rtol=1e-4, atol=1e-7)


def test_a_factor_lasts_for_one_step():
    model = make_memory_model()
    optimizer = make_optimizer(model)
    for forget in (optimizer.zero_grad, optimizer.step):
        make_gradients(model)
        norm = optimizer.clip_grad_norm(0)
        optimizer.multiply_grads(5.0)
        assert_close(optimizer.clip_grad_norm(0), 5 * norm)
        forget()
        make_gradients(model)
        assert optimizer.clip_grad_norm(0) < 4 * norm


def test_options_given_now_win_over_those_of_the_checkpoint():
    model = make_memory_model()
    old = make_optimizer(model, pkm_values_lr=0.5, adam_eps=1e-3)
    make_gradients(model)
    old.step()
    optimizer = make_optimizer(make_memory_model(), pkm_values_lr=0.25, pkm_values_clip_norm=2.0)
    optimizer.load_state_dict(old.state_dict())
    assert rates(optimizer) == [LR, 0.25]
    assert optimizer.param_groups[1]["clip_norm"] == 2.0
    assert optimizer.param_groups[0]["eps"] == 1e-8
    optimizer.load_state_dict(old.state_dict(), {"eps": 0.5})
    assert optimizer.param_groups[0]["eps"] == 0.5


def test_a_plateau_lowers_the_rate_of_the_model_alone_and_a_resume_keeps_it():
    model = make_memory_model()
    optimizer = make_optimizer(model, pkm_values_lr=0.5)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer.optimizer, patience=0, factor=0.1
    )
    for loss in (1.0, 2.0):
        plateau.step(loss)
    make_gradients(model)
    optimizer.step()
    assert rates(optimizer) == pytest.approx([LR / 10, 0.5])
    resumed = make_optimizer(make_memory_model(), pkm_values_lr=0.25)
    resumed.load_state_dict(optimizer.state_dict())
    assert rates(resumed) == pytest.approx([LR / 10, 0.25])


def test_state_of_another_optimizer_is_refused():
    model = make_memory_model()
    other = torch.optim.Adam(model.parameters())
    make_gradients(model)
    other.step()
    with pytest.raises(ValueError, match="not trained with --optimizer pkm_adam.*--reset-optimiz"):
        make_optimizer(model).load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    ("saved", "now", "message"),
    [(0.1, None, "with --pkm-search-lr: give it"), (None, 0.1, "without .*: leave it out")],
)
def test_state_of_other_groups_is_refused(saved, now, message):
    model = make_memory_model()
    old = make_optimizer(model, pkm_search_lr=saved)
    make_gradients(model)
    old.step()
    with pytest.raises(ValueError, match=f"{message}.*--reset-optimizer"):
        make_optimizer(model, pkm_search_lr=now).load_state_dict(old.state_dict())


@pytest.mark.parametrize(("saved", "now"), [("dense", "sparse"), ("sparse", "dense")])
def test_state_of_the_other_kind_of_gradient_is_refused(saved, now):
    model = make_memory_model(pkm_grad=saved)
    old = make_optimizer(model)
    make_gradients(model)
    old.step()
    with pytest.raises(ValueError, match=f"{saved}: give that, not {now}.*--reset-optimizer"):
        make_optimizer(make_memory_model(pkm_grad=now)).load_state_dict(old.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp": True}, "--amp"),
        ({"adam_betas": "(0.9, 1.5)"}, "--adam-betas"),
        ({"adam_betas": "0.9"}, "--adam-betas 0.9"),
        ({"adam_betas": "often"}, "--adam-betas often"),
        ({"zero_sharding": "os"}, "--zero-sharding os"),
        ({"use_bmuf": True}, "--use-bmuf"),
        ({"pkm_values_lr_scheduled": True}, "--pkm-values-lr"),
        ({"pkm_values_lr": -1.0}, "--pkm-values-lr -1.0"),
        ({"pkm_values_clip_norm": -1.0}, "--pkm-values-clip-norm"),
        ({"pkm_search_lr": -1.0}, "--pkm-search-lr -1.0"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(make_memory_model(), **options)


@pytest.mark.parametrize(
    "options",
    [{"pkm_values_lr": 0.1}, {"pkm_values_weight_decay": 0.1}, {"pkm_search_lr": 0.0}],
    ids=str,
)
def test_options_of_the_memory_are_refused_where_there_is_none(options):
    with pytest.raises(ValueError, match="has no effect.*--pkm-layers"):
        make_optimizer(make_memory_model(pkm_layers=[], **NO_MEMORY), **options)


def test_sparse_gradients_that_no_optimizer_takes_are_refused():
    model = make_memory_model(pkm_grad="sparse")
    with pytest.raises(ValueError, match="--pkm-grad sparse needs --optimizer pkm_adam"):
        model(draw_tokens(3, 8))
    values_of(model).requires_grad_(False)
    model(draw_tokens(3, 8))
    values_of(model).requires_grad_(True)
    model.eval()
    model(draw_tokens(3, 8))


@pytest.mark.parametrize("grad", ["dense", "sparse"])
def test_an_overflow_skips_the_step_of_every_parameter_and_of_all_state(grad):
    model = make_memory_model(pkm_grad=grad).half()
    config = PKMAdamConfig(lr=[LR], amp=False, zero_sharding="none", use_bmuf=False)
    common = {"bf16": False, "fp16_init_scale": 2**15, "fp16_scale_window": 4}
    common |= {"fp16_scale_tolerance": 0.0, "threshold_loss_scale": None, "min_loss_scale": 1e-4}
    cfg = OmegaConf.create({"common": common, "optimizer": vars(config) | {"_name": "pkm_adam"}})
    params = list(model.parameters())
    optimizer = MemoryEfficientFP16Optimizer.build_optimizer(cfg, params)
    steps = []
    for _ in range(12):  # halves the loss scale until the gradients fit
        before = [param.detach().clone() for param in params]
        optimizer.zero_grad()
        optimizer.backward(model(draw_tokens(3, 8))[0].float().square().sum())
        try:
            optimizer.clip_grad_norm(1.0)
        except OverflowError:
            steps.append(False)
            assert not any(optimizer.optimizer.state.values())
            assert all(torch.equal(*pair) for pair in zip(before, params))
            continue
        optimizer.step()
        steps.append(True)
        assert not all(torch.equal(*pair) for pair in zip(before, params))
        break
    assert steps[0] is False
    assert steps[-1] is True
    assert all(param.isfinite().all() for param in params)
