"""The losses that a training follows, against scipy and the paper."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import norm

from dropserve.training.learner import beta_nll, gaussian_nll


def test_the_loss_of_a_heteroscedastic_head_is_scipys_and_its_gradient_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    output = torch.tensor(rng.normal(size=(7, 2)), requires_grad=True)
    target = torch.tensor(rng.normal(size=7))
    mean, log_variance = output.detach().numpy().T
    expected = -norm.logpdf(target.numpy(), mean, np.exp(log_variance / 2))
    np.testing.assert_allclose(gaussian_nll(output, target).detach().numpy(), expected)
    beta_nll(output, target).mean().backward()
    variance, residual = np.exp(log_variance), mean - target.numpy()
    assert output.grad is not None
    # equations 4 and 5 of Seitzer et al. with beta 0.5, for log variances and a mean over rows
    np.testing.assert_allclose(output.grad[:, 0], residual / variance**0.5 / 7)
    slope = (variance - residual**2) / (2 * variance**1.5) * variance / 7
    np.testing.assert_allclose(output.grad[:, 1], slope)
