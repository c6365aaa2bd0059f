"""Pictures of a model: what they show, and that drawing them leaves the model as it was."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Independent, OneHotCategorical

from tests.figures.models import ALWAYS, KINDS, untrained
from tests.support import ESTIMATORS, TIME_LIMIT, write_idx
from vi_lab.data import MNISTDataModule
from vi_lab.distributions import NearestCode
from vi_lab.figures import audit, charts, grids, style
from vi_lab.figures import model as pictures
from vi_lab.latents import VQ, Categorical
from vi_lab.latents import Bernoulli as BernoulliLatent
from vi_lab.models import VAE


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IMAGES", 60)
    monkeypatch.setattr("vi_lab.training.pictures.PROJECTED", 50)


def rendered(model: VAE, datamodule: MNISTDataModule, render: bool = True) -> dict[str, np.ndarray | None]:
    """The pixels of all pictures that there are at the end of a run."""
    with pictures.at_rest(model):
        figures = pictures.pictures(model, datamodule, [], {})
        return {name: style.render(figure) if render else None for name, figure in figures}


# --- every picture --------------------------------------------------------------------------------------------


def test_pictures_are_a_function_of_weights_and_seed() -> None:
    model, datamodule = untrained()
    first = rendered(model, datamodule)
    torch.rand(17)  # history must not matter
    second = rendered(model, datamodule)
    assert first.keys() == ALWAYS - {"history"} | {"code_usage", "codes", "tsne"}
    assert all(np.array_equal(first[name], second[name]) for name in first)


EACH_KIND = ("concrete", "exact", "gaussian", "gumbel_softmax", "rloo", "vimco", "vq")
"""Estimators of each latent, relaxed and not, of one sample and of several. The others are slow tests."""


@pytest.mark.parametrize("name", [n if n in EACH_KIND else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS])
def test_every_estimator_can_be_drawn(name: str) -> None:
    model, datamodule = untrained(f"estimator={name}")
    row = {"epoch": 1, "train/loss": 2.0, "train/loss_unrelaxed": 2.5, "val/loss": 2.2}
    with pictures.at_rest(model):
        names = {name for name, _ in pictures.pictures(model, datamodule, [row])}
    assert names > ALWAYS
    assert "tsne" not in names  # only at the end
    assert ("relaxation" in names) == model.estimator.relaxed


@pytest.mark.parametrize(
    "overrides",
    [["network=conv"], ["likelihood=gaussian", "data.binarization=none"], ["data.binarization=fixed"],
     ["latent=1x10"], ["latent.variables=2", "latent.classes=30"]],
)  # fmt: skip
def test_combinations_can_be_drawn(overrides: list[str]) -> None:
    assert len(rendered(*untrained(*overrides))) == 7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "vq", "plane", "gaussian"])
def test_other_precisions_can_be_drawn(kind: str, dtype: torch.dtype) -> None:
    model, datamodule = untrained(*KINDS[kind][0])
    names = rendered(model.to(dtype), datamodule, render=False).keys()
    assert names == ALWAYS - {"history"} | KINDS[kind][1] - {"relaxation"}


@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("kind", ["categorical", "plane", "gaussian"])
def test_tiny_test_sets(tmp_path: Path, images: int, kind: str) -> None:
    data = ["data=mnist", f"data.root={write_idx(tmp_path, test=images)}", "data.validation=100"]
    names = rendered(*untrained(*KINDS[kind][0], *data)).keys()
    assert names == ALWAYS - {"history"} | KINDS[kind][1] - {"relaxation"}


# --- the model is left as it was -------------------------------------------------------------------------------


def test_at_rest_leaves_modes_and_gradients_as_they_were() -> None:
    model, _ = untrained()
    model.train()
    model.encoder.eval()
    with pictures.at_rest(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert model.training
    assert model.decoder.training
    assert not model.encoder.training
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_importing_and_drawing_leave_matplotlib_as_it_was() -> None:
    code = """
