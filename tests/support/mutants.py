"""Damaged copies of scans, and what reading them comes to; run by ``test_damaged.py`` in a process of its own.

python -m tests.support.mutants FOLDER SEED COUNT

For each of FOLDER's samples in turn a damaged copy is read, written as a label map where it can be, and forgotten.
Whatever is neither a value nor an error of one line, takes more than ``SECONDS`` or more than ``BYTES`` ends the
process, the copy still there. The last line counts the rest by format: values, and refusals.
"""

import collections
import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from garda.core.errors import GardaError
from garda.data import volume
from garda.data.manifest import Case
from garda.data.task import Task
from garda.data.volume import Volume

SECONDS, BYTES = 10, 2 * 2**30
TASK = Task(name="t", classes=("background", "organ", "lesion"), size=(16, 16), spacing_mm=(1.0, 1.0))
SHAPE = (14, 12, 5)
HEADERS = {".nii": 400, ".gz": 60, ".png": 60, ".tif": 400, ".mha": 400, ".mhd": 400, "series": 900, ".zip": 200}


def write_slice(
    path: Path, index: int, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **more: object
) -> None:
    """One slice of an axial CT series, (rows, columns), 5 mm above that of the index before."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{index + 1}"
    data.SeriesInstanceUID, data.FrameOfReferenceUID, data.InstanceNumber = "1.2.3", "1.2.4", index + 1
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *pixels.shape, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
    data.PixelSpacing, data.SliceThickness = [0.8, 1.2], 5
    data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [3, -7, 5 * index]
    for name, value in more.items():
        setattr(data, name, value)
    data.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def write_samples(folder: Path) -> None:
    """A scan of a kind each: values 0 to 2, so that it is a label too."""
    array = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.int16)
    affine = np.diag([1.2, 0.8, 5.0, 1.0])
    for name, kind in (("a.nii", nib.Nifti1Image), ("b.nii.gz", nib.Nifti1Image), ("c.nii", nib.Nifti2Image)):
        nib.save(kind(array, affine), folder / name)
    itk = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    for name, packed in (("d.mha", False), ("e.mha", True), ("f.mhd", False)):
        sitk.WriteImage(itk, folder / name, packed)
    flat = Image.fromarray(array[:, :, 0].astype(np.uint8))
    flat.save(folder / "g.png")
    Image.fromarray(array[:, :, 0].astype(np.uint16)).save(folder / "h.png")
    flat.save(folder / "i.tif")
    for index, compression in enumerate(("tiff_deflate", "tiff_lzw", "packbits", "jpeg")):
        flat.save(folder / f"j{index}.tif", compression=compression)
    for index in range(4):
        plane = array[:, :, index].T
        write_slice(folder / "series" / f"{index}.dcm", index, plane)
        write_slice(folder / "rle_series" / f"{index}.dcm", index, plane, RLELossless)
        write_slice(folder / "deep_series" / f"{index}.dcm", index, plane, PixelRepresentation=index % 2)
    shutil.make_archive(str(folder / "study"), "zip", folder / "series")


def damage(content: bytes, random: np.random.Generator, head: int) -> bytes:
    """One to four bits or bytes of a file changed, mostly in its header; or its end lost; or a part of it twice."""
    changed, kind = bytearray(content), random.integers(8)
    if kind == 0:
        return content[: random.integers(len(content))]
    if kind == 1:
        start, length = random.integers(len(content)), int(random.integers(1, 64))
        return bytes(changed[: start + length] + changed[start:])
    for _ in range(random.integers(1, 5)):
        place = random.integers(min(head, len(content)) if kind < 6 else len(content))
        extreme = (changed[place] ^ (1 << random.integers(8)), 0, 0xFF, 0x7F, random.integers(256))
        changed[place] = extreme[random.integers(len(extreme))]
    return bytes(changed)


def read_image(path: Path, *labels: str) -> Volume:
    """A scan, with labels beside it."""
    case = Case("c", "p", "test", path.name, labels, (), "x.csv:2")
    return volume.read_volume(case, TASK, path.parent, with_label=bool(labels))


def read(path: Path, as_label: bool) -> None:
    """Read a copy, as an image or as its own label, and write what was read."""
    found = read_image(path, *[path.name] * as_label)
    label = found.image[:, 0].round().long() if found.label is None else found.label
    out = path.parent / f"out_{volume.prediction_name(path)}"
    volume.write_label_map(label, found, out)
    assert torch.equal(label, read_image(path, out.name).label)


def copy(samples: Path, name: str, work: Path) -> Path:
    """A sample in an empty folder, with its data file where it has one."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for sample in (samples / name, *samples.glob(f"{Path(name).stem}.raw")):
        (shutil.copytree if sample.is_dir() else shutil.copy)(sample, work / sample.name)
    return work / name


def main(folder: Path, seed: int, count: int) -> None:
    """See the module."""
    warnings.simplefilter("ignore")
    samples = folder / "samples"
    if not samples.exists():
        samples.mkdir(parents=True)
        write_samples(samples)
    names = sorted(path.name for path in samples.iterdir() if path.suffix != ".raw")
    found: collections.Counter[str] = collections.Counter()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for index in range(count):
        random = np.random.default_rng([seed, index])
        path = copy(samples, names[index % len(names)], folder / "work")
        victims = sorted(path.iterdir()) if path.is_dir() else sorted(path.parent.glob(f"{path.stem}*"))
        victim = victims[random.integers(len(victims))]
        victim.write_bytes(damage(victim.read_bytes(), random, HEADERS.get(path.suffix or "series", 400)))
        print(seed, index, path.name, file=sys.stderr, flush=True)
        signal.alarm(SECONDS)
        try:
            read(path, bool(random.integers(2)))
            found[f"{path.name} read"] += 1
        except GardaError as error:
            assert "\n" not in str(error), str(error)
            found[f"{path.name} refused"] += 1
        signal.alarm(0)
    print(dict(sorted(found.items())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
