"""Sources, splits, order, pixel noise and shards."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch

from tests.support import write_idx
from vi_lab import seeding
from vi_lab.data import BatchLoader, MNISTDataModule, load
from vi_lab.errors import UserError, ViLabError


def module(root: Path, **arguments: object) -> MNISTDataModule:
    defaults = {"root": str(root), "batch_size": 50, "validation": 100, "eval_batch_size": 40}
    datamodule = MNISTDataModule(**{**defaults, **arguments})
    datamodule.setup()
    return datamodule


def loader(n: int = 103, **arguments: object) -> BatchLoader:
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 28, 28).contiguous()
    return BatchLoader(images, torch.arange(n), 10, **{"seed": 0, "binarization": "none", **arguments})


def labels(batches: BatchLoader) -> list[int]:
    return torch.cat([y for _, y in batches]).tolist()


def test_splits(idx_data: Path) -> None:
    datamodule = module(idx_data)
    images = load("mnist", idx_data)
    assert images.train_images.shape == (300, 1, 28, 28)
    assert len(datamodule.train_dataloader()) == 4
    (validation,) = datamodule.val_dataloader()
    assert labels(validation) == images.train_labels[-100:].tolist()
    assert labels(datamodule.test_dataloader()) == images.test_labels.tolist()
    assert [len(x) for x, _ in datamodule.test_dataloader()] == [40, 40, 20]


def test_folds_hold_out_each_image_once_and_are_those_of_every_run(idx_data: Path) -> None:
    images = load("mnist", idx_data).train_images
    held, sizes = torch.zeros(len(images), dtype=torch.int64), []
    for fold in range(7):
        datamodule = module(idx_data, folds=7, fold=fold, validation=0, seed=fold)
        (train, _), (validation, _) = datamodule.splits["train"], datamodule.splits["val"]
        assert datamodule.validation_splits == ["val"]
        assert len(train) + len(validation) == len(images)
        sizes.append(len(validation))
        known = {image.numpy().tobytes(): index for index, image in enumerate(images)}
        places = [known[image.numpy().tobytes()] for image in validation]
        held[places] += 1
        assert not {*places} & {known[image.numpy().tobytes()] for image in train}
    assert held.eq(1).all()
    assert sorted(sizes) == [42] + [43] * 6  # of 300
    again = module(idx_data, folds=7, fold=6, seed=5)
    assert torch.equal(again.splits["val"][0], validation)


def test_a_fold_that_is_none(idx_data: Path) -> None:
    with pytest.raises(ValueError, match="fold=3: wanted 0 to 2, as folds=3"):
        module(idx_data, folds=3, fold=3)


def test_validation_zero_trains_on_all(idx_data: Path) -> None:
    datamodule = module(idx_data, validation=0, test_every_epoch=True)
    assert len(datamodule.train_dataloader()) == 6
    assert datamodule.validation_splits == ["test"]


@pytest.mark.parametrize(("source", "name"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_relatives_of_mnist(tmp_path: Path, source: str, name: str) -> None:
    assert len(load(source, write_idx(tmp_path, name=name)).train_images) == 300


def test_digits_need_no_files() -> None:
    images = load("digits")
    assert len(images.train_images) + len(images.test_images) == 1797
    assert images.train_images.dtype == torch.uint8
    assert images.train_images.shape[1:] == (1, 28, 28)
    assert images.train_images.max() > 200


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = loader(shuffle=True)
    first.set_epoch(3)
    order = labels(first)
    assert sorted(order) == list(range(103))
    other = loader(shuffle=True)
    for epoch in (0, 1, 3):  # another history, the same epoch
        other.set_epoch(epoch)
        again = labels(other)
    assert again == order
    other.set_epoch(4)
    assert labels(other) != order
    assert labels(loader(shuffle=True, seed=1)) != labels(loader(shuffle=True, seed=0))


@pytest.mark.parametrize("world_size", [2, 3])
def test_shards_hold_no_image_twice(world_size: int) -> None:
    shards = [loader(shuffle=True, rank=r, world_size=world_size) for r in range(world_size)]
    seen = [labels(shard) for shard in shards]
    assert len({len(s) for s in seen}) == 1  # as many batches on each, or the processes would wait for ever
    together = list(chain(*seen))
    assert len(set(together)) == len(together) > 103 - world_size
    test = chain(*(labels(loader(rank=r, world_size=world_size)) for r in range(world_size)))
    assert sorted(test) == list(range(103))


def test_drop_last() -> None:
    assert len(loader(drop_last=True)) == 10
    assert len(loader()) == 11
    assert len(labels(loader(drop_last=True))) == 100


def test_resume_in_the_middle_of_an_epoch() -> None:
    whole = loader(shuffle=True, binarization="dynamic")
    whole.set_epoch(2)
    expected = [x for x, _ in whole]
    part = loader(shuffle=True, binarization="dynamic")
    part.set_epoch(2)
    iterator = iter(part)
    for _ in range(4):
        next(iterator)
    rest = loader(shuffle=True, binarization="dynamic")
    rest.load_state_dict(part.state_dict())
    rest.set_epoch(2)
    assert all(torch.equal(a, b) for (a, _), b in zip(rest, expected[4:], strict=True))
    assert len(list(rest)) == len(expected)  # the epoch after is whole


def test_dynamic_binarization_draws_anew_each_epoch(idx_data: Path) -> None:
    train = module(idx_data, binarization="dynamic", drop_last=False, batch_size=300, validation=0).train_dataloader()
    draws = []
    for epoch in (0, 1, 0):
        train.set_epoch(epoch)
        ((x, _),) = list(train)
        draws.append(x)
    assert set(draws[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])


def test_binarized_pixels_have_the_gray_value_as_probability() -> None:
    images = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8).repeat_interleave(4000).view(24, 1, 1000, 1)
    x = BatchLoader(images, torch.zeros(24), 24, seed=0, binarization="dynamic").pixels(images, 0)
    mean = x.view(6, -1).mean(1)
    expected = torch.tensor([0, 1, 64, 128, 254, 255]) / 255
    assert ((mean - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt()).all()


def test_evaluation_noise_is_the_same_in_every_epoch(idx_data: Path) -> None:
    (validation,) = module(idx_data, binarization="dynamic").val_dataloader()
    first = [x for x, _ in validation]
    validation.set_epoch(5)
    assert all(torch.equal(a, b) for a, (b, _) in zip(first, validation, strict=True))


def test_fixed_binarization_is_one_draw_for_every_seed(idx_data: Path) -> None:
    x = [next(iter(module(idx_data, binarization="fixed", seed=s).test_dataloader()))[0] for s in (0, 1)]
    assert torch.equal(*x)
    assert set(x[0].unique().tolist()) == {0.0, 1.0}


def test_threshold_and_gray(idx_data: Path) -> None:
    gray = next(iter(module(idx_data, binarization="none").test_dataloader()))[0]
    cut = next(iter(module(idx_data, binarization="threshold").test_dataloader()))[0]
    assert len(gray.unique()) > 100
    assert torch.equal(cut, (gray > 0.5).float())


# --- errors --------------------------------------------------------------------------------------------------------


def test_absent_data(tmp_path: Path) -> None:
    with pytest.raises(ViLabError, match=r"lacks train-images.*data\.root=FOLDER.*data=digits"):
        load("mnist", tmp_path / "none")


def test_absent_data_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    with pytest.raises(ViLabError, match=r"could not be downloaded.*data\.root=FOLDER.*data=digits"):
        load("mnist", tmp_path / "data", download=True)
    assert not (tmp_path / "data").exists()  # nothing half-written stays


def test_download_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.download", lambda self: write_idx(Path(self.root)))
    assert len(load("mnist", tmp_path / "data", download=True).test_images) == 100
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["MNIST"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "header", "counts", "size"])
def test_damaged_files(idx_data: Path, damage: str) -> None:
    file = idx_data / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = file.read_bytes()
    replaced = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "text": b"<html>not found</html>",
        "header": content[:9],
        "counts": (299).to_bytes(4, "big"),
        "size": content,
    }[damage]
    if damage == "counts":
        replaced = content[:4] + replaced + content[8 : 16 + 299 * 784]
    if damage == "size":
        replaced = content[:8] + (14).to_bytes(4, "big") + (56).to_bytes(4, "big") + content[16:]
    file.write_bytes(replaced)
    with pytest.raises(ViLabError, match="MNIST") as error:
        load("mnist", idx_data)
    assert "\n" not in str(error.value)


def test_too_much_validation(idx_data: Path) -> None:
    with pytest.raises(UserError, match=r"data\.validation=280 leaves 20 of 300 mnist images.*batch_size=50"):
        module(idx_data, validation=280)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="binarization must be one of dynamic, fixed, threshold, none"):
        MNISTDataModule(binarization="dither")
    with pytest.raises(ValueError, match="data source must be one of mnist, fashion_mnist, kmnist, digits, "):
        load("imagenet", "data")


def test_fold_separates_its_arguments() -> None:
    seeds = {seeding.fold(s, a, b) for s in range(20) for a in range(20) for b in range(20)}
    assert len(seeds) == 8000
    assert all(0 <= s < 2**63 for s in seeds)


def test_real_mnist(real_mnist: Path) -> None:
    images = load("mnist", real_mnist)
    assert images.train_images.shape == (60000, 1, 28, 28)
    assert images.test_images.shape == (10000, 1, 28, 28)
    assert images.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    digest = MNISTDataModule(root=str(real_mnist)).checksum()
    assert digest == MNISTDataModule(root=str(real_mnist)).checksum()