import sys
import matplotlib
matplotlib.use("svg")
import vi_lab.figures.charts, vi_lab.figures.grids, vi_lab.figures.style
vi_lab.figures.style.render(vi_lab.figures.charts.history([{"epoch": 1, "train/loss_unrelaxed": 1.0}]))
assert "matplotlib.pyplot" not in sys.modules
import vi_lab.figures.model
assert matplotlib.get_backend() == "svg"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=TIME_LIMIT)


# --- layout ---------------------------------------------------------------------------------------------------


def test_montage_puts_image_k_where_it_should_be() -> None:
    images = torch.arange(1.0, 12).view(-1, 1, 1, 1).expand(-1, 1, 3, 5)  # image k is k + 1 all over
    canvas = grids.montage(grids.in_rows(images, 4))
    assert canvas.shape == (3 * 5, 4 * 7)
    for k in range(12):
        row, column = divmod(k, 4)
        tile = canvas[row * 5 : row * 5 + 5, column * 7 : column * 7 + 7]
        assert (tile[1:-1, 1:-1] == (k + 1 if k < 11 else 0)).all()
        assert (tile[0] == 0).all()
        assert (tile[:, -1] == 0).all()
    shades = torch.rand(2, 3, 3, 4, 4)
    canvas = grids.montage(shades)
    assert canvas.shape == (12, 18, 3)
    assert torch.equal(canvas[7:11, 13:17], shades[1, 2].permute(1, 2, 0))
    assert (canvas[6] == 1).all()


def test_a_grid_shows_each_pixel_twice_as_wide_and_nothing_else() -> None:
    images = torch.rand(3, 4, 1, 28, 28).mul(255).round() / 255
    labels = [["first", "second", "third"], list("abcd")]
    for options in ({}, {"row_labels": labels[0], "column_labels": labels[1], "xlabel": "x", "ylabel": "y"}):
        figure = grids.image_grid(images, "a title\nof two lines", **options)
        pixels = style.render(figure)
        box = figure.axes[0].get_window_extent()
        top, left = round(len(pixels) - box.y1), round(box.x0)
        shown = pixels[top : top + 180, left : left + 240, 0].astype(int)
        wanted = (255 * (1 - grids.montage(images))).round().int().repeat_interleave(2, 0).repeat_interleave(2, 1)
        assert np.abs(shown - wanted.numpy()).max() <= 1  # the color map has 256 shades


def test_the_manifold_grows_to_the_right_and_upward() -> None:
    z = pictures.lattice()
    assert z.shape == (20, 20, 2)
    assert z[0, 0].tolist() == [-4, 4]
    assert z[-1, -1].tolist() == [4, -4]
    assert (z[:, 1:, 0] > z[:, :-1, 0]).all()
    assert (z[:-1, :, 1] > z[1:, :, 1]).all()
    ink = ((z + 4) / 8)[..., None, None].expand(-1, -1, 2, 28, 28)
    for axis, darkest, lightest in ((0, (-1, -1), (0, 0)), (1, (0, 0), (-1, -1))):
        figure = grids.manifold(ink[:, :, axis, None], 4.0)
        pixels = style.render(figure)
        box = figure.axes[0].get_window_extent()
        inside = pixels[round(len(pixels) - box.y1) :, round(box.x0) :, 0][:1120, :1120][20:-20, 20:-20]
        assert inside[darkest] < 5
        assert inside[lightest] > 250
        assert figure.axes[0].get_xlim() == figure.axes[0].get_ylim() == pytest.approx((-4 - 4 / 19, 4 + 4 / 19))


