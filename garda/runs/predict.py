"""Segment new images with what a run has learnt."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from garda.core import files
from garda.core.console import Console
from garda.core.errors import DataError, GardaError, RunFolderError, raise_all
from garda.data import checks, dicom, dicom_seg, layouts, readers
from garda.data.dicom_seg import Origin
from garda.data.manifest import Case
from garda.data.scan import ScanFile, split_archive
from garda.data.task import Task
from garda.data.volume import Volume, in_stored_order, prediction_name, read_volume, write_label_map
from garda.handover import load, verify
from garda.handover.load import OTHER, LoadedPackage
from garda.handover.onnx import LIBRARY, OnnxNetwork, require
from garda.handover.signing import Trusted
from garda.handover.verify import Verified
from garda.methods.knowledge import Knowledge
from garda.models import inference
from garda.training import loop

UNFINISHED = ".unfinished.json"  # in the output of a prediction that has not ended: what was asked for


@dataclass(frozen=True)
class Scan:
    """An image, and where its label map goes."""

    image: Path
    target: Path

    @property
    def case(self) -> Case:
        """The image as a manifest would name it."""
        return Case(self.image.name, "", "test", str(self.image.absolute()), (), (), str(self.image))


def predict(
    source: Path,
    images: Sequence[Path],
    out: Path,
    console: Console,
    stage: int | None = None,
    domain: str | None = None,
    trusted: Collection[Trusted] = (),
    expected: str = "",
    onnx: bool = False,
    strict: bool = False,
    volumes: Path | None = None,
) -> list[Path]:
    """Write a label map for each image, in the image's own space; for DICOM also a DICOM-SEG, where highdicom is there.

    Args:
        source: a package, as a folder or a zip file, or a run folder.
        images: image files, folders with one DICOM series each, zipped studies, or folders of these.
        out: where the label maps go.
        console: tells the user.
        stage: of a run folder, the stage whose segmenter is used; None for the last one learnt.
        trusted: whose signatures count, see :func:`garda.handover.signing.check_signatures`.
        domain: the domain that the images come from; None for the last one met, ``other`` for one that has not been
            met. It decides something for methods that keep parameters for each domain.
        expected: the package's digest, as another channel has told it; empty for not asking.
        onnx: let ONNX Runtime compute the network, in float32, in place of torch.
        strict: refuse a folder of which a file would be left out, in place of telling it.
        volumes: CSV that is written, a row for each label map and class; None for none.

    Returns:
        the files written, in the order of ``images``: a label map each, and the DICOM-SEG beside it.

    Raises:
        RunFolderError: the run has no such stage, or has not learnt it yet.
        PackageError: there is no package, or it is damaged.
        ConfigError: no such domain has been met, or ONNX Runtime is missing.
        GardaError: images cannot be read, a label map exists already, or two would have one name; nothing has been
            written. Or a series cannot become a DICOM-SEG, which is told after every label map has been written.
    """
    _check(images, volumes, onnx)
    scans = _name_outputs(images, out)
    _tell_left(images, scans, strict, console)
    with verify.open_package(source, trusted, expected, stage) as found:
        learnt = load.load_package(found.folder)
    asked = {"package": found.digest, "domain": domain, "onnx": onnx, "images": [*map(str, images)]}
    to_do = _find_unfinished(out, scans, asked)
    console.line(_describe_choice(learnt.knowledge, domain))
    domain, task = load.choose_domain(learnt.knowledge, domain), learnt.method.task
    answer = _prepare(learnt, domain, onnx)
    raise_all(checks.check_cases([scan.case for scan in to_do], task, Path(), console))
    origin = _find_origin(found, domain, scans, console)
    _begin(out, asked)
    problems = _write_all(to_do, task, answer, origin, console)
    (out / UNFINISHED).unlink()
    if volumes is not None:
        _write_volumes([scan.target for scan in scans], task, volumes)
    raise_all(problems)
    return [file for scan in scans for file in (scan.target, dicom_seg.dicom_seg_name(scan.target)) if file.exists()]


def _find_origin(found: Verified, domain: str, scans: Sequence[Scan], console: Console) -> Origin | None:
    """What a DICOM-SEG says of who made it; None where none can be written."""
    if dicom_seg.can_write_dicom_seg():
        return Origin(found.setup.name, found.setup.method, found.digest, domain)
    if any(dicom.is_dicom(scan.image) for scan in scans):
        console.line('no DICOM-SEG is written, highdicom is missing: pip install "garda[dicom]"')
    return None


def _write_volumes(maps: Sequence[Path], task: Task, file: Path) -> None:
    """How large each class is, by the label maps as they were written: voxels, and ml where there is a scale."""
    rows = []
    for path in maps:
        stored = readers.read_stored(ScanFile(path, "label map", str(path)), palette=True)
        size = None if stored.header is None else abs(float(np.linalg.det(stored.affine[:3, :3]))) / 1000
        counts = np.bincount(stored.pixels.astype(int).ravel(), minlength=len(task.classes))
        for name, count in [*zip(task.classes, counts.tolist(), strict=True)][1:]:
            rows.append((path.name, name, count, "" if size is None else f"{count * size:.3f}"))
    files.write_csv(file, ("label_map", "class", "voxels", "ml"), rows, private=True)


def _tell_left(images: Sequence[Path], scans: Sequence[Scan], strict: bool, console: Console) -> None:
    """What of the given folders is no image that garda reads."""
    for folder in (image for image in images if image.is_dir() and not dicom.is_series(image)):
        left = layouts.find_left(folder, [scan.image for scan in scans])
        for line in layouts.tell_left(left, strict, folder):
            console.line(line)


def _begin(out: Path, asked: Mapping[str, object]) -> None:
    """Note what is asked for, so that the same command goes on; the files will bear the names of images."""
    with files.writing(out):
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_json(out / UNFINISHED, asked)


def _find_unfinished(out: Path, scans: Sequence[Scan], asked: Mapping[str, object]) -> list[Scan]:
    """The scans that are left to do, where the same command was stopped before; else all, and none may be there."""
    if (out / UNFINISHED).exists() and files.read_json(out / UNFINISHED) == asked:
        return [scan for scan in scans if not scan.target.exists()]
    for scan in scans:
        for file in (scan.target, dicom_seg.dicom_seg_name(scan.target)):
            if file.exists():
                raise DataError(file, "exists already", "give another --out folder, or remove it")
    return [*scans]


def _describe_choice(knowledge: Knowledge, domain: str | None) -> str:
    """Whose scans the images are taken for; what else there was, where nobody has chosen."""
    chosen = load.choose_domain(knowledge, domain)
    others = ", ".join(name for name in (*knowledge.domains, OTHER) if name != chosen)
    return f"read as scans of {chosen}" + ("" if domain else f", the last site met; --domain for others': {others}")


def _check(images: Sequence[Path], volumes: Path | None, onnx: bool) -> None:
    if volumes is not None and volumes.exists():
        raise RunFolderError(volumes, "exists already", "give another name, or remove it")
    if onnx:
        require("--runtime onnx", LIBRARY)
    missing = [image for image in images if not (split_archive(image) or (image,))[0].exists()]
    raise_all([DataError(image, "does not exist", "check the path") for image in missing])


def _below(image: Path) -> list[tuple[Path, str]]:
    """An image with its label map's name; a folder that is no DICOM series stands for all images below it.

    Raises:
        DataError: it holds none, or label maps beside them.
    """
    if not image.is_dir() or dicom.is_series(image):
        return [(image, prediction_name(image))]
    layouts.refuse_labels(image)
    found = [(path, key.replace("/", "_") + _suffix(path)) for key, path in layouts.find_images(image)]
    if not found:
        raise DataError(image, "is a folder without an image or a DICOM series", "check the path")
    return found


def _suffix(image: Path) -> str:
    """What a label map's name ends with."""
    name = prediction_name(image)
    return next(end for end in (".nii.gz", ".nii", ".png") if name.endswith(end))


