"""``pkm-fairseq COMMAND``: the frame of the command line.

A command is a module with a docstring, which is its help, with ``add_arguments(parser)`` and with
``run(args)``; ``check_arguments(args, parser)`` may refuse what ``parser`` cannot tell.
"""

import logging
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib import import_module

from pkm_fairseq.refusals import traceback_wanted

# name -> module, what it does
COMMANDS = {
    "prepare-text": ("prepare_text", "turn raw text into data to pretrain on"),
    "prepare-task": ("prepare_task", "turn GLUE's files or tables of your own into data"),
    "predict": ("predict", "write what a finetuned checkpoint predicts"),
    "add-memory": ("add_memory", "give a checkpoint fresh memories"),
    "import": ("import_model", "turn a model of Hugging Face into a checkpoint"),
    "export": ("export_model", "turn a checkpoint into a model of Hugging Face"),
    "slots": ("slots", "list the slots that new data need, for --pkm-train-slots"),
    "report": ("report", "show how checkpoints use their memories"),
    "options": ("options", "print every option that the plugin adds to fairseq"),
    "user-dir": ("user_dir", "print the folder to give fairseq as --user-dir"),
    "configs": ("configs", "print the folder of the configurations that come with the plugin"),
}


def main(argv=None):
    """Runs the command that ``argv``, by default that of the process, names."""
    args = parse_args(sys.argv[1:] if argv is None else [*map(str, argv)])
    run_cli(find_command(args.command).run, args)


def find_command(name):
    """Returns the module of a command."""
    return import_module(f"pkm_fairseq.commands.{COMMANDS[name][0]}")


def parse_args(argv):
    """Returns the arguments of a command, checked; only the module of that command is loaded."""
    parser = ArgumentParser(
        prog="pkm-fairseq",
        description="Tools of pkm_fairseq, the product-key memory for fairseq's RoBERTa.",
        epilog="pkm-fairseq COMMAND --help tells more of each.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="command")
    parsers = {
        name: commands.add_parser(name, help=summary, formatter_class=RawDescriptionHelpFormatter)
        for name, (_, summary) in COMMANDS.items()
    }
    if argv and argv[0] in COMMANDS:
        chosen = find_command(argv[0])
        parsers[argv[0]].description = chosen.__doc__
        chosen.add_arguments(parsers[argv[0]])
    args = parser.parse_args(argv)
    command = find_command(args.command)
    if hasattr(command, "check_arguments"):
        command.check_arguments(args, parsers[args.command])
    return args


def run_cli(work, args):
    """Runs ``work(args)``; what it refuses ends the process in one line."""
    # Outside its commands fairseq logs everything.
    logging.getLogger().setLevel(logging.WARNING)
    try:
        work(args)
    except (ValueError, OSError) as error:
        if traceback_wanted():
            raise
        sys.exit(f"error: {error}")
