"""Images at float64: what differs then is no rounding."""

from torch import Tensor

from gamlib.data import batches


class Double(batches.FromMemory):
    """Batches for a network at float64."""

    def _normalised(self, images: Tensor) -> Tensor:
        return super()._normalised(images).double()
