"""The plan of a run: its progress, when it validates, and when scores have stalled."""

import math
from dataclasses import dataclass

from training.config import Budget, Validation
from training.optimization.state import RunState


@dataclass(frozen=True)
class Plan:
    """The budget of a run and the validations spread evenly over it."""

    budget: Budget
    validation: Validation
    state: RunState

    @property
    def progress(self) -> float:
        """The share of the budget that is spent, 0..1. Time for the last validation is set aside."""
        return self.budget.progress(self.state.step, self.state.trained_s, self.state.validation_s)

    @property
    def validations(self) -> int:
        """The number of validations planned until now."""
        return math.floor(self.progress * self.validation.validations)

    @property
    def validates(self) -> bool:
        """True if a validation is due now."""
        return self.validations > self.state.validations and self.has_time_to_validate()

    @property
    def stalled(self) -> bool:
        """True if `patience` validations in a row brought no better score."""
        return self.state.stale_validations >= (self.validation.patience or math.inf)

    def has_time_to_validate(self) -> bool:
        """True if the steps of a run in minutes keep enough time around one more validation.

        Steps get three quarters of the time since the last validation, and some time before the final one. The final one is
        always made.
        """
        state, budget = self.state, self.budget
        if budget.minutes is None or self.progress >= 1:
            return True
        over = budget.progress(state.step, state.trained_s + state.validation_s, state.validation_s) >= 1
        return not over and state.trained_s - state.validated_at_s >= 3 * state.validation_s
