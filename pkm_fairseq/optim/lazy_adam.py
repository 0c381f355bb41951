"""AdamW for dense gradients, and for sparse ones only on the touched rows."""

import torch
from torch.optim.adamw import adamw

from pkm_fairseq.distributed import shard_of
from pkm_fairseq.ops import new_row_state, row_adam_


class LazyAdam(torch.optim.Optimizer):
    """AdamW whose cost, for a table with a sparse gradient, follows the rows that were touched.

    Parameters with dense gradients take torch's fused AdamW; see ``row_adam_`` for the others.
    Moments are float32 or better for parameters of any dtype.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        clip_norm: the norm to which each group's gradient is clipped at a step, 0 for none.
    """

    # What fairseq asks of an optimizer.
    supports_memory_efficient_fp16 = True
    supports_flat_params = False  # in one flat parameter values would be as all else
    disable_mem_eff_fp16_loading_hack = True

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, clip_norm=0.0
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "clip_norm": clip_norm,
            },
        )

    def add_param_group(self, param_group):
        """Adds a group, whose parameters may be shards and have sparse gradients from now on."""
        super().add_param_group(param_group)
        for param in self.param_groups[-1]["params"]:
            param.taken_by_lazy_adam = True

    @torch.no_grad()
    def grad_norm(self, groups=None):
        """Returns the norm of the gradients, as they are, of all or the given groups: a tensor."""
        norms = []
        for group in self.param_groups if groups is None else groups:
            for param in group["params"]:
                grad = _numbers(param)
                if grad is None:
                    continue
                wide = torch.promote_types(grad.dtype, torch.float32)
                norm = torch.linalg.vector_norm(grad, dtype=wide)
                shard = shard_of(param)
                if shard:
                    norm = shard.norm(norm)
                norms.append(norm)
        return torch.stack(norms).norm() if norms else torch.zeros(())

    @torch.no_grad()
    def step(self, closure=None, scale=1.0):
        """Moves all parameters that have a gradient.

        Args:
            closure: as in ``torch.optim.Optimizer``.
            scale: a number, or tensor of one, that the gradients are divided by: what remains to be
                done of averaging, loss scaling and clipping, without a pass over the gradients.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            group_scale = scale
            if group["clip_norm"]:
                excess = self.grad_norm([group]) / scale / group["clip_norm"]
                group_scale = scale * max(1.0, float(excess))
            dense = []
            for param in group["params"]:
                if param.grad is None:
                    continue
                self._check_kind(param)
                if param.grad.is_sparse:
                    self._step_rows(param, group, group_scale)
                else:
                    dense.append(param)
            if dense:
                self._step_dense(dense, group, group_scale)
        return loss

    def _check_kind(self, param):
        """Refuses a parameter whose state is of the other kind of gradient."""
        state = self.state[param]
        if state and param.grad.is_sparse != ("row_step" in state):
            raise RuntimeError(
                "a parameter had dense gradients and now has sparse ones, or the reverse: "
                "start with a new optimizer"
            )

    def _step_rows(self, param, group, scale):
        state = self.state[param]
        if not state:
            state.update(new_row_state(param), step=torch.zeros(()))
        state["step"] += 1
        grad = _coalesced(param)
        row_adam_(
            param,
            grad._indices()[0],
            grad._values(),
            state,
            step=int(state["step"]),
            scale=scale,
            **{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")},
        )

    def _step_dense(self, params, group, scale):
        for param in params:
            if not self.state[param]:
                wide = {"dtype": torch.promote_types(param.dtype, torch.float32)}
                self.state[param].update(
                    exp_avg=torch.zeros_like(param, **wide),
                    exp_avg_sq=torch.zeros_like(param, **wide),
                    step=torch.zeros((), device=param.device),
                )
        states = [self.state[param] for param in params]
        if isinstance(scale, float) and scale == 1:
            grad_scale = None  # spares a pass that writes the scaled gradients
        else:
            grad_scale = torch.as_tensor(scale, dtype=torch.float32, device=params[0].device)
        # A parameter of half precision moves in float32, and is rounded once.
        wide_params = [param.to(state["exp_avg"].dtype) for param, state in zip(params, states)]
        adamw(
            wide_params,
            # ``data``: that the step scales them in passing is no change to take note of.
            [param.grad.data.to(wide.dtype) for param, wide in zip(params, wide_params)],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            grad_scale=grad_scale,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for param, wide in zip(params, wide_params):
            if wide is not param:
                param.copy_(wide)

    def state_dict(self):
        """Returns the state, of shards whole where they are gathered."""
        state_dict = super().state_dict()
        for index, param in self._params():
            shard = shard_of(param)
            if shard and index in state_dict["state"]:
                state = {**state_dict["state"][index]}
                for name, tensor in state.items():
                    whole = shard.whole(tensor)
                    state[name] = tensor if whole is None else whole
                state_dict["state"][index] = state
        return state_dict

    def _params(self):
        """Returns the parameters, each with its number in a state dict."""
        return enumerate(param for group in self.param_groups for param in group["params"])

    def load_state_dict(self, state_dict):
        """Loads what ``state_dict`` returned, in its own dtypes; torch alone would change them."""
        states = dict(state_dict["state"])
        for index, param in self._params():
            shard = shard_of(param)
            if shard and index in states:
                state = states[index]
                states[index] = {name: shard.columns(state[name]) for name in state}
        state_dict = {**state_dict, "state": states}
        super().load_state_dict(state_dict)
        for index, param in self._params():
            state = states.get(index, {})
            for name, saved in state.items():
                # Only the steps of rows are counted on the CPU; torch leaves all steps where
                # they were saved.
                on_cpu = name == "step" and "row_step" in state
                device = torch.device("cpu") if on_cpu else param.device
                self.state[param][name] = saved.to(device, copy=True)


def _numbers(param):
    """Returns the numbers of a gradient, without what a sparse one leaves out, None without one."""
    if param.grad is None or not param.grad.is_sparse:
        return param.grad
    return _coalesced(param)._values()


def _coalesced(param):
    """Returns a sparse gradient each of whose rows stands once, and keeps it."""
    grad = param.grad
    rows = grad._indices()[0]
    # torch forgets that a gradient is coalesced when it accumulates the first; to look is cheap.
    if not (rows[1:] > rows[:-1]).all():
        param.grad = grad.coalesce()
    return param.grad
