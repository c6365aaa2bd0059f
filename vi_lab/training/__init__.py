"""Training a model in its run folder, with Lightning."""
