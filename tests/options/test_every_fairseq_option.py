"""Each option of fairseq's RoBERTa and of its trainings works with a memory, or is refused.

Each alone, which takes minutes, and any two, others each time and more with the profile:
pytest -m slow --hypothesis-profile many tests/options
"""

import re
import shutil
from pathlib import Path
from string import Template

import pytest
from fairseq.tasks import TASK_REGISTRY
from fairseq_cli import train as command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.options import declared, entries, training

QUANTISATION = r"""
n_centroids: {Linear: {key: in_features, value: {"*": 4}}}
block_sizes: {Linear: {key: fuzzy_name, value: {fc: 8}}}
layers_to_quantize: ["sentence_encoder\\.layers\\.\\d+\\.fc[12]"]
"""
ON_TEXT = [given for given, _ in (*entries.REFUSED, *entries.REFUSED_LATER)]
ON_TEXT += [given for given, _ in (*entries.STOPPED, *entries.KEPT, *entries.STARTED)]
ON_TEXT += [training.ALWAYS, training.PRETRAINING, *entries.PRETRAINED.values()]
ON_SENTENCES = [
    given for given, _ in (*entries.REFUSED_IN_FINETUNING, *entries.REFUSED_LATER_IN_FINETUNING)
]
ON_SENTENCES += [training.FINETUNING, *entries.FINETUNED.values()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of data, text and sentences."""
    folder = tmp_path_factory.mktemp("data")
    training.make_text(folder / "text", str)
    training.make_sentences(folder / "sentences")
    return folder


@pytest.fixture(scope="module")
def starts(data, tmp_path_factory):
    """Checkpoints to start from: one after two updates, and one with an average."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("base", "average")}
    for name, folder in folders.items():
        given = {**training.PRETRAINING, "store_ema": name == "average" or None}
        training.train(training.parse(data / "text", folder, given))
    return {name: str(folder / "checkpoint_last.pt") for name, folder in folders.items()}


@pytest.fixture
def fill_in(starts, tmp_path):
    """Puts paths into what an entry gives, and leaves out what this fairseq does not have."""
    (tmp_path / "quantisation.yaml").write_text(QUANTISATION)
    places = {**starts, "folder": str(tmp_path)}
    known = declared.everything()
    return lambda given: {
        name: Template(value).substitute(places) if isinstance(value, str) else value
        for name, value in given.items()
        if name not in entries.NEWER or name in known
    }


@pytest.fixture
def prepare(data, fill_in, tmp_path):
    """Makes the options of a training of those that an entry gives, as fairseq-train does."""

    def prepare(given, finetuning=False):
        task = training.FINETUNING if finetuning else training.PRETRAINING
        where = data / ("sentences" if finetuning else "text")
        return training.parse(where, tmp_path / "run", {**task, **fill_in(given)})

    return prepare


@pytest.fixture(scope="module")
def plain(data):
    """The options of a pretraining and of a finetuning."""
    return [
        training.parse(data / folder, data / "run", task)
        for folder, task in (("text", training.PRETRAINING), ("sentences", training.FINETUNING))
    ]


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        (declared.GENERAL, ON_TEXT + ON_SENTENCES),
        (declared.PRETRAINING, ON_TEXT),
        (declared.FINETUNING, ON_SENTENCES),
    ],
    ids=["general", "pretraining", "finetuning"],
)
def test_no_option_and_no_choice_is_forgotten(parts, rows):
    options = declared.declared(parts)
    given = {(name, value) for row in rows for name, value in row.items()}
    assert options.keys() - {name for name, _ in given} - entries.SHOWN_APART == set()
    for name, (default, choices) in options.items():
        # Every row that does not give an option tries its default.
        assert set(choices) - {value for n, value in given if n == name} <= {default}, name


def test_no_option_is_made_up():
    known = (
        declared.everything().keys() | entries.NEWER | {"arch", "task", "criterion", "optimizer"}
    )
    for name in {name for row in ON_TEXT + ON_SENTENCES for name in row} | entries.SHOWN_APART:
        assert name in known or name.startswith("pkm_"), name


def ids(rows):
    return [pytest.param(*row, id=",".join(map(str, row[0]))) for row in rows]


@pytest.mark.parametrize("name", [*entries.PRETRAINED, *entries.FINETUNED])
def test_it_trains_validates_saves_and_resumes(name, prepare):
    of_sentences = name in entries.FINETUNED
    given = (entries.FINETUNED if of_sentences else entries.PRETRAINED)[name]
    assert_trains_and_resumes(prepare(given, of_sentences))


