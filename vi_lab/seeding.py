"""Every random number of a run is a function of its seed and of where it is used, never of history.

The order of an epoch comes from (seed, epoch), the noise of a step from (seed, epoch, batch), so a resumed run
draws what the uninterrupted one would have drawn, without any generator state being saved.
"""

from __future__ import annotations

import torch

# Streams: the first value folded into the seed, so that no two uses share noise.
INIT, ORDER, PIXELS, NOISE, EVALUATION, PICTURES, IMPORTANCE, AUDIT = range(8)

_MASK = (1 << 64) - 1


def fold(seed: int, *values: int) -> int:
    """Mix `values` into `seed` (splitmix64, Steele et al. 2014): a 63-bit seed for a torch generator."""
    state = seed & _MASK
    for value in values:
        state = (state ^ ((value & _MASK) * 0x9E3779B97F4A7C15)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def seed_noise(device: torch.device, *values: int) -> None:
    """Seed the default generator of `device` from `values`.

    Reaches the one generator that is used: `torch.manual_seed` seeds all devices and costs a hundred times as much,
    which counts once per training step.
    """
    seed = fold(*values)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
