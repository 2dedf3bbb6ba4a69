import numpy as np
import pytest

from lib.serving.dicomweb.stored_values import StoredValues


@pytest.mark.parametrize("values, dtype, intercept", [
    (np.int16([-32768, 32767]), "<i2", "0"), (np.uint16([0, 65535]), "<u2", "0"), (np.float32([-1024, 3071]), "<i2", "0"),
    (np.int32([-40000, 20000]), "<u2", "-40000.0"), (np.int64([10**9, 10**9 + 65535]), "<u2", "1000000000.0"),
])  # fmt: skip
def test_whole_numbers_that_fit_are_exact(values, dtype, intercept):
    stored = StoredValues.of(values.reshape(1, 1, -1))
    assert (stored.dtype, float(stored.intercept), stored.is_exact) == (dtype, float(intercept), True)
    back = np.frombuffer(stored.encode(values.reshape(1, -1)), dtype) * float(stored.slope) + float(stored.intercept)
    np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize("low, high", [(0.0, 1.0), (-1e-9, 3e-9), (1e30, 2e30), (-0.5, 70000.25), (5.5, 5.5), (-40000, 4e9)])
def test_other_values_are_rounded_to_one_of_65536_steps(low, high):
    values = np.linspace(low, high, 1001, dtype=np.float32).reshape(1, -1)
    stored = StoredValues.of(values[None])
    back = np.frombuffer(stored.encode(values), stored.dtype) * float(stored.slope) + float(stored.intercept)
    step = (float(values.max()) - float(values.min())) / 65535
    assert np.abs(back - values).max() <= 0.51 * step + 1e-6 * abs(high) and max(len(stored.slope), len(stored.intercept)) <= 16
