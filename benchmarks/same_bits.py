"""Whether garda computes what it computed before: a digest for everything that a tiny run of each method keeps.

    python -m benchmarks.same_bits > before.txt       on the commit to compare with
    python -m benchmarks.same_bits | diff before.txt -

Commands alone are used, so that the script outlives any change of the code behind them. A digest of tensors knows no
names: a weight that is called otherwise is the same weight. One thread; the lines hold for one machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

METHODS = (
    "adabn",
    "advent",
    "cotta",
    "fda_replay",
    "garda",
    "garda_paper",
    "histogram",
    "joint",
    "randomised",
    "source_only",
    "supervised",
    "tent",
)
SITES = ("bssfp_1p5t", "tse_1p5t", "lge_3t")
PIPELINE = """
name: tiny
manifests: data/manifests
source: bssfp_1p5t
targets: [{targets}]
config: tiny.yaml
method: garda
"""
CONFIG = """
compute: {accelerator: cpu, precision: bf16, threads: 1}
segmenter: {widths: [8, 8, 8, 8, 8, 8]}
source: {steps: 60, batch: 4, randomisation: {}, stopping: {every: 10, least: 20, patience: 20}}
gate:  # networks of five steps recognise nothing
  sample: 4
  slices: [2, 1]
  recognition: [-1, -1]
  agreement: [0, 0]
  replay: [0, 0]
  diversity: [0, 0]
  style: [1, 1]
  foreground: [1.0e+9, 1.0e+9]
audit: {generated: 100, references: 4, fewest: 2, permutations: 100}
advent: {steps: 4, batch: 4, widths: [4, 8], anatomies: 8}
adabn: {batches: 3, batch: 4}
tent: {steps: 4, batch: 4, batches: 3}
joint: {steps: 4, batch: 4}
cotta: {steps: 4, batch: 4}
fda_replay: {batches: 2, anatomies: 8, replay: {steps: 4, batch: 4}}
supervised: {steps: 4}
generator:
  network: {code: 2, appearance: 3, widths: [4, 8], prior_width: 8}
  reconstruction: {steps: 3, batch: 4}
  prior: {steps: 3, batch: 4}
  style: {steps: 3, batch: 4, estimate: 2}
garda:
  choice: {slices: 4, views: 1}
  lesson: {steps: 3, batch: 4, pool: 4, views: 1, enough: 1.0, gain: 0.0}
garda_paper:
  network: {latent: 8, widths: [[8], [8], [4], [4]]}
  images: {steps: 4, batch: 4, widths: [4, 8, 8, 8], average_images: 16}
  style: {steps: 4, batch: 4, widths: [8, 8], average_images: 16}
  replay: {steps: 3, batch: 4}
"""


def main() -> None:
    """Print ``<what> <digest>``, a line each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _prepare(folder)
        for method in METHODS:
            _run(folder, folder / method, "--method", method)
            _tell_run(method, folder / method)
        _tell_hop(folder)
        _tell_comparison(folder)
        two = folder / "two"
        _run(folder, two, "--devices", "2")
        _tell_run("two_devices", two)
        _tell_package(folder)


def garda(*words: object, program: Path | None = None) -> None:
    """Give a command, to a ``program`` of its own where it starts others; what it prints is shown where it fails."""
    command = [str(word) for word in words]
    if program is not None:
        program.write_text(f"import sys; sys.path[0] = {os.getcwd()!r}\nfrom garda.cli import main\nmain()\n")
        done = subprocess.run([sys.executable, program, *command], capture_output=True, text=True, check=False)
        code, told = done.returncode, done.stdout + done.stderr
    else:
        code, told = _call(command)
    if code:
        sys.exit(f"garda {' '.join(command)} ended with {code}\n{told}")


def _call(command: list[str]) -> tuple[int, str]:
    cli = importlib.import_module("garda.cli")
    told = io.StringIO()
    sys.argv = ["garda", *command]
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), told.getvalue()
    return 0, told.getvalue()


