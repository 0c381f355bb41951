"""The shipped configurations of fairseq."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "user_dir_examples"
# The ablation's are no configurations of fairseq: tests/test_ablation.py has them read.
CONFIGS = sorted(
    path
    for path in EXAMPLES.rglob("*.yaml")
    if path.stem != "shared" and path.parent.name != "ablation"
)
