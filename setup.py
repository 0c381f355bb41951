"""Packaging only; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HUGGING_FACE = [
    'safetensors; python_version >= "3.9"',
    'tokenizers; python_version >= "3.9"',
    'transformers>=4.57.6; python_version >= "3.9"',
]

setup(
    name="pkm_fairseq",
    version="0.1.0",
    description="Large product-key memory for fairseq's RoBERTa (arXiv 2010.03881)",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=[*find_packages(include=["pkm_fairseq", "pkm_fairseq.*"]), "pkm_fairseq.configs"],
    # The configurations come with a wheel; in a clone the command finds them where they are.
    package_dir={"pkm_fairseq.configs": "user_dir_examples"},
    package_data={
        "pkm_fairseq.configs": ["*/*.yaml", "*/*.md", "*/*.py"],
        "pkm_fairseq.huggingface": ["model_card.md"],
        "pkm_fairseq.usage.report": ["*.html"],
    },
    entry_points={"console_scripts": ["pkm-fairseq = pkm_fairseq.commands.cli:main"]},
    python_requires=">=3.8",
    install_requires=[
        # The official release cannot be imported on Python 3.11 and later (fairseq issue #5012).
        'fairseq==0.12.2; python_version < "3.11"',
        'fairseq-fixed==0.12.3.1; python_version >= "3.11"',
        "hydra-core",
        "jinja2",
        "matplotlib",
        # Beyond, what fairseq calls may be gone; what 2.4 took from it, the plugin mends.
        "numpy<3",
        "scikit-learn",
        "scipy",
        "sentencepiece",
        "tensorboard",
        "torch>=2.4",
        "tqdm",
    ],
    extras_require={
        # What scripts/bench/bench_layer.py compares the memory with, where it is installed.
        "bench": ["product-key-memory"],
        # CPU kernels of pkm_fairseq.ops; older Pythons do without.
        "cpu": ['numba; python_version >= "3.10"'],
        # Models to and from Hugging Face; never needed to train.
        "huggingface": HUGGING_FACE,
        # GPU kernels need triton, too; torch for GPUs brings it. Here its interpreter runs them.
        "test": [
            *HUGGING_FACE,
            'backports.zstd; python_version >= "3.9" and python_version < "3.14"',
            "hypothesis",
            "pytest",
            "pytest-xdist",
            "ruff",
            'triton; platform_system == "Linux" and python_version >= "3.10"',
        ],
    },
)
