"""What is segmented: the contents of a ``task.yaml``."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from garda.core.config import Config, Printable

LARGEST = 16_384  # pixels of a side
Groups = tuple[tuple[int, ...], ...]  # of classes; each group is one object


class Intensity(Config):
    """How a volume's intensities become numbers in [0, 1]; nothing here looks at a label.

    Two values become 0 and 1, and what lies outside is clipped: percentiles of the whole volume unless a window or
    z-scores are asked for.

    Attributes:
        percentiles: of the whole volume, all channels together.
        window: two values as stored, after rescaling: Hounsfield units of a CT.
        zscore: a floor; of the voxels above it, the mean less and plus three standard deviations.
        bias_field_correction: whether N4 evens out the coil's shading first.
    """

    percentiles: tuple[float, float] = (0.5, 99.5)
    window: tuple[float, float] | None = Field(default=None, exclude_if=lambda window: window is None)
    zscore: float | None = Field(default=None, exclude_if=lambda floor: floor is None)
    bias_field_correction: bool = False

    @model_validator(mode="after")
    def _one_scale(self) -> Intensity:
        if self.window is not None and self.zscore is not None:
            raise ValueError("window and zscore exclude each other")
        if self.window is not None and not -math.inf < self.window[0] < self.window[1] < math.inf:
            raise ValueError("window must grow")
        if self.window is not None and self.bias_field_correction:
            raise ValueError("bias_field_correction changes the values that a window is about")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Intensity:
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError("percentiles must grow and lie between 0 and 100")
        return self


class LabelFormat(Config):
    """How a case's label file or files become one map of class indices.

    Attributes:
        values: file value -> class index for files whose values are not class indices, such as {255: 1}.
        masks: names of the mask files that the manifest's ``label`` column lists, separated by ``;``. The i-th mask
            is painted as class i + 1 over the ones before it. Empty: the column holds one label map.
        slice_labelled_by: name of a mask; a slice in which it is empty counts as a slice without a label.
    """

    values: dict[int, int] = Field(default_factory=dict)
    masks: tuple[str, ...] = ()
    slice_labelled_by: str | None = None

    @field_validator("values", mode="before")
    @classmethod
    def _whole_keys(cls, values: object) -> object:
        """JSON, in which a run keeps its task, has no keys but text."""
        if not isinstance(values, dict):
            return values
        return {int(key) if isinstance(key, str) and key.isdecimal() else key: index for key, index in values.items()}

    @model_validator(mode="after")
    def _known_mask(self) -> LabelFormat:
        if self.slice_labelled_by is not None and self.slice_labelled_by not in self.masks:
            raise ValueError(f"slice_labelled_by names {self.slice_labelled_by!r}, which is not in label.masks")
        return self


class Code(Config):
    """What a class is, in words that other programs know: a coded concept (DICOM PS3.3, section 8).

    Attributes:
        value: the code, such as ``87878005``.
        scheme: who has given it, such as ``SCT`` for SNOMED CT; names that begin with ``99`` are private.
        meaning: the code in words.
    """

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(default="SCT", min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)


class Task(Config):
    """What is segmented, and on which grid: the contents of a ``task.yaml``.

    >>> task = Task(name="heart", classes=("background", "ventricle"), size=(64, 64), spacing_mm=(2.5, 2.5))
    >>> task.fit, task.plane, task.intensity.percentiles
    ('crop', 'axial', (0.5, 99.5))

    Attributes:
        name: the task's name.
        classes: class names, 256 at most; label value i means ``classes[i]``, the first is the background. They stand
            in the names of metrics, ``dice/<domain>/<class>``, and so have no ``/``.
        channels: image channels of the network; a grey image is repeated.
        size: (H, W) of the network's input, pixels.
        spacing_mm: (row, column) spacing to which slices are resampled; None keeps the image's own pixels.
        fit: ``crop`` cuts or pads every slice around its centre to ``size``; ``patch`` keeps larger slices, learns
            from random patches and predicts with a sliding window.
        plane: the anatomical plane of a slice; ``acquired`` slices along the stored third axis.
        any_orientation: True where a flipped or turned image is as likely as the original (microscopy).
        intensity: how intensities are scaled.
        label: how label files are read.
        codes: class name -> coded concept, for the segments of DICOM-SEG; a class without one gets a private code.
        same_patient_in_splits: the reason why one patient may stand in two splits; every table repeats it.
    """

    name: Printable
    classes: tuple[str, ...] = Field(min_length=2, max_length=256)
    channels: Literal[1, 3] = 1
    size: tuple[int, int]
    spacing_mm: tuple[float, float] | None = None
    fit: Literal["crop", "patch"] = "crop"
    plane: Literal["axial", "coronal", "sagittal", "acquired"] = "axial"
    any_orientation: bool = False
    intensity: Intensity = Intensity()
    label: LabelFormat = LabelFormat()
    codes: dict[str, Code] = Field(default_factory=dict)
    same_patient_in_splits: str | None = None

    @field_validator("channels", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        """``True`` equals 1, which is all that a Literal looks at."""
        return str(value) if isinstance(value, bool) else value

    @field_validator("classes")
    @classmethod
    def _distinct_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() or "/" in name or not name.isprintable() for name in names):
            raise ValueError("class names must not be empty, hold a '/' or what cannot be printed")
        if len(set(names)) < len(names):
            raise ValueError("class names must differ")
        return names

    @model_validator(mode="after")
    def _consistent(self) -> Task:
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ValueError("spacing_mm must be greater than 0")
        if any(side < 16 or side % 16 or side > LARGEST for side in self.size):
            raise ValueError(f"size must be multiples of 16 pixels, at least 16 and at most {LARGEST}")
        strange = next((name for name in self.codes if name not in self.classes[1:]), None)
        if strange is not None:
            raise ValueError(f"codes names {strange!r}, which is no foreground class")
        if self.label.masks and len(self.label.masks) != len(self.classes) - 1:
            raise ValueError(f"label.masks needs one mask for each of {len(self.classes) - 1} foreground classes")
        if any(not 0 <= value < len(self.classes) for value in self.label.values.values()):
            raise ValueError(f"label.values must map to class indices 0 to {len(self.classes) - 1}")
        return self
