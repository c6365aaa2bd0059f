"""`compile=true`: the same mathematics, for each estimator that torch.compile can take; exact resume."""

from __future__ import annotations

import shutil
from pathlib import Path

import lightning
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution

from tests.support import ESTIMATORS, composed, config, refusal, train
from tests.training.crash import crashed, unequal
from vi_lab.build import build
from vi_lab.commands.resume import resume_run
from vi_lab.console import make_console
from vi_lab.errors import UserError
from vi_lab.estimators import Cost, Estimate, GumbelSoftmax
from vi_lab.seeding import seed_noise
from vi_lab.training.compilation import Compilation, CompiledLosses
from vi_lab.training.display import Voice
from vi_lab.training.rehearsal import rehearse

NOT_COMPILED = ("muprop", "rebar", "relax")
KINDS = ("gumbel_softmax", "nvil", "rloo")
needs_a_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


@pytest.mark.parametrize("name", [n if n in KINDS else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS])
def test_a_compiled_step_is_the_step(name: str) -> None:
    """Two steps: losses, gradients and moving averages, by the graph, whatever then makes code of it."""
    if name in NOT_COMPILED:
        with pytest.raises(UserError, match=r"compile=true: .* takes a derivative within its step"):
            rehearse([composed("data=digits", f"estimator={name}", "compile=true")])
        return
    seen = []
    for compiled in (False, True):
        torch.compiler.reset()
        _, model = build(config(f"estimator={name}"))
        model.train()
        x = torch.rand(2, 20, 1, 28, 28, generator=torch.Generator().manual_seed(0)).round()
        losses = CompiledLosses(model, backend="aot_eager") if compiled else model.losses
        for step in range(2):
            if compiled:
                loss, values = losses(x[step], (3, step))
            else:
                seed_noise(model.device, 3, step)
                loss, values = losses(x[step])
            loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        seen.append((list(values), [loss.detach(), *values.values(), *gradients, *model.buffers()]))
    assert seen[0][0] == seen[1][0]
    torch.testing.assert_close(seen[0][1], seen[1][1])


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gumbel_softmax", "nvil", "gaussian"])
def test_a_compiled_run_is_near_the_eager_one_and_resumes_to_the_last_bit(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"estimator={name}", "checkpoint.every_n_steps=4", "trainer.max_epochs=1", "data.batch_size=110"]
    eager = train(tmp_path / "eager", *overrides)
    compiled = train(tmp_path / "whole", *overrides, "compile=true")
    assert compiled == pytest.approx(eager, rel=1e-3, abs=1e-3)
    crashed(tmp_path / "resumed", *overrides, "compile=true", at=6, monkeypatch=monkeypatch)
    resume_run(tmp_path / "resumed", [])
    assert unequal(tmp_path / "whole", tmp_path / "resumed") == []


def test_no_compiler_is_said_before_there_is_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"compile=true: wanted a C\+\+ compiler, found no "):
        rehearse([composed("data=digits", "estimator=rloo", "compile=true")])


class Own(GumbelSoftmax):
    differentiates = True


@needs_a_compiler
def test_an_own_estimator_that_takes_a_derivative_is_refused() -> None:
    """Which the rehearsal does not make, as it may need real numbers."""
    _, model = build(config("estimator=gumbel_softmax"))
    model.estimator = Own()
    with pytest.raises(UserError, match="compile=true: Own takes a derivative within its step"):
        Compilation(Voice(make_console(quiet=True))).on_fit_start(lightning.Trainer(logger=False), model)


class OwnNoise(GumbelSoftmax):
    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        return super().forward(q, lambda z: cost(z + 0 * torch.rand(())), context)


class ReadsAValue(GumbelSoftmax):
    def forward(self, q: Distribution, cost: Cost, context: Tensor | None = None) -> Estimate:
        estimate = super().forward(q, cost, context)
        if estimate.loss.mean().item() > 1e9:
            raise FloatingPointError
        return estimate


@pytest.mark.parametrize(
    ("kind", "message"),
    [(OwnNoise, "draws random numbers elsewhere than by vi_lab.noise"), (ReadsAValue, "could not make one graph")],
)
def test_what_cannot_be_compiled_is_said_in_a_line(kind: type[GumbelSoftmax], message: str) -> None:
    torch.compiler.reset()
    _, model = build(config("estimator=gumbel_softmax"))
    model.estimator = kind()
    with pytest.raises(UserError, match=f"compile=true: .*{message}.*leave compile= out"):
        CompiledLosses(model, backend="aot_eager")(torch.rand(4, 1, 28, 28), (0,))


def test_the_compiler_that_torch_will_ask_for_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "ccache no-such-compiler")
    with pytest.raises(UserError, match=r"found no no-such-compiler"):
        rehearse([composed("data=digits", "estimator=rloo", "compile=true")])


def test_a_recurrent_prior_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert "prior=autoregressive" in refusal(capsys, "train", "data=digits", "prior=autoregressive", "compile=true")
