"""Priors: densities that sum to one, samples that follow them, gradients that reach them, and what they go with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support import SMALL, composed, refusal, small_vae, train
from vi_lab import evaluation
from vi_lab.distributions import enumerate_support, kl_divergence, kl_or_estimate, log_prob
from vi_lab.estimators import Concrete, Pathwise, StraightThrough, VectorQuantization
from vi_lab.latents import VQ, Bernoulli, Categorical, Gaussian, Latent
from vi_lab.objectives import ELBO, RelaxedELBO
from vi_lab.priors import Autoregressive, Factorized, Mixture, Prior, VampPrior
from vi_lab.runs.run import Run

SHAPE = (1, 28, 28)
DISCRETE = {"categorical": lambda: Categorical(3, 4), "bernoulli": lambda: Bernoulli(5), "vq": lambda: VQ(3, 4, 2)}
Z = 5  # standard errors that a mean may be off: about 60 of them in all, a false-alarm rate of 4e-5


def learned(prior: type[Prior], latent: Latent, **arguments: int) -> Prior:
    """One that has learned something: random parameters."""
    torch.manual_seed(0)
    made = prior(latent, SHAPE, **arguments).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def states(latent: Latent) -> Tensor:
    """All of them, (N, *event)."""
    if isinstance(latent, VQ):
        variables, classes = latent.event_shape[0], len(latent.codebook)
        return latent.codebook[torch.cartesian_prod(*[torch.arange(classes)] * variables)]
    return enumerate_support(latent(torch.zeros(1, latent.feature_size, dtype=torch.float64)))


def no_posterior(x: Tensor) -> torch.distributions.Distribution:
    raise AssertionError("not asked for")


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("prior", [Factorized, Autoregressive])
def test_discrete_priors_sum_to_one_and_are_sampled_from(prior: type[Prior], kind: str) -> None:
    torch.manual_seed(1)
    latent = DISCRETE[kind]().double()
    p = learned(prior, latent)(latent, no_posterior)
    z = states(latent)
    log_p = log_prob(p, z.unsqueeze(1))[:, 0].detach()
    torch.testing.assert_close(log_p.exp().sum(), torch.ones((), dtype=torch.float64))
    count = 40_000
    drawn = p.sample((count // 2, 2))
    assert drawn.shape == (count // 2, 2, *latent.event_shape)
    flat, table = drawn.flatten(0, 1).flatten(1), z.flatten(1)
    frequency = torch.cdist(flat, table).argmin(1).bincount(minlength=len(z)) / count
    error = (log_p.exp() * (1 - log_p.exp()) / count).sqrt()
    assert ((frequency - log_p.exp()).abs() < Z * error + 1 / count).all()


@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("prior", [Factorized, Autoregressive])
def test_discrete_priors_begin_as_the_uniform_one(prior: type[Prior], kind: str) -> None:
    latent = DISCRETE[kind]()
    z = states(latent)[:, None].to(torch.get_default_dtype())
    uniform = log_prob(latent.prior(), z)
    torch.testing.assert_close(log_prob(prior(latent, SHAPE)(latent, no_posterior), z), uniform)


def test_a_variable_depends_on_those_before_it_only() -> None:
    latent = Categorical(4, 3)
    prior = learned(Autoregressive, latent)
    z = torch.rand(1, 4, 3, dtype=torch.float64, requires_grad=True)
    for variable, logits in enumerate(prior.logits(z)[0]):
        (slope,) = torch.autograd.grad(logits.square().sum(), z, retain_graph=True, materialize_grads=True)
        seen = slope[0].abs().sum(-1) > 0
        assert seen.tolist() == [other < variable for other in range(4)]


@pytest.mark.parametrize("kind", ["categorical", "bernoulli"])
def test_the_kl_is_least_where_a_factorized_prior_is_the_averaged_posterior(kind: str) -> None:
    torch.manual_seed(2)
    latent = DISCRETE[kind]().double()
    prior = Factorized(latent, SHAPE).double()
    q = latent(torch.randn(50, latent.feature_size, dtype=torch.float64))
    mean = q.mean.mean(0)
    prior.logits.data = mean.log() if kind == "categorical" else mean.logit()
    kl = kl_divergence(q, prior(latent, no_posterior))
    (slope,) = torch.autograd.grad(kl.sum(), prior.logits)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-9, rtol=0)
    assert kl.mean() < kl_divergence(q, latent.prior()).mean()


@pytest.mark.parametrize("prior", [Mixture, VampPrior])
def test_gaussian_mixtures_are_mixtures(prior: type[Prior]) -> None:
    torch.manual_seed(3)
    latent = Gaussian(1).double()
    made = learned(prior, latent, components=7)
    weight = torch.randn(2, 784, dtype=torch.float64) / 28

    def posterior(x: Tensor) -> torch.distributions.Distribution:
        assert x.shape == (7, *SHAPE)
        assert ((x > 0) & (x < 1)).all()
        return latent(x.flatten(1) @ weight.T)

    p = made(latent, posterior)
    grid = torch.linspace(-60, 60, 200_001, dtype=torch.float64)
    density = log_prob(p, grid[:, None, None])[:, 0].exp()
    torch.testing.assert_close(torch.trapezoid(density, grid), torch.ones((), dtype=torch.float64))
    mean = torch.trapezoid(density * grid, grid)
    drawn = p.sample((40_000,))
    assert (drawn.mean() - mean).abs() < Z * drawn.std() / 200
    assert all(g is not None for g in torch.autograd.grad(log_prob(p, drawn[:10, None]).sum(), [*made.parameters()]))


@pytest.mark.parametrize("prior", [Mixture, VampPrior])
def test_what_has_no_closed_form_is_sampled(prior: type[Prior]) -> None:
    torch.manual_seed(4)
    latent = Gaussian(2)
    model = small_vae(latent, Pathwise(), ELBO("analytic"), p_z=prior(latent, SHAPE, components=5))
    loss, values = model.losses(torch.rand(6, *SHAPE).round())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(values["reconstruction"] + values["kl"], values["loss"])
    assert model.sample(3).shape == (3, *SHAPE)


def test_codes_teach_the_prior_and_the_prior_no_encoder() -> None:
    torch.manual_seed(5)
    latent = VQ(3, 4, 2)
    model = small_vae(latent, VectorQuantization(), p_z=learned(Autoregressive, latent, size=4).float())
    x = torch.rand(6, *SHAPE).round()
    q = model.posterior(x)
    kl = kl_or_estimate(q, model.prior())
    torch.testing.assert_close(kl, -log_prob(model.prior(), q.codes[None])[0].detach())
    terms = model.objective(q, model.prior(), model.nats(x), model.estimator, x)
    without = ELBO()(q, latent.prior(), model.nats(x), model.estimator, x)
    for name, parameter in model.named_parameters():
        if not name.startswith("p_z"):
            with_prior, alone = (
                torch.autograd.grad(t.loss.sum(), parameter, retain_graph=True, materialize_grads=True)[0]
                for t in (terms, without)
            )
            assert torch.equal(with_prior, alone), name
    assert torch.autograd.grad(terms.loss.sum(), model.p_z.bias)[0].abs().sum() > 0


def test_of_codes_the_bound_is_reported_in_bits_too() -> None:
    torch.manual_seed(6)
    latent = VQ(3, 4, 2)
    model = small_vae(latent, VectorQuantization(), p_z=learned(Factorized, latent).float())
    metrics = evaluation.evaluate(model, [torch.rand(6, *SHAPE).round()]).metrics
    assert "nll" not in metrics
    assert metrics["bits_per_dimension"] == pytest.approx(metrics["negative_elbo"] / (784 * 0.6931471805599453))


def test_relaxed_samples_carry_gradient_through_an_autoregressive_prior() -> None:
    torch.manual_seed(7)
    latent = Categorical(3, 4)
    model = small_vae(latent, StraightThrough(), p_z=learned(Autoregressive, latent, size=4).float())
    model.nats = lambda x: lambda z: z.new_zeros(z.shape[:2])  # all that is left is log q - log p
    q = model.posterior(torch.rand(6, *SHAPE))
    terms = model.objective(q, model.prior(), model.nats(None), model.estimator)
    assert torch.autograd.grad(terms.loss.sum(), model.encoder[-1].weight)[0].abs().sum() > 0


@pytest.mark.parametrize(
    "overrides",
    [["estimator=rloo", "prior=factorized"], ["estimator=rebar", "prior=autoregressive"], ["prior=autoregressive"],
     ["estimator=vq", "prior=autoregressive"], ["estimator=gaussian", "prior=vamp"], ["estimator=vimco",
     "latent=bernoulli", "latent.layers=2", "prior=factorized", "latent.values=signs"]],
)  # fmt: skip
def test_runs_train_evaluate_and_load(tmp_path: Path, overrides: list[str]) -> None:
    small = {"prior=vamp": ["prior.components=20"], "prior=autoregressive": ["prior.size=8"]}
    final = train(tmp_path, *overrides, *small.get(overrides[-1], []), "evaluation.samples=5", "latent.variables=4"
                  if "estimator=gaussian" not in overrides else "latent.dim=3")  # fmt: skip
    assert final["test/bits_per_dimension"] > 0
    run = Run(tmp_path)
    assert [name for name, _ in run.model.named_parameters() if name.startswith("p_z.")]
    assert run.sample(4).shape == (4, *SHAPE)


def test_what_does_not_go_together_is_refused(capsys: pytest.CaptureFixture) -> None:
    assert "prior VampPrior does not work with a categorical latent; leave prior= out or use latent=gaussian" in (
        refusal(capsys, "train", "prior=vamp")
    )
    assert "use latent=categorical or latent=bernoulli or latent=vq" in (
        refusal(capsys, "train", "estimator=gaussian", "prior=factorized")
    )
    assert "prior=fixed or prior=factorized" in refusal(capsys, "train", "estimator=concrete", "prior=autoregressive")
    layered = ("train", "latent=bernoulli", "latent.layers=2")
    assert "got latent.layers=2" in refusal(capsys, *layered, "audit.every_n_steps=5")
    assert "the audit: knows models of one" in refusal(capsys, "audit", *layered[1:])
    assert "got latent.layers=2" in refusal(capsys, *layered, "-m", "stack=2", "seed=0,1")
    states = refusal(capsys, "train", "estimator=exact", "latent=bernoulli", "latent.layers=2", "latent.variables=10")
    assert "this latent has 1.05e+06" in states
    assert "wanted one of bits, signs" in refusal(capsys, "train", "latent=bernoulli", "latent.values=both")


def test_a_config_of_before_there_were_priors_is_read(tmp_path: Path) -> None:
    import yaml

    train(tmp_path, "trainer.max_epochs=1")
    file = tmp_path / "config_resolved.yaml"
    values = yaml.safe_load(file.read_text())
    for path in (("prior",), ("latent", "layers"), ("latent", "hidden"), ("latent", "activation")):
        node = values
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
    file.write_text(yaml.safe_dump(values))
    assert Run(tmp_path).model.prior().event_shape == Run(tmp_path).model.latent.event_shape
    assert Run(tmp_path).settings["latent.layers"] == 1
    assert composed(*SMALL)["prior"] == {"_target_": "vi_lab.priors.Fixed"}


@pytest.mark.parametrize("latent", [Categorical(3, 4, layers=2), Bernoulli(5, layers=2)])
def test_logits_of_all_layers_and_priors_keep_their_digits(latent: Latent) -> None:
    prior = learned(Autoregressive, latent, size=4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q, p = latent(torch.randn(2, latent.feature_size)), prior(latent, no_posterior)
        z = q.sample((3,))
        for given, layer in q.pairs(z):
            assert given.base_dist.logits.dtype == torch.float32
            assert log_prob(given, layer).dtype == torch.float32
        assert log_prob(p, z).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_layers_and_priors_train_in_every_precision(tmp_path: Path, precision: str) -> None:
    small = ["estimator=rebar", "latent=bernoulli", "latent.variables=4", "latent.layers=2", "prior=autoregressive"]
    final = train(tmp_path, *small, "prior.size=4", f"trainer.precision={precision}", "trainer.max_epochs=1")
    assert final["test/loss"] > 0


def test_of_layers_jointly_only_the_first_estimator_learns() -> None:
    latent = Bernoulli(3, layers=2)
    concrete = [Concrete(learn_temperature=True) for _ in range(2)]
    model = small_vae(latent, concrete[0], RelaxedELBO(), deeper=concrete[1:])
    loss, _ = model.losses(torch.rand(4, *SHAPE).round())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


OWN = """
import torch
from torch.distributions import Independent, Normal
from vi_lab.priors import Prior

