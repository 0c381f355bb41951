"""The official files of GLUE become what fairseq's sentence_prediction task reads."""

import json
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.gpt2_bpe_utils import bytes_to_unicode
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from pkm_fairseq.commands.prepare_task import choose_tasks, glue_sources
from pkm_fairseq.task_data.folders import read_task
from pkm_fairseq.task_data.glue import TASKS
from pkm_fairseq.task_data.tables import read_official
from pkm_fairseq.task_data.task import read_split
from tests.commands.commands import run, run_until

# The official layout, with what has broken readers of it: quotes that are never closed, a carriage
# return, a byte-order mark (MRPC's), a line separator, no line feed at the end of a file.
NLI = "index\tsentence1\tsentence2\tlabel\n"
NLI_TEST = "index\tsentence1\tsentence2\n"
MNLI_START = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse"
    "\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"
)
MNLI_ROW = "{}\t1n\t1x\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\t{}\t{}"
STS_START = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
STS_ROW = "{}\tmain\tfile\t2012\t1\tnone\tnone\t{}\t{}"
OFFICIAL = {
    "CoLA/train": 'gj04\t0\t*\tHe said "go.\ngj04\t1\t\tThe ship sank.\n',
    "CoLA/dev": "gj04\t1\t\tBill whistled.",
    "CoLA/test": "index\tsentence\n0\tThe car honked.\n1\tIt broke.\n",
    "SST-2/train": "sentence\tlabel\nhide new secretions \t0\na gem \t1\n",
    "SST-2/dev": "sentence\tlabel\ncharming \t1\n",
    "SST-2/test": "index\tsentence\n0\tuneasy mishmash\n",
    "MRPC/train": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    "1\t7\t8\tHe went .\tHe left .\r\n",
    "MRPC/dev": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tA tax rose .\tIt rained .\n",
    "MRPC/test": "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t7\t8\tShe ran .\tShe sat .\n",
    "STS-B/train": f"{STS_START}\tscore\n"
    + STS_ROW.format(0, "A plane flies.", "A plane is up.")
    + "\t4.750\n"
    + STS_ROW.format(1, "A man eats.", "A cat runs.")
    + "\t0.000\n",
    "STS-B/dev": f"{STS_START}\tscore\n" + STS_ROW.format(0, "A dog.", "One dog.") + "\t5.000\n",
    "STS-B/test": f"{STS_START}\n" + STS_ROW.format(0, "A girl.", "A boy.") + "\n",
    "QQP/train": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    "9\t1\t2\tWho am I?\tWhat am I?\t0\n8\t3\t4\tIs it?\tIs it so?\t1\n",
    "QQP/dev": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\tWhy?\tHow so?\t1\n",
    "QQP/test": "id\tquestion1\tquestion2\n0\tWhere is it?\tWhen is it?\n",
    "MNLI/train": f"{MNLI_START}\tlabel1\tgold_label\n"
    + MNLI_ROW.format(0, "It is late.", "It is early.")
    + "\tentailment\tcontradiction\n"
    + MNLI_ROW.format(1, "He sleeps.", "He dreams.")
    + "\tneutral\tneutral\n",
    "MNLI/dev_matched": f"{MNLI_START}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
    + MNLI_ROW.format(0, "The new rights.", "Rights are nice.")
    + "\tneutral\tentailment\tneutral\tneutral\tneutral\tentailment\n",
    "MNLI/dev_mismatched": f"{MNLI_START}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label\n"
    + MNLI_ROW.format(0, "Your gift counts.", "It is no use.")
    + "\tneutral\tneutral\tneutral\tneutral\tneutral\tcontradiction\n",
    "MNLI/test_matched": f"{MNLI_START}\n" + MNLI_ROW.format(0, "A matched.", "One too.") + "\n",
    "MNLI/test_mismatched": f"{MNLI_START}\n" + MNLI_ROW.format(0, "Not so.", "So it is.") + "\n",
    "QNLI/train": "index\tquestion\tsentence\tlabel\n0\tWho won?\tThe ship sank.\tnot_entailment\n",
    "QNLI/dev": "index\tquestion\tsentence\tlabel\n0\tWho sank?\tThe ship sank.\tentailment\n",
    "QNLI/test": "index\tquestion\tsentence\n0\tWhat is it?\tIt is late.\n",
    # Only one class in train: its id must not depend on that.
    "RTE/train": f"{NLI}0\tNo weapons\rfound\u2028there.\tWeapons found.\tnot_entailment\n",
    "RTE/dev": f"{NLI}0\tShe died at 44.\tShe died.\tentailment\n",
    "RTE/test": f"{NLI_TEST}0\tIt rained.\tIt was dry.\n1\tHe ran.\tHe moved.\n",
    "WNLI/train": f"{NLI}0\tI put it in, but it broke.\tThe pin broke.\t1\n",
    "WNLI/dev": f"{NLI}0\tIt leaked.\tThe bottle leaked.\t0\n",
    "WNLI/test": f"{NLI_TEST}0\tShe knew.\tMaude knew.\n",
}

