"""Pictures during and after training: where they end up, and that drawing them leaves training as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tests.figures.models import ALWAYS, KINDS, SMALL, TINY, config
from tests.support import run
from vi_lab import cli
from vi_lab.build import build
from vi_lab.figures import model as pictures


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "IMAGES", 60)
    monkeypatch.setattr("vi_lab.training.pictures.PROJECTED", 50)


def train(folder: Path, *overrides: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    run(config(*overrides), folder)
    return folder


def image_steps(folder: Path) -> dict[str, list[int]]:
    """Which pictures TensorBoard holds, and at which steps."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    return {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_is_in_the_folder_and_in_tensorboard(tmp_path: Path, kind: str) -> None:
    overrides, own = KINDS[kind]
    folder = train(tmp_path, *overrides)
    assert {path.stem for path in (folder / "figures").glob("*.png")} == ALWAYS | own
    assert image_steps(folder) == {f"pictures/{name}": [12] for name in ALWAYS | own}
    for path in (folder / "figures").iterdir():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L"), dtype=float)
            assert image.format == "PNG"
        assert min(pixels.shape) > 100
        assert max(pixels.shape) < 2000
        assert pixels.std() > 5  # not blank
        assert path.stat().st_size < 700_000
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (edge > 250).all()  # nothing is cut off


@pytest.mark.parametrize(
    "precision", ["bf16-mixed", *(pytest.param(p, marks=pytest.mark.slow) for p in ("bf16-true", "64-true"))]
)
def test_precisions_of_the_trainer_draw(tmp_path: Path, precision: str) -> None:
    options = ["trainer.max_epochs=2", "figures_every_n_epochs=1", "data.validation=0", "data.test_every_epoch=true"]
    steps = image_steps(train(tmp_path, f"trainer.precision={precision}", "latent=1x10", *options))
    assert steps["pictures/codes"] == [14, 28]


def test_no_pictures_where_none_are_wanted(tmp_path: Path) -> None:
    folder = train(tmp_path, "figures=false", "figures_every_n_epochs=1")
    assert not (folder / "figures").exists()
    assert image_steps(folder) == {}


def test_every_second_epoch_and_the_end(tmp_path: Path) -> None:
    steps = image_steps(train(tmp_path, "trainer.max_epochs=3", "figures_every_n_epochs=2", "latent=4x8"))
    assert steps.pop("pictures/tsne") == [36]
    assert set(steps) == {f"pictures/{name}" for name in (ALWAYS | KINDS["categorical"][1]) - {"tsne"}}
    assert all(at == [24, 36] for at in steps.values())


def test_a_folder_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "figures").write_text("in the way")
    assert cli.main(["train", *SMALL, *TINY, "hydra.run.dir=run", "figures_every_n_epochs=1"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "figures" in err


@pytest.mark.parametrize(
    "name", ["gumbel_softmax", *(pytest.param(n, marks=pytest.mark.slow) for n in ("nvil", "gaussian"))]
)
def test_drawing_does_not_change_a_bit_of_training(tmp_path: Path, name: str) -> None:
    plain = train(tmp_path / "plain", f"estimator={name}", "trainer.max_epochs=2", "figures=false")
    drawn = train(tmp_path / "drawn", f"estimator={name}", "trainer.max_epochs=2", "figures_every_n_epochs=1")
    for file in ("metrics.csv", "metrics.json"):
        assert (plain / file).read_bytes() == (drawn / file).read_bytes()
    a, b = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for f in (plain, drawn))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_projector_files(tmp_path: Path) -> None:
    folder = train(tmp_path, "projector=true", "figures=false", "estimator=gaussian", "latent.dim=5")
    listed = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (embedding,) = listed.embeddings
    table = np.loadtxt(folder / embedding.tensor_path)
    assert table.shape == (50, 5)
    labels = (folder / embedding.metadata_path).read_text().split()
    model, datamodule = build(config())[1], build(config())[0]
    datamodule.setup()
    assert labels == [str(k) for k in datamodule.splits["test"][1][:50].tolist()]
    assert list(embedding.sprite.single_image_dim) == [28, 28]
    with Image.open(folder / embedding.sprite.image_path) as sprite:
        assert sprite.size == (8 * 28, 8 * 28)  # the smallest square that holds 50
        first = np.asarray(sprite.convert("L"))[:28, :28]
    seen = pictures.encode(model, datamodule, 1).x[0, 0]
    np.testing.assert_array_equal(first, 255 * (1 - seen.numpy()))
    assert not (folder / "figures").exists()
