"""The commands: one file each, and the bridge to Hydra."""
