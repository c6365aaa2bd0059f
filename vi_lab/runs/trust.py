"""Reading what somebody else may have written: a run folder is data, and nothing in it is run.

Safe YAML without aliases, weights-only checkpoints, `_target_`s from a short list, and no file that a link brings in
from outside the folder. All that is distrusted of a stranger's folder stands here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from vi_lab.errors import UserError, ViLabError, one_line
from vi_lab.runs.archive import check_archive
from vi_lab.runs.files import LEFTOVER, LOG
from vi_lab.schema import BRINGING, CONFIG_DIR, MAY_BE_EMPTY, check_parts, check_range, leaves

TRUSTED = re.compile(
    r"vi_lab\.(estimators\.\w+|latents|priors|networks|likelihoods|problems|objectives|schedules|models|data)\.[A-Z]\w*"
    r"|torch\.optim\.(lr_scheduler\.)?[A-Z]\w*"
    r"|vi_lab\.training\.loggers\.CSVLogger|lightning\.pytorch\.loggers\.(TensorBoard|Wandb|MLFlow)Logger"
    r"|aim\.pytorch_lightning\.AimLogger"
    r"|lightning\.pytorch\.callbacks\.(EarlyStopping|LearningRateMonitor|(Rich)?ModelSummary|DeviceStatsMonitor"
    r"|(EMA)?WeightAveraging|StochasticWeightAveraging|GradientAccumulationScheduler|Timer)"
    r"|vi_lab\.adapters\.lightning\.EqualWeightAveraging"
)
"""What the config of somebody else's run folder may name in `_target_`. Attributes of modules that our modules import,
such as vi_lab.runs.environment.subprocess.run, do not match."""


PLUGINS = "vi_lab.plugins"
"""The group of entry points by which an installed package says that it extends vi_lab."""


@cache
def _plugins() -> tuple[str, ...]:
    return tuple(entry.module.partition(".")[0] for entry in metadata.entry_points(group=PLUGINS))


def _own() -> list[str]:
    """The packages that the user names in the environment."""
    return [package for package in os.environ.get("VI_LAB_TRUST", "").split(",") if package]


_RUN_HERE: set[str] = set()


@contextmanager
def trusting(configs: list[dict]) -> Iterator[None]:
    """Meanwhile, also trust the classes that these configs name, which are no stranger's: the user has composed them,
    and this process has had them run."""
    targets = {str(v) for values in configs for path, v in leaves(values) if path.rpartition(".")[2] == "_target_"}
    added = targets - _RUN_HERE
    _RUN_HERE.update(added)
    try:
        yield
    finally:
        _RUN_HERE.difference_update(added)


def _is_trusted(target: str) -> bool:
    named = any(target.startswith(f"{package}.") for package in (*_own(), *_plugins()))
    return named or target in _RUN_HERE or TRUSTED.fullmatch(target) is not None


def check_targets(values: Any, where: str) -> None:
    """Refuse a config that would make us call anything but the parts of a model, of installed plugins, or of the
    packages that the user names in the environment variable VI_LAB_TRUST (comma-separated).

    Raises:
        UserError: it names another `_target_`.
    """
    for path, value in leaves(values):
        if isinstance(value, list):
            for index, inner in enumerate(value):
                check_targets(inner, f"{where}: {path}[{index}]")
        if (path, value) == ("beta_schedule._target_", None):  # that there is none
            continue
        if path.rpartition(".")[2] == "_target_" and not _is_trusted(str(value)):
            raise UserError(
                f"{where}: {path}={value}: not a part of vi_lab, so it is not run; where it is your own, set "
                f"VI_LAB_TRUST={str(value).partition('.')[0]}"
            )


LOCAL = ("tensorboard", "csv")
"""Loggers that write into the run folder, where they have the values that are shipped."""


def check_loggers(values: dict, where: str) -> None:
    """Refuse to train with the loggers of a stored config where they would write elsewhere, or send results to where
    the folder says.

    Raises:
        UserError: there is such a logger, and VI_LAB_TRUST does not name it.
    """
    for name, node in (values.get("logger") or {}).items():
        shipped = CONFIG_DIR / "logger" / f"{name}.yaml"
        as_shipped = name in LOCAL and node == yaml.safe_load(shipped.read_text(encoding="utf-8"))[name]
        if not as_shipped and name not in _own():
            raise UserError(
                f"{where}: logger.{name} writes or sends results to where this folder says; leave it out with "
                f"logger=tensorboard or, where the run is your own, set VI_LAB_TRUST={name}"
            )


@cache
def _shipped_train() -> tuple[dict, set[str]]:
    """train.yaml without Hydra: the values that stand in it, and the names of the groups. Read once: a comparison
    checks many runs."""
    shipped = yaml.safe_load((CONFIG_DIR / "train.yaml").read_text(encoding="utf-8"))
    groups = {name for item in shipped["defaults"] if isinstance(item, dict) for name in item} - set(BRINGING)
    groups -= set(MAY_BE_EMPTY)
    return {name: node for name, node in shipped.items() if name not in ("defaults", "hydra")}, groups


def check_stored(values: Any, where: str, made_by: str) -> None:
    """Refuse the config of a run folder unless this version of vi_lab would have written it. Needs no Hydra.

    Args:
        values: the file's content as plain Python.
        where: the file, for the message.
        made_by: the version of vi_lab that wrote it, for the message.

    Raises:
        UserError: not a training run's, of another version, or naming what is not run.
    """
    nodes, groups = _shipped_train()
    empty = {name: None for name in MAY_BE_EMPTY if isinstance(values, dict) and values.get(name) is None}
    dicts = groups | (set(MAY_BE_EMPTY) - set(empty))
    if not isinstance(values, dict) or not all(isinstance(values.get(group), dict) for group in dicts):
        raise UserError(f"{where}: not the config of a training run")
    check_targets(values, where)
    wanted = {path for path, _ in leaves(nodes)}
    found = dict(leaves(values))
    optional = ("trainer", "tags", "notes")
    missing = sorted(path for path in wanted if path not in found and path.split(".")[0] not in optional)
    unknown = sorted(set(values) - set(nodes) - groups - {*MAY_BE_EMPTY, "compatible_latents"})
    if any(isinstance(values.get(name), dict) for name in ("tags", "notes")):
        raise UserError(f"{where}: wanted a list of tags, and one text as notes")
    if missing or unknown:
        problem = f"it lacks {missing[0]}" if missing else f"{unknown[0]} is not known here"
        raise UserError(
            f"{where}: made by another version of vi_lab ({made_by}): {problem}; use that version, or retrain"
        )
    for path, value in found.items():
        if "${" in str(value) or value == "???":  # what OmegaConf would fill in, or call missing
            raise UserError(f"{where}: {path}={value}: wanted a plain value")
        try:
            check_range(path, value)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    check_parts(values)


_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML has it: many times as fast


class _Loader(_Safe):
    """Safe YAML without repeated keys, of which every reader takes another."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value]
        if not all(isinstance(key, str) for key in keys) or len(set(keys)) < len(keys):
            raise yaml.YAMLError("keys are not accepted that are no text, or stand there twice")
        return super().construct_mapping(node, deep)