def _name_outputs(images: Sequence[Path], out: Path) -> list[Scan]:
    scans: dict[Path, Scan] = {}
    for image, name in (pair for each in images for pair in _below(each)):
        target = out / name
        if target in scans:
            what = f"would be written to {target}, as another image"
            raise DataError(image, what, "predict them apart, or give the folder that holds both")
        scans[target] = Scan(image, target)
    return [*scans.values()]


def _prepare(learnt: LoadedPackage, domain: str, onnx: bool) -> Callable[[Volume], Tensor]:
    """What gives a volume of a domain its label map."""
    method, knowledge = learnt.method, learnt.knowledge
    own = method.network_for(knowledge, domain)
    network = OnnxNetwork(own, method.task.channels) if onnx else method.compute.prepare(own).eval()
    return lambda volume: inference.segment(
        network, method.standardise(knowledge, volume, domain), method.task, method.compute, knowledge.largest
    )


def _write_all(
    scans: Sequence[Scan], task: Task, answer: Callable[[Volume], Tensor], origin: Origin | None, console: Console
) -> list[GardaError]:
    """Label maps, and a DICOM-SEG beside those of DICOM unless ``origin`` is None; the next scan is read meanwhile.

    A label map is written last, so that one that is there says that its scan is done.
    """
    problems: list[GardaError] = []
    progress = console.bar("predict")
    with (
        loop.silenced(),
        loop.prefetch(scans, lambda scan: read_volume(scan.case, task, Path(), with_label=False)) as volumes,
    ):
        for index, (scan, volume) in enumerate(zip(scans, volumes, strict=True)):
            label_map = answer(volume)
            if origin is not None and dicom.is_dicom(scan.image):
                file, path = ScanFile(scan.image, "image", str(scan.image)), dicom_seg.dicom_seg_name(scan.target)
                try:
                    dicom_seg.write_dicom_seg(in_stored_order(label_map, volume), file, task, path, origin)
                except DataError as error:
                    problems.append(error)
            write_label_map(label_map, volume, scan.target)
            progress(index + 1, len(scans))
    return problems