# Per task and split, the inputs and the class ids or scores, by hand.
EXPECTED = {
    ("CoLA", "train"): ([['He said "go.', "The ship sank."]], [0, 1]),
    ("CoLA", "valid"): ([["Bill whistled."]], [1]),
    ("CoLA", "test"): ([["The car honked.", "It broke."]], None),
    ("SST-2", "train"): ([["hide new secretions", "a gem"]], [0, 1]),
    ("SST-2", "valid"): ([["charming"]], [1]),
    ("SST-2", "test"): ([["uneasy mishmash"]], None),
    ("MRPC", "train"): ([["He went ."], ["He left ."]], [1]),
    ("MRPC", "valid"): ([["A tax rose ."], ["It rained ."]], [0]),
    ("MRPC", "test"): ([["She ran ."], ["She sat ."]], None),
    ("STS-B", "train"): (
        [["A plane flies.", "A man eats."], ["A plane is up.", "A cat runs."]],
        [0.95, 0.0],
    ),
    ("STS-B", "valid"): ([["A dog."], ["One dog."]], [1.0]),
    ("STS-B", "test"): ([["A girl."], ["A boy."]], None),
    ("QQP", "train"): ([["Who am I?", "Is it?"], ["What am I?", "Is it so?"]], [0, 1]),
    ("QQP", "valid"): ([["Why?"], ["How so?"]], [1]),
    ("QQP", "test"): ([["Where is it?"], ["When is it?"]], None),
    ("MNLI", "train"): ([["It is late.", "He sleeps."], ["It is early.", "He dreams."]], [0, 2]),
    ("MNLI", "valid"): ([["The new rights."], ["Rights are nice."]], [1]),
    ("MNLI", "valid1"): ([["Your gift counts."], ["It is no use."]], [0]),
    ("MNLI", "test"): ([["A matched."], ["One too."]], None),
    ("MNLI", "test1"): ([["Not so."], ["So it is."]], None),
    ("QNLI", "train"): ([["Who won?"], ["The ship sank."]], [1]),
    ("QNLI", "valid"): ([["Who sank?"], ["The ship sank."]], [0]),
    ("QNLI", "test"): ([["What is it?"], ["It is late."]], None),
    ("RTE", "train"): ([["No weapons found there."], ["Weapons found."]], [1]),
    ("RTE", "valid"): ([["She died at 44."], ["She died."]], [0]),
    ("RTE", "test"): ([["It rained.", "He ran."], ["It was dry.", "He moved."]], None),
    ("WNLI", "train"): ([["I put it in, but it broke."], ["The pin broke."]], [1]),
    ("WNLI", "valid"): ([["It leaked."], ["The bottle leaked."]], [0]),
    ("WNLI", "test"): ([["She knew."], ["Maude knew."]], None),
}


