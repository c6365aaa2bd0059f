"""Puts the configs of `vi_lab_example` on Hydra's search path. Hydra looks through the namespace `hydra_plugins`,
which has no __init__.py of its own, so that several packages share it."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class VILabExampleSearchPathPlugin(SearchPathPlugin):
    """Behind the shipped configs, so that none of them is replaced."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="vi_lab_example", path="pkg://vi_lab_example.configs")
