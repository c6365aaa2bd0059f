"""Published data sets in small stand-ins of their files, folders of images, and arrays; one line for each mistake."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor

from tests.support import REAL_DATA, compose, config, refusal, run, write_idx
from vi_lab.build import build
from vi_lab.comparison.compare import _title
from vi_lab.data import SOURCES, Images, MNISTDataModule, load
from vi_lab.errors import UserError, ViLabError
from vi_lab.runs import load_run
from vi_lab.schema import CONFIG_DIR

RANDOM = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


# --- published -------------------------------------------------------------------------------------------------------


def amat(bits: np.ndarray) -> bytes:
    return b"".join(b" ".join(b"%d" % bit for bit in line) + b"\n" for line in bits)


def write_amat(root: Path, **replaced: bytes) -> dict[str, np.ndarray]:
    folder = root / "binarized_mnist"
    folder.mkdir(parents=True)
    splits = {name: pixels(count, 784) & 1 for name, count in (("train", 50), ("valid", 10), ("test", 7))}
    for name, bits in splits.items():
        content = replaced.get(name, amat(bits))
        packed = name == "valid"  # one of them, to see that both are taken
        file = folder / f"binarized_mnist_{name}.amat{'.gz' * packed}"
        file.write_bytes(gzip.compress(content) if packed else content)
    return splits


def test_binarized_mnist_holds_out_its_own_validation_images(tmp_path: Path) -> None:
    splits = write_amat(tmp_path)
    data = MNISTDataModule("binarized_mnist", str(tmp_path), validation=10, batch_size=10, binarization="fixed")
    data.setup()
    for name, split in (("train", "train"), ("valid", "val"), ("test", "test")):
        (x, _), *_ = data.loader(split) if name != "train" else [(data.splits["train"][0].float() / 255, None)]
        assert torch.equal(x.flatten(1), torch.from_numpy(splits[name]).float()), name
    assert data.shape == (1, 28, 28)


@pytest.mark.parametrize(
    "text",
    [b"", b"0 1 0\n", amat(np.zeros((3, 784), int))[:-9], amat(np.zeros((3, 784), int)).replace(b"0", b"2", 1),
     amat(np.zeros((1, 785), int)) + amat(np.zeros((1, 783), int)), b"<html>" + amat(np.zeros((1, 784), int))],
)  # fmt: skip
def test_a_damaged_text_of_bits_is_named(tmp_path: Path, text: bytes) -> None:
    write_amat(tmp_path, test=text)
    with pytest.raises(ViLabError, match=r"binarized_mnist_test.amat: wanted lines of 784 zeros and ones"):
        load("binarized_mnist", tmp_path)


def test_a_truncated_gzip_is_named(tmp_path: Path) -> None:
    write_amat(tmp_path)
    file = tmp_path / "binarized_mnist" / "binarized_mnist_valid.amat.gz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ViLabError, match=r"valid.amat.gz: cannot be read"):
        load("binarized_mnist", tmp_path)


def test_the_real_binarized_mnist() -> None:
    if not (REAL_DATA / "binarized_mnist").is_dir():
        pytest.skip(f"binarized MNIST is not in {REAL_DATA}")
    images = load("binarized_mnist", REAL_DATA)
    assert [len(split) for split in images] == [60_000, 60_000, 10_000, 10_000]
    assert set(images.test_images.unique().tolist()) == {0, 255}


def test_a_download_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = write_amat(tmp_path / "from")

    def download(url: str, root: Path) -> None:
        name = url.rpartition("/")[2]
        bits = splits[name.removeprefix("binarized_mnist_").removesuffix(".amat")]
        (root / name).write_bytes(amat(bits))

    monkeypatch.setattr("vi_lab.data.sources.amat.download_url", download)
    assert len(load("binarized_mnist", tmp_path / "to", download=True).train_images) == 60
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["binarized_mnist"]


def write_omniglot(root: Path, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Upright images (N, 28, 28) and alphabets, in the order of the file, for training."""
    (root / "omniglot").mkdir(parents=True)
    images, labels = pixels(40, 28, 28), RANDOM.integers(0, 50, 40)
    columns = images.transpose(0, 2, 1).reshape(40, 784).T / 255 * scale  # as MATLAB flattens them
    target = np.eye(50)[labels].T
    values = {"data": columns[:, :30], "target": target[:, :30], "testdata": columns[:, 30:]}
    savemat(root / "omniglot" / "chardata.mat", {**values, "testtarget": target[:, 30:]})
    return images, labels


