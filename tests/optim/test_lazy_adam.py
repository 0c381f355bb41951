import copy

import pytest
import torch

from pkm_fairseq.modules import ProductKeyMemory
from pkm_fairseq.optim import LazyAdam
from tests.tolerances import assert_close

ADAM = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.02}
DIM = 12


def make_memory(grad):
    torch.manual_seed(0)
    sizes = {"subkeys": 6, "heads": 2, "topk": 3, "key_dim": 8}
    return ProductKeyMemory(DIM, query_norm="layer", grad=grad, **sizes)


def read_and_go_back(memory, tokens=7):
    memory.zero_grad()
    memory(torch.randn(tokens, DIM)).square().sum().backward()


def assert_same_parameters(actual, expected):
    for one, other in zip(actual.parameters(), expected.parameters()):
        assert_close(one.detach(), other.detach())


@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_dense_gradients_move_as_with_torchs_adamw(max_norm):
    memory = make_memory("dense")
    twin = copy.deepcopy(memory)
    ours, theirs = (
        LazyAdam(memory.parameters(), **ADAM),
        torch.optim.AdamW(twin.parameters(), **ADAM),
    )
    for seed in range(5):
        for model in (memory, twin):
            torch.manual_seed(seed)
            read_and_go_back(model)
        if max_norm is None:
            ours.step()
        else:
            norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
            assert_close(ours.grad_norm(), norm)
            ours.step(scale=max(1.0, float(norm) / max_norm))
        theirs.step()
        assert_same_parameters(memory, twin)


def test_sparse_gradients_move_as_dense_ones_when_all_rows_are_touched():
    memory, twin = make_memory("sparse"), make_memory("dense")
    one, other = LazyAdam(memory.parameters(), **ADAM), LazyAdam(twin.parameters(), **ADAM)
    for seed in range(5):
        for model in (memory, twin):
            torch.manual_seed(seed)
            read_and_go_back(model, tokens=300)
        assert memory.values.weight.grad._nnz() == len(memory.values.weight)
        assert_close(one.grad_norm(), other.grad_norm())
        for optimizer in (one, other):
            optimizer.step(scale=torch.tensor(3.0))
        assert_same_parameters(memory, twin)


def test_batches_of_one_update_are_one_sparse_gradient():
    memory, twin = make_memory("sparse"), make_memory("sparse")
    torch.manual_seed(1)
    tokens = torch.randn(2, 7, DIM)
    for batch in tokens:
        memory(batch).sum().backward()
    twin(tokens).sum().backward()
    optimizers = [LazyAdam(model.parameters(), **ADAM) for model in (memory, twin)]
    assert_close(*(optimizer.grad_norm() for optimizer in optimizers))
    for optimizer in optimizers:
        optimizer.step()
    assert_same_parameters(memory, twin)


@pytest.mark.parametrize("grad", ["dense", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_saved_optimizer_goes_on_to_the_bit(grad, dtype, tmp_path):
    memory = make_memory(grad).to(dtype)
    optimizer = LazyAdam(memory.parameters(), **ADAM)

    def train(memory, optimizer, steps):
        for seed in steps:
            torch.manual_seed(seed)
            memory.zero_grad()
            memory(torch.randn(7, DIM, dtype=dtype)).square().sum().backward()
            optimizer.step()

    train(memory, optimizer, range(3))
    torch.save([memory.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    train(memory, optimizer, range(3, 6))

    resumed = make_memory(grad).to(dtype)
    resumed_optimizer = LazyAdam(resumed.parameters(), lr=1.0)
    model_state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(model_state)
    resumed_optimizer.load_state_dict(optimizer_state)
    train(resumed, resumed_optimizer, range(3, 6))
    for one, other in zip(memory.parameters(), resumed.parameters()):
        assert torch.equal(one, other)
    for state, other in zip(optimizer.state.values(), resumed_optimizer.state.values()):
        assert state.keys() == other.keys()
        for name, tensor in state.items():
            assert torch.equal(tensor, other[name])
            assert tensor.dtype == other[name].dtype


@pytest.mark.parametrize("grad", ["dense", "sparse"])
def test_state_loaded_from_another_device_goes_where_a_step_looks_for_it(grad):
    memory = make_memory(grad)
    optimizer = LazyAdam(memory.parameters(), **ADAM)
    read_and_go_back(memory)
    optimizer.step()
    elsewhere = LazyAdam(make_memory(grad).to("meta").parameters())
    elsewhere.load_state_dict(optimizer.state_dict())
    for state in elsewhere.state.values():
        for name, tensor in state.items():
            # The kernels read the number of a dense step on the device, ours that of rows here.
            on_cpu = name == "step" and "row_step" in state
            assert tensor.device.type == ("cpu" if on_cpu else "meta")


def test_half_precision_moves_in_float32():
    torch.manual_seed(0)
    half = torch.nn.Parameter(torch.randn(5, 4).bfloat16())
    wide = torch.nn.Parameter(half.detach().float())
    grad = torch.randn(5, 4).bfloat16()
    half.grad, wide.grad = grad, grad.float()
    one, other = LazyAdam([half], **ADAM), LazyAdam([wide], **ADAM)
    for optimizer in (one, other):
        optimizer.step()
    assert torch.equal(half.detach(), wide.detach().bfloat16())
    assert torch.equal(one.state[half]["exp_avg"], other.state[wide]["exp_avg"])


def test_each_group_is_clipped_to_its_own_norm():
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(3)) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "clip_norm": 0.5}]
    optimizer = LazyAdam(groups, **ADAM)
    for param in params:
        param.grad = torch.tensor([3.0, 0.0, 4.0])
    optimizer.step(scale=2.0)
    first_moment = 1 - ADAM["betas"][0]
    assert_close(optimizer.state[params[0]]["exp_avg"].norm(), torch.tensor(first_moment * 2.5))
    assert_close(optimizer.state[params[1]]["exp_avg"].norm(), torch.tensor(first_moment * 0.5))


def test_the_kind_of_gradient_cannot_change():
    memory = make_memory("sparse")
    optimizer = LazyAdam(memory.parameters(), **ADAM)
    read_and_go_back(memory)
    optimizer.step()
    memory.values.weight.grad = memory.values.weight.grad.to_dense()
    with pytest.raises(RuntimeError, match="start with a new optimizer"):
        optimizer.step()


def test_it_calls_a_closure_and_skips_what_has_no_gradient():
    param, idle = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = LazyAdam([param, idle], **ADAM)
    assert optimizer.grad_norm() == 0

    def closure():
        loss = param.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2
    assert (param < 1).all()
    assert torch.equal(idle.detach(), torch.ones(2))