def write_official(folder, files=OFFICIAL):
    for name, content in files.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode())
    return folder


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    return write_official(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A sentencepiece model that knows every letter used here, and its dictionary."""
    folder = tmp_path_factory.mktemp("data")
    sentences = [text for inputs, _ in EXPECTED.values() for texts in inputs for text in texts]
    SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "sentencepiece.bpe"),
        model_type="bpe",
        vocab_size=150,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        minloglevel=2,
    )
    model = SentencePieceProcessor(model_file=str(folder / "sentencepiece.bpe.model"))
    pieces = [model.id_to_piece(i) for i in range(1, model.get_piece_size())]
    (folder / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in pieces))
    return folder


@pytest.fixture(scope="module")
def prepared(glue, data, tmp_path_factory):
    """All tasks, made by one process: the folder and what was printed."""
    dest = tmp_path_factory.mktemp("prepared")
    return dest, prepare(glue, dest, *pieces_of(data))


def pieces_of(data):
    return "--dict", data / "dict.txt", "--sentencepiece-model", data / "sentencepiece.bpe.model"


def prepare(glue, dest, *args, workers=1, **options):
    command = ("pkm-fairseq", "prepare-task", "--glue", glue, "--dest", dest, "--workers", workers)
    return run(*command, *args, **options)


def files(folder):
    """Returns the bytes of every file by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def load(folder, name, split):
    """Loads a split as finetuning does: the rows' tokens, and their labels if they have any."""
    config = SentencePredictionConfig(
        data=str(folder / f"{name}-bin"),
        num_classes=max(1, len(TASKS[name].classes)),
        init_token=0,
        separator_token=2,
        no_shuffle=True,
        regression_target=not TASKS[name].classes,
        classification_head_name="head",
        seed=1,
    )
    task = SentencePredictionTask.setup_task(config)
    dataset = task.load_dataset(split)
    rows = [dataset[i] for i in range(len(dataset))]
    tokens = [row["net_input.src_tokens"].tolist() for row in rows]
    labels = [torch.as_tensor(row["target"]).item() for row in rows if "target" in row]
    return task.source_dictionary, tokens, labels or None


def inputs_of(tokens, dictionary, decode):
    """Cuts ``<s> a </s>`` or ``<s> a </s> </s> b </s>`` into its sentences, decoded."""
    bos, eos = dictionary.bos(), dictionary.eos()
    assert tokens[0] == bos
    assert tokens[-1] == eos
    cut = [[]]
    for i, token in enumerate(tokens[1:-1], 1):
        if token != eos:
            cut[-1].append(token)
        elif tokens[i + 1] == eos:
            cut.append([])
    return [decode(dictionary.string(piece)) for piece in cut]


@pytest.mark.parametrize(("name", "split"), EXPECTED)
def test_stock_fairseq_reads_the_sentences_and_labels(prepared, data, name, split):
    model = SentencePieceProcessor(model_file=str(data / "sentencepiece.bpe.model"))
    dictionary, tokens, labels = load(prepared[0], name, split)
    inputs, expected = EXPECTED[name, split]
    decoded = [
        inputs_of(row, dictionary, lambda text: model.decode(text.split())) for row in tokens
    ]
    assert decoded == [list(row) for row in zip(*inputs)]
    assert labels == (expected and pytest.approx(expected))


def test_every_split_of_every_task_is_expected():
    splits = {(name, split) for name, task in TASKS.items() for split, _ in task.splits}
    assert splits == set(EXPECTED)


def test_the_dictionaries_are_the_pretrainings_and_the_official_classes(prepared, data):
    dest, _ = prepared
    for name, task in TASKS.items():
        for i in range(len(task.sentences)):
            copied = dest / f"{name}-bin" / f"input{i}" / "dict.txt"
            assert copied.read_bytes() == (data / "dict.txt").read_bytes()
        if task.classes:
            labels = Dictionary.load(str(dest / f"{name}-bin" / "label" / "dict.txt"))
            assert tuple(labels.symbols[labels.nspecial :]) == task.classes


def test_a_killed_run_leaves_nothing_half_made_and_two_workers_finish_it(
    prepared, glue, data, tmp_path
):
    # The kill comes while the many test rows of SST-2 are encoded.
    many = "index\tsentence\n" + "0\tuneasy mishmash of many words\n" * 100_000
    slow = write_official(tmp_path / "slow", {**OFFICIAL, "SST-2/test": many})
    dest = tmp_path / "dest"
    command = ("pkm-fairseq", "prepare-task", "--glue", slow, "--dest", dest, "--workers", 1)
    command += tuple(pieces_of(data))
    run_until("SST-2 valid, input0", *command)
    assert {path.name for path in dest.iterdir()} == {"CoLA-bin", "SST-2-bin.partial"}
    assert (dest / "SST-2-bin.partial" / "label" / "train.bin").exists()

    output = prepare(glue, dest, *pieces_of(data), workers=2)
    assert f"{dest / 'CoLA-bin'} is there already" in output
    assert f"made {dest / 'SST-2-bin'}" in output
    assert files(dest) == files(prepared[0])


def test_what_is_made_stays_and_another_dictionary_is_refused(prepared, glue, data, tmp_path):
    dest, first = prepared
    assert first.count("made ") == len(TASKS)
    before = {path: path.stat().st_mtime_ns for path in dest.rglob("*")}
    again = prepare(glue, dest, *pieces_of(data))
    assert again.count("is there already") == len(TASKS)
    assert "made " not in again.replace("remove it to make it anew", "")
    other = tmp_path / "dict.txt"
    other.write_text((data / "dict.txt").read_text() + "more 1\n")
    model = data / "sentencepiece.bpe.model"
    output = prepare(glue, dest, "--dict", other, "--sentencepiece-model", model, fails=True)
    assert output.splitlines()[-1].startswith(
        f"error: {dest / 'CoLA-bin'} is there already, but not of"
    )
    assert {path: path.stat().st_mtime_ns for path in dest.rglob("*")} == before


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A byte-level encoder with two merges, and a dictionary of its numbers."""
    folder = tmp_path_factory.mktemp("gpt2")
    symbols = [*bytes_to_unicode().values(), "Th", "The"]
    (folder / "encoder.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
    (folder / "vocab.bpe").write_text("#version: 0.2\nT h\nTh e\n")
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(len(symbols))))
    return folder


def test_gpt2_pieces_come_back_as_the_sentences(glue, gpt2, tmp_path):
    encoder, merges = gpt2 / "encoder.json", gpt2 / "vocab.bpe"
    prepare(
        *(glue, tmp_path, "--tasks", "CoLA,QNLI", "--dict", gpt2 / "dict.txt"),
        *("--gpt2-encoder-json", encoder, "--gpt2-vocab-bpe", merges),
    )
    assert {path.name for path in tmp_path.iterdir()} == {"CoLA-bin", "QNLI-bin"}
    bpe = GPT2BPE(GPT2BPEConfig(gpt2_encoder_json=str(encoder), gpt2_vocab_bpe=str(merges)))
    for name, split in (("CoLA", "train"), ("QNLI", "train")):
        dictionary, tokens, labels = load(tmp_path, name, split)
        inputs, expected = EXPECTED[name, split]
        decoded = [inputs_of(row, dictionary, bpe.decode) for row in tokens]
        assert decoded == [list(row) for row in zip(*inputs)]
        assert labels == expected
    # "The" is one piece: the merges were used.
    assert len(bpe.encode("The ship").split()) == 6


def test_a_dictionary_of_another_encoder_is_refused(glue, gpt2, data, tmp_path):
    model = data / "sentencepiece.bpe.model"
    paths = ("--dict", gpt2 / "dict.txt", "--sentencepiece-model", model)
    output = prepare(glue, tmp_path, *paths, fails=True)
    assert "pieces of a sample are not in --dict" in output.splitlines()[-1]
    assert not (tmp_path / "CoLA-bin").exists()


QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
BROKEN = {
    **{name: content for name, content in OFFICIAL.items() if name.startswith(("QQP", "RTE"))},
    "QQP/train": QQP_HEADER
    + "9\t1\t2\tWho am I?\tWhat am I?\t0\n"
    + '8\t3\t4\tA question"\n'
    + "7\t3\t4\t \tIs it so?\t1\n"
    + "6\t3\t4\tIs it?\tIs it so?\tyes\n"
    + "5\t3\t4\tIs it?\tIs it so?\t1\n",
    "QQP/dev": QQP_HEADER + "9\t1\t2\tWhy?\tHow so?\t1\n\n",
    "RTE/test": f"{NLI_TEST}0\tIt rained.\tIt was dry.\n1\tHe ran.\n",
}
REPORT = [
    "QQP/train.tsv:3: 4 columns instead of 6",
    "QQP/train.tsv:4: question1 is empty",
    "QQP/train.tsv:5: is_duplicate 'yes' is not one of 0, 1",
    "QQP/dev.tsv:3: 1 columns instead of 6",
]


def test_bad_rows_are_reported_by_file_and_line_and_nothing_is_made(data, tmp_path):
    glue = write_official(tmp_path / "glue", BROKEN)
    output = prepare(glue, tmp_path / "dest", *pieces_of(data), "--tasks", "QQP", fails=True)
    *report, last = output.splitlines()[-len(REPORT) - 1 :]
    assert report == [f"{glue}/{line}" for line in REPORT]
    assert last == (
        "error: QQP has bad rows (3 in train.tsv, 1 in dev.tsv): "
        "mend them or leave them out: --skip-bad-rows"
    )
    assert not (tmp_path / "dest").exists()


def test_bad_rows_are_left_out_when_asked_but_never_of_a_test_set(data, tmp_path):
    glue = write_official(tmp_path / "glue", BROKEN)
    dest = tmp_path / "dest"
    output = prepare(glue, dest, *pieces_of(data), "--skip-bad-rows", fails=True)
    assert "QQP: left bad rows out: 3 in train.tsv, 1 in dev.tsv\n" in output
    assert output.splitlines()[-1] == (
        "error: RTE has bad rows (1 in test.tsv): mend them, a test set needs every row"
    )
    assert {path.name for path in dest.iterdir()} == {"QQP-bin"}
    _, tokens, labels = load(dest, "QQP", "train")
    assert len(tokens) == 2
    assert labels == [0, 1]


def bad_rows(tmp_path, name, content, split="train"):
    path = tmp_path / "file.tsv"
    path.write_bytes(content)
    return read_split(TASKS[name], read_official(TASKS[name], path, split), split).bad


@pytest.mark.parametrize("score", ["high", "5.1", "-0.1", "nan", ""])
def test_a_score_that_is_none_is_a_bad_row(tmp_path, score):
    content = f"{STS_START}\tscore\n{STS_ROW.format(0, 'A', 'B')}\t{score}\n"
    ((number, fault),) = bad_rows(tmp_path, "STS-B", content.encode())
    assert number == 2
    assert fault.startswith("score ")
    assert score in fault


def test_text_that_is_not_utf8_is_a_bad_row(tmp_path):
    ((number, fault),) = bad_rows(tmp_path, "CoLA", b"x\t1\t\tGood.\nx\t1\t\t\xff\n")
    assert number == 2
    assert "utf-8" in fault


def test_a_header_without_the_column_is_refused_naming_it(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text("index\tpremise\thypothesis\tlabel\n")
    with pytest.raises(ValueError, match="no column 'sentence1', only index, premise, hypothesis"):
        read_split(TASKS["RTE"], read_official(TASKS["RTE"], path, "train"), "train")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("CoLa", "--tasks CoLa is not a GLUE task: choose ALL or among CoLA"),
        ("RTE", "has no folder RTE: put the official files of RTE there"),
    ],
)
def test_a_task_that_is_not_there_is_named(tmp_path, tasks, message):
    (tmp_path / "CoLA").mkdir()
    with pytest.raises(ValueError, match=message):
        choose_tasks(tasks, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "CoLA").mkdir()
    options = SimpleNamespace(glue=tmp_path, tasks=None, dest=tmp_path / "dest")
    (source,) = glue_sources(options)
    with pytest.raises(
        ValueError, match="train.tsv cannot be read: put the official files of CoLA there"
    ):
        read_task(source, False)


def test_a_finetuning_without_a_pretrained_model_is_refused(prepared, tmp_path):
    output = run(
        *("fairseq-hydra-train", "--config-dir", "user_dir_examples/glue", "--config-name", "cola"),
        *(f"task.data={prepared[0] / 'CoLA-bin'}", f"checkpoint.save_dir={tmp_path}"),
        *("common.cpu=true", "+model.encoder_layers=1", "model.pkm_layers=[]"),
        fails=True,
        HYDRA_FULL_ERROR="0",  # as it is for a user
    )
    refused = "pkm_fairseq: --finetune-from-model PRETRAINED.pt does not exist"
    assert output.splitlines()[-1] == refused