def test_omniglot_is_upright_and_in_the_authors_order(tmp_path: Path) -> None:
    expected, labels = write_omniglot(tmp_path)
    images = load("omniglot", tmp_path)
    order = np.random.RandomState(123).permutation(30)
    assert np.array_equal(images.train_images[:, 0].numpy(), expected[:30][order])
    assert images.train_labels.tolist() == labels[:30][order].tolist()
    assert np.array_equal(images.test_images[:, 0].numpy(), expected[30:])
    assert images.test_labels.tolist() == labels[30:].tolist()


def test_damaged_omniglot(tmp_path: Path) -> None:
    write_omniglot(tmp_path, scale=255)
    with pytest.raises(ViLabError, match=r"chardata.mat: wanted gray values in \[0, 1\] in data"):
        load("omniglot", tmp_path)
    file = tmp_path / "omniglot" / "chardata.mat"
    savemat(file, {"data": np.zeros((784, 3)), "target": np.zeros((50, 3))})
    with pytest.raises(ViLabError, match="lacks testdata, testtarget"):
        load("omniglot", tmp_path)
    savemat(file, {"data": np.zeros((100, 3)), "target": np.zeros((50, 3))})
    with pytest.raises(ViLabError, match=r"wanted data \(784, N\)"):
        load("omniglot", tmp_path)
    file.write_bytes(b"no")
    with pytest.raises(ViLabError, match="damaged or no MATLAB file"):
        load("omniglot", tmp_path)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Images for testing; the md5 of the stand-in are torchvision's for this test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    sums = []
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        images = pixels(20, 3, 32, 32)
        batch = {"data": images.reshape(20, -1), "labels": [number % 10 for number in range(20)]}
        (folder / name).write_bytes(pickle.dumps(batch))
        sums.append([name, md5(folder / name)])
    meta = {"filename": "batches.meta", "key": "label_names"}
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(number) for number in range(10)]}))
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", sums[:5])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", sums[5:])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.meta", {**meta, "md5": md5(folder / "batches.meta")})
    return images


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = write_cifar10(tmp_path, monkeypatch)
    images = load("cifar10", tmp_path)
    assert images.train_images.shape == (100, 3, 32, 32)
    assert np.array_equal(images.test_images.numpy(), expected)
    assert images.test_labels[:12].tolist() == [*range(10), 0, 1]


def test_a_pickle_of_another_md5_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps({"data": None}))
    with pytest.raises(ViLabError, match=r"cifar-10-batches-py: damaged files .*delete them and download"):
        load("cifar10", tmp_path)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "svhn").mkdir()
    sums = {}
    for split, count in (("train", 30), ("test", 8)):
        images, file = pixels(32, 32, 3, count), tmp_path / "svhn" / f"{split}_32x32.mat"
        savemat(file, {"X": images, "y": np.arange(1, count + 1)[:, None] % 10 + 1})  # 10 stands for the digit 0
        sums[split] = ["", file.name, md5(file)]
    monkeypatch.setattr("torchvision.datasets.SVHN.split_list", sums)
    found = load("svhn", tmp_path)
    assert found.train_images.shape == (30, 3, 32, 32)
    assert np.array_equal(found.test_images.numpy(), images.transpose(3, 2, 0, 1))
    assert set(found.train_labels.tolist()) == set(range(10))


@pytest.mark.parametrize("source", ["binarized_mnist", "omniglot", "cifar10", "svhn"])
def test_absent_files_are_named_with_what_to_do(tmp_path: Path, source: str) -> None:
    with pytest.raises(ViLabError, match=r"lacks .*data\.root=FOLDER.*data=digits"):
        load(source, tmp_path)


@pytest.mark.parametrize("source", [name for name in SOURCES if name not in ("folder", "arrays")])
def test_the_shape_of_a_published_set_is_known_without_its_files(source: str) -> None:
    with torch.device("meta"):
        datamodule, model = build(compose(f"data={source}", "data.root=/nowhere", "network=linear"))
    assert model.sample(2).shape == (2, *datamodule.shape)


# --- folders ---------------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int, shape: tuple[int, ...] = (9, 9), suffix: str = "png") -> list[np.ndarray]:
    folder.mkdir(parents=True)
    arrays = [pixels(*shape) for _ in range(count)]
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:02}.{suffix}")
    return arrays


