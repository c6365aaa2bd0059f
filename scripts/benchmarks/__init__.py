"""The measurements of `scripts/benchmark.py`, one in each file."""

MEASUREMENTS = {
    "busy": "training beside other work, by how idle threads wait",
    "notebook": "a whole epoch of vi_lab against a tutorial's loop, and where its time goes",
    "runner": "a training step by part, and against a bare loop that computes the same",
    "estimators": "all estimators: time, decoder evaluations and memory of a step",
    "scaling": "how a step's time grows with samples, variables, classes and batch",
    "evaluation": "the likelihood by K samples: share of the machine's rate, and memory",
    "end": "what follows training in a run of ten epochs",
    "startup": "from the shell to the first training step",
    "peers": "the same Gaussian VAE trained by other libraries",
    "stacked": "runs trained as one stack against the same runs one after the other",
}
"""What can be measured, and in a line what it is."""
