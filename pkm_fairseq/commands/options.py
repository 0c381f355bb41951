"""Prints every option that the plugin adds to fairseq.

fairseq-train --help prints none: it stops before it has read --user-dir and --arch.
"""

from argparse import SUPPRESS, ArgumentDefaultsHelpFormatter, ArgumentParser

from fairseq.dataclass.utils import gen_parser_from_dataclass

from pkm_fairseq.config import PKMConfig
from pkm_fairseq.criterions import UsageConfig
from pkm_fairseq.optim import PKMAdamConfig
from pkm_fairseq.tasks import InitFromConfig, TrainPartConfig


def add_arguments(parser):
    parser.add_argument("--markdown", action="store_true", help="as a table in Markdown")


def run(args):
    if args.markdown:
        print(as_table(), end="")
    else:
        options_parser().print_help()


def as_table():
    """Returns a table of the options in Markdown."""
    rows = ["| option | of | default | meaning |", "|---|---|---|---|"]
    for group in options_parser()._action_groups:
        for action in group._group_actions:
            flag, of = action.option_strings[0], group.title.split()[0]
            choices = f" {{{','.join(action.choices)}}}" if action.choices else ""
            default = {"": "none", "None": "none", "False": "off"}.get(
                str(action.default), f"`{action.default}`"
            )
            rows.append(f"| `{flag}{choices}` | {of} | {default} | {action.help} |")
    return "".join(f"{row}\n" for row in rows)


def options_parser():
    """Returns the parser whose help this command prints."""
    parser = ArgumentParser(
        usage=SUPPRESS,
        add_help=False,
        description="Options that pkm_fairseq adds to fairseq. On the command line of "
        "fairseq-train as written here; in Hydra's YAML without dashes and with underscores.",
        formatter_class=ArgumentDefaultsHelpFormatter,
    )
    group = parser.add_argument_group(
        "model pkm_roberta (--arch pkm_roberta, pkm_roberta_base, pkm_roberta_large; under model:)"
    )
    gen_parser_from_dataclass(group, PKMConfig())
    group = parser.add_argument_group(
        "tasks pkm_masked_lm and pkm_sentence_prediction (--task; under task:)"
    )
    gen_parser_from_dataclass(group, InitFromConfig())
    gen_parser_from_dataclass(group, TrainPartConfig())
    group = parser.add_argument_group(
        "criterions pkm_masked_lm and pkm_sentence_prediction (--criterion; under criterion:)"
    )
    gen_parser_from_dataclass(group, UsageConfig())
    group = parser.add_argument_group("optimizer pkm_adam (--optimizer; under optimizer:)")
    gen_parser_from_dataclass(group, PKMAdamConfig())
    return parser