def _prepare(folder: Path) -> None:
    """Data, settings, and a key of its own, on which pseudonyms depend."""
    home = folder / "home"
    home.mkdir(mode=0o700)
    (home / "pseudonyms.key").write_bytes(bytes(range(32)))
    (home / "pseudonyms.key").chmod(0o600)
    os.environ.update(GARDA_HOME=str(home), OMP_NUM_THREADS="1")
    garda("phantom", "--out", folder / "data", "--train", 3, "--val", 2, "--test", 2, "--slices", 2)
    (folder / "tiny.yaml").write_text(CONFIG)
    (folder / "pipeline.yaml").write_text(PIPELINE.format(targets=", ".join(SITES[1:])))
    (folder / "short.yaml").write_text(PIPELINE.format(targets=SITES[1]))


def _run(folder: Path, out: Path, *more: object, pipeline: str = "pipeline.yaml") -> None:
    program = folder / "program.py" if "--devices" in more else None
    garda("run", folder / pipeline, "--data", folder / "data", "--out", out, *more, program=program)


def _tell_run(name: str, out: Path) -> None:
    for package in sorted(out.glob("stages/*/package")):
        _tell_tensors(f"{name} {package.parent.name}", package)
    for file in sorted(out.glob("*.csv")):
        tell(f"{name} {file.name}", file.read_bytes())


def _tell_hop(folder: Path) -> None:
    """What a package and one hop give, which is what the run gave."""
    _run(folder, folder / "short", pipeline="short.yaml")
    manifest = folder / "data" / "manifests" / f"{SITES[2]}.csv"
    garda("adapt", folder / "short", manifest, "--data", folder / "data", "--out", folder / "hop")
    _tell_tensors("hop", folder / "hop")
    tell("hop scores.csv", (folder / "hop" / "scores.csv").read_bytes())


def _tell_comparison(folder: Path) -> None:
    out, words = folder / "compared", ("--methods", "garda,histogram,source_only", "--seeds", "0,1", "--judge-choice")
    garda("compare", folder / "pipeline.yaml", "--data", folder / "data", "--out", out, *words)
    for run in sorted(out.glob("runs/*/seed-*")):
        _tell_run(f"compared {run.parent.name} {run.name}", run)
    for file in ("differences.csv", "choice.csv"):
        tell(f"compared {file}", (out / file).read_bytes())


def _tell_package(folder: Path) -> None:
    """What is done with a package: label maps, a bundle's weights, the audit's figures."""
    images = sorted((folder / "data").glob(f"**/{SITES[1]}*/**/*.nii.gz")) or sorted(
        (folder / "data").glob("**/*.nii.gz")
    )
    scans = [image for image in images if "label" not in str(image.parent) and "mask" not in str(image.parent)][:2]
    for domain in (SITES[1], "other"):
        garda("predict", folder / "hop", *scans, "--domain", domain, "--out", folder / f"maps-{domain}")
        for file in sorted((folder / f"maps-{domain}").iterdir()):
            tell(f"predicted {domain} {file.name}", file.read_bytes())
    garda("export", folder / "hop", "--to", "bundle", "--out", folder / "bundle")
    _tell_state("bundle", _load(folder / "bundle" / "models" / "model.pt"))
    manifest = folder / "data" / "manifests" / f"{SITES[2]}.csv"
    garda("audit", folder / "hop", manifest, "--data", folder / "data", "--out", folder / "audit.json")
    tell("audit", (folder / "audit.json").read_bytes())


def _tell_tensors(name: str, folder: Path) -> None:
    from safetensors.torch import load_file

    for file in sorted(folder.glob("*.safetensors")):
        _tell_state(f"{name} {file.stem}", load_file(file))


def _load(file: Path) -> Mapping[str, object]:
    import torch

    state: Mapping[str, object] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _tell_state(name: str, state: Mapping[str, object]) -> None:
    tell(name, *sorted(_digest([str(value.dtype), str(value.shape), _bytes(value)]) for value in state.values()))  # type: ignore[attr-defined]


def _bytes(tensor: object) -> bytes:
    raw: bytes = tensor.contiguous().numpy().tobytes()  # type: ignore[attr-defined]
    return raw


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else part.encode())
    return digest.hexdigest()


def tell(name: str, *parts: str | bytes) -> None:
    """One line."""
    print(f"{name} {_digest(parts)[:16]}", flush=True)


if __name__ == "__main__":
    main()