def _check_events(text: str) -> None:
    """Refuse YAML that loading could not bear: aliases, a few lines of which can stand for billions of values, and
    nesting without end."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not accepted")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")


LARGEST_INTEGER = 2**63 - 1
DEEPEST = 30


def check_plain(value: Any, where: str = "", depth: int = 0) -> None:
    """Refuse what no file of ours holds: dates, sets, integers beyond 64 bits, nesting without end.

    Raises:
        ValueError: there is such a value.
    """
    if depth > DEEPEST:
        raise ValueError(f"nested more than {DEEPEST} deep")
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where or 'it'} has a key that is no text")
            check_plain(inner, f"{where}.{key}" if where else key, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            check_plain(inner, where, depth + 1)
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{where or 'it'} is of the kind {type(value).__name__}")
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{where or 'it'} is a number of more than 64 bits")


def inside(folder: Path, name: str) -> Path:
    """The file or folder `name` of a run folder.

    Raises:
        ViLabError: a link leads out of the folder.
    """
    path = folder / name
    real, home = (Path(os.path.realpath(place)) for place in (path, folder))  # `resolve` fails at a circle
    if ".." in Path(name).parts or not real.is_relative_to(home):
        raise ViLabError(f"{path}: a link that leads out of the run folder; it is not followed")
    return path


@contextmanager
def opened(path: Path, limit: int) -> Iterator[BinaryIO]:
    """A file, to be read. What is none, such as a pipe, which would be waited for without end, is not opened.

    Raises:
        ValueError: no regular file, or one of more than `limit` bytes.
        OSError: it cannot be read.
    """
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        state = os.fstat(number)
        if not stat.S_ISREG(state.st_mode):
            raise ValueError("not a regular file")
        if state.st_size > limit:
            raise ValueError(f"more than {limit:,} bytes")
        with open(number, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(number)


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file; see `opened`.

    Raises:
        ValueError: no regular file, or one of more than `limit` bytes.
        OSError: it cannot be read.
    """
    with opened(path, limit) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it has grown
        raise ValueError(f"more than {limit:,} bytes")
    return data


def is_own(path: Path) -> bool:
    """Whether what is written to `path` changes this file alone: a regular file, under no other name."""
    state = path.lstat()
    return stat.S_ISREG(state.st_mode) and state.st_nlink == 1


