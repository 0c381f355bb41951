"""Ranking slots, and the files of lists."""

import json

import numpy as np
import pytest
import torch

from pkm_fairseq.finetuning.slot_lists import best_slots, digest, read_slots, tf_idf, write_slots

SIZES = {(1,): 9, (2, 4): 9}
LISTS = {(1,): torch.tensor([0, 8]), (2, 4): torch.tensor([3])}


def test_a_score_is_the_share_of_accesses_times_how_rare_the_background_has_them():
    accesses, batches_with = torch.tensor([6, 0, 2, 2, 0]), torch.tensor([7, 0, 0, 1, 3])
    share = np.array([0.6, 0, 0.2, 0.2, 0])
    rarity = np.log(8 / np.array([8, 1, 1, 2, 4]))
    np.testing.assert_allclose(tf_idf(accesses, batches_with, 7).numpy(), share * rarity)


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (9, [0, 1, 3, 4])]
)
def test_the_best_slots_are_listed_in_their_order_and_none_that_score_nothing(count, expected):
    scores = torch.tensor([0.1, 0.5, 0.0, 0.3, 0.3])
    assert best_slots(scores, count).tolist() == expected


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "slots.json"
    write_slots(path, LISTS, SIZES, data="new")
    found = read_slots(path, SIZES)
    assert {layers: slots.tolist() for layers, slots in found.items()} == {
        (1,): [0, 8],
        (2, 4): [3],
    }
    assert digest(found) == digest(LISTS)
    assert digest(found) != digest({**LISTS, (1,): torch.tensor([0, 7])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layers": [3]},
            r"slots of layer 3 and layer 2\+4, but the model's memories are of layer 1",
        ),
        ({"slots_total": 16}, "for a memory of 16 slots at layer 1, which has 9"),
        ({"slots": []}, "lists no slots of layer 1"),
        ({"slots": 3}, "lists no slots of layer 1"),
        ({"slots": [9]}, "what is no slot at layer 1: they are numbers from 0 to 8"),
        ({"slots": [-1]}, "what is no slot"),
        ({"slots": [1.0]}, "what is no slot"),
        ({"slots": [True]}, "what is no slot"),
        ({"slots": [1, 1]}, "a slot of layer 1 twice"),
        ({"layers": 3}, "is no list of slots"),
        ({"layers": [2, 4]}, "lists the same layers twice"),
    ],
)
def test_a_list_of_another_memory_is_refused(tmp_path, change, message):
    path = tmp_path / "slots.json"
    write_slots(path, LISTS, SIZES)
    content = json.loads(path.read_text())
    content["pkm_slots"][0].update(change)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_slots(path, SIZES)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", '{"pkm_slots": 3}', '{"pkm_slots": [3]}'])
def test_what_is_no_list_is_refused(tmp_path, content):
    path = tmp_path / "slots.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="is no list of slots"):
        read_slots(path, SIZES)
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_slots(tmp_path / "none.json", SIZES)
    path.write_text('{"pkm_slots": []}')
    with pytest.raises(ValueError, match="slots of no layer"):
        read_slots(path, SIZES)
