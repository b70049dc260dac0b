"""Label maps from PNG bytes: no damaged byte and no missing one passes, whatever Pillow would accept."""

import io

import numpy as np
import pytest
from PIL import Image

from evaluation.png import NotALabelMap, decode_labels


@pytest.mark.parametrize("mode", ["P", "L"])
def test_every_damaged_or_missing_byte_is_refused(mode):
    labels = np.random.default_rng(0).integers(0, 4, (40, 60)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(labels).convert(mode).save(file, "PNG")
    data = file.getvalue()
    assert (decode_labels(data) == labels).all()
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        for wrong in (bytes(damaged), data[:place]):
            with pytest.raises(NotALabelMap):
                decode_labels(wrong)