class Shifted(Prior):
    def __init__(self, latent, shape):
        super().__init__(latent, shape)
        self.mean = torch.nn.Parameter(torch.zeros(latent.event_shape))

    def forward(self, latent, posterior):
        return Independent(Normal(self.mean, 1.0), 1)

class Nothing(Shifted):
    def forward(self, latent, posterior):
        return None
"""


def test_a_prior_of_ones_own_is_tried_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own_priors.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    shifted = ("prior._target_=own_priors.Shifted", "data=digits")
    assert "wanted batch shape () and event shape (30, 10)" in refusal(capsys, "train", *shifted)
    nothing = ("prior._target_=own_priors.Nothing", "data=digits")
    assert "wanted a torch.distributions.Distribution, got NoneType" in refusal(capsys, "train", *nothing)
    assert train(tmp_path / "run", *shifted, "estimator=gaussian", "latent.dim=3")["test/kl"] > 0


def test_one_average_of_weights_and_no_networks_between_layers_of_which_there_is_one(
    capsys: pytest.CaptureFixture,
) -> None:
    both = "callbacks=[weight_averaging,stochastic_weight_averaging]"
    assert "both put averaged weights" in refusal(capsys, "train", both)
    assert "latent.hidden=[50]" in refusal(capsys, "train", "latent.hidden=[50]")
    assert "wanted a run folder" in refusal(capsys, "train", "init_from=''")
