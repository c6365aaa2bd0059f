"""Pictures of a model: what is computed from it. Every picture is a function of the weights and the run's seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vi_lab.data import BatchLoader, MNISTDataModule
from vi_lab.distributions import first
from vi_lab.evaluation import unit_means
from vi_lab.figures import charts, grids
from vi_lab.latents import VQ, Categorical, Gaussian, Latent
from vi_lab.models import VAE, ExpectedCost
from vi_lab.seeding import PICTURES, seed_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure


IMAGES = 2000  # test images behind the statistics and scatter plots
EMBEDDED = 1000  # of these, in t-SNE, whose time grows faster than their number


@contextmanager
def at_rest(model: VAE) -> Iterator[None]:
    """Evaluation mode, no gradient, the pictures' own noise; leaves modes as they were.

    Noise is not put back: training seeds its own at every step.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    seed_noise(model.device, model.seed, PICTURES)
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Encoded(NamedTuple):
    """Test images and what the model makes of them."""

    x: Tensor
    """(N, *shape) images as the model sees them, in the dtype of its weights."""
    labels: Tensor
    """(N,)"""
    means: Tensor
    """(N, *event) posterior means: of discrete variables the probabilities, of vector quantization the codes; of
    several stochastic layers those of the first."""
    states: Tensor | None
    """(N, L, K) posterior probabilities of the states of discrete variables; None for Gaussian ones."""


def encode(model: VAE, datamodule: MNISTDataModule, count: int) -> Encoded:
    """The first `count` test images (or as many as there are), their pixels drawn as in evaluation."""
    images, labels = (tensor[:count] for tensor in datamodule.splits["test"])
    # not datamodule.loader: that is this process's shard only
    loader = BatchLoader(
        images, labels, datamodule.eval_batch_size, seed=datamodule.seed, binarization=datamodule.binarization
    )
    dtype = next(model.parameters()).dtype
    batches = [x.to(model.device, dtype) for x, _ in loader]
    posteriors = [model.posterior(x) for x in batches]
    states = None if isinstance(model.latent, Gaussian) else torch.cat([unit_means(q) for q in posteriors])
    return Encoded(torch.cat(batches), labels, torch.cat([first(q).mean for q in posteriors]), states)


def information(states: Tensor) -> Tensor:
    """What each discrete variable says of an image, in nats: posterior probabilities (N, L, K) -> (L,), 0 to log K.

    The entropy of the averaged posterior less the average entropy: the mutual information of image and variable.
    """
    states = states.float()
    entropy = torch.special.entr(states).sum(-1).mean(0)
    return torch.special.entr(states.mean(0)).sum(-1) - entropy


def from_states(latent: Latent, index: Tensor) -> Tensor:
    """Which state each discrete variable is in, (..., L) integers -> z (..., *event), of several layers the first."""
    if isinstance(latent, VQ):
        return latent.codebook[index]
    if isinstance(latent, Categorical):
        return F.one_hot(index, latent.layer_shape[1]).float()
    return index.float()


def decode(model: VAE, z: Tensor) -> Tensor:
    """z as a table (R, C, *event) -> means of p(x|z) (R, C, *shape)."""
    return model.likelihood.mean(model.decode(z))


def lattice(points: int = 20, extent: float = 4.0) -> Tensor:
    """A square lattice as it is looked at: (points, points, 2), first coordinate rising to the right, second upward."""
    line = torch.linspace(-extent, extent, points)
    return torch.stack(torch.meshgrid(line, line.flip(0), indexing="xy"), -1)


def traversal(mean: Tensor, dimensions: Tensor, values: Tensor) -> Tensor:
    """One posterior mean (D,), with each of the dimensions (R,) in turn set to each of the values (C,): (R, C, D)."""
    z = mean.repeat(len(dimensions), len(values), 1)
    z[torch.arange(len(dimensions))[:, None], torch.arange(len(values)), dimensions[:, None].cpu()] = values.to(z)
    return z


def state_traversal(index: Tensor, variables: Tensor, codes: Tensor) -> Tensor:
    """States (N, L) of N images, with each of the variables (R,) in turn set to each code (K,): (R, N * K, L)."""
    grid = index[None, :, None].repeat(len(variables), 1, len(codes), 1)  # (R, N, K, L)
    for row, variable in enumerate(variables.tolist()):
        grid[row, :, :, variable] = codes
    return grid.flatten(1, 2)


def originals(x: Tensor, means: Tensor, columns: int) -> Tensor:
    """A row above a table: each image (N, *shape), its mean, and blanks up to so many: (1, N * columns, *shape)."""
    blanks = x.new_full((len(x), columns - 2, *x.shape[1:]), grids.paper(x))
    return torch.cat([x[:, None], means[:, None].to(x), blanks], 1).flatten(0, 1)[None].float()


