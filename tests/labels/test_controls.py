"""Controls: what each keeps of the true labels, and that a window's labels are its own."""

from __future__ import annotations

import torch

from cocomix import AttributionConfig, ConceptExtractor
from cocomix.labels.attribution import random_dictionary
from cocomix.labels.controls import draw_labels, shuffle_labels
from tests.labels.test_attribution import make
from tests.modeling.helpers import concept_labels, tokens


def test_a_random_dictionary_is_fixed_by_its_seed_and_keeps_shape_and_centre() -> None:
    sae = make("llama").sae
    torch.manual_seed(1)
    first = random_dictionary(sae, 3)
    torch.manual_seed(2)
    again, other = random_dictionary(sae, 3), random_dictionary(sae, 4)
    assert first.config == sae.config
    assert torch.equal(first.decoder_weight, again.decoder_weight)
    assert not torch.equal(first.decoder_weight, other.decoder_weight)
    assert torch.equal(first.decoder_bias, sae.decoder_bias)
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_random_labels_are_those_of_the_random_dictionary() -> None:
    true = make("llama")
    random = ConceptExtractor(
        true.teacher.model, true.sae, 1, AttributionConfig("attribution", num_labels=2, control="random", seed=5)
    )
    by_hand = ConceptExtractor(true.teacher.model, random_dictionary(true.sae, 5), 1, true.config)
    ids = tokens()
    assert torch.equal(random(ids), by_hand(ids))
    assert not torch.equal(random(ids), true(ids))


def test_shuffled_labels_are_a_permutation_over_the_labelled_positions_of_a_window() -> None:
    ids, labels = tokens(3, 12), concept_labels(3, 12)
    labels[1, 4] = -100
    labels[2, 3, 1:] = -100
    shuffled = shuffle_labels(ids, labels, seed=0)
    assert not torch.equal(shuffled, labels)
    for b in range(3):
        assert sorted(shuffled[b].tolist()) == sorted(labels[b].tolist())
        assert torch.equal((shuffled[b] == -100).all(-1), (labels[b] == -100).all(-1))
    assert not torch.equal(shuffle_labels(ids, labels, seed=1), shuffled)
    # Neither the batch nor the place in it has a say.
    assert torch.equal(shuffle_labels(ids.flip(0), labels.flip(0), seed=0).flip(0), shuffled)
    assert torch.equal(shuffle_labels(ids[1:2], labels[1:2], seed=0), shuffled[1:2])


def test_drawn_labels_follow_the_histogram_and_do_not_repeat_at_a_position() -> None:
    ids, labels = tokens(40, 101), concept_labels(40, 101, 2)
    histogram = torch.tensor([0, 5, 0, 3, 2])
    drawn = draw_labels(ids, labels, histogram, seed=0)
    assert torch.equal(drawn == -100, labels == -100)
    valid = drawn[:, :-1].reshape(-1, 2)
    assert (valid[:, 0] != valid[:, 1]).all()
    first = torch.bincount(valid[:, 0], minlength=5) / len(valid)
    # 4,000 draws: a standard error of at most 0.008.
    torch.testing.assert_close(first, histogram / 10, atol=0.03, rtol=0)
    second_after_1 = torch.bincount(valid[valid[:, 0] == 1][:, 1], minlength=5) / (valid[:, 0] == 1).sum()
    torch.testing.assert_close(second_after_1, torch.tensor([0, 0, 0, 0.6, 0.4]), atol=0.05, rtol=0)
    assert torch.equal(draw_labels(ids[7:9], labels[7:9], histogram, seed=0), drawn[7:9])
    assert not torch.equal(draw_labels(ids, labels, histogram, seed=1), drawn)


def test_a_position_is_drawn_as_many_labels_as_it_has() -> None:
    ids, labels = tokens(2, 9), concept_labels(2, 9, 4)
    labels[0, :, 2:] = -100
    labels[0, 3:6, 1] = -100
    labels[1, :, 1:] = -100
    drawn = draw_labels(ids, labels, torch.tensor([0, 5, 3]), seed=0)  # of two concepts no position can have three
    assert torch.equal(drawn == -100, labels == -100)
    assert drawn[drawn >= 0].unique().tolist() == [1, 2]
    assert (drawn[0, [0, 1, 2, 6, 7], 0] != drawn[0, [0, 1, 2, 6, 7], 1]).all()