def refuse_links(folder: Path) -> None:
    """Before anything is written into a run folder that may be somebody else's.

    Raises:
        ViLabError: a link leads out of it, or something in it is neither file nor folder, or has another name.
    """
    for path in folder.rglob("*"):
        if path.name == LOG and (path.is_symlink() or path.is_dir()):
            raise ViLabError(f"{path}: a link or a folder in place of a file; remove it")
        if path.is_symlink():
            inside(folder, str(path.relative_to(folder)))
        elif path.is_dir() or path.suffix == ".ckpt" or LEFTOVER.fullmatch(path.name):
            continue  # best.ckpt is another name, as is what a kill leaves of it; they are only ever replaced
        elif not path.is_file():
            raise ViLabError(f"{path}: neither a file nor a folder, so nothing is written here; remove it")
        elif not is_own(path):
            raise ViLabError(
                f"{path}: a hard link: what is written to it would change a file elsewhere; go on in a copy"
            )


LARGEST_TEXT = 64 << 20
LARGEST_YAML = 256 << 10  # where there is no libyaml, pure Python reads some 50 KB a second


def read_text(folder: Path, name: str, limit: int = LARGEST_TEXT) -> str:
    """A text file of a run folder; see `opened`.

    Raises:
        ViLabError: a link leads out of the folder.
        ValueError: no regular file, larger than any of ours, or not UTF-8.
        OSError: it cannot be read.
    """
    return read_bytes(inside(folder, name), limit).decode("utf-8")


def read_yaml(folder: Path, name: str) -> Any:
    """A YAML file of a run folder as plain Python.

    Raises:
        ViLabError: it cannot be read.
    """
    try:
        text = read_text(folder, name, LARGEST_YAML)
        _check_events(text)
        values = yaml.load(text, _Loader)
        check_plain(values)
        return values
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, yaml.YAMLError) as error:
        # what PyYAML raises of a key or a tag is of any kind
        raise ViLabError(f"{folder / name}: cannot be read ({one_line(error)[:200]})") from error


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object of a run folder; empty where the file is absent or damaged, or no strict JSON."""
    try:
        data = json.loads(read_text(folder, name), parse_constant=_refuse)
        check_plain(data)
    except (OSError, ValueError, RecursionError, ViLabError):
        return {}
    return data if isinstance(data, dict) else {}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


LARGEST_PICTURE = 16 << 20
MOST_PIXELS = 16 << 20


def read_png(folder: Path, name: str, width: int) -> bytes | None:
    """A picture of a run folder, decoded and written anew: a PNG of its pixels alone, at most `width` wide; None where
    there is none. A larger file, one of more pixels than any of ours, and what is no PNG, count as none."""
    from PIL import Image

    try:
        data = read_bytes(inside(folder, name), LARGEST_PICTURE)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:  # before any is decoded
                return None
            pixels = picture.convert("RGB")
        pixels.thumbnail((width, 4 * width))
        pixels = pixels.quantize(256)
        pixels.info.clear()  # such as a color profile, of any length
        file = io.BytesIO()
        pixels.save(file, format="png", optimize=True)
        return file.getvalue()
    except Exception:  # Pillow raises many kinds
        return None


SEAL = b"vi_lab sealed 1 "
"""Begins the last bytes of a checkpoint file; the SHA-256 of all that stands before follows and ends it."""

LARGEST_CHECKPOINT = 8 << 30


def seal(file: BinaryIO) -> None:
    """End a file, opened to be read and written, by its digest. In the file itself, so that a kill parts them never;
    readers of zip archives, `torch.load` among them, pass over it."""
    file.seek(0)
    digest = hashlib.sha256()
    for part in iter(lambda: file.read(1 << 20), b""):
        digest.update(part)
    file.write(SEAL + digest.digest())


def save_checkpoint(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint, digest included, into a file that is opened to be read and written.

    Raises:
        RuntimeError: a full disk, in the words of torch's zip writer.
        OSError: it cannot be written.
    """
    import torch

    torch.save(checkpoint, file)
    seal(file)


def _unsealed(data: bytes) -> memoryview:
    content = memoryview(data)[: -len(SEAL) - hashlib.sha256().digest_size]
    if data[len(content) :] != SEAL + hashlib.sha256(content).digest():
        raise ValueError("its digest is not that of its content")
    return content


def load_checkpoint(file: Path) -> dict[str, Any]:
    """A checkpoint on the CPU: tensors and plain values only, whatever it holds.

    Raises:
        ViLabError: it is absent, damaged, or holds anything else.
    """
    import torch

    try:
        content = _unsealed(read_bytes(file, LARGEST_CHECKPOINT))  # torch compares no checksum
        check_archive(content)
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ViLabError(f"{file}: there is no such checkpoint") from None
    except Exception as error:  # torch raises many kinds, with advice that does not fit here
        reason = one_line(error).partition(". ")[0][:200]
        raise ViLabError(f"{file}: damaged, or not a checkpoint ({type(error).__name__}: {reason})") from error
    weights = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(w, torch.Tensor) for w in weights.values()):
        raise ViLabError(f"{file}: not a checkpoint of vi_lab")
    return checkpoint
