"""The training layer of Stemwright: data, the training loop, tracking, evaluation and export."""
