"""What models that torch compiles run as it is."""

import functools
import sys

import torch


def not_compiled(function):
    """Same as ``torch.compiler.disable``, without loading torch's compiler: that takes
    seconds, which a command that compiles nothing would wait for in vain.
    """
    as_it_is = None

    @functools.wraps(function)
    def call(*args, **options):
        nonlocal as_it_is
        if "torch._dynamo" not in sys.modules:
            return function(*args, **options)
        if as_it_is is None:
            as_it_is = torch.compiler.disable(function)
        return as_it_is(*args, **options)

    return call
