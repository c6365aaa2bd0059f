"""The board answers this machine only, under its own names."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path

from vi_lab.commands.board import serve


def test_only_under_the_names_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.0").touch()
    url, _ = serve(tmp_path, 0)
    port = url.rstrip("/").rpartition(":")[2]

    def ask(host: str) -> int:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/data/environment", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert ask(host) == 200
    for host in (
        f"evil.example:{port}",
        "evil.example",
        f"localhost.evil.example:{port}",
        f"127.0.0.1:{int(port) - 1}",
    ):
        assert ask(host) == 403
