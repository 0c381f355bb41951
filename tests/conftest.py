import os
from importlib import import_module

import torch
from hypothesis import settings

# The same cases at each run, few of them; --hypothesis-profile many draws others, and more.
settings.register_profile("few", derandomize=True, max_examples=100, deadline=None, database=None)
settings.register_profile("many", max_examples=1000, deadline=None, database=None)
settings.load_profile("few")

# Without a GPU, the GPU kernels are tested in triton's interpreter: it has to be asked for before
# triton and the kernels are imported, and acts where the ``form`` of tests/ops asks for it again.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    from pkm_fairseq.ops.gpu import triton_imports  # and torch's compiler, and so triton

    if triton_imports():
        for op in ("product_key_search", "row_adam", "weighted_bag"):
            import_module(f"pkm_fairseq.ops.{op}.triton_kernels")
    del os.environ["TRITON_INTERPRET"]
