"""Gives a RoBERTa checkpoint without memory fresh ones, as a checkpoint of its own.

For several runs that are to start from the same memories, and for what loads state dicts without
asking the model. Writes DEST whole or not at all, for --finetune-from-model, for --restore-file
with --reset-optimizer --reset-lr-scheduler --reset-dataloader --reset-meters, and for
PKMRobertaModel.from_pretrained.
"""

import logging
from pathlib import Path

import torch
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import ARCH_MODEL_REGISTRY

from pkm_fairseq.checkpoints.conversion import memory_options
from pkm_fairseq.checkpoints.models import stand_in_task, with_model, write_checkpoint
from pkm_fairseq.config import PKMConfig
from pkm_fairseq.models.hub import make_ours
from pkm_fairseq.refusals import RefusalError

from .arguments import add_user_dir, refuse_existing


def add_arguments(parser):
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="one without memory")
    parser.add_argument("--dest", type=Path, required=True, metavar="FILE", help="to write")
    parser.add_argument("--seed", type=int, default=1, help="of the memories (default: 1)")
    add_user_dir(parser)
    parser.add_argument(
        "--arch",
        default="pkm_roberta",
        help="model to make of it, such as one of --user-dir (default: pkm_roberta)",
    )
    group = parser.add_argument_group("the memories")
    gen_parser_from_dataclass(group, PKMConfig(), delete_default=True)


def check_arguments(args, parser):
    refuse_existing(args.dest, parser)
    if not hasattr(ARCH_MODEL_REGISTRY.get(args.arch), "memories"):
        parser.error(f"--arch {args.arch} is no model with memories: give --user-dir, where it is")


def run(args):
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("pkm_fairseq").setLevel(logging.INFO)
    torch.manual_seed(args.seed)
    write_checkpoint(add_memory(args), args.dest)


def add_memory(args):
    """Returns the checkpoint with memories in its model, and none of its training's state.

    Raises:
        RefusalError: if it cannot be read, has a memory already, or none of these can be made.
    """
    checkpoint = checkpoint_utils.load_checkpoint_to_cpu(str(args.checkpoint))
    state = checkpoint["model"]
    if memory_options(state):
        raise RefusalError(f"{args.checkpoint} has a memory already")
    options = {name: value for name, value in vars(args).items() if name.startswith("pkm_")}
    if not options.get("pkm_layers"):
        raise RefusalError("--pkm-layers is missing: name the layers that are to hold a memory")
    if options.get("pkm_table_dtype") not in (None, "model"):
        raise RefusalError("--pkm-table-dtype is for loading what was trained: remove it")
    trained = checkpoint["cfg"].model
    make_ours(trained, options, args.arch)
    model = ARCH_MODEL_REGISTRY[args.arch].build_model(trained, stand_in_task(state))
    model.load_state_dict(state)
    return with_model(checkpoint, model.state_dict())
