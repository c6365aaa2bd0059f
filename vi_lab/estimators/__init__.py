"""Gradient estimators, one file per method. Every class defined in this folder is importable from here.

    from vi_lab.estimators import RLOO

The folder is its own list: a new method is one file here and one yaml in `configs/estimator/`.
"""

import importlib
import pkgutil

from vi_lab.estimators.base import Cost, Estimate, GradientEstimator

__all__ = ["Cost", "Estimate", "GradientEstimator"]

for _module in pkgutil.iter_modules(__path__):
    for _name, _value in vars(importlib.import_module(f"{__name__}.{_module.name}")).items():
        if isinstance(_value, type) and _value.__module__ == f"{__name__}.{_module.name}":
            globals()[_name] = _value
            __all__ += [_name]