def test_every_tenth_image_of_a_folder_is_for_testing_and_folders_are_classes(tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "a", 12), write_images(tmp_path / "b", 9)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    images = load("folder", tmp_path, size=9, channels=1)
    assert images.test_labels.tolist() == [0, 0, 1]
    assert images.train_labels.tolist() == [0] * 10 + [1] * 8
    expected = [first[0], first[10], second[8]]
    assert np.array_equal(images.test_images[:, 0].numpy(), np.stack(expected))


def test_train_and_test_of_a_folder_number_their_classes_alike(tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "a", 2)
    write_images(tmp_path / "train" / "b" / "deeper", 3)
    write_images(tmp_path / "test" / "b", 1)
    images = load("folder", tmp_path, size=4, channels=3)
    assert images.train_labels.tolist() == [0, 0, 1, 1, 1]
    assert images.test_labels.tolist() == [1]
    assert images.train_images.shape == (5, 3, 4, 4)


def test_the_middle_of_an_image_is_taken(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20, 1] = 200  # the middle third is green
    for name in ("a.bmp", "b.png"):
        Image.fromarray(wide).save(tmp_path / name)
    images = load("folder", tmp_path, size=[5, 5], channels=3)
    assert images.train_images[0, 1].ge(150).all()  # the filter of the resizing smooths the edges
    assert images.train_images[0, [0, 2]].eq(0).all()


def test_a_folder_may_be_a_link_and_links_may_go_in_circles(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", 3)
    (tmp_path / "images").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "a")
    os.symlink(tmp_path / "images", tmp_path / "elsewhere" / "up")
    assert sum(map(len, load("folder", tmp_path / "images", size=4)[::2])) == 3


def spoil_sixteen_bits(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(folder / "a" / "deep.png")


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: [file.unlink() for file in (folder / "a").iterdir()], "there are no images"),
    "class": (lambda folder: (folder / "b").mkdir(), "b: a class without images"),
    "half": (lambda folder: (folder / "a").rename(folder / "train"), "wanted both train and test in it"),
    "unreadable": (lambda folder: (folder / "a" / "x.jpg").write_text("no"), r"x\.jpg: cannot be read as an image"),
    "deep": (spoil_sixteen_bits, r"deep\.png: cannot be read as an image \(more than 8 bits"),
    "one": (lambda folder: [(folder / "a" / f"0{i}.png").unlink() for i in (1, 2)], "one image cannot be divided"),
}


@pytest.mark.parametrize("mistake", FOLDERS)
def test_mistakes_in_folders(tmp_path: Path, mistake: str) -> None:
    write_images(tmp_path / "a", 3)
    spoil, message = FOLDERS[mistake]
    spoil(tmp_path)
    with pytest.raises(ViLabError, match=message) as caught:
        load("folder", tmp_path, size=4)
    assert "\n" not in str(caught.value)


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (2, 8, 6), (3, 8, 6), (5, 4, 4)])
@pytest.mark.parametrize("dtype", ["u1", "f4", ">f8", "f2"])
def test_arrays_of_any_channels_size_and_type(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    train, test = pixels(20, *shape), pixels(5, *shape)
    values = [split if dtype == "u1" else (split / 255).astype(dtype) for split in (train, test)]
    file = tmp_path / "some.npz"
    np.savez(file, x_train=values[0], x_test=values[1], y_train=np.arange(20))
    data = MNISTDataModule("arrays", str(file), batch_size=5, validation=0, binarization="none")
    wanted = shape if len(shape) == 3 else (1, *shape)
    assert data.shape == wanted  # before it is loaded
    images = data.load()
    assert torch.equal(images.train_images, torch.from_numpy(train).view(-1, *wanted))
    assert torch.equal(images.test_images, torch.from_numpy(test).view(-1, *wanted))
    assert images.train_labels.tolist() == list(range(20))
    assert images.test_labels.tolist() == [0] * 5


def test_arrays_are_read_in_parts_and_in_fortrans_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vi_lab.data.sources.arrays._AT_ONCE", 1000)
    train, test = pixels(20, 8, 6), pixels(5, 8, 6)
    np.savez_compressed(tmp_path / "some.npz", train=train, test=np.asfortranarray(test / np.float32(255)))
    images = load("arrays", tmp_path / "some.npz")
    assert np.array_equal(images.train_images[:, 0].numpy(), train)
    assert np.array_equal(images.test_images[:, 0].numpy(), test)


GOOD = {"train": pixels(20, 8, 8), "test": pixels(5, 8, 8)}
ARRAYS: dict[str, tuple[dict[str, object], str]] = {
    "missing": ({"test": None}, r"wanted arrays train and test, or x_train and x_test; has no test \(found train\)"),
    "split": ({"test": pixels(5, 8, 9)}, "images are 1x8x8 to train and 1x8x9 to test"),
    "last": ({"train": pixels(20, 8, 8, 3)}, r"channels come before rows, \(N, C, H, W\); found shape \(20, 8, 8, 3\)"),
    "flat": ({"train": pixels(20, 64)}, r"wanted images \(N, H, W\) or \(N, C, H, W\); found shape \(20, 64\)"),
    "none": ({"train": pixels(0, 8, 8)}, r"found shape \(0, 8, 8\)"),
    "range": ({"train": GOOD["train"] * 1.0}, r"wanted floats in \[0, 1\], found 0 to 255; pixels from 0 to 255 are"),
    "negative": ({"test": GOOD["test"] / -255}, r"test: wanted floats in \[0, 1\], found -1 to"),
    "nan": ({"test": np.full((5, 8, 8), np.nan)}, r"wanted floats in \[0, 1\], found nan"),
    "type": ({"train": GOOD["train"].astype(int)}, r"train: wanted uint8, or floats in \[0, 1\]; found int64"),
    "objects": ({"train": np.array([{}, {}])}, "found object"),
    "bits": ({"train": GOOD["train"] & 1}, "uint8 pixels go from 0 to 255, and these to 1"),
    "labels": ({"test_labels": np.arange(4)}, r"test_labels: wanted 5 whole numbers, .* found int64 \(4,\)"),
    "fractions": ({"y_train": np.ones(20)}, "y_train: wanted 20 whole numbers"),
}


@pytest.mark.parametrize("mistake", ARRAYS)
def test_mistakes_in_arrays(tmp_path: Path, mistake: str) -> None:
    changed, message = ARRAYS[mistake]
    values = {name: value for name, value in {**GOOD, **changed}.items() if value is not None}
    np.savez(tmp_path / "some.npz", **values)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message) as caught:
        load("arrays", tmp_path / "some.npz")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["text", "cut", "bit", "single"])