def visible_gain(differences: Tensor) -> int:
    """The factor, 1 to 10, by which half of the images of differences (R, C, *shape) reach full color or nearly."""
    strongest = differences.abs().flatten(2).amax(-1)
    changed = strongest[strongest > 0]
    return round(min(max(1 / changed.median().item(), 1), 10)) if len(changed) else 1


def interpolation(a: Tensor, b: Tensor, columns: int) -> Tensor:
    """Straight lines between posterior means (N, D): (N, columns, D), both ends included."""
    t = torch.linspace(0, 1, columns).to(a)[:, None]
    return a[:, None] + t * (b - a)[:, None]


def state_interpolation(a: Tensor, b: Tensor, columns: int) -> Tensor:
    """From states (N, L) to states (N, L), variable after variable: (N, columns, L), both ends included.

    The variables that differ change in their order, a like number per column. Every column is a joint state that the
    prior could draw, which a mixture of two one-hot codes is not: a decoder trained on hard samples never met one.
    """
    differ = a != b
    rank, total = differ.cumsum(-1), differ.sum(-1, keepdim=True)
    changed = (torch.linspace(0, 1, columns).to(a.device) * total).round()  # (N, columns)
    return torch.where(rank[:, None] <= changed[..., None], b[:, None], a[:, None])


def tsne(points: Tensor, seed: int) -> Tensor:
    """(N, F) -> (N, 2) by t-SNE (van der Maaten and Hinton 2008), on the CPU, the same at each call."""
    from sklearn.manifold import TSNE  # slow to import, and needed at the end of a run only
    from threadpoolctl import threadpool_limits

    points = points.detach().flatten(1).float().cpu()
    if len(points) < 3:
        return F.pad(points, (0, 1))[:, :2]
    # started from principal components where there are two: the large-scale layout then means something
    start = "pca" if torch.linalg.matrix_rank(points - points.mean(0)) > 1 else "random"
    perplexity = min(30.0, (len(points) - 1) / 3)
    with threadpool_limits(1):  # the order of a parallel sum would move the points
        fit = TSNE(perplexity=perplexity, init=start, learning_rate="auto", random_state=seed & 0xFFFFFFFF)
        return torch.from_numpy(fit.fit_transform(points.numpy()))


def pictures(
    model: VAE, datamodule: MNISTDataModule, rows: list[dict], final: dict[str, float] | None = None
) -> Iterator[tuple[str, Figure]]:
    """The pictures of a model as (name, figure), one at a time. The model must be `at_rest`.

    Args:
        rows: of `metrics.csv`, for the curves.
        final: the metrics at the end of a run, None before: t-SNE takes seconds and is drawn at the end only.
    """
    if any("audit/variance" in row for row in rows):
        yield "gradient_variance", charts.gradient_variance(rows)
    if isinstance(model, ExpectedCost):  # has no images
        if rows:
            yield "expected_cost", charts.expected_cost(rows)
        return
    seen = encode(model, datamodule, IMAGES)
    few = seen.x[:32]
    reconstructions = model.likelihood.mean(model.decode(model.posterior(few).sample((1,))))[0]
    pairs = torch.stack([few.float(), reconstructions.float()], 1).flatten(0, 1)  # image, reconstruction, image, ...
    kinds = {
        "dynamic": "pixels drawn anew each time",
        "none": "gray" if seen.x.shape[1] == 1 else "not binarized",
        "dequantize": "with uniform noise of one level",
    }
    seen_as = kinds.get(datamodule.binarization, "binarized")
    title = f"test images as the model sees them ({seen_as})"
    yield "data", grids.image_grid(grids.in_rows(seen.x[:64], 8), title)
    yield (
        "reconstructions",
        grids.image_grid(grids.in_rows(pairs, 8), "test images and, right of each, E[x|z], z from q"),
    )
    yield "samples", grids.image_grid(grids.in_rows(model.sample(64), 8), "64 samples: E[x|z], z from the prior")
    if rows:
        yield "history", charts.history(rows, final)
        if model.estimator.relaxed or any("temperature" in row for row in rows):
            yield "relaxation", charts.relaxation(rows)
    yield from _gaussian(model, seen) if seen.states is None else _discrete(model, seen, seen.states)
    if final is not None and not (seen.states is None and seen.means.shape[1] == 2):
        what = "means" if seen.states is None or isinstance(model.latent, VQ) else "probabilities"
        points, labels = seen.means[:EMBEDDED], seen.labels[:EMBEDDED].cpu().numpy()
        title = f"t-SNE of the posterior {what} of {len(points)} test images (axes without unit)"
        yield "tsne", charts.scatter(tsne(points, model.seed).numpy(), labels, title)


