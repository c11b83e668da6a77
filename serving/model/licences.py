"""Licences that travel with a model: of its code, its weights, its data, and of the model it started from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from serving.errors import LicenceError

CODE_LICENCE = "Apache-2.0"
UNKNOWN = "unknown"
COMMERCIAL = frozenset(
    {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "MIT", "own", "public-domain"}
)
"""SPDX names of licences under which a model may be sold, and `own` for songs that belong to who trains on them."""


@dataclass(frozen=True)
class Licences:
    """Licences of one model. `weights` is what its maker allows; `started_from` is the model of `--init`; `source` is where
    the weights come from."""

    code: str = UNKNOWN
    weights: str = UNKNOWN
    data: str = UNKNOWN
    source: str = UNKNOWN
    started_from: "Licences | None" = None

    @classmethod
    def of_training(cls, data: str, source: str, started_from: "Licences | None" = None) -> Self:
        """Licences of weights that were trained on `data`: the strictest of the data's and of the weights before."""
        before = [started_from.weights] if started_from else []
        return cls(CODE_LICENCE, max([data, *before], key=strictness), data, source, started_from)

    def require_commercial(self, model: str) -> None:
        """Raises LicenceError unless code and weights, and those of all models before, may be used commercially.

        The data of published weights count by the licence that the maker gave the weights.
        """
        for part, licence in (("code", self.code), ("weights", self.weights)):
            if strictness(licence):
                reason = (
                    "is for non-commercial use" if strictness(licence) == 2 else "is not known to allow commercial use"
                )
                raise LicenceError(
                    f"{model} cannot be served commercially: the licence of its {part}, {licence!r}, {reason} "
                    f"(source: {self.source})"
                )
        if self.started_from:
            self.started_from.require_commercial(f"the model that {model} was started from")

    def to_json(self) -> dict[str, Any]:
        before = self.started_from and self.started_from.to_json()
        own = {"code": self.code, "weights": self.weights, "data": self.data, "source": self.source}
        return {**own, "started_from": before}

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """The licences that `to_json` wrote. Raises ValueError for any other facts."""
        names = ("code", "weights", "data", "source")
        if not isinstance(facts, Mapping) or not all(isinstance(facts.get(name), str) for name in names):
            raise ValueError(f"licences need {', '.join(names)}, not {facts!r}")
        before = facts.get("started_from")
        return cls(**{name: facts[name] for name in names}, started_from=cls.from_json(before) if before else None)


UNSTATED = Licences()
"""The licences of an archive that states none."""


def strictness(licence: str) -> int:
    """0 for a licence that allows commercial use, 1 for an unknown one, 2 for a non-commercial one."""
    plain = licence.lower().replace("_", "-")
    if licence in COMMERCIAL:
        return 0
    return 2 if "non-commercial" in plain or "noncommercial" in plain or "-nc" in plain else 1
