"""What memories do inside a block of code, by hooks that leave with it.

T tokens, H heads, K slots read per head, L length of the longest sentence, B sentences.
"""

import threading
from contextlib import ExitStack, contextmanager
from functools import partial

import torch


def memories_of(model):
    """Returns a model's memories by layer, of any model: one without ``memories`` has none."""
    return model.memories() if hasattr(model, "memories") else {}


@contextmanager
def observe_reads(memories):
    """Keeps what memories read inside the block; in evaluation, only in this thread.

    Args:
        memories: a dict from layer to ``ProductKeyMemory``.

    Yields:
        A dict from layer to a list of reads, one for each forward pass: slots, best first, and
        weights, (T, H, K) each, tokens in the order in which the memory gets them.
    """
    reads = {layer: [] for layer in memories}
    thread = threading.get_ident()

    def keep(layer, search, inputs, read):
        if _counts(search, thread):
            reads[layer].append(read)

    with ExitStack() as hooks:
        for layer, memory in memories.items():
            hooks.enter_context(memory.search.register_forward_hook(partial(keep, layer)))
        yield reads


@contextmanager
def observe_squares(model):
    """Keeps how large what memories read is, beside what it is added to, inside the block.

    That is the output of the feed-forward network, or where the memory takes its place, the input
    of the memory. Nothing is waited for.

    Args:
        model: as for ``memories_of``.

    Yields:
        A dict from layer to a list with sums of squares for each forward pass: of what its tokens
        read, and of what that is added to, (2,), float64.
    """
    layers = model.memory_layers() if hasattr(model, "memory_layers") else {}
    squares = {layer: [] for layer in layers}
    outputs = {}  # layer -> of its feed-forward network
    thread = threading.get_ident()

    def keep_output(layer, fc2, inputs, output):
        outputs[layer] = output

    def keep(layer, memory, inputs, read):
        x, *padding_mask = inputs
        base = x if layers[layer].replace else outputs.pop(layer)
        if _counts(memory, thread):
            sums = [_sum_squares(tensor.detach(), *padding_mask) for tensor in (read, base)]
            squares[layer].append(torch.stack(sums))

    with ExitStack() as hooks:
        for layer, module in layers.items():
            hooks.enter_context(module.pkm.register_forward_hook(partial(keep, layer)))
            if not module.replace:
                # First of its hooks: whichever adds the memory comes after.
                hooks.enter_context(
                    module.fc2.register_forward_hook(partial(keep_output, layer), prepend=True)
                )
        yield squares


@contextmanager
def observe_outputs(model):
    """Keeps what the model returns inside the block, in a list."""
    outputs = []

    def keep(model, inputs, output):
        outputs.append(output)

    with model.register_forward_hook(keep):
        yield outputs


@contextmanager
def reading_zeros(memories):
    """Has memories read zeros inside the block, and so add nothing to the model.

    Args:
        memories: a list of ``ProductKeyMemory``.
    """
    with ExitStack() as hooks:
        for memory in memories:
            hooks.enter_context(
                memory.register_forward_hook(lambda memory, inputs, read: torch.zeros_like(read))
            )
        yield


def _counts(module, thread):
    """Whether a forward pass counts.

    Activation checkpointing trains a layer with two passes, the first without gradients, the second
    maybe in a thread of autograd's.
    """
    return torch.is_grad_enabled() if module.training else threading.get_ident() == thread


def _sum_squares(tensor, padding_mask=None):
    """Sums the squares of the tokens that are not padding, a tensor of one number in float64."""
    lengths = torch.linalg.vector_norm(tensor, dim=-1, dtype=torch.float32)  # (L, B)
    if padding_mask is not None:
        lengths = lengths.masked_fill(padding_mask, 0)
    return lengths.double().square().sum()
