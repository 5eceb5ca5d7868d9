"""Two processes that run methods together; see ``test_parallel.py``.

python -m tests.support.pair FOLDER

FOLDER holds ``source.yaml`` and ``target.yaml``; ``source/<method>`` is begun there, ``target/<method>`` goes on. What
the leader was told of losses goes to ``<which>/<method>.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from garda.core.signals import Stopping
from garda.data.sequence import read_sequence
from garda.runs import run
from garda.runs.tracking import InMemory
from tests.support import sites

METHODS = ("garda", "garda_paper", "advent", "cotta", "tent", "joint")  # all lessons

CHANGES = {"source": {"optimizer": "sgd", "learning_rate": 0.05}}  # unlike Adam's, its steps tell a sum from a mean


def losses(tracker: InMemory) -> dict[str, list[float]]:
    """Each curve by stage and name."""
    return {f"{stage} {name}": [*curve.values()] for (stage, name), curve in tracker.curves.items()}


def main(folder: Path) -> None:
    """Each method's source, then its target."""
    for which in ("source", "target"):
        for method in METHODS:
            pipeline, out = folder / f"{which}.yaml", folder / which / method
            sequence = read_sequence(pipeline, method=method, changes=CHANGES)
            if not run.enlist(sequence, 2, 1):
                run.follow_sequence(sequence, folder / "data", out, Stopping())
                continue
            tracker = InMemory()
            run.run_sequence(sites.tiny_run(sequence, pipeline, out, tracker))
            out.with_suffix(".json").write_text(json.dumps(losses(tracker)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
