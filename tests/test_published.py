"""Published numbers, configs/published: each row that vi_lab can run composes, and says what it is compared in."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vi_lab.config import check_jobs
from vi_lab.schema import CONFIG_DIR

FILES = sorted((CONFIG_DIR / "published").glob("*.yaml"))
PARTS = ("loss", "reconstruction", "kl")
METRICS = {
    *(f"{split}/{part}" for split in ("train", "val", "test") for part in PARTS),
    *(f"{split}/nll" for split in ("val", "test")),
    "train/loss_unrelaxed",
}
"""Of those of a run, what a paper may state."""
PROVENANCES = {"read", "computed", "figure", "quoted", "exact"}


class UniqueKeys(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which yaml keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"twice: {[key for key in keys if keys.count(key) > 1]}"
        return super().construct_mapping(node, deep)


def read(file: Path) -> dict:
    return yaml.load(file.read_text(encoding="utf-8"), UniqueKeys)


def settings_of(source: dict, row: dict) -> list[str]:
    return [*source["settings"], *row.get("settings", [])]


files = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@files
def test_rows_compose(file: Path) -> None:
    """In one go: the groups that rows share are composed once."""
    source = read(file)
    rows = [row for row in source["rows"].values() if "lacks" not in row and "lacks" not in source]
    jobs = [settings_of(source, row) for row in rows]
    configs = check_jobs(source["command"], jobs)
    assert len(configs) == len(rows)
    for config, row, job in zip(configs, rows, jobs, strict=True):
        assert not any(word.startswith(("seed=", "trainer.max_epochs=")) for word in job), job
        if source["command"] == "train":
            epochs = {value["epoch"] for value in row["values"] if "epoch" in value}
            by_epoch = {value["metric"].partition("/")[0] for value in row["values"] if "epoch" in value}
            assert not epochs or max(epochs) <= (row.get("epochs") or source["epochs"]), job
            # a metric of an epoch must be one that is followed over epochs
            assert config["data"]["test_every_epoch"] or "test" not in by_epoch, job
            assert config["data"]["validation"] or "val" not in {v["metric"].partition("/")[0] for v in row["values"]}
            assert config["evaluation"]["samples"] or not any(v["metric"].endswith("nll") for v in row["values"])


@files
def test_a_file_says_what_it_is_and_its_values_can_be_compared(file: Path) -> None:
    source = read(file)
    assert {"paper", "source", "provenance", "set_up", "ours", "command", "settings", "rows"} <= set(source)
    assert source["provenance"] in PROVENANCES
    for name, row in source["rows"].items():
        assert row["values"], name
        seen = [(value["metric"], value.get("epoch")) for value in row["values"]]
        assert source["command"] != "train" or len(seen) == len(set(seen)), name
        for value in row["values"]:
            assert ("value" in value) != ("range" in value), name
            # what vi_lab cannot run may be something that it does not measure
            assert source["command"] != "train" or "lacks" in row or value["metric"] in METRICS, value
            assert source["command"] != "train" or value.get("value", 0) >= 0, f"{name}: a loss is meant, in nats"


def test_no_two_rows_of_a_source_have_the_same_settings() -> None:
    for file in FILES:
        source = read(file)
        if source["command"] == "train":
            runnable = {name: row for name, row in source["rows"].items() if "lacks" not in row}
            jobs = [tuple(settings_of(source, row)) for row in runnable.values()]
            assert len(jobs) == len(set(jobs)), file