def test_a_file_that_holds_no_arrays(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "some.npz"
    np.savez(file, **GOOD)
    content = bytearray(file.read_bytes())
    single = io.BytesIO()
    np.save(single, GOOD["train"])
    content[500] ^= 1
    replaced = {"text": b"no", "cut": bytes(content[:900]), "bit": bytes(content), "single": single.getvalue()}
    file.write_bytes(replaced[damage])
    with pytest.raises(ViLabError, match=r"wanted an \.npz file, as numpy\.savez writes it|train: damaged"):
        load("arrays", file)


def write_headers(file: Path, shape: tuple[int, ...]) -> None:
    """Arrays of which there is nothing but what they say of themselves."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("train", "test"):
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
            archive.writestr(f"{name}.npy", head.getvalue())


@pytest.mark.parametrize("shape", [(-5, 8, 8), (True, 8, 8), (5, 2**62, 2**62), (2**62, 8, 8), (5, 0, 8)])
def test_what_no_array_is_shaped_like_is_refused_by_its_header(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_headers(tmp_path / "some.npz", shape)
    with pytest.raises(UserError, match=r"wanted images \(N, H, W\) or \(N, C, H, W\); found shape"):
        load("arrays", tmp_path / "some.npz")


def test_what_does_not_fit_into_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    write_headers(tmp_path / "some.npz", (2**32, 3, 64, 64))
    wanted = r"8,589,934,592 images of 3x64x64 are 98,304\.0 GiB as uint8, and this machine's memory is"
    with pytest.raises(UserError, match=wanted):
        load("arrays", tmp_path / "some.npz")


# --- from the command ------------------------------------------------------------------------------------------------


def test_absent_arrays_are_refused_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "there is no such file" in refusal(capsys, "train", "data=arrays", "data.root=none.npz")
    assert "needs data.root=FILE.npz" in refusal(capsys, "train", "data=arrays")
    assert "needs data.root=FOLDER" in refusal(capsys, "train", "data=folder")
    assert list(tmp_path.iterdir()) == []


def write_arrays(file: Path, *shape: int) -> str:
    np.savez(file, train=pixels(60, *shape), test=pixels(20, *shape), train_labels=np.arange(60) % 3)
    return f"data.root={file}"


COLOR = {
    "logistic": (3, "network=resnet", "network.encoder.channels=[4]", "network.decoder.channels=[4]",
                 "likelihood=discretized_logistic", "latent=4x8"),
    "gaussian": (3, "likelihood=gaussian", "data.binarization=dequantize", "estimator=gaussian", "latent.dim=2"),
    "two": (2, "network=conv", "network.encoder.norm=layer", "network.decoder.norm=layer", "estimator=vq",
            "latent.variables=3", "latent.classes=6"),
}  # fmt: skip


@pytest.mark.parametrize("kind", COLOR)
def test_other_channels_train_are_evaluated_and_drawn(tmp_path: Path, kind: str) -> None:
    channels, *overrides = COLOR[kind]
    root = write_arrays(tmp_path / "some.npz", channels, 8, 12)
    hidden = [] if any("network" in item for item in overrides) else ["network.encoder.hidden=[8]"]
    common = ["data=arrays", root, "data.batch_size=20", "trainer.max_epochs=1", "accelerator=cpu", "threads=1"]
    options = ["projector=true", "evaluation.samples=4", "data.validation=20"]
    folder = tmp_path / "run"
    run(compose(*common, *options, *hidden, *overrides), folder)
    assert len(list((folder / "figures").glob("*.png"))) >= 6
    opened = load_run(folder)
    images = torch.rand(5, channels, 8, 12)
    assert opened.reconstruct(images).shape == images.shape
    assert opened.sample(3).shape == (3, channels, 8, 12)
    assert opened.encode(images[0]).mean.shape[0] == 1
    with pytest.raises(ValueError, match=rf"wanted images \(B, {channels}, 8, 12\)"):
        opened.encode(images[:, 0])


def test_runs_of_other_files_are_other_experiments(tmp_path: Path) -> None:
    keys = []
    for name, file in (("a", "first"), ("b", "second"), ("c", "first")):
        if not (tmp_path / f"{file}.npz").exists():
            write_arrays(tmp_path / f"{file}.npz", 4, 4)
        root = f"data.root={tmp_path / f'{file}.npz'}"
        run(config("data=arrays", root, "data.batch_size=20", "trainer.max_epochs=1"), tmp_path / name)
        keys.append(load_run(tmp_path / name).key)
    assert keys[0] == keys[2] != keys[1]


class Odd(MNISTDataModule):
    shape = (1, 4, 4)

    def load(self) -> Images:
        self.images = Images(torch.zeros(9, 1, 5, 5, dtype=torch.uint8), torch.zeros(9), *[torch.zeros(1)] * 2)
        return self.images


def test_own_data_that_are_not_what_they_say() -> None:
    with pytest.raises(UserError, match=r"Odd: wanted uint8 images \(N, 1, 4, 4\).*load\(\) gave torch.uint8 \(9, 1"):
        Odd(source="odd", batch_size=1, validation=0).setup()


def test_every_source_has_its_yaml(tmp_path: Path) -> None:
    files = {file.stem for file in (CONFIG_DIR / "data").glob("*.yaml")}
    assert files - {"steps"} == set(SOURCES)  # that of toy problems has no images


# --- dequantization --------------------------------------------------------------------------------------------------


def drawn(data: MNISTDataModule, split: str, epoch: int) -> Tensor:
    loader = data.loader(split)
    loader.set_epoch(epoch)
    return next(iter(loader))[0]


def test_dequantized_pixels_lie_in_their_level_and_are_drawn_anew(tmp_path: Path) -> None:
    root = str(write_idx(tmp_path / "data"))
    data = MNISTDataModule(root=root, batch_size=300, validation=0, binarization="dequantize", eval_batch_size=100)
    data.setup()
    images, x = data.splits["test"][0], drawn(data, "test", 0)
    noise = 256 * x - images
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert abs(noise.mean() - 0.5) < 5 / (12 * noise.numel()) ** 0.5
    assert torch.equal(x, drawn(data, "test", 7))
    assert torch.equal(drawn(data, "train", 3), drawn(data, "train", 3))
    assert not torch.equal(drawn(data, "train", 3).sort(0).values, drawn(data, "train", 4).sort(0).values)


def test_titles_of_comparisons_say_what_the_pixels_were() -> None:
    settings = {"data.source": "mnist", "data.binarization": "dequantize", "likelihood._target_": "a.Gaussian"}
    assert _title(settings).startswith("mnist, dequantized pixels, ")
    color = {**settings, "data.source": "cifar10", "data.binarization": "none"}
    assert _title(color).startswith("cifar10, pixels of 256 levels, ")
