"""Every merge method against values that mergekit 0.1.4 gave, or that follow from the definition."""

import pytest
import torch

from tests.merge.whole import merged

BASE = torch.tensor([[0.0, 1, 2, 3], [4, 5, 6, 7]])
A = BASE + torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.5, 0, -0.7, 0.8]])
B = BASE + torch.tensor([[-0.1, -0.1, 0.6, 0.2], [0.1, 0.4, -0.2, -0.9]])
C = BASE + torch.tensor([[0.2, 0.3, -0.1, -0.3], [0.2, 0.1, -0.4, 0.5]])
THREE = [A, B, C]
HALVES = (0.5, 0.5, 1.0)

REFERENCES = {
    "slerp": (
        lambda: merged("slerp", [B], A, t=0.3),
        [[0.040037, 0.832337, 2.396735, 2.787926], [4.391991, 5.134337, 5.465289, 7.309575]],
    ),
    "slerp of a right angle": (
        lambda: merged("slerp", [torch.tensor([0.0, 2])], torch.tensor([1.0, 0]), t=0.5),
        [0.707107, 1.414214],
    ),
    "nuslerp": (
        lambda: merged("nuslerp", [A, B], weights=(0.7, 0.3)),
        [[0.040037, 0.832337, 2.396735, 2.787926], [4.391991, 5.134337, 5.465289, 7.309575]],
    ),
    "nuslerp by the last dimension": (
        lambda: merged("nuslerp", [A, B], weights=(0.7, 0.3), nuslerp_flatten=False),
        [[0.040006, 0.830397, 2.391145, 2.781348], [4.390418, 5.132457, 5.463284, 7.307007]],
    ),
    "task_arithmetic": (
        lambda: merged("task_arithmetic", THREE, BASE, weights=HALVES),
        [[0.2, 1.15, 2.35, 2.6], [4.5, 5.3, 5.15, 7.45]],
    ),
    "ties, half": (
        lambda: merged("ties", THREE, BASE, weights=(1, 1, 1), density=0.5),
        [[0, 1.3, 2.6, 2.65], [4.5, 5.4, 5.45, 7.65]],
    ),
    "ties, all": (
        lambda: merged("ties", THREE, BASE, weights=(1, 1, 1)),
        [[0.15, 0.85, 2.45, 2.65], [4.266667, 5.25, 5.566667, 7.65]],
    ),
    "ties, weights and lambda": (
        lambda: merged("ties", THREE, BASE, weights=(1, 2, 1), density=0.5, **{"lambda": 0.8}),
        [[0, 1.24, 2.48, 2.72], [4.4, 5.32, 5.56, 6.28]],
    ),
    "ties_paper": (
        lambda: merged("ties_paper", THREE, BASE, density=0.5),
        [[0.2, 1.3, 2.45, 2.65], [4.5, 5.4, 5.566667, 7.65]],
    ),
    "breadcrumbs": (
        lambda: merged("breadcrumbs", THREE, BASE, weights=(1, 1, 1), density=0.5, gamma=0.125),
        [[0.2, 1.3, 2.9, 2.5], [4.5, 5.4, 4.7, 7]],
    ),
    "multislerp": (
        lambda: merged("multislerp", THREE, weights=(1, 1, 1)),
        [[0.064902, 1.002813, 2.277668, 2.847458], [4.277895, 5.186666, 5.588307, 7.142707]],
    ),
    "multislerp with a base": (
        lambda: merged("multislerp", THREE, BASE, weights=(1, 2, 1)),
        [[0.080377, 1.021356, 2.590419, 2.821221], [4.421503, 5.418238, 5.279989, 6.850753]],
    ),
    "karcher": (
        lambda: merged("karcher", THREE),
        [[0.064839, 1.002763, 2.277828, 2.847611], [4.277890, 5.186793, 5.588428, 7.142420]],
    ),
    "sce": (
        lambda: merged("sce", THREE, BASE),
        [[0.129114, 0.846154, 2.438462, 2.629114], [4.294488, 5.302817, 5.543307, 7.712658]],
    ),
    "model_stock": (
        lambda: merged("model_stock", [A, C], BASE),
        [[0.130595, 1.043532, 2.087063, 2.695279], [4.304721, 5.043531, 5.521152, 7.565911]],
    ),
    "nearswap": (
        lambda: merged("nearswap", [A], BASE, t=0.15),
        [[0.1, 0.85, 2.15, 2.85], [4.15, 5, 5.85, 7.15]],
    ),
}


@pytest.mark.parametrize("case", REFERENCES)
def test_reference(case):
    run, expected = REFERENCES[case]
    torch.testing.assert_close(run(), torch.tensor(expected), atol=1e-6, rtol=0)