def _gaussian(model: VAE, seen: Encoded) -> Iterator[tuple[str, Figure]]:
    dims = seen.means.shape[1]
    if dims == 2:
        yield "manifold", grids.manifold(decode(model, lattice().to(seen.means)), 4.0)
        title = f"posterior means of {len(seen.x)} test images"
        yield "latent", charts.scatter(seen.means.float().cpu().numpy(), seen.labels.cpu().numpy(), title, axis="z")
    spread = seen.means.float().std(0, correction=0)
    dimensions = spread.argsort(descending=True)[:8]  # a dimension that the encoder does not use does not move
    values = torch.linspace(-3, 3, 13)
    mean = seen.means[0]
    images = decode(model, traversal(mean, dimensions, values))
    first = originals(seen.x[:1], decode(model, mean[None, None])[0], len(values))
    nearest = (values - mean[dimensions, None].cpu()).abs().argmin(1)
    yield (
        "traversals",
        grids.image_grid(
            torch.cat([first, images.float()]),
            "top: the first test image, and E[x|z] at its posterior mean\n"
            "below: one dimension moved, the others at their posterior mean; framed: the value nearest to its own\n"
            "the dimensions whose posterior means spread most (standard deviation in brackets)",
            ["", *(f"z{d + 1} ({spread[d]:.2f})" for d in dimensions.tolist())],
            [f"{value:g}" for value in values.tolist()],
            "value of the dimension (the prior's standard deviations)",
            "dimension",
            [(row, column) for row, column in enumerate(nearest.tolist(), 1)],
        ),
    )
    a, b = _two_ends(seen)
    title = "from test image to test image: straight line between posterior means"
    yield "interpolations", _interpolations(model, seen, interpolation(seen.means[a], seen.means[b], 9), title)


def _discrete(model: VAE, seen: Encoded, probabilities: Tensor) -> Iterator[tuple[str, Figure]]:
    yield "code_usage", charts.code_usage(probabilities)
    index = probabilities.argmax(-1)  # (N, L)
    states = probabilities.shape[2]
    variables = information(probabilities).argsort(descending=True, stable=True)[:10]
    codes = probabilities.float().mean((0, 1)).argsort(descending=True, stable=True)[:20].sort().values
    shown = len(codes)
    count = max(1, min(10 // states, len(index)))  # so many images that the table is about ten wide
    own = index[:count]
    images = decode(model, from_states(model.latent, state_traversal(own, variables, codes)))  # (R, N * K, ...)
    own_means = decode(model, from_states(model.latent, own[None]))  # (1, N, ...)
    first = originals(seen.x[:count], own_means[0], shown)
    if seen.x.shape[1] == 3:
        table, changed = torch.cat([first.to(images), images]), ""
    else:
        images, first = grids.shown(images), grids.shown(first)
        before = grids.shown(own_means).repeat_interleave(shown, 1)  # (1, N * K, ...)
        gain = visible_gain(images - before)
        ink = 1 - first.clamp(0, 1).expand(-1, -1, 3, -1, -1)
        table = torch.cat([ink, grids.changes(images, before, gain)])
        changed = f"orange: ink added, blue: ink taken away, {gain} times the change\n"
    of = "the first test image and E[x|z] at" if count == 1 else f"{count} test images, right of each E[x|z] at"
    of_layer = f" (of the first of {model.latent.layers} layers)" * (model.latent.layers > 1)
    framed = (own[:, variables, None] == codes).transpose(0, 1).flatten(1)  # (N, R, K) -> (R, N * K)
    yield (
        "codes",
        grids.image_grid(
            table,
            f"top: {of} its codes\n"
            "below: E[x|z] with one variable changed; framed: its own code\n"
            f"{changed}"
            f"the variables that say most about the image come first{of_layer}",
            ["", *(str(v) for v in variables.tolist())],
            [str(k) for k in codes.tolist()] * count,
            "code" if shown == states else f"code (the {shown} most used of {states})",
            "variable",
            [(row + 1, column) for row, column in framed.nonzero().tolist()],
        ),
    )
    a, b = _two_ends(seen)
    z = from_states(model.latent, state_interpolation(index[a], index[b], 9))
    title = "from test image to test image: the codes that differ switched, a few per column"
    yield "interpolations", _interpolations(model, seen, z, title)


def _two_ends(seen: Encoded) -> tuple[Tensor, Tensor]:
    """Eight pairs of test images, of two classes where there are: the indices of the first ones and of the others."""
    labels = seen.labels.tolist()
    first = range(min(8, len(labels)))
    others = []
    for i in first:
        free = [j for j in range(len(labels)) if j not in others and j != i] or [i]
        later = [j for j in free if j >= len(first) and labels[j] != labels[i]]
        others.append((later or free)[0])
    return torch.tensor(list(first)), torch.tensor(others)


def _interpolations(model: VAE, seen: Encoded, z: Tensor, title: str) -> Figure:
    """Rows of decoded z (N, C, *event) between the images that they lead from and to."""
    a, b = _two_ends(seen)
    between = decode(model, z).float()
    images = torch.cat([seen.x[a, None].float(), between, seen.x[b, None].float()], 1)
    fractions = torch.linspace(0, 1, z.shape[1]).tolist()
    return grids.image_grid(
        images, title, None, ["from", *(f"{t:.0%}" for t in fractions), "to"], "way from the left to the right image"
    )
