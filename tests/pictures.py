"""An empty picture in place of a run's spectrograms, which take most of a tiny run's time."""

from matplotlib.figure import Figure

import training.run.showcase


def empty_picture(*_: object, **__: object) -> Figure:
    return Figure(figsize=(1, 1))


def draw_no_spectrograms() -> None:
    """For a process that is a run."""
    training.run.showcase.spectrogram_figure = empty_picture
