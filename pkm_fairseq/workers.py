"""The workers of a training."""

import torch.distributed as dist


def count_workers():
    """Returns how many workers train together, 1 for a process by itself."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
