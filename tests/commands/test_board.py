"""`vi-lab board` over a small sweep, asked over HTTP as the page asks."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from tests.support import SMALL, TIME_LIMIT, started
from vi_lab import cli
from vi_lab.commands import board


def get(url: str, body: dict | None = None) -> object:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIME_LIMIT) as answer:
        return json.loads(answer.read())


def test_the_board_serves_overlay_and_hyperparameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = ["-m", "trainer.max_epochs=1", "temperature=0.5,1.0", "hydra.sweep.dir=sweep"]
    assert cli.main(["train", *SMALL, *sweep]) == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "vi_lab", "board", "sweep", "--port", port]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        with started(*command, stderr=subprocess.PIPE, env=environment) as process:
            lines = [process.stdout.readline() for _ in range(4)]
            assert lines[0] == f"Port {port} is taken; using a free one.\n"
            url = re.fullmatch(r"TensorBoard of sweep: (http://127\.0\.0\.1:\d+/)\n", lines[1])[1]
            assert "Custom scalars" in lines[2]
            assert "HParams" in lines[2]
            assert "Ctrl-C" in lines[3]
            asked = {"allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_RUNNING"], "sliceSize": 10}
            end = time.monotonic() + TIME_LIMIT
            while time.monotonic() < end:  # it reads the events in the background, the final values last
                groups = get(f"{url}data/plugin/hparams/session_groups", asked).get("sessionGroups", [])
                final = [[metric["value"] for metric in group["metricValues"]] for group in groups]
                if len(groups) == 2 and all(len(values) == 5 for values in final):
                    break
                time.sleep(0.1)
            runs = get(f"{url}data/runs")
            assert sorted(runs) == [f"{job}-gumbel_softmax-temperature={t}-s0" for job, t in enumerate(("0.5", "1.0"))]
            layout = get(f"{url}data/plugin/custom_scalars/layout")
            chart = layout["category"][0]["chart"][0]
            band = chart["margin"]["series"][0]
            assert band == {
                "value": "train/loss_unrelaxed", "lower": "train/loss", "upper": "train/loss_unrelaxed"
            }  # fmt: skip
            for tag in band.values():
                query = urllib.parse.urlencode({"run": runs[0], "tag": f"^{tag}$"})
                curves = get(f"{url}data/plugin/custom_scalars/scalars?{query}")
                assert len(curves["tag_to_events"][tag]) == 2  # 12 steps, a point each 5
            assert {group["hparams"]["temperature"] for group in groups} == {0.5, 1.0}
            # the page shows the first five of each
            experiment = get(f"{url}data/plugin/hparams/experiment", {})
            names = {info["name"] for info in experiment["hparamInfos"][:5]}
            assert names == {"estimator", "seed", "latent", "temperature", "optimizer.lr"}
            assert [info["name"]["tag"] for info in experiment["metricInfos"]][:2] == ["val/loss", "test/loss"]
            assert all(len(values) == 5 and min(values) > 0 for values in final)
            assert not [tag for tag in get(f"{url}data/plugin/scalars/tags")[runs[0]] if tag.startswith("hp")]
            process.send_signal(signal.SIGINT)
            out, err = process.communicate()
    assert process.returncode == 0
    assert out.strip() == "TensorBoard ended."
    assert "Traceback" not in err


def test_a_single_run_has_its_name(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "0-rloo-s0")) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    url, _ = board.serve(tmp_path / "0-rloo-s0", port=0)
    end = time.monotonic() + TIME_LIMIT
    while not (runs := get(f"{url}data/runs")) and time.monotonic() < end:
        time.sleep(0.1)
    assert runs == ["0-rloo-s0"]


def test_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for arguments, words in (
        ([str(tmp_path / "nope")], "no such folder"),
        ([str(tmp_path)], "no TensorBoard events below it"),
        ([str(tmp_path), "--port", "99999"], "wanted a port"),
        ([str(tmp_path), "--host", "0.0.0.0"], "unrecognized arguments"),
    ):
        assert cli.main(["board", *arguments]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