def test_changes_are_orange_where_ink_is_added_and_blue_where_it_is_taken_away() -> None:
    own = torch.tensor([0.0, 1.0, 0.5, 0.5]).view(1, 2, 2)
    colors = grids.changes(torch.tensor([1.0, 0.0, 0.5, 0.6]).view(1, 2, 2), own, gain=3).flatten(1).T
    orange, blue = (torch.tensor([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for c in ("#D55E00", "#0072B2"))
    gray = torch.full((3,), 1 - 0.5 / 2)
    torch.testing.assert_close(colors, torch.stack([orange, blue, gray, 0.7 * gray + 0.3 * orange]))


def test_labels_stand_on_points_of_their_class_where_it_is_densest() -> None:
    rng = np.random.default_rng(0)
    two_lumps = np.concatenate([rng.normal(0, 0.1, (30, 2)), rng.normal(10, 0.1, (40, 2))])  # median: in between
    points = np.concatenate([two_lumps, rng.normal(10, 0.5, (50, 2)), [[20.0, 20.0]]])
    labels = np.repeat([0, 1, 2], [70, 50, 1])
    places = charts.label_places(points, labels, 1.0)
    assert all((points[labels == k] == place).all(1).any() for k, place in enumerate(places))
    assert np.hypot(*(places[0] - 10)) < 1
    assert 1 <= np.hypot(*(places[1] - places[0])) < 2
    one_place = charts.label_places(np.zeros((6, 2)), np.arange(6) % 3, 1.0)
    assert one_place.tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("shape", [(3.0, 1.0), (1.0, 1.0), (1.0, 1.8)], ids=str)
def test_a_scatter_fills_its_frame(shape: tuple[float, float]) -> None:
    points = np.random.default_rng(0).random((500, 2)) * shape
    title = "t-SNE of the posterior probabilities of 2000 test images (axes without unit)"
    figure = charts.scatter(points, np.arange(500) % 10, title)
    pixels = style.render(figure)
    assert (pixels[:, [0, -1]] > 250).all()  # no title or legend is cut
    assert (pixels[[0, -1]] > 250).all()
    axes = figure.axes[0]
    assert np.ptp(points[:, 0]) > 0.9 * np.ptp(axes.get_xlim())
    assert np.ptp(points[:, 1]) > 0.9 * np.ptp(axes.get_ylim())
    box = axes.get_window_extent()
    assert max(box.width / figure.bbox.width, box.height / figure.bbox.height) > 0.85


def test_a_lone_point_can_be_drawn() -> None:
    style.render(charts.scatter(np.zeros((1, 2)), np.zeros(1, dtype=int), "one", axis="z"))


# --- what is computed -----------------------------------------------------------------------------------------


def test_states_of_each_family_and_back() -> None:
    logits = torch.tensor([[[0.2, 0.8], [0.9, 0.1], [0.5, 0.5]]]).log()
    q = Independent(OneHotCategorical(logits=logits), 1)
    torch.testing.assert_close(pictures.unit_means(q), logits.exp())
    q = Independent(Bernoulli(torch.tensor([[0.25, 1.0]])), 1)
    torch.testing.assert_close(pictures.unit_means(q), torch.tensor([[[0.75, 0.25], [0.0, 1.0]]]))
    latent = VQ(variables=2, classes=3, dim=4)
    q = NearestCode(latent.codebook[torch.tensor([[2, 0]])] + 1e-4, latent.codebook)
    assert pictures.unit_means(q).tolist() == [[[0, 0, 1], [1, 0, 0]]]

    index = torch.tensor([[2, 0]])
    assert torch.equal(pictures.from_states(latent, index), latent.codebook[index])
    assert pictures.from_states(Categorical(2, 3), index).tolist() == [[[0, 0, 1], [1, 0, 0]]]
    assert pictures.from_states(BernoulliLatent(2), torch.tensor([[1, 0]])).tolist() == [[1, 0]]


def test_code_usage_by_hand() -> None:
    states = torch.tensor([[[1.0, 0, 0], [1, 0, 0], [1 / 3] * 3, [0.5, 0.5, 0]],
                           [[0, 1, 0], [1, 0, 0], [1 / 3] * 3, [0, 0.5, 0.5]]])  # fmt: skip
    torch.testing.assert_close(charts.perplexity(states.mean(0)), torch.tensor([2, 1, 3, 2 * math.sqrt(2)]))
    half = math.log(2) / 2  # log of 2 sqrt 2 less log 2
    wanted = torch.tensor([math.log(2), 0, 0, half])
    torch.testing.assert_close(pictures.information(states), wanted, atol=1e-6, rtol=0)
    figure = charts.code_usage(states)
    heat, bars = figure.axes[0].images[0].get_array(), figure.axes[1].patches
    np.testing.assert_allclose(heat, (3 * states.mean(0)).clamp(min=1e-6).log2(), atol=1e-6)
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high  # uniform use is in the middle
    np.testing.assert_allclose([b.get_width() for b in bars], [2, 1, 3, 8**0.5, 1, 1, 3, 2], rtol=1e-5)


def test_usage_of_binary_variables_folds_twenty_to_a_row() -> None:
    ones = torch.linspace(0, 1, 45)
    states = torch.stack([1 - ones, ones], -1).expand(3, -1, -1)
    heat = charts.code_usage(states).axes[0].images[0].get_array()
    assert heat.shape == (3, 20)
    np.testing.assert_allclose(np.ma.compressed(heat), ones, atol=1e-6)


def test_traversal_decodes_what_it_says() -> None:
    model, _ = untrained("estimator=gaussian", "latent.dim=3")
    mean, dimensions, values = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([2, 0]), torch.tensor([-3.0, 0.0, 3.0])
    z = pictures.traversal(mean, dimensions, values)
    by_hand = [[[0.1, 0.2, v] for v in (-3, 0, 3)], [[v, 0.2, 0.3] for v in (-3, 0, 3)]]
    torch.testing.assert_close(z, torch.tensor(by_hand))
    with pictures.at_rest(model):
        images = pictures.decode(model, z)
        alone = model.likelihood.mean(model.decode(torch.tensor([[[-3.0, 0.2, 0.3]]])))[0, 0]
    torch.testing.assert_close(images[1, 0], alone)


@pytest.mark.parametrize("overrides", [["latent=4x8"], ["latent=bernoulli"], ["estimator=vq"]], ids=lambda o: o[0])
def test_state_traversal_decodes_what_it_says(overrides: list[str]) -> None:
    model, datamodule = untrained(*overrides)
    with pictures.at_rest(model):
        states = pictures.encode(model, datamodule, 2).states
        index, codes = states.argmax(-1), states.shape[2]
        grid = pictures.state_traversal(index, torch.tensor([3, 1]), torch.arange(codes))
        assert grid.shape == (2, 2 * codes, index.shape[1])
        images = pictures.decode(model, pictures.from_states(model.latent, grid))
        changed = index[1].clone()
        changed[3] = 1
        alone = model.decode(pictures.from_states(model.latent, changed[None, None]))
    assert torch.equal(grid[0, codes + 1], changed)
    torch.testing.assert_close(images[0, codes + 1], model.likelihood.mean(alone)[0, 0])
    assert (grid[1, :codes, 1] == torch.arange(codes)).all()
    assert (grid[1, :codes, 0] == index[0, 0]).all()


@pytest.mark.parametrize(
    ("picture", "overrides"),
    [
        ("traversals", ["estimator=gaussian", "latent.dim=3"]),
        ("codes", ["latent=4x8"]),
        ("codes", ["latent=bernoulli"]),
    ],
    ids=str,
)
def test_images_stand_above_what_is_changed_of_them(picture: str, overrides: list[str]) -> None:
    model, datamodule = untrained(*overrides)
    with pictures.at_rest(model):
        figure = dict(pictures.pictures(model, datamodule, []))[picture]
        seen = pictures.encode(model, datamodule, 60)
    shown = figure.axes[0].images[0].get_array()
    shown = shown if shown.ndim == 2 else 1 - shown[..., 0]
    np.testing.assert_allclose(shown[1:29, 1:29], seen.x[0, 0], atol=1e-6)
    frames = [(round(f.get_x()) // 30, round(f.get_y()) // 30) for f in figure.axes[0].patches]
    rows = shown.shape[0] // 30 - 1
    images = 5 if overrides == ["latent=bernoulli"] else 1
    assert sorted(row for _, row in frames) == [r for r in range(1, rows + 1) for _ in range(images)]
    if picture == "traversals":
        spread = seen.means.std(0, correction=0).argsort(descending=True).tolist()
        nearest = [round(2 * min(max(seen.means[0, d].item(), -3), 3)) + 6 for d in spread]
        assert [column for column, _ in frames] == nearest


def test_half_of_the_changes_can_be_seen() -> None:
    differences = torch.tensor([0.0, 0.02, -0.25, 0.9]).view(1, 4, 1, 1, 1)
    assert pictures.visible_gain(differences) == 4
    assert pictures.visible_gain(differences[:, :2]) == 10
    assert pictures.visible_gain(differences[:, :1]) == 1


def test_interpolations_lead_from_one_image_to_the_other() -> None:
    a, b = torch.tensor([[0.0, 4.0]]), torch.tensor([[2.0, 0.0]])
    assert pictures.interpolation(a, b, 3).tolist() == [[[0, 4], [1, 2], [2, 0]]]
    a, b = torch.tensor([[1, 5, 2, 3, 4]]), torch.tensor([[6, 5, 7, 8, 9]])
    steps = pictures.state_interpolation(a, b, 5)[0]
    assert steps.tolist() == [[1, 5, 2, 3, 4], [6, 5, 2, 3, 4], [6, 5, 7, 3, 4], [6, 5, 7, 8, 4], [6, 5, 7, 8, 9]]
    assert torch.equal(pictures.state_interpolation(a, a, 3), a[:, None].expand(-1, 3, -1))


def test_tsne_is_repeatable_and_stands_equal_points() -> None:
    points = torch.rand(30, 8)
    first = pictures.tsne(points, seed=0)
    torch.rand(3)
    assert torch.equal(first, pictures.tsne(points, seed=0))
    assert pictures.tsne(torch.ones(20, 4), seed=0).isfinite().all()


def test_curves_stand_missing_values() -> None:
    rows = [{"epoch": k, "train/loss": 3.0 - k, "train/loss_unrelaxed": 3.5 - k, "temperature": 1.0} for k in (1, 2, 3)]
    rows[1]["val/loss"] = 2.0
    figure = charts.history(rows, {"test/loss": 1.5})
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines == {"train": [[1, 2.5], [2, 1.5], [3, 0.5]], "validation": [[2, 2]], "test, at the end": [[3, 1.5]]}
    figure = charts.relaxation(rows)
    assert len(figure.axes) == 2  # losses, and the temperature beneath
    assert figure.axes[1].lines[0].get_ydata().tolist() == [1, 1, 1]


def test_one_epoch_is_a_whole_number() -> None:
    row = {"epoch": 1, "train/loss": 2.0, "train/loss_unrelaxed": 2.5, "temperature": 1.0}
    for figure in (charts.history([row]), charts.relaxation([row])):
        style.render(figure)
        for axes in figure.axes:
            low, high = axes.get_xlim()
            assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]
    assert figure.axes[0].collections  # the gap


def test_an_audit_gives_each_estimator_a_row() -> None:
    names = ["rloo", "nvil", "reinforce"]
    rows = [
        {"estimator": name, "unbiased": True, "mean_squared_error": error, "decoder_evaluations": 1}
        for name, error in zip(names, (0.02, 0.01, 0.02), strict=True)
    ]
    figure = audit.error_cost(rows)
    style.render(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["nvil", "rloo", "reinforce"]
    for axes in figure.axes:
        assert [line.get_ydata()[0] for line in axes.lines] == [0, 1, 2]
        assert axes.get_tightbbox().x1 <= figure.bbox.x1  # no label is cut
    assert all(audited.get_suptitle() for audited in (figure, audit.simplex()))


def test_no_estimators_bias_covers_another() -> None:
    rows = [
        {"estimator": name, "unbiased": name != "gumbel_softmax", "relative_bias": bias, "relative_bias_low": 0.0,
         "relative_bias_high": bias + 0.1, "variance": 3.0}
        for name, bias in (("gumbel_softmax", 0.4), ("rloo", 0.0), ("nvil", 0.0))
    ]  # fmt: skip
    figure = audit.bias_variance(rows)
    style.render(figure)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["rloo", "nvil", "gumbel_softmax"]
    for axes in figure.axes:
        assert [line.get_ydata()[0] for line in axes.lines] == [0, 1, 2]
        assert axes.get_tightbbox().x1 <= figure.bbox.x1
    (intervals,) = figure.axes[0].collections
    assert [segment[1][0] for segment in intervals.get_segments()] == pytest.approx([0.1, 0.1, 0.5])
