"""Turns a task into what fairseq's sentence_prediction task reads.

Either the official files of GLUE's tasks, into a folder DEST/TASK-bin each, or a task of your own,
into DEST: tables with a header (.tsv, .csv), JSON lines (.jsonl) or folders of the library
datasets, whose columns are named. Encodes the sentences as the pretraining text was encoded and
writes them with the dictionary of the pretraining. Makes each folder whole or not at all, and
leaves those that are there already as they are.
"""

import os
from contextlib import ExitStack
from functools import partial
from multiprocessing import Pool
from pathlib import Path

from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.task_data.binary import Encoder, start_worker
from pkm_fairseq.task_data.folders import Source, make
from pkm_fairseq.task_data.glue import TASKS
from pkm_fairseq.task_data.tables import read_official, read_table
from pkm_fairseq.task_data.task import (
    CLASS_METRICS,
    SCORE_METRICS,
    Task,
    check_class,
    columns_of,
)

from .arguments import add_encoder_options, existing_file, names_encoder, number_from

# Options of a task of one's own.
OF_ONES_OWN = (
    *("train", "valid", "test", "sentences", "label", "kind", "classes", "metric", "no_quotes"),
)


def run(args):
    """Makes the folders.

    Raises:
        RefusalError: if something cannot be used, naming what to change.
    """
    sources = glue_sources(args) if args.glue else [own_source(args)]
    encoder = Encoder(args)
    with ExitStack() as stack:
        if args.workers > 1:
            # Each process makes its own encoder: they cannot be handed over.
            encode = stack.enter_context(Pool(args.workers, start_worker, (args,))).imap
        else:
            start_worker(args, encoder)
            encode = map
        for source in sources:
            make(source, args.dict, encoder, encode, args.skip_bad_rows)


def add_arguments(parser):
    glue = parser.add_argument_group("GLUE")
    glue.add_argument("--glue", type=Path, metavar="DIR", help="official files, a folder a task")
    glue.add_argument("--tasks", help="such as CoLA,RTE (default: ALL that --glue holds)")
    own = parser.add_argument_group("a task of your own")
    own.add_argument("--train", type=Path, metavar="TABLE", help="rows to learn from")
    for split, what in (("valid", "rows to validate on"), ("test", "rows without labels")):
        own.add_argument(f"--{split}", type=Path, nargs="+", metavar="TABLE", help=what)
    own.add_argument(
        "--sentences", nargs="+", metavar="COLUMN", help="the columns of one or two sentences"
    )
    own.add_argument("--label", metavar="COLUMN", help="the column of the class or score")
    own.add_argument("--kind", choices=["classes", "regression"], help="what the label is")
    own.add_argument(
        "--classes", nargs="+", metavar="NAME", help="all classes (default: those of --train)"
    )
    own.add_argument(
        "--metric",
        choices=[*CLASS_METRICS, *SCORE_METRICS],
        help="by which to choose the best checkpoint (default: accuracy, pearson)",
    )
    own.add_argument(
        "--no-quotes", action="store_true", help="quotes in tables are of the text, as in GLUE's"
    )
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="what to make")
    parser.add_argument(
        "--dict",
        type=existing_file,
        required=True,
        metavar="FILE",
        help="the pretraining's dict.txt",
    )
    add_encoder_options(parser)
    parser.add_argument(
        "--skip-bad-rows",
        action="store_true",
        help="leave bad rows out (but for GLUE's test sets, of which every row is needed)",
    )
    parser.add_argument("--workers", type=number_from(1), default=os.cpu_count(), help="processes")


def check_arguments(args, parser):
    if not names_encoder(args, parser):
        parser.error(
            "give the pretraining's encoder: either --sentencepiece-model, or --tokenizer-json, "
            "or both --gpt2-encoder-json and --gpt2-vocab-bpe"
        )
    check_source(args, parser)


def check_source(args, parser):
    """Refuses options of GLUE with those of a task of one's own, and what an own one lacks."""
    given = {f"--{name.replace('_', '-')}" for name in OF_ONES_OWN if getattr(args, name)}
    if args.glue and given:
        parser.error(f"{sorted(given)[0]} does not go with --glue: give one or the other")
    if args.glue:
        return
    if args.tasks:
        parser.error("--tasks needs --glue, where the official files are")
    for flag in ("--train", "--valid", "--sentences", "--label", "--kind"):
        if flag not in given:
            parser.error(f"give --glue, or for a task of your own {flag}")
    regression = args.kind == "regression"
    if len(args.sentences) > 2:
        parser.error(f"--sentences {' '.join(args.sentences)}: a row has one or two")
    if args.classes and (regression or len({*args.classes}) < max(2, len(args.classes))):
        parser.error("--classes are two or more different ones, and of --kind classes")
    for name in args.classes or ():
        try:
            check_class("--classes", name)
        except ValueError as error:
            parser.error(str(error))
    known = SCORE_METRICS if regression else CLASS_METRICS
    args.metric = args.metric or known[0]
    if args.metric not in known:
        parser.error(f"--metric {args.metric} is not of --kind {args.kind}: {', '.join(known)}")


def glue_sources(args):
    """Returns a source for each task to make.

    Raises:
        RefusalError: if one is not known or not there.
    """
    return [
        Source(
            name,
            TASKS[name],
            args.dest / f"{name}-bin",
            {split: args.glue / name / f"{stem}.tsv" for split, stem in TASKS[name].splits},
            partial(read_official, TASKS[name]),
            official=True,
        )
        for name in choose_tasks(args.tasks or "ALL", args.glue)
    ]


def choose_tasks(wanted, glue):
    """Returns the names of the tasks to make.

    Raises:
        RefusalError: if one is not known or not there.
    """
    there = [name for name in TASKS if (glue / name).is_dir()]
    names = there if wanted == "ALL" else wanted.split(",")
    for name in names:
        if name not in TASKS:
            raise RefusalError(
                f"--tasks {name} is not a GLUE task: choose ALL or among {', '.join(TASKS)}"
            )
        if name not in there:
            raise RefusalError(
                f"--glue {glue} has no folder {name}: put the official files of {name} there"
            )
    if not names:
        raise RefusalError(f"--glue {glue} has no folder of any task ({', '.join(TASKS)})")
    return names


def own_source(args):
    """Returns the source of a task of one's own."""
    task = Task(
        tuple(args.sentences),
        args.label,
        classes=tuple(args.classes or ()),
        regression=args.kind == "regression",
        metric=args.metric,
    )
    files = {"train": args.train}
    for split in ("valid", "test"):
        for number, path in enumerate(getattr(args, split) or ()):
            files[f"{split}{number or ''}"] = path

    def read(path, split):
        return read_table(path, columns_of(task, split), quotes=not args.no_quotes)

    return Source(args.dest.name, task, args.dest, files, read)
