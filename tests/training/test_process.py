"""What is settled for the whole process before a run begins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.support import config
from vi_lab.training.process import prepare_process


def test_a_step_looks_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's setting has torch's optimizers open a library at each step, where torch knows of CUDA."""
    asked: list[None] = []
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: asked.append(None) or 0)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.ones(1)
    optimizer = torch.optim.Adam([weight])
    optimizer.step()
    if not asked:
        pytest.skip("this torch knows of no GPUs, or has found one")
    asked.clear()
    prepare_process(config())
    optimizer.step()
    assert not asked
