import pytest
import torch

from pkm_fairseq.ops import new_row_state, row_adam_
from pkm_fairseq.ops.row_adam.reference import reference_row_adam
from tests.tolerances import assert_close

ADAM = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.05}
pytestmark = pytest.mark.usefixtures("form")


def take_steps(values, history, **options):
    """Moves ``values`` by the steps of ``history``, a list of {row: gradient}."""
    state = new_row_state(values)
    for step, touched in enumerate(history, 1):
        rows = torch.tensor(sorted(touched), dtype=torch.int64)
        grads = [touched[row] for row in rows.tolist()]
        grads = torch.stack(grads) if grads else values.new_empty(0, values.shape[1])
        row_adam_(values, rows, grads, state, step=step, **{**ADAM, **options})
    return state


def draw_history(slots, dim, steps, dtype):
    """Gradients of about half of the rows at each step, of some rows never, of the first always."""
    return [
        {
            row: torch.randn(dim, dtype=dtype)
            for row in range(slots - 1)
            if row == 0 or torch.rand(()) < 0.5
        }
        for _ in range(steps)
    ]


@pytest.mark.parametrize("shape", [(5, 8), (7, 13), (1, 1), (3, 67), (2, 1030)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_follows_each_rows_history(shape, dtype):
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=dtype)
    history = draw_history(*shape, steps=9, dtype=dtype)
    expected = reference_row_adam(values, history, **ADAM)
    take_steps(values, history)
    assert_close(values, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_with_all_rows_touched_it_is_adamw(dtype):
    torch.manual_seed(0)
    values = torch.randn(6, 5, dtype=dtype)
    param = torch.nn.Parameter(values.clone())
    adamw = torch.optim.AdamW([param], **ADAM)
    history = [dict(enumerate(torch.randn(6, 5, dtype=dtype))) for _ in range(20)]
    for touched in history:
        param.grad = torch.stack(list(touched.values()))
        adamw.step()
    take_steps(values, history)
    assert_close(values, param.detach())


@pytest.mark.parametrize("betas", [(0.9, 0.98), (0.9, 0.999), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("missed", [1, 10, 1000, 1_000_000])
def test_a_row_long_untouched_moves_as_far_as_at_its_first_step(betas, missed):
    values = torch.zeros(1, 3)
    options = {**ADAM, "betas": betas, "weight_decay": 0.0}
    state = take_steps(values, [{0: torch.tensor([1.0, -2.0, 3.0])}] * 3, **options)
    before = values.clone()
    grads = torch.tensor([[5.0, -0.5, 4.0]])
    row_adam_(values, torch.tensor([0]), grads, state, step=3 + missed, **options)
    moved = (values - before).abs()
    # Adam's step is at most that long when both moments weigh the same gradients.
    assert (moved < 1.8 * ADAM["lr"]).all()
    if missed == 1_000_000:  # all that was before is forgotten
        assert_close(moved, torch.full_like(moved, ADAM["lr"]))


def test_rows_that_are_not_touched_stay_to_the_bit():
    torch.manual_seed(0)
    values = torch.randn(50, 4)
    before = values.clone()
    state = take_steps(values, [{3: torch.randn(4), 7: torch.randn(4)}] * 3)
    touched = torch.tensor([3, 7])
    untouched = torch.ones(50, dtype=torch.bool).index_fill(0, touched, False)
    assert torch.equal(values[untouched], before[untouched])
    assert not torch.isclose(values[touched], before[touched]).any()
    for name, tensor in state.items():
        assert not tensor[untouched].any(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_keeps_its_moments_in_float32(dtype):
    torch.manual_seed(0)
    values = torch.randn(5, 8, dtype=dtype)
    history = draw_history(5, 8, steps=1, dtype=dtype)
    wide = {row: grad.float() for row, grad in history[0].items()}
    expected = reference_row_adam(values.float(), [wide], **ADAM).to(dtype)
    state = take_steps(values, history)
    assert_close(values, expected)
    assert state["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize("scale", [4.0, torch.tensor(4.0)], ids=["number", "tensor"])
def test_gradients_are_divided_by_the_scale(scale):
    torch.manual_seed(0)
    history = draw_history(5, 8, steps=4, dtype=torch.float32)
    scaled = [{row: 4 * grad for row, grad in touched.items()} for touched in history]
    results = []
    for steps, options in ((history, {}), (scaled, {"scale": scale})):
        values = torch.ones(5, 8)
        state = take_steps(values, steps, **options)
        results.append((values, state["exp_avg"], state["exp_avg_sq"]))
    for actual, expected in zip(*results):
        assert torch.equal(actual, expected)


def test_no_rows_are_nothing_to_do():
    values = torch.ones(3, 2)
    take_steps(values, [{}])
    assert torch.equal(values, torch.ones(3, 2))


def test_the_result_does_not_depend_on_the_number_of_threads(with_threads):
    torch.manual_seed(0)
    history = draw_history(97, 67, steps=3, dtype=torch.float32)

    def move():
        values = torch.ones(97, 67)
        return values, *take_steps(values, history).values()

    for one, many in zip(*with_threads(move)):
        assert torch.equal(one, many)


def test_a_table_and_its_rows_may_lie_anywhere_in_memory():
    torch.manual_seed(0)
    values, grads = torch.randn(6, 4), torch.randn(2, 4)
    rows = torch.arange(6)[1:5:2]
    results = []
    for table, touched in ((values.clone(), rows.clone()), (values.t().contiguous().t(), rows)):
        row_adam_(table, touched, grads, new_row_state(table), step=1, **ADAM)
        results.append(table)
    assert_close(results[1], results[0])
