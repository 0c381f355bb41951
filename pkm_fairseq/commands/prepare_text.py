"""Turns raw text into what fairseq's masked_lm task reads.

One sentence or line a line, an empty line between documents; UTF-8, in files that may be packed by
gzip, xz, bzip2 or zstd. Encodes the text with a sentencepiece model, trained on it unless one is
given, with GPT-2's byte-pair encoding or with the tokenizer.json of any fast tokenizer, and
binarizes it as fairseq-preprocess does.
Makes DEST whole or not at all, and does nothing where DEST is there already.
"""

import logging
import os
import shutil
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from multiprocessing import Pool
from pathlib import Path

import sentencepiece
from fairseq import options
from fairseq_cli import preprocess

from pkm_fairseq.files import atomic_folder
from pkm_fairseq.refusals import RefusalError
from pkm_fairseq.text.dictionaries import check_fits, load_dictionary, load_encoder
from pkm_fairseq.text.encoders import encoder_files, make_encoder
from pkm_fairseq.text.text_files import Text, find_files

from .arguments import add_encoder_options, existing_file, names_encoder, number_from

LINES_AT_ONCE = 20_000
# What is longer, sentencepiece leaves out when it trains a model.
BYTES_OF_A_LINE = 4192


def run(args):
    """Makes DEST.

    Raises:
        RefusalError: if text, dictionary or encoder cannot be used, before the work where possible.
    """
    if args.dest.exists():
        print(f"{args.dest} is there already: remove it to make it anew")
        return
    texts = {
        split: Text(f"--{split}", [*chain(*getattr(args, split))], args.replace_bad_bytes)
        for split in ("train", "valid")
    }
    check(args, texts)
    with atomic_folder(args.dest) as folder:
        encoded = {}
        with ExitStack() as stack:
            to_pieces = start_encoder(args, texts["train"], folder, stack)
            for split, text in texts.items():
                encoded[split] = folder / f"{split}.encoded"
                encode(text, to_pieces, encoded[split])
        binarize(encoded, args.dict, folder, args.workers)
        for path in encoded.values():
            path.unlink()
    print(f"made {args.dest}")


def add_arguments(parser):
    for split in ("train", "valid"):
        parser.add_argument(
            f"--{split}",
            type=find_files,
            nargs="+",
            required=True,
            metavar="TEXT",
            help="files, folders of files, or patterns such as 'text/*.gz'",
        )
    parser.add_argument("--dest", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--vocab-size", type=int, default=32000, help="pieces of a newly trained model"
    )
    add_encoder_options(parser)
    parser.add_argument(
        "--dict",
        type=existing_file,
        metavar="FILE",
        help="the dict.txt of the model to go on from (default: made from the training text)",
    )
    parser.add_argument(
        "--replace-bad-bytes",
        action="store_true",
        help="put U+FFFD where bytes are no UTF-8 (default: say where they are and stop)",
    )
    parser.add_argument("--workers", type=number_from(1), default=os.cpu_count(), help="processes")


def check_arguments(args, parser):
    args.encoder_given = names_encoder(args, parser)
    if args.dict and not args.encoder_given:
        parser.error("--dict goes with the encoder it was made with: give that too")


def check(args, texts):
    """Refuses, before anything is made, what cannot be used."""
    given = load_encoder(args) if args.encoder_given else None
    if args.dict:
        check_fits(load_dictionary(args.dict), given, texts["train"].lines())
    for text in texts.values():
        text.check()
    shared = {*texts["train"].files} & {*texts["valid"].files}
    if shared:
        print(f"note: {len(shared)} files are in --train and in --valid", flush=True)


def start_encoder(args, text, dest, stack):
    """Makes the function that turns a list of lines into their pieces.

    The encoder's files go into ``dest``, where whoever uses the model will look for them.
    """
    if not args.encoder_given:
        args.sentencepiece_model = dest / "sentencepiece.bpe.model"
        train_sentencepiece(text, args.vocab_size, args.sentencepiece_model)
    for name, path in encoder_files(args).items():
        if path != dest / name:
            shutil.copy(path, dest / name)
    # Each process makes its own encoder: they cannot be handed over.
    pool = stack.enter_context(Pool(args.workers, start_worker, (args,)))
    return lambda lines: pool.map(encode_line, lines, chunksize=500)


def train_sentencepiece(text, vocab_size, model):
    """Trains a byte-pair model; <s>, </s> and <pad> are left to fairseq's dictionary."""
    cut = 0

    def lines():
        nonlocal cut
        for line in text.lines(f"training {vocab_size} sentencepieces on"):
            parts = cut_line(line, BYTES_OF_A_LINE)
            cut += len(parts) > 1
            yield from parts

    with open(model, "wb") as written:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines(),
                model_writer=written,
                model_type="bpe",
                vocab_size=vocab_size,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                input_sentence_size=1_000_000,
                shuffle_input_sentence=True,
                minloglevel=2,
            )
        except RuntimeError as error:
            # Before it stands where in sentencepiece's source that is.
            reason = str(error).rpartition("] ")[2]
            raise RefusalError(
                f"--vocab-size {vocab_size} does not suit {text.title}: {reason}"
            ) from error
    if cut:
        print(
            f"{text.title}: {cut:,} lines are longer than the {BYTES_OF_A_LINE:,} bytes that "
            "sentencepiece learns from: it was given them cut at white space",
            flush=True,
        )


def cut_line(line, size):
    """Cuts a line at white space, and words that are too long, into parts of so many bytes."""
    if len(line.encode()) <= size:
        return [line]
    parts = [b""]
    for word in line.split():
        # A character has at most four bytes.
        for start in range(0, len(word), size // 4):
            piece = word[start : start + size // 4].encode()
            joined = parts[-1] + (b" " if parts[-1] and not start else b"") + piece
            if len(joined) <= size:
                parts[-1] = joined
            else:
                parts.append(piece)
    return [part.decode() for part in parts if part]


_encode = None


def start_worker(args):
    """Keeps the encoder of this process where ``encode_line`` finds it."""
    global _encode
    _encode = make_encoder(args)


def encode_line(line):
    return _encode(line.strip())


def encode(text, to_pieces, encoded):
    """Writes ``text`` as space-separated pieces, line by line."""
    lines = text.lines("encoding")
    with open(encoded, "w", encoding="utf-8") as written:
        while batch := list(islice(lines, LINES_AT_ONCE)):
            written.writelines(line + "\n" for line in to_pieces(batch))


def binarize(encoded, dictionary, dest, workers):
    """Same as fairseq-preprocess, of whose log it prints the share of unknown pieces."""
    command = [
        "--only-source",
        *("--trainpref", encoded["train"], "--validpref", encoded["valid"]),
        *("--destdir", dest, "--workers", workers),
    ]
    if dictionary:
        command += ["--srcdict", dictionary]
    print("binarizing", flush=True)
    args = options.get_preprocessing_parser().parse_args([*map(str, command)])
    with said_by(preprocess.logger) as lines:
        preprocess.main(args)
    for line in lines:
        if "replaced" in line:
            print(line)


@contextmanager
def said_by(logger):
    """Yields a list that fills with what a logger says; none of it is printed."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level, logger.propagate = logger.level, False
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = True
