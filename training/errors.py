"""The errors of the training package, as one tree.

    TrainingError
    ├── ConfigError       flags or a stored configuration that contradict each other
    ├── DataError         a data set that is missing, incomplete or of another layout
    ├── CheckpointError   a run folder without a state that training could go on from
    ├── NotFinite         numbers that stay infinite or NaN, step after step
    ├── OutOfMemory       not even one example fits the device, or something else took its memory
    ├── RankLost          another process of the run is gone
    ├── Stopped           work that was told to stop before it was complete
    └── TrackingError     reports of a run that cannot be kept on disk, or do not arrive

Messages are one sentence that names the culprit and the remedy. `training/__main__.py` is the one edge that catches the tree.
"""


class TrainingError(Exception):
    """Base of every error of the training package. Users read its message."""


class ConfigError(TrainingError):
    """Flags or a stored configuration that contradict each other."""


class DataError(TrainingError):
    """A data set that is missing, incomplete or of another layout."""


class CheckpointError(TrainingError):
    """A run folder without a state that training could go on from."""


class NotFinite(TrainingError):
    """Numbers that stay infinite or NaN, step after step."""


class OutOfMemory(TrainingError):
    """Not even one example fits the device, or something else took its memory."""


class RankLost(TrainingError):
    """Another process of the run is gone."""


class Stopped(TrainingError):
    """Work that was told to stop before it was complete."""


class TrackingError(TrainingError):
    """Reports of a run that cannot be kept on disk, or do not arrive."""
