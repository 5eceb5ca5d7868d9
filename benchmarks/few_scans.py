"""How much worse a site is read when its reading is chosen by few unlabelled scans.

    python -m benchmarks.few_scans PIPELINE --data DIR --run DIR [--counts 1,2,5] [--draws 5] [--out FILE]

RUN is a finished run of ``garda`` with ``--judge-choice``, whose ``candidates.csv`` has the Dice of every reading on
the test scans. For each target and each count, that many training patients are drawn at random, the reading is chosen
by their scans alone, and what it falls short of the best reading (lessons apart) is one line of the CSV.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from garda.core import files
from garda.data.checks import without_label
from garda.data.dataset import Slices
from garda.data.sequence import Domain, read_sequence
from garda.data.volume import read_volume
from garda.handover import format, load
from garda.handover.load import LoadedPackage
from garda.methods.garda import Garda
from garda.runs import choices
from garda.runs.choices import CANDIDATES
from garda.training.cache import Stage
from garda.training.loop import Phase

HEADING = ("domain", "scans_of_patients", "draw", "chosen", "dice", "best", "short_by")


def main(arguments: list[str] | None = None) -> None:
    """Choose again by few scans."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_scans", description=__doc__)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--counts", default="1,2,5")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("few_scans.csv"))
    asked = parser.parse_args(arguments)
    with format.opened(asked.run) as folder:
        package = load.load_package(folder)
    counts = [int(count) for count in asked.counts.split(",")]
    rows = []
    for domain in read_sequence(asked.pipeline).targets:
        for row in choose(package, domain, asked.data, asked.run / CANDIDATES, counts, asked.draws):
            print(*row, sep=", ", flush=True)
            rows.append(row)
    files.write_csv(asked.out, HEADING, rows)


def choose(
    package: LoadedPackage, domain: Domain, data: Path, table: Path, counts: list[int], draws: int
) -> Iterator[tuple[object, ...]]:
    """A line for each count and draw: what is chosen, its Dice, that of the best, and the difference."""
    method = package.method
    if not isinstance(method, Garda):
        raise TypeError("the run is none of garda")
    dice = {row.candidate: row.dice for row in choices.read_candidates(table) if row.domain == domain.name}
    dice = {name: value for name, value in dice.items() if "taught" not in name}
    patients = sorted({case.patient for case in domain.split("train")})
    for count in sorted({min(count, len(patients)) for count in (*counts, len(patients))}):
        for draw in range(draws if count < len(patients) else 1):
            taken = set(random.Random(f"{domain.name} {count} {draw}").sample(patients, count))
            cases = [without_label(case) for case in domain.split("train") if case.patient in taken]
            volumes = (read_volume(case, method.task, data, with_label=False) for case in cases)
            slices = Slices(volumes, method.task, with_labels=False)
            stage = Stage(lambda part, draw=draw: Phase(part, Path(part), seed=draw))
            _, chosen, _, _ = method.choose_reading(package.knowledge, slices, stage)
            found, best = dice.get(chosen.name, float("nan")), max(dice.values())
            yield domain.name, count, draw, chosen.name, f"{found:.3f}", f"{best:.3f}", f"{best - found:.3f}"


if __name__ == "__main__":
    main()
