"""A target on its way through the gate: looked at, learnt, looked at again."""

from __future__ import annotations

from dataclasses import dataclass

from garda import parallel
from garda.errors import TrainingError
from garda.handover.gate import Reference, inspect_incoming, inspect_learnt
from garda.handover.verdict import Check, GateSettings, Verdict, decide
from garda.knowledge import Knowledge
from garda.methods import Method
from garda.shelf import Stages
from garda.slices import Slices


@dataclass(frozen=True)
class Gate:
    """The gate before one target.

    Attributes:
        method: is to learn it.
        source: what the source was like.
        settings: limits.
        seed: of the run.
        forced: learn and keep what is refused.
    """

    method: Method
    source: Reference
    settings: GateSettings
    seed: int
    forced: bool = False

    def pass_target(self, before: Knowledge, domain: str, slices: Slices, stages: Stages) -> tuple[Knowledge, Verdict]:
        """Learn a target between two inspections.

        Args:
            before: knowledge of the stage before.
            domain: the target's name.
            slices: its training slices, without labels.
            stages: the pieces of training.

        Returns:
            what is to be kept, and why: ``before`` where the target was refused, which takes no training if its images
            were.
        """
        settings = self.settings
        checks = inspect_incoming(self.method, before, domain, slices, self.source, settings, self.seed)
        if decide(checks).decision == "refuse" and not self.forced:
            return before, decide(checks)
        try:
            parallel.call(domain)
            after = self.method.adapt(before, domain, slices, stages)
        except TrainingError as error:
            return before, decide([*checks, _failed(domain, error)])
        checks += inspect_learnt(self.method, before, after, slices, self.source, settings, self.seed)
        verdict = decide(checks)
        return before if verdict.decision == "refuse" and not self.forced else after, verdict


def _failed(domain: str, error: TrainingError) -> Check:
    """A loss that stopped being a number is the target's failure, not the sequence's."""
    return Check(
        name="finite", domain=domain, value=None, limit=0, decision="refuse", reason=f"{error.where}: {error.what}"
    )
