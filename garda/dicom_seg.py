"""DICOM-SEG: a label map of a DICOM series as the standard's own object, for the clinic that sent the series.

It repeats the patient and the study of its source, as PS3.3 requires: the one file of garda that names a patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from garda import __version__
from garda.dicom import series
from garda.files import replacing
from garda.scan_files import ScanFile
from garda.task import Code, Task

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

SUFFIX = ".seg.dcm"
PRIVATE_SCHEME = "99GARDA"  # of classes that task.yaml gives no code (PS3.16, section 8: private schemes begin with 99)
CODE_LENGTH = 16  # characters of a code value (value representation SH)
ANATOMY = Code(value="91723000", meaning="Anatomical Structure")  # the category of every segment (CID 7150)
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "ImageOrientationPatient")
SERIES_NUMBER = 1000  # added to that of the source, so that a viewer sorts them together


@dataclass(frozen=True)
class Origin:
    """What has made a segmentation.

    Attributes:
        sequence: the name of the sequence of domains.
        method: the method's name.
        digest: of the package.
        domain: whose network it was.
    """

    sequence: str
    method: str
    digest: str
    domain: str


def can_write_dicom_seg() -> bool:
    """Whether highdicom is installed (extra ``dicom``)."""
    return find_spec("highdicom") is not None


def dicom_seg_name(label_map: Path) -> Path:
    """Where the DICOM-SEG beside a label map goes."""
    return label_map.with_name(label_map.name.removesuffix(".gz").removesuffix(".nii") + SUFFIX)


def write_dicom_seg(array: np.ndarray, file: ScanFile, task: Task, path: Path, origin: Origin) -> None:
    """Write a label map as a binary segmentation (PS3.3, section A.51) that references every slice of its source.

    Args:
        array: (X, Y, Z) class indices in the order of the series; the background becomes no segment.
        file: the series: a folder or a zipped study.
        task: gives the segments' names and codes.
        path: appears whole or not at all.
        origin: stands in the object as equipment and algorithm.

    Raises:
        DataError: the headers lack what a segmentation has to repeat, or a file holds several frames.
        RunFolderError: no space is left, or the folder cannot be written.
    """
    import highdicom
    import pydicom

    frames = array.transpose(2, 1, 0).astype(np.uint8)
    with series(file) as names:
        sources = [pydicom.dcmread(name, stop_before_pixels=True) for name in names]
    missing = next((name for name in NEEDED if any(name not in source for source in sources)), None)
    if missing is not None:
        what = f"cannot become a DICOM-SEG, its headers lack {missing}"
        raise file.error(what, "send the series as the scanner wrote it; its label map has been written")
    if len(sources) != len(frames):
        what = "cannot become a DICOM-SEG, it has several frames in a file"
        raise file.error(what, "store every slice as its own file; its label map has been written")
    try:
        made = highdicom.seg.Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=_segments(task, origin),
            series_instance_uid=highdicom.UID(),
            series_number=SERIES_NUMBER + int(sources[0].get("SeriesNumber") or 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="garda",
            manufacturer_model_name=f"{origin.sequence}, {origin.method}"[:64],
            software_versions=__version__,
            device_serial_number=origin.digest,
            series_description=f"garda: {task.name}"[:64],
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # whose words may quote a header
        what = f"cannot become a DICOM-SEG, its headers do not fit ({type(error).__name__})"
        raise file.error(what, "send the series as the scanner wrote it; its label map has been written") from None
    for name in ("PatientIdentityRemoved", "DeidentificationMethod"):
        if name in sources[0] and name not in made:
            setattr(made, name, sources[0][name].value)
    with replacing(path) as temporary:
        made.save_as(temporary)


def _segments(task: Task, origin: Origin) -> list[SegmentDescription]:
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=f"garda {origin.method}",
        family=codes.DCM.ArtificialIntelligence,
        version=__version__,
        parameters={"package": origin.digest, "network": origin.domain},
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=_coded(ANATOMY),
            segmented_property_type=_coded(task.codes.get(name) or _private(name)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(task.classes[1:], start=1)
    ]


def _private(name: str) -> Code:
    return Code(value=name[:CODE_LENGTH], scheme=PRIVATE_SCHEME, meaning=name[:64])


def _coded(code: Code) -> CodedConcept:
    import highdicom

    return highdicom.sr.CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)
