"""Cuts a song of any length into equal windows and joins them again; pure, one window in memory.

Window k covers the samples [k·hop, k·hop + length) with hop = length − overlap; the last one covers the rest. In each
overlap one window fades out while the next fades in. The weights sum to one, so unchanged windows give the song back.

Axes: … any, n sample.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from serving.audio import Audio


def windows(blocks: Iterable[Audio], length_samples: int, overlap_samples: int) -> Iterator[Audio]:
    """Cut a song that comes as blocks (…, n) of any sizes into windows (…, ≤ length).

    The last window ends with the song. Only it may be shorter than `length_samples`, and it is longer than the overlap
    unless it is the only one.
    """
    hop_samples = length_samples - overlap_samples
    held: list[Audio] = []
    held_samples = 0
    for block in blocks:
        held.append(block)
        held_samples += block.shape[-1]
        # Waits for more than a window, so no window holds nothing but overlap.
        while held_samples > length_samples:
            song = held[0] if len(held) == 1 else np.concatenate(held, axis=-1)
            yield song[..., :length_samples]
            held, held_samples = [song[..., hop_samples:]], held_samples - hop_samples
    if held_samples:
        yield np.concatenate(held, axis=-1)


def batches(cut: Iterable[Audio], most: Callable[[], int]) -> Iterator[list[Audio]]:
    """Group windows of one shape, up to `most()` at a time. The first goes alone, so that a song's first stems come soon."""
    batch: list[Audio] = []
    limit = 1
    for window in cut:
        if batch and window.shape != batch[0].shape:
            yield batch
            batch = []
        batch.append(window)
        if len(batch) >= limit:
            yield batch
            batch, limit = [], most()
    if batch:
        yield batch


def crossfade(pieces: Iterable[Audio], overlap_samples: int) -> Iterator[Audio]:
    """Join `pieces`, which `windows` cut, into the blocks (…, n) of the song."""
    fade_in = rising_weights(overlap_samples)
    tail: Audio | None = None
    for piece in pieces:
        if tail is not None:
            head = piece[..., :overlap_samples]
            yield tail * (1 - fade_in) + head * fade_in
            piece = piece[..., overlap_samples:]
        if piece.shape[-1] > overlap_samples:
            yield piece[..., :-overlap_samples]
        tail = piece[..., -overlap_samples:]
    if tail is not None:
        yield tail


def rising_weights(overlap_samples: int) -> Audio:
    """Weights (n,) from 0 to 1 of the window that fades in.

    The outer tenths stay at 0 and at 1: next to a cut, resampler and transform see silence that is not in the song.
    """
    position = (np.arange(overlap_samples) + 0.5) / overlap_samples
    return np.clip((position - 0.1) / 0.8, 0, 1).astype(np.float32)
