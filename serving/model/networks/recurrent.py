"""The bottom of the U-Nets: LSTMs over whole frames, or over rows and frames in turn.

Axes: b batch, c channel, r row, t frame.
"""

from torch import Tensor, nn
from torch.nn import functional


class Memory(nn.Module):
    """Adds what an LSTM in both directions of time makes of the whole of each frame.

    It has `units` in each direction and reads `inputs` numbers a frame.
    """

    def __init__(self, channels: int, rows: int, inputs: int, units: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels * rows, inputs)
        self.lstm = nn.LSTM(inputs, units, batch_first=True, bidirectional=True)
        self.expand = nn.Linear(2 * units, channels * rows)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, r, t), as it came."""
        batch, channels, rows, frames = x.shape
        by_frame = self.squeeze(x.permute(0, 3, 2, 1).reshape(batch, frames, rows * channels))
        remembered, _ = self.lstm(by_frame)
        added = self.expand(remembered).view(batch, frames, rows, channels).permute(0, 3, 2, 1)
        return x + functional.relu(self.norm(added))


class DualPath(nn.Module):
    """Adds what LSTMs in both directions make of the rows of each frame, then of the frames of each row.

    The dual path of Luo et al., "Dual-path RNN", ICASSP 2020.
    """

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.over_rows, self.over_frames = Path(channels, units), Path(channels, units)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, r, t), as it came."""
        x = self.over_rows(x.permute(0, 3, 2, 1))
        x = self.over_frames(x.transpose(1, 2))
        return x.permute(0, 3, 1, 2)


class Path(nn.Module):
    """Adds what an LSTM in both directions makes of sequences."""

    def __init__(self, channels: int, units: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.lstm = nn.LSTM(channels, units, batch_first=True, bidirectional=True)
        self.expand = nn.Linear(2 * units, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, m, n, c), m sequences of n steps, as they came."""
        read, _ = self.lstm(self.norm(x).flatten(0, 1))
        added: Tensor = self.expand(read).view(x.shape)
        return x + added
