"""Checkpoints from strangers, from other programs, and those that cannot be read."""

import os
import pickle

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.distributed import utils as distributed_utils

from pkm_fairseq.checkpoints.safe_reading import check_file
from pkm_fairseq.refusals import RefusalError
from tests.models.tiny import make_memory_model


class Code:
    """Runs when a pickle that holds it is loaded without a check."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def hostile(tmp_path):
    """A checkpoint that makes the file ``ran`` beside it if its code runs."""
    file = tmp_path / "model.pt"
    torch.save({"model": {}, "args": Code(tmp_path / "ran")}, file, pickle_module=pickle)
    return file


def test_code_in_a_checkpoint_is_refused_in_one_line_at_every_door_and_not_run(hostile):
    folder = hostile.parent
    (folder / "sentencepiece.bpe.model").touch()
    model = make_memory_model()
    for door in (
        lambda: checkpoint_utils.load_checkpoint_to_cpu(str(hostile)),
        lambda: checkpoint_utils.load_model_ensemble_and_task([str(hostile)]),
        lambda: model.from_pretrained(str(folder), data_name_or_path=str(folder)),
        lambda: model.init_from(str(hostile)),
        # As some fairseqs do.
        lambda: checkpoint_utils.torch.load(str(hostile), weights_only=False),
    ):
        with pytest.raises(RefusalError, match=f"{hostile} cannot be read: .*Unpickl") as refusal:
            door()
        assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(pickle.UnpicklingError):  # what one worker sends to another
        distributed_utils.torch.load(hostile.open("rb"), weights_only=False)
    assert not (folder / "ran").exists()


def test_what_a_program_loads_by_itself_is_its_own_affair(hostile):
    assert torch.load(hostile, weights_only=False)["model"] == {}
    assert (hostile.parent / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_the_variable_of_torch_lifts_the_check(hostile, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(RefusalError, match="without the state of its training"):
        checkpoint_utils.load_checkpoint_to_cpu(str(hostile))
    assert (hostile.parent / "ran").exists()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("number", [np.float64(0.75), np.float32(0.75), np.int64(3), np.bool_(1)])
def test_numbers_of_numpy_1_and_2_are_read(tmp_path, module, number):
    file = tmp_path / "model.pt"
    best = {"best": number, "val_loss": number}
    state = {"model": {}, "cfg": {}, "optimizer_history": [], "extra_state": best}
    # In torch's older format the name can be written over.
    torch.save(state, file, _use_new_zipfile_serialization=False)
    ours = type(number).__reduce__(number)[0].__module__
    written = file.read_bytes()
    assert f"{ours}\nscalar\n".encode() in written
    file.write_bytes(written.replace(f"{ours}\n".encode(), f"{module}\n".encode()))
    with open(file, "rb") as opened:
        read = checkpoint_utils.torch.load(opened)["extra_state"]
    assert read == best
    assert type(read["best"]) is type(number)


def test_an_object_in_the_place_of_a_number_is_refused(tmp_path):
    file = tmp_path / "model.pt"
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]

    class Number:
        def __reduce__(self):
            return scalar, (np.dtype("O"), b"\0" * 8)

    torch.save({"model": {}, "cfg": {}, "best": Number()}, file, pickle_module=pickle)
    with pytest.raises(RefusalError, match="cannot be read"):
        checkpoint_utils.load_checkpoint_to_cpu(str(file))


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it is cut off"), (b"PK\3\4 and on", "it is cut off"), (b"no checkpoint", "Unpickling")],
)
def test_what_cannot_be_read_is_named_in_one_line(tmp_path, content, reason):
    file = tmp_path / "model.pt"
    file.write_bytes(content)
    with pytest.raises(
        RefusalError, match=f"^checkpoint {file} cannot be read: {reason}"
    ) as raised:
        checkpoint_utils.load_checkpoint_to_cpu(str(file))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("error", [MemoryError("too large"), PermissionError("not yours")])
def test_what_is_not_the_files_fault_is_raised_as_it_is(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    file = tmp_path / "model.pt"
    file.touch()
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error), match=f"^{error}$"):
        checkpoint_utils.load_checkpoint_to_cpu(str(file))


def test_what_goes_wrong_after_reading_is_not_blamed_on_the_file(tmp_path):
    file = tmp_path / "model.pt"
    state = {"optimizer_history": [], "extra_state": {}}
    torch.save({"model": {}, "cfg": {"task": {"_name": "masked_lm"}}, **state}, file)
    with pytest.raises(TypeError, match="argument of type 'int'"):
        checkpoint_utils.load_checkpoint_to_cpu(str(file), arg_overrides=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "is none: it holds a list"),
        ({"epoch": 3}, "is none of fairseq: no model in it, or no options"),
        ({"model": {}, "args": None}, "is none of fairseq: no model in it, or no options"),
        (
            {"roberta.embeddings.word_embeddings.weight": torch.ones(2, 2)},
            r"is of transformers: .*pkm-fairseq import \S* --dest DEST$",
        ),
    ],
)
def test_files_of_other_programs_are_named(tmp_path, content, message):
    file = tmp_path / "pytorch_model.bin"
    torch.save(content, file)
    for door in (checkpoint_utils.load_checkpoint_to_cpu, make_memory_model().init_from):
        with pytest.raises(RefusalError, match=f"^checkpoint {file} {message}"):
            door(str(file))


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("model.pt", (), "does not exist"),
        ("runs", ("checkpoint_last.pt",), "is a folder: name the checkpoint in it"),
        ("hf", ("config.json", "pytorch_model.bin"), "is of transformers: .* {path} --dest DEST"),
        ("model.safetensors", None, "is of transformers: .* {path.parent} --dest DEST"),
    ],
)
def test_paths_without_a_checkpoint_are_refused_saying_what_is_there(
    tmp_path, name, files, message
):
    path = tmp_path / name
    if files is None:
        path.touch()
    for file in files or ():
        path.mkdir(exist_ok=True)
        (path / file).touch()
    message = f"^--restore-file {path} {message.format(path=path)}$"
    with pytest.raises(RefusalError, match=message):
        check_file("--restore-file", str(path))


def test_weights_alone_are_for_starting_a_training(tmp_path):
    file = tmp_path / "stripped.pt"
    model = make_memory_model(pkm_layers=[])
    args = model.args
    torch.save({"model": model.state_dict(), "args": args}, file)
    with pytest.raises(RefusalError, match=f"^checkpoint {file} holds .*: .* --pkm-init-from$"):
        checkpoint_utils.load_checkpoint_to_cpu(str(file))
    make_memory_model().init_from(str(file))
