"""The steps of the optimizer: loss, gradients on every rank, EMA weights, and the state that a step changes."""