def assert_trains_and_resumes(cfg):
    training.train(cfg)
    first, updates = training.read(cfg)
    assert updates == 2
    assert first["extra_state"]["val_loss"] > 0
    training.train(cfg, max_update=4)
    last, updates = training.read(cfg)
    assert updates == 4
    assert not all(tensor.equal(first["model"][name]) for name, tensor in last["model"].items())


@pytest.mark.parametrize(
    ("given", "line", "finetuning"),
    ids(
        [(*row, False) for row in entries.REFUSED]
        + [(*row, True) for row in entries.REFUSED_IN_FINETUNING]
    ),
)
def test_it_is_refused_before_data_are_read(given, line, finetuning, plain, fill_in, monkeypatch):
    if entries.NEWER & given.keys() - declared.everything().keys():
        pytest.skip("an option of fairseq-fixed alone")
    cfg = training.change(plain[finetuning], fill_in(given))
    task = TASK_REGISTRY[cfg.task._name]
    monkeypatch.setattr(task, "load_dataset", lambda *args, **options: pytest.fail("reads data"))
    assert_refused(cfg, line)


@pytest.mark.parametrize(
    ("given", "line", "finetuning"),
    ids(
        [(*row, False) for row in entries.REFUSED_LATER]
        + [(*row, True) for row in entries.REFUSED_LATER_IN_FINETUNING]
    ),
)
def test_it_is_refused_once_that_can_be_known(given, line, finetuning, prepare):
    assert_refused(prepare(given, finetuning), line)


def assert_refused(cfg, line):
    with pytest.raises((ValueError, ImportError), match=line) as refusal:
        # Not by way of what starts workers, of which some options would want more.
        command.main(cfg)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize(("given", "updates"), ids(entries.STOPPED))
def test_it_stops(given, updates, prepare):
    cfg = prepare({"max_update": 9, **given})
    training.train(cfg)
    assert training.read(cfg)[1] == updates


@pytest.mark.parametrize(("given", "names"), ids(entries.KEPT))
def test_it_keeps_these_checkpoints(given, names, prepare):
    cfg = prepare({"max_update": 5, **given})
    training.train(cfg)
    files = {
        file.stem.replace("checkpoint", "") for file in Path(cfg.checkpoint.save_dir).glob("*")
    }
    # The best of several has its score in its name, which other versions of torch round otherwise.
    assert {name.split("_loss")[0] for name in files} == names


@pytest.mark.parametrize(("given", "place"), ids(entries.STARTED))
def test_it_starts_from_there(given, place, prepare):
    cfg = prepare({"max_update": 3, **given})
    training.train(cfg)
    checkpoint, updates = training.read(cfg)
    iterator = checkpoint["extra_state"]["train_iterator"]
    assert (updates, iterator["epoch"], iterator["iterations_in_epoch"]) == place
    if "optimizer_overrides" in given:
        assert checkpoint["last_optimizer_state"]["param_groups"][0]["eps"] == 0.5


ALONE = [
    (name, value, name_of_row in entries.FINETUNED)
    for rows in (entries.PRETRAINED, entries.FINETUNED)
    for name_of_row, row in rows.items()
    for name, value in row.items()
    if (name, value) != ("batch_size", None)  # which goes with max_tokens alone
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "finetuning"), ALONE, ids=str)
def test_each_alone_trains_and_resumes(name, value, finetuning, prepare):
    assert_trains_or_is_refused(prepare({name: value}, finetuning))


PAIRS = st.sampled_from(ALONE).flatmap(
    lambda first: st.tuples(
        st.just(first),
        st.sampled_from([row for row in ALONE if row[0] != first[0] and row[2] == first[2]]),
    )
)


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pair=PAIRS)
def test_any_two_train_and_resume_or_are_refused(pair, prepare):
    given = {name: value for name, value, _ in pair}
    assert_trains_or_is_refused(prepare(given, finetuning=pair[0][2]))


def assert_trains_or_is_refused(cfg):
    """Asserts that, and begins with no checkpoint of another training."""
    shutil.rmtree(cfg.checkpoint.save_dir, ignore_errors=True)
    try:
        assert_trains_and_resumes(cfg)
    except ValueError as error:
        assert re.search("--[a-z]", str(error))  # noqa: PT017 - a training is as welcome
