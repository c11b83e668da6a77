"""The origin of weights, as their archive states it."""

from dataclasses import dataclass
from typing import Any

from serving.model.licences import Licences
from serving.version import commit
from training.evaluation.cost import parameters
from training.evaluation.evaluate import or_none
from training.optimization.state import RunState
from training.run.validate import Scored


@dataclass(frozen=True)
class Origin:
    """The facts of a run that all its weights share."""

    preset: str
    data: str
    data_digest: str
    data_licence: str

    def of(self, scored: Scored, state: RunState, audio_s: float, run_id: str | None) -> dict[str, Any]:
        """The origin of validated weights as JSON. `audio_s` is the seconds of audio trained on so far."""
        return {
            "preset": self.preset,
            "run_id": run_id,
            "step": state.step,
            "ema_decay": scored.average.decay,
            "commit": commit(),
            "data": self.data,
            "data_digest": self.data_digest,
            "licences": self.licences(state, run_id).to_json(),
            "validation": {stem: score.to_json() for stem, score in scored.evaluation.stems.items()},
            "cost": {
                "parameters": parameters(state.network),
                "real_time_factor": or_none(scored.evaluation.real_time_factor),
                "trained_s": round(state.trained_s, 1),
                "trained_audio_s": audio_s,
            },
        }

    def licences(self, state: RunState, run_id: str | None) -> Licences:
        """The strictest licences of the run's songs and of the weights that it started from."""
        started_from = Licences.from_json(state.started_from) if state.started_from else None
        return Licences.of_training(self.data_licence, f"run {run_id}, preset {self.preset}", started_from)
