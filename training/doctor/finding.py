"""One line of the doctor's table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Finding:
    """A thing, what is there, and what to do about it.

    "wrong" is what was asked for and does not work; a "note" limits what can be done here, and nobody asked for it.
    """

    name: str
    found: str
    verdict: Verdict = "ok"
    remedy: str | None = None


def findings_table(findings: Sequence[Finding]) -> str:
    """The findings as lines to print, remedies below what they are for."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.verdict:<5}  {finding.name:<{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':<5}  {'':<{width}}  → {finding.remedy}")
    return "\n".join(lines)
