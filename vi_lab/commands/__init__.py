"""The commands: one file each, and the bridge to Hydra."""

COMMANDS = {
    "train": ("vi_lab.commands.train", "train a VAE; Hydra overrides choose everything, -m sweeps"),
    "evaluate": ("vi_lab.commands.evaluate", "likelihood, bounds and latent use of trained models"),
    "audit": ("vi_lab.commands.audit", "how biased and how noisy each estimator is at a model's weights"),
    "tune": ("vi_lab.commands.tune", "search settings by validation loss; any number of workers"),
    "status": ("vi_lab.commands.status", "where the jobs of a sweep stand, and who is at work on them"),
    "verify": ("vi_lab.commands.verify", "repeat published numbers, and say of each whether ours agree"),
    "atlas": ("vi_lab.commands.atlas", "compare estimators fairly: equal search, fresh seeds, equal budgets"),
    "compare": ("vi_lab.commands.compare", "tables and curves of runs: means over seeds, paired differences"),
    "board": ("vi_lab.commands.board", "TensorBoard on this machine, over all runs below a folder"),
    "share": ("vi_lab.commands.share", "copy runs without what tells whose machine they were made on"),
    "reproduce": ("vi_lab.commands.reproduce", "repeat a run from its folder alone and compare bit by bit"),
}
"""Name -> module, and what it does in a few words."""
