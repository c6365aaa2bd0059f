"""vi_lab: a laboratory for variational inference with continuous and discrete latent variables.

Importing the package imports nothing heavy; `vi_lab.estimators`, `vi_lab.latents`, `vi_lab.objectives` and the
rest are plain PyTorch and work in a notebook, `vi_lab.models` are LightningModules, `vi_lab.cli` is the command.
"""

__version__ = "0.1.0"
