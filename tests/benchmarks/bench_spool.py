"""The share of a run that logging and saving take: python -m pytest -s tests/benchmarks/bench_spool.py

Processor time of this process, all its threads together, beside the time that the run lasts; asserted is the 1 % that a
run may give for both. A run logs every ten steps, here five times a second, and saves every five minutes.
"""

import os
import time
from pathlib import Path

from training.checkpoints.checkpoints import Checkpoints
from training.tracking.tracking import Tracker

RUN_S = 30
REPORTS_PER_S = 5
SAVE_EVERY_S = 300
STATE_BYTES = 100_000_000
NUMBERS = {"train/loss": 1.0, "train/learning_rate": 1e-3, "train/audio_s_per_s": 100.0}


def test_a_run_gives_one_percent_to_logging_and_saving(tmp_path: Path) -> None:
    with Tracker.open(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path / "run", None) as tracker:
        while tracker.run_id is None:  # a new store makes its tables first
            time.sleep(0.1)
        spent_s, in_calls_s, reports = -time.process_time(), 0.0, RUN_S * REPORTS_PER_S
        for step in range(reports):
            in_calls_s -= time.perf_counter()
            tracker.numbers(NUMBERS, step)
            in_calls_s += time.perf_counter()
            time.sleep(1 / REPORTS_PER_S)
        spent_s += time.process_time()
    logging = spent_s / RUN_S

    state = os.urandom(STATE_BYTES)
    checkpoints = Checkpoints(tmp_path / "run", None, keep=2)
    spent_s = -time.process_time()
    started = time.perf_counter()
    checkpoints.save(1, lambda path: path.write_bytes(state) and None)
    returned_s = time.perf_counter() - started
    checkpoints.close(60)
    saving = (spent_s + time.process_time()) / SAVE_EVERY_S
    print(
        f"\na report takes {in_calls_s / reports * 1e6:.0f} us of the step, logging {logging:.2%} of a core; "
        f"a save of {STATE_BYTES / 1e6:.0f} MB returns after {returned_s * 1e3:.0f} ms, saving takes {saving:.2%}"
    )
    assert logging + saving < 0.01
