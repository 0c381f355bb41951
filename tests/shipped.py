"""The shipped configurations, whole: each with what it shares with others."""

from pathlib import Path

from omegaconf import OmegaConf

EXAMPLES = Path(__file__).parents[1] / "user_dir_examples"
# The ablation's are no configurations of fairseq: tests/test_ablation.py has them read.
CONFIGS = sorted(
    path
    for path in EXAMPLES.rglob("*.yaml")
    if path.stem != "shared" and path.parent.name != "ablation"
)


def load_config(path):
    """Returns a configuration as Hydra composes it, but for what stands on the command line."""
    config = OmegaConf.load(path)
    shared = [name for name in config.pop("defaults", []) if name != "_self_"]
    parts = [OmegaConf.load(path.with_name(f"{name}.yaml")) for name in shared]
    return OmegaConf.merge(*parts, config)
