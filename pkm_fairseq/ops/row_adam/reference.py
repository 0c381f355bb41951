"""Adam on touched rows by its definition, from each row's history."""


def reference_row_adam(values, history, *, lr, betas, eps, weight_decay):
    """Returns ``values`` after all steps of ``history``, a list of {row: gradient}, (D,) each.

    Each moment is the mean of the gradients (or their squares) a row has seen, each weighted by
    ``beta`` to the power of the steps that have passed since.
    """
    values = values.clone()
    for now, touched in enumerate(history):
        for row in touched:
            seen = [
                (now - then, grads[row])
                for then, grads in enumerate(history[: now + 1])
                if row in grads
            ]
            mean, mean_sq = (
                sum(beta**age * grad**power for age, grad in seen)
                / sum(beta**age for age, _ in seen)
                for beta, power in zip(betas, (1, 2))
            )
            values[row] *= 1 - lr * weight_decay
            values[row] -= lr * mean / (mean_sq.sqrt() + eps)
    return values
