from __future__ import annotations

import functools
import math
import types

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.stages.nets import examples, noise
from tests.models.tiny import tiny
from uphold.core.errors import EmptyError, UsageError
from uphold.models.stages.data import IGNORED, Classification, Examples, NextToken, chunks, correct, described


def test_examples_have_a_hash_of_their_content_and_one_target_each() -> None:
    arrays = Examples.of(np.ones((3, 2), dtype=np.float32), [0, 1, 2])

    assert len(arrays) == 3
    assert arrays.hash == Examples(torch.ones(3, 2), torch.arange(3)).hash
    assert arrays.hash != Examples(torch.ones(3, 2), torch.tensor([0, 1, 1])).hash
    assert arrays.sample.shape == (2, 2)
    with pytest.raises(UsageError, match=r"3 inputs have 2 targets: expected one for each"):
        Examples.of(np.ones((3, 2)), [0, 1])
    with pytest.raises(EmptyError, match=r"there are no examples"):
        Examples.of(np.ones((0, 2)), [])


def test_classification_is_cross_entropy_with_label_smoothing() -> None:
    logits, targets = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]]), torch.tensor([1, 0])

    assert float(Classification().loss(logits, targets)) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    smooth = 0.95 * math.log(4 / 3) + 0.05 * math.log(4)
    assert float(Classification(0.1).loss(logits[:1], targets[:1])) == pytest.approx(smooth)
    assert Classification().correct(logits, targets).tolist() == [True, True]


def test_the_next_token_is_compared_with_the_output_before_it_and_ignored_ones_do_not_count() -> None:
    ids = torch.tensor([[1, 0, 1], [0, 0, IGNORED]])
    logits = torch.zeros(2, 3, 2)
    logits[0, 0, 0] = logits[0, 1, 1] = math.log(3)  # right, right
    logits[1, 0, 1] = math.log(3)  # wrong; what follows is ignored

    loss = float(NextToken().loss(logits, ids))

    assert loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)
    assert NextToken().correct(logits, ids).tolist() == [True, False]
    whole = tiny("llama")
    tokens = torch.arange(4, 22).view(2, 9)
    with torch.no_grad():
        expected = float(whole(tokens, labels=tokens).loss)
        assert float(NextToken().loss(whole(tokens).logits, tokens)) == pytest.approx(expected)


def test_correctness_is_measured_in_parts_in_eval_mode_and_without_augmentation() -> None:
    data = examples(600, augment=noise)
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.9), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before = net[2].running_mean.clone()

    found = correct(net, data, Classification())

    assert [len(part) for part in chunks(data.inputs)] == [256, 256, 88]
    assert torch.equal(found, net.eval()(data.inputs).argmax(-1) == data.targets)
    assert torch.equal(before, net[2].running_mean)


def test_what_decides_an_outcome_is_described_in_words() -> None:
    assert described(Classification(0.1)) == "Classification(label_smoothing=0.1)"
    assert described(noise) == "tests.models.stages.nets.noise"
    assert described(functools.partial(noise, generator=3)) == "tests.models.stages.nets.noise(){'generator': 3}"
    assert described(None) == "None"
    # Started processes call the script of their parent so.
    own = types.new_class("Own")
    own.__module__ = "__mp_main__"
    assert described(own()) == "__main__.Own"
