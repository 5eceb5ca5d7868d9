"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

import atexit
import errno
import gc
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from garda import __version__, cli_site
from garda.core import files
from garda.core.errors import DataError, GardaError, Interrupted, Refused, printable
from garda.core.signals import LEADER, Stopping
from garda.runs import arguments
from garda.runs.arguments import Audited, Changes, DataFolder, Devices, Nodes, SigningKey, Strict

MANY_OBJECTS = 10_000  # that are new between two searches for reference cycles; Python's own 700 suit small programs


class Layout(StrEnum):
    """How a folder's images and labels lie."""

    auto = "auto"
    pairs = "pairs"
    nnunet = "nnunet"
    bids = "bids"
    plain = "plain"


app = typer.Typer(
    help="Continual unsupervised domain adaptation for medical image segmentation, without keeping an image.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(cli_site.app)


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"garda {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


PipelineFile = Annotated[Path, typer.Argument(metavar="PIPELINE", help="A YAML of pipelines/.")]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder that is written.")]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="In place of the pipeline's configuration.")]
MethodName = Annotated[str | None, typer.Option("--method", help="In place of the pipeline's method.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="In place of the pipeline's seed.")]
Judging = Annotated[bool, typer.Option("--judge-choice", help="For research: score each candidate checkpoint.")]


@app.command()
def run(
    context: typer.Context,
    pipeline: PipelineFile,
    data: DataFolder,
    out: OutFolder,
    config: ConfigFile = None,
    method: MethodName = None,
    seed: Seed = None,
    change: Changes = None,
    judging: Judging = False,
    sign: SigningKey = None,
    audited: Audited = False,
    devices: Devices = 1,
    nodes: Nodes = 1,
) -> None:
    """Learn the source, adapt to each target in turn, score every site after every stage. Run again to resume."""
    from garda.core.pseudonyms import Pseudonyms, load_key
    from garda.data.sequence import read_sequence
    from garda.handover.format import find_stage
    from garda.handover.settings import parse_settings
    from garda.handover.verify import open_package
    from garda.runs.context import Run
    from garda.runs.mlflow import open_tracker
    from garda.runs.run import run_sequence, tell_scores
    from garda.runs.tracking import InMemory
    from garda.training import distributed

    sequence = read_sequence(
        pipeline, config=config, method=method, seed=seed, changes=arguments.parse_changes(change or [])
    )
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    rank_zero = distributed.configure(devices, nodes, settings.compute.accelerator)
    with arguments.open_console(rank_zero) as console:
        tracker = open_tracker(out, tell=console.line) if rank_zero else InMemory()
        own = (tracker, console, context.obj, Pseudonyms(load_key() if rank_zero else b""))
        scores = run_sequence(Run(sequence, data, out, *own, judging=judging, key=sign, audited=audited))
        if not rank_zero:
            return
        with open_package(out) as found:
            pass
        console.line(f"package {found.digest}: {find_stage(out)}")
        refused = [entry.domain for entry in found.entries if not entry.learnt]
        for name in refused:
            console.line(f"left out: {name}, which the gate refused; its row is that of the stage before")
        if scores:
            tell_scores(sequence, scores, out, console)
        where = f"garda ui --out {out}" if (out / "mlflow.db").exists() else "in the store of MLFLOW_TRACKING_URI"
        console.line(f"metrics: {tracker.check_delivered()}, {where}")
    if refused:
        raise Refused(out, f"the gate refused {', '.join(refused)}", "look at the scans, all others have been learnt")


@app.command()
def compare(
    context: typer.Context,
    pipeline: PipelineFile,
    data: DataFolder,
    out: OutFolder,
    methods: Annotated[
        str | None, typer.Option("--methods", metavar="A,B,...", help="Methods to run; all there are.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="0,1,...", help="Seeds to run; the pipeline's one.")
    ] = None,
    label: Annotated[str, typer.Option("--label", help="Name of the variant that --set makes.")] = "",
    change: Changes = None,
    config: ConfigFile = None,
    against: Annotated[
        str | None, typer.Option("--against", metavar="ROW", help="Row that the others are compared with; the best.")
    ] = None,
    judging: Judging = False,
) -> None:
    """Run several methods with several seeds and make one table of all that is finished. Run again to resume."""
    from garda.core.pseudonyms import Pseudonyms, load_key
    from garda.runs.compare import compare as compare_methods
    from garda.runs.compare_plan import Request, parse_methods, parse_seeds

    changes = arguments.parse_changes(change or [])
    asked = (parse_methods(methods), parse_seeds(seeds), label, changes, config, against, judging)
    request = Request(pipeline, data, out, *asked)
    with arguments.open_console() as console:
        compare_methods(request, console, context.obj, Pseudonyms(load_key()))


@app.command()
def check(
    pipeline: PipelineFile,
    data: DataFolder,
    config: ConfigFile = None,
    method: MethodName = None,
    change: Changes = None,
    pictures: Annotated[
        Path | None, typer.Option("--pictures", metavar="FOLDER", help="One picture a site is written here.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Read every file of a pipeline, say what each site's scans are, report all problems at once, train nothing."""
    from garda.data import fingerprint
    from garda.data.sequence import read_sequence
    from garda.handover.settings import parse_settings
    from garda.methods.registry import build_method

    sequence = read_sequence(pipeline, config=config, method=method, changes=arguments.parse_changes(change or []))
    settings = parse_settings(sequence.method, sequence.settings, sequence.origin)
    learner = build_method(sequence.method, settings, sequence.task)
    learner.check()
    cases = [case for domain in sequence.domains for case in domain.cases]
    with arguments.open_console() as console:
        fingerprint.check(sequence, data, console, learner.reads_target_labels, pictures, strict)
        unrecorded = sum(not case.digests for case in cases)
        if unrecorded:
            console.line(f"{unrecorded} cases have no digest in their manifest: it is not known whether they changed")
        console.line(f"{len(cases)} cases of {len(sequence.domains)} domains: no problem found")


@app.command()
def init(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="One folder for each site.")],
    out: OutFolder,
    image_suffix: Annotated[str, typer.Option("--image-suffix", help="Of BIDS, only images whose name ends so.")] = "",
) -> None:
    """Look at folders of scans and propose a project: manifests, task and pipeline, each proposal with its reason."""
    from garda.data.propose import propose

    root, lines = propose(folders, out, image_suffix)
    print("\n".join([*lines, f"next: garda check {out / 'pipeline.yaml'} --data {root}"]))


@app.command()
def manifest(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="One domain's folder, below --data.")],
    data: DataFolder,
    out: Annotated[Path, typer.Option("--out", help="CSV file that is written.")],
    layout: Annotated[Layout, typer.Option("--layout", help="How images and labels lie.")] = Layout.auto,
    fractions: Annotated[
        tuple[float, float, float], typer.Option("--fractions", help="Shares of train, val and test.")
    ] = (0.6, 0.1, 0.3),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides which patient gets which split.")] = 0,
    patient_pattern: Annotated[
        str | None, typer.Option("--patient-pattern", help="Regular expression; its group is the patient.")
    ] = None,
    image_suffix: Annotated[str, typer.Option("--image-suffix", help="Only images whose name ends so.")] = "",
    label_suffix: Annotated[
        list[str] | None, typer.Option("--label-suffix", help="What a label's name adds; once for each mask.")
    ] = None,
    strict: Strict = False,
) -> None:
    """Write a manifest from a folder: image/label pairs, nnU-Net or BIDS; splits by patient, digests of every file."""
    from garda.data import layouts
    from garda.data.build_manifest import build_manifest
    from garda.data.manifest import write_manifest

    if out.exists():
        raise DataError(out, "exists", "give another --out, or remove it")
    cases = build_manifest(
        folder,
        data,
        layout=layout.value,
        fractions=fractions,
        seed=seed,
        patient_pattern=patient_pattern,
        image_suffix=image_suffix,
        label_suffixes=label_suffix or [],
    )
    taken = [data.resolve() / file for case in cases for file in (case.image, *case.labels)]
    lines = layouts.tell_left(layouts.find_left(folder.resolve(), taken), strict, folder)
    write_manifest(out, cases)
    print("\n".join([*lines, ""]), end="")
    print(f"{out}: {len(cases)} cases of {len({case.patient for case in cases})} patients")


@app.command()
def phantom(
    out: OutFolder,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other seeds give other people.")] = 0,
    train: Annotated[int, typer.Option("--train", min=1, help="Training patients a site.")] = 16,
    val: Annotated[int, typer.Option("--val", min=0, help="Validation patients a site.")] = 2,
    test: Annotated[int, typer.Option("--test", min=0, help="Test patients a site.")] = 8,
    slices: Annotated[int, typer.Option("--slices", min=1, help="Slices a patient.")] = 6,
) -> None:
    """Write the embedded data set: an MR heart phantom of four sites, with labels and manifests."""
    from garda.data.manifest import Split
    from garda.data.phantom import write_phantom

    with arguments.open_console() as console:
        counts: dict[Split, int] = {"train": train, "val": val, "test": test}
        folder = write_phantom(out, seed=seed, patients=counts, slices=slices, progress=console.bar("phantom"))
        console.line(f"manifests: {folder}")
        if (train, val, test) != (16, 2, 8):
            console.line("pipelines/phantom.yaml is of the default numbers: give these manifests in a copy of it")


@app.command()
def ui(
    out: OutFolder,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    write: Annotated[bool, typer.Option("--write", help="Let the page rename, tag and delete runs.")] = False,
) -> None:
    """Open MLflow's UI over the runs of a folder, on 127.0.0.1, for whoever has the address with its token."""
    from garda.runs.mlflow import open_ui

    open_ui(out, port, print, write=write)


def main() -> None:
    """Entry point: errors a user can cause are one line and an exit code, everything else keeps its traceback."""
    gc.set_threshold(MANY_OBJECTS)  # imports alone make a million objects, hardly one of them in a cycle
    atexit.register(gc.freeze)  # and at the end there is nothing to search for
    stopping = Stopping()
    if LEADER in os.environ:  # the process that has started this one says when it ends
        stopping.ignore()
    files.remove_leftovers()
    try:
        with stopping.listening():
            raise SystemExit(app(obj=stopping, prog_name="garda", standalone_mode=False))
    except arguments.UsageError as error:
        print(arguments.describe_usage(error), end="", file=sys.stderr)
        raise SystemExit(GardaError.exit_code) from None
    except (GardaError, Interrupted) as error:
        print(*map(printable, str(error).splitlines()), sep="\n", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"{error.filename or 'disk'}: no space left on the device; free some space and run again", file=sys.stderr
        )
        raise SystemExit(GardaError.exit_code) from None
