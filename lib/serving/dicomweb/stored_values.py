"""The values of a volume as the 16-bit integers of DICOM: whole numbers exactly wherever they fit, others by slope and intercept."""

from dataclasses import dataclass

import numpy as np
from pydicom.valuerep import format_number_as_ds

_STEPS = 65535  # Between the smallest and the largest value of 16 bits.


@dataclass(frozen=True)
class StoredValues:
    """How the values of a volume are stored: value = stored * slope + intercept.

    Attributes:
        dtype: "<i2" or "<u2".
        slope, intercept: Numbers as texts of at most 16 characters, as DICOM has them.
        is_exact: Whether no value is rounded.
    """

    dtype: str
    slope: str = "1"
    intercept: str = "0"
    is_exact: bool = True

    @classmethod
    def of(cls, array: np.ndarray) -> "StoredValues":
        """Return how the values of a volume are stored best.

        >>> StoredValues.of(np.array([-1024, 3071])), StoredValues.of(np.array([0, 70000])).is_exact
        (StoredValues(dtype='<i2', slope='1', intercept='0', is_exact=True), False)
        """
        low, high = float(array.min()), float(array.max())
        if _holds_whole_numbers(array):
            for dtype in ("<i2", "<u2"):
                limits = np.iinfo(dtype)
                if limits.min <= low and high <= limits.max:
                    return cls(dtype)
            if high - low <= _STEPS and abs(low) < 1e15:
                return cls("<u2", intercept=format_number_as_ds(low))
        step = (high - low) / _STEPS or 1.0
        return cls("<u2", format_number_as_ds(step), format_number_as_ds(low), is_exact=high == low)

    def encode(self, values: np.ndarray) -> bytes:
        """Return the stored values of one slice (rows, columns), row by row."""
        slope, intercept = float(self.slope), float(self.intercept)
        if slope != 1 or intercept != 0:
            limits = np.iinfo(self.dtype)
            values = np.clip(np.rint((values.astype(np.float64) - intercept) / slope), limits.min, limits.max)
        return np.ascontiguousarray(values, self.dtype).tobytes()


def _holds_whole_numbers(array: np.ndarray) -> bool:
    """Return whether all values are whole numbers; this goes slab by slab, because it ends at the first fraction."""
    return array.dtype.kind in "ui" or all((slab == np.rint(slab)).all() for slab in array)
