"""Two processes that run methods together; see ``test_parallel.py``.

python -m tests.support.pair FOLDER

FOLDER holds ``source.yaml`` and ``target.yaml``; ``source/<method>`` is begun there, ``target/<method>`` goes on. What
the leader was told of losses goes to ``<which>/<method>.json``.
"""

import json
import sys
from pathlib import Path

from garda.data.sequence import read_sequence
from garda.runs.run import run_sequence
from garda.runs.tracking import InMemory
from garda.training import distributed
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
            rank_zero, tracker = distributed.configure(2, 1, "cpu"), InMemory()
            run_sequence(sites.tiny_run(sequence, pipeline, out, tracker))
            if rank_zero:
                out.with_suffix(".json").write_text(json.dumps(losses(tracker)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
