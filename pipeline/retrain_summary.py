"""What came of a retraining: one record for machines (reports/retrain.json), one for people (retrain.md)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pipeline.retrain_reasons import Reason
from pipeline.whole_file import write_whole

Outcome = Literal["nothing to do", "promoted", "not promoted", "failed"]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A version and its score on the gate's test images."""

    version: str | None = None
    score: float | None = None
    """None where the gate was not asked, or could not tell."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What came of a call."""

    outcome: Outcome
    sentence: str
    model: str
    """Empty where the recipe, which names it, can't be read."""
    time: str
    """When the call began; ISO 8601, UTC."""
    reasons: tuple[Reason, ...] = ()
    samples: Mapping[str, int] = field(default_factory=dict)
    """New, changed and removed ones since the commit before."""
    challenger: Scored = Scored()
    against: Scored = Scored()
    """The champion that the challenger was compared with."""
    champion: str | None = None
    """The champion now."""
    recorded: str | None = None
    """Where git has the results."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """Outcome and sentence; the gate's begins with the outcome already."""
        return self.sentence if self.sentence.startswith(self.outcome) else f"{self.outcome}: {self.sentence}"

    def body(self) -> dict[str, Any]:
        """For machines; `text` is what many chat programs show of a webhook's body."""
        return {"text": f"unet retrain: {self.line}", **asdict(self)}


def write_summary(summary: Summary, report: Path) -> None:
    """Write both files beside the report; each is whole at any time."""
    texts = {"retrain.json": json.dumps(summary.body(), indent=1) + "\n", "retrain.md": to_markdown(summary)}
    for name, text in texts.items():
        # A sentence may name a file whose name is no UTF-8: people must hear of it all the same.
        write_whole(report.with_name(name), text.encode("utf-8", errors="backslashreplace"))


def to_markdown(summary: Summary) -> str:
    """For people, and for a job's page at GitHub."""
    lines = [f"# Retraining: {summary.outcome}", "", summary.sentence, ""]
    if summary.reasons:
        lines += ["Why: " + "; ".join(reason.text for reason in summary.reasons) + ".", ""]
    if any(summary.samples.values()):
        counts = ", ".join(f"{count} {word}" for word, count in summary.samples.items())
        lines += [f"Samples since the commit before: {counts}.", ""]
    compared = {"challenger": summary.challenger, "champion before": summary.against}
    rows = [
        f"| {name} | {scored.version} | {'' if scored.score is None else f'{scored.score:.4f}'} |"
        for name, scored in compared.items()
        if scored.version is not None
    ]
    if rows:
        lines += [f"| | {summary.model} version | score |", "|---|---|---|", *rows, ""]
    if summary.champion is not None:
        lines += [f"Champion is {summary.model} version {summary.champion}.", ""]
    if summary.recorded is not None:
        lines += [f"Results: {summary.recorded}.", ""]
    lines += [f"Note: {note}." for note in summary.notes]
    if summary.seconds:
        steps = ", ".join(f"{name} {seconds:.1f}" for name, seconds in summary.seconds.items())
        lines += [f"Seconds: {steps}."]
    return "\n".join(lines).rstrip("\n") + "\n"
