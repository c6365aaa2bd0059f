"""`vi-lab verify` on rows that the tests write, with the embedded digits: what it trains, decides, keeps and says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.support import REAL_DATA, TIME_LIMIT, started
from vi_lab import cli, published
from vi_lab.errors import UserError
from vi_lab.runs.files import write_json

SETTINGS = ["data=digits", "data.validation=0", "network=mlp_small", "latent=2x10", "trainer.limit_train_batches=3",
            "trainer.limit_test_batches=1"]  # fmt: skip


def write_rows(folder: Path, rows: dict, name: str = "paper", **shared: object) -> Path:
    """A folder for --config-dir."""
    (folder / "published").mkdir(parents=True, exist_ok=True)
    about = {"paper": "A paper", "source": "its text", "provenance": "read", "set_up": "Theirs.", "ours": None}
    values = {**about, "settings": SETTINGS, "seconds": 0.01, **shared, "rows": rows}
    (folder / "published" / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def cells(*values: float, epoch: int = 1, metric: str = "train/loss", **more: object) -> list[dict]:
    return [{"metric": metric, "epoch": epoch, "value": value, **more} for value in values]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(*arguments: str, config_dir: Path, budget: str = "10m", workers: int = 1) -> tuple[int, dict]:
    """Exit code, and what verify.json says."""
    words = ["verify", *arguments, "--config-dir", str(config_dir), "--budget", budget, "--workers", str(workers)]
    code = cli.main(words)
    report = Path("outputs/sweeps/verify/report/verify.json")
    return code, json.loads(report.read_text()) if report.is_file() else {}


def ours(report: dict) -> dict[tuple[str, str, int], float]:
    return {(c["row"], c["metric"], c["epoch"]): c["ours"]["value"] for c in report["cells"]}


def test_trains_compares_and_tells_a_planted_wrong_number(place: Path, capsys: pytest.CaptureFixture) -> None:
    """The first pass tells what our numbers are; rows that publish them pass, and one that is off fails."""
    _, first = verify(
        "paper",
        "seeds=4",
        config_dir=write_rows(
            place,
            {
                "rloo": {
                    "settings": ["estimator=rloo"],
                    "values": [*cells(500.0, sd=1.0), *cells(1.0, metric="test/loss", sd=1.0)],
                }
            },
        ),
    )
    known = ours(first)
    loss, test = known["rloo", "train/loss", 1], known["rloo", "test/loss", 1]
    right = {
        "settings": ["estimator=rloo"],
        "seeds": 10,
        "values": [*cells(loss, sd=1.0), *cells(test, metric="test/loss", sd=1.0)],
    }
    wrong = {**right, "values": cells(loss + 60.0, sd=1.0)}
    capsys.readouterr()
    code, report = verify("paper", "seeds=4", config_dir=write_rows(place, {"rloo": right, "off": wrong}))
    assert code == 1
    assert [cell["verdict"] for cell in report["cells"]] == ["pass", "pass", "fail"]
    output = capsys.readouterr().out
    assert "fail: paper/off, train/loss, epoch 1" in output
    assert "3 published numbers: 2 pass, 1 fail" in output
    assert report["cells"][0]["ours"]["runs"] == 4
    assert report["cells"][0]["folders"]
    for kind in ("md", "html"):
        text = Path(f"outputs/sweeps/verify/report/verify.{kind}").read_text()
        assert "A paper" in text
        assert "fail" in text
    assert Path("outputs/sweeps/verify/report/agreement.png").is_file()


def test_runs_go_on_where_more_epochs_are_wanted(place: Path) -> None:
    """And are, to the last bit, what they would have been at once; what is there is not trained again."""

    def wanted(*epochs: int) -> dict:
        return {
            "rloo": {
                "settings": ["estimator=rloo"],
                "values": [cell for epoch in epochs for cell in cells(1.0, epoch=epoch, sd=1.0)],
            }
        }

    verify("paper", "seeds=1", config_dir=write_rows(place, wanted(1)))
    folder = place / "outputs/sweeps/verify"
    (first,) = folder.glob("paper-rloo-s0-e1-*")
    inode = first.stat().st_ino
    _, longer = verify("paper", "seeds=1", config_dir=write_rows(place, wanted(1, 3)))
    (run,) = folder.glob("paper-rloo-*")
    assert run.name.startswith("paper-rloo-s0-e3-")
    assert run.stat().st_ino == inode
    log = (run / "train.log").read_text()
    assert "goes on from" in log
    _, again = verify("paper", "seeds=1", config_dir=place)
    assert ours(again) == ours(longer)
    assert (run / "train.log").read_text() == log
    verify("paper", "seeds=1", "sweep=other", config_dir=place)  # writes its report elsewhere
    other = json.loads(Path("outputs/sweeps/other/report/verify.json").read_text())
    assert ours(other) == ours(longer)


def test_other_settings_under_a_row_s_name_are_other_runs(place: Path) -> None:
    rows = {"one": {"settings": ["estimator=rloo"], "values": cells(1.0, sd=1.0)}}
    _, before = verify("paper", "seeds=1", config_dir=write_rows(place, rows))
    rows["one"]["settings"] = ["estimator=reinforce"]
    _, report = verify("paper", "seeds=1", config_dir=write_rows(place, rows), budget="0")
    assert report["cells"][0]["ours"]["runs"] == 0
    _, after = verify("paper", "seeds=1", config_dir=place)
    assert ours(after) != ours(before)
    assert len([*(place / "outputs/sweeps/verify").glob("paper-one-*")]) == 2


def test_a_budget_decides_most_numbers_for_its_time(place: Path, capsys: pytest.CaptureFixture) -> None:
    """The cheap rows are trained, and of the dear one what fits; the rest says why it is not decided."""
    rows = {
        "cheap": {"settings": ["estimator=rloo"], "seeds": 10, "values": cells(1.0, sd=1.0)},
        "dear": {"settings": ["estimator=reinforce"], "seconds": 1000.0, "values": cells(1.0, sd=1.0)},
        "lacking": {"settings": ["estimator=rloo"], "lacks": "count latents", "values": cells(1.0)},
        "silent": {"settings": ["estimator=rloo"], "values": [{"metric": "test/loss", "value": 1.0}]},
    }
    _, report = verify("paper", "seeds=1", config_dir=write_rows(place, rows), budget="2m")
    reasons = {cell["row"]: cell["reason"] for cell in report["cells"]}
    assert reasons["cheap"] == ""
    assert "not trained" in reasons["dear"]
    assert "17 min" in reasons["dear"]
    assert "count latents" in reasons["lacking"]
    assert "how long" in reasons["silent"]
    cli.main(["verify", "--list", "--config-dir", str(place), "paper"])
    assert "4 rows, 4 published numbers" in capsys.readouterr().out


def test_workers_share_the_runs(place: Path) -> None:
    rows = {name: {"settings": [f"estimator={name}"], "values": cells(1.0, sd=1.0)} for name in ("rloo", "reinforce")}
    verify("paper", "seeds=2", "sweep=alone", config_dir=write_rows(place, rows))
    verify("paper", "seeds=2", "sweep=together", config_dir=place, workers=2)
    reports = [json.loads(Path(f"outputs/sweeps/{n}/report/verify.json").read_text()) for n in ("alone", "together")]
    assert ours(reports[0]) == ours(reports[1]) or reports[0]["cells"][0]["ours"]["runs"] == 2
    claims = [p.name for p in (place / "outputs/sweeps/together/.sweep/claims").glob("*.end")]
    assert len(claims) == 4 == len({name.rpartition(".")[0].rpartition(".")[0] for name in claims})


@pytest.mark.slow
def test_interrupted_runs_go_on(place: Path) -> None:
    """SIGINT while two workers train: nothing is left at work, and the same command goes on."""
    rows = {
        "rloo": {
            "settings": ["estimator=rloo", "trainer.limit_train_batches=1.0"],
            "values": cells(1.0, epoch=40, sd=1.0),
        }
    }
    write_rows(place, rows)
    command = [
        sys.executable,
        "-m",
        "vi_lab",
        "verify",
        "paper",
        "seeds=2",
        "--workers",
        "2",
        "--config-dir",
        str(place),
    ]
    with started(*command, cwd=place) as process:
        folder = place / "outputs/sweeps/verify"
        deadline = time.monotonic() + TIME_LIMIT
        while len([*folder.glob("paper-rloo-*/metrics.csv")]) < 2 and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIME_LIMIT) == 130
    states = [json.loads(file.read_text())["state"] for file in folder.glob("paper-rloo-*/status.json")]
    assert states == ["interrupted", "interrupted"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=TIME_LIMIT)
    assert done.returncode in (0, 1)
    assert "goes on from" in done.stdout
    report = json.loads((folder / "report/verify.json").read_text())
    assert report["cells"][0]["ours"]["runs"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "no published row"),
        (["estimator=rloo"], "the row says what is trained"),
        (["--budget", "soon"], "wanted a time"),
        (["seeds=x"], "wanted how many"),
        (["seeds=,"], "wanted how many"),
        (["seeds=999999"], "wanted from 1 to"),
        (["--workers", "0"], "at least 1"),
        (["--config-dir", "nowhere"], "no folder published"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["verify", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": {}}, "wanted a mapping of names"),
        ({"provenance": "hearsay"}, "wanted one of"),
        ({"command": "tune"}, "train or audit"),
        ({"rows": {"a": {"values": []}}}, "published numbers"),
        ({"rows": {"a": {"values": [{"metric": "x"}]}}}, "either value or range"),
        ({"rows": {"a": {"values": [{"metric": "x", "value": "y"}]}}}, "wanted numbers"),
        ({"rows": {"a": {"values": [{"metric": "x", "value": 1.0, "epoch": 0}]}}}, "epoch"),
        ({"rows": {"a": {"values": [{"metric": "x", "value": 1.0, "sd": float("inf")}]}}}, "sd: wanted numbers"),
        ({"rows": {"a": {"values": [{"metric": "x", "range": 5}]}}}, "wanted numbers"),
        ({"rows": {"a": {"values": [{"metric": "x", "range": [2, 1]}]}}}, "wanted numbers"),
        ({"rows": {"a": {"settings": 5, "values": [{"metric": "x", "value": 1.0}]}}}, "list of overrides"),
        (
            {"rows": {"a": {"settings": ["trainer.max_epochs=1"], "values": [{"metric": "x", "value": 1.0}]}}},
            "leave it out",
        ),
        ({"rows": {"a": {"sede": 1, "values": [{"metric": "x", "value": 1.0}]}}}, "did you mean seeds"),
        ({"rows": {"../a": {"values": [{"metric": "x", "value": 1.0}]}}}, "wanted a name"),
        ({"rows": {"a": {"settings": ["rloo"], "values": [{"metric": "x", "value": 1.0}]}}}, "overrides"),
        ({"rows": {"a": {"seeds": 0, "values": [{"metric": "x", "value": 1.0}]}}}, "seeds"),
    ],
)
def test_damaged_rows_are_one_line(change: dict, message: str, tmp_path: Path) -> None:
    rows = change.pop("rows", {"a": {"values": cells(1.0)}})
    with pytest.raises(UserError, match=message) as error:
        published.sources(str(write_rows(tmp_path, rows, **change)))
    assert "published/paper.yaml" in str(error.value)


def test_a_row_that_does_not_compose_is_named(place: Path, capsys: pytest.CaptureFixture) -> None:
    write_rows(place, {"good": {"values": cells(1.0)}, "bad": {"settings": ["estimator=rlo"], "values": cells(1.0)}})
    assert cli.main(["verify", "paper", "--config-dir", str(place)]) == 2
    assert "published row paper/bad" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "half"),
    [(107.2, 0.05), (164.0, 0.05), (98, 0.5), (1e-5, 0.5e-5), (2.5e-13, 0.05e-13), (0.0042732, 0.5e-7)],
)
def test_rounding_of_published_numbers(value: float, half: float, tmp_path: Path) -> None:
    (source,) = [
        s for s in published.sources(str(write_rows(tmp_path, {"a": {"values": cells(value)}}))) if s.name == "paper"
    ]
    assert source.rows[0].cells[0].half == pytest.approx(half)


def test_a_seed_that_diverges_counts(place: Path) -> None:
    """A loss that is no number any more is no reason to judge by the other seeds alone."""
    values = cells(541.0, sd=1e3)
    rows = {"rloo": {"settings": ["estimator=rloo"], "seeds": 10, "values": values}}
    rows["typo"] = {"settings": ["estimator=reinforce"], "values": cells(1.0, metric="train/los", sd=1.0)}
    _, before = verify("paper", "seeds=3", config_dir=write_rows(place, rows))
    assert [cell["verdict"] for cell in before["cells"]] == ["pass", "not decided"]
    assert before["cells"][1]["reason"] == "our runs have no train/los"
    (run,) = (place / "outputs/sweeps/verify").glob("paper-rloo-s1-*")
    header, first = (run / "metrics.csv").read_text().splitlines()[:2]
    spoiled = [
        "nan" if name == "train/loss" else v for name, v in zip(header.split(","), first.split(","), strict=True)
    ]
    (run / "metrics.csv").write_text(f"{header}\n{','.join(spoiled)}\n")
    _, after = verify("paper", "seeds=3", config_dir=place, budget="0")
    assert after["cells"][0]["verdict"] == "fail"


def test_a_damaged_audit_leaves_the_others(place: Path, capsys: pytest.CaptureFixture) -> None:
    values = [{"estimator": "nosuch", "metric": "variance", "value": 1.0}]
    write_rows(place, {"bad": {"values": values}}, "audits", command="audit", settings=["problem=rebar"])
    write_rows(place, {"rloo": {"settings": ["estimator=rloo"], "seeds": 10, "values": cells(541.0, sd=1e3)}})
    code, report = verify("paper", "audits", "seeds=1", config_dir=place)
    assert code == 0
    assert "nosuch" in capsys.readouterr().err
    assert {cell["row"]: cell["verdict"] for cell in report["cells"]} == {"bad": "not decided", "rloo": "pass"}


def test_damaged_run_folders_are_left_out(place: Path) -> None:
    """Somebody else's folder below the sweep's changes nothing."""
    write_rows(place, {"rloo": {"settings": ["estimator=rloo"], "values": cells(1.0, sd=1.0)}})
    for name, content in (("s0-e1-0000000000", "a: ["), ("s1-e1-0000000000", "seed: 1"), ("s2-e1-0000000000", "- 1")):
        folder = place / f"outputs/sweeps/verify/paper-rloo-{name}"
        folder.mkdir(parents=True)
        (folder / "config_resolved.yaml").write_text(content)
        write_json(folder / "status.json", {"state": "completed"})
    (place / "outputs/sweeps/verify/paper-rloo-s3-link").symlink_to(place)
    _, report = verify("paper", config_dir=place, budget="0")
    assert report["cells"][0]["ours"]["runs"] == 0


# --- what is shipped -------------------------------------------------------------------------------------------------


def shipped(source: str) -> dict:
    """A shipped file of rows."""
    return yaml.safe_load((published.CONFIG_DIR / "published" / f"{source}.yaml").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_planted_wrong_estimator_fails(place: Path) -> None:
    """Straight-through in place of ReinMax on the polynomial program: after one epoch the published costs are 0.1452
    and 0.1401, and runs spread by less than 0.001."""
    values = shipped("hooper2026_poly")
    row = values["rows"]["reinmax"]
    row["values"] = [cell for cell in row["values"] if cell["epoch"] == 1]
    planted = {**row, "settings": ["estimator=straight_through"]}
    (place / "published").mkdir()
    values["rows"] = {"reinmax": row, "planted": planted}
    (place / "published" / "planted.yaml").write_text(yaml.safe_dump(values))
    code, report = verify("planted", config_dir=place, workers=2)
    assert {cell["row"]: cell["verdict"] for cell in report["cells"]} == {"reinmax": "pass", "planted": "fail"}
    assert code == 1


@pytest.mark.slow
def test_a_planted_wrong_estimator_fails_an_audit(place: Path) -> None:
    """Gumbel-Rao in place of straight-through, whose squared bias on the quadratic of four classes is 0.278: 0.150."""
    rows = {
        name: {"settings": ["latent.classes=4"], "values": [
            {"estimator": name, "temperature": temperature, "metric": "squared_bias_rescaled", "value": 0.27808213},
        ]}
        for name, temperature in (("straight_through", None), ("gumbel_rao", 1.0))
    }  # fmt: skip
    del rows["straight_through"]["values"][0]["temperature"]
    settings = ["problem=quadratic", "likelihood.instance=0", "audit.samples=20000"]
    folder = write_rows(place, rows, command="audit", settings=settings, seeds="exact", runs=8)
    code, report = verify("paper", config_dir=folder)
    assert {cell["row"]: cell["verdict"] for cell in report["cells"]} == {
        "straight_through": "pass",
        "gumbel_rao": "fail",
    }
    assert code == 1


@pytest.mark.slow
def test_what_is_quick_agrees(place: Path) -> None:
    """`vi-lab verify --quick`: the exact ones, the toys, and, where MNIST is, the first epoch of a VAE."""
    mnist = REAL_DATA / "MNIST"
    sources = ["hooper2026_bias_variance", "hooper2026_poly", "toy_bernoulli", "gumbelrao2021_toy"]
    words = [*sources, *(["wang_bui2026", f"paths.data_dir={REAL_DATA}"] if mnist.is_dir() else [])]
    assert cli.main(["verify", *words, "--quick", "--budget", "none", "--workers", "2"]) == 0
    report = json.loads(Path("outputs/sweeps/verify/report/verify.json").read_text())
    assert report["counts"]["pass"] >= 30
    assert report["counts"]["fail"] == 0
    if not mnist.is_dir():
        pytest.skip("without MNIST only what needs no data was repeated")
