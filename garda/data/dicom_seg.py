"""DICOM-SEG: a label map of a DICOM series as the standard's own object, for the clinic that sent the series.

It repeats the patient and the study of its source, as PS3.3 requires: the one file of garda that names a patient.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from garda import __version__
from garda.core import files
from garda.data import dicom
from garda.data.scan import ScanFile
from garda.data.task import Code, Task

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from highdicom.sr import CodedConcept

SUFFIX = ".seg.dcm"
PRIVATE_SCHEME = "99GARDA"  # of classes that task.yaml gives no code (PS3.16, section 8: private schemes begin with 99)
CODE_LENGTH = 16  # characters of a code value (value representation SH)
ANATOMY = Code(value="91723000", meaning="Anatomical Structure")  # the category of every segment (CID 7150)
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "ImageOrientationPatient")
# Attributes of type 2, which may be empty and which some programs take out altogether.
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
STUDY = ("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName")
REMEDY = "send the series as the scanner wrote it; its label map has been written"
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
    """Where the DICOM-SEG beside a label map goes.

    >>> dicom_seg_name(Path("maps/scan.nii.gz")).as_posix()
    'maps/scan.seg.dcm'
    """
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
        DataError: the headers lack what a segmentation has to repeat.
        RunFolderError: no space is left, or the folder cannot be written.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote what is in a header
        made = _build(array.transpose(2, 1, 0).astype(np.uint8), file, task, origin)
        with files.replacing(path, private=True) as temporary:
            made.save_as(temporary)


def _build(frames: np.ndarray, file: ScanFile, task: Task, origin: Origin) -> Segmentation:
    import highdicom
    import pydicom

    with dicom.series(file) as found:
        sources = [pydicom.dcmread(name, stop_before_pixels=True) for name in found.files]
    missing = next((name for name in NEEDED if any(name not in source for source in sources)), None)
    if missing is not None:
        raise file.error(f"cannot become a DICOM-SEG, its headers lack {missing}", REMEDY)
    try:
        for source in sources:
            for name in (*PATIENT, *STUDY):
                if name not in source:
                    setattr(source, name, "")
            source.decode()
            source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, in which every name can be written
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
    except (AttributeError, LookupError, TypeError, ValueError) as error:  # whose words may quote a header
        what = f"cannot become a DICOM-SEG, its headers do not fit ({type(error).__name__})"
        raise file.error(what, REMEDY) from None
    for name in ("PatientIdentityRemoved", "DeidentificationMethod"):
        if name in sources[0] and name not in made:
            setattr(made, name, sources[0][name].value)
    return made


def _segments(task: Task, origin: Origin) -> list[SegmentDescription]:
    import highdicom
    from pydicom.sr.codedict import codes

    def coded(code: Code) -> CodedConcept:
        return highdicom.sr.CodedConcept(code.value, code.scheme, code.meaning)

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
            segmented_property_category=coded(ANATOMY),
            segmented_property_type=coded(task.codes.get(name) or _private(name, number)),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(task.classes[1:], start=1)
    ]


def _private(name: str, number: int) -> Code:
    """The class's name where it fits, else its beginning and its number."""
    value = name if len(name) <= CODE_LENGTH else f"{name[: CODE_LENGTH - 4]}_{number:03}"
    return Code(value=value, scheme=PRIVATE_SCHEME, meaning=name[:64])
