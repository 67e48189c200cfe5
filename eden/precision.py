"""Number formats by name, without PyTorch: a plan names them, and `eden scan` reads plans. See `eden.tensor_format`."""

from enum import StrEnum

from profiles.errors import NetworkError


class Precision(StrEnum):
    """Stored number format of weights and input feature maps."""

    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"

    @property
    def bits(self) -> int:
        """Stored bits an element."""
        return int("".join(filter(str.isdigit, self.value)))

    @property
    def is_integer(self) -> bool:
        return self.value.startswith("int")

    @property
    def largest_code(self) -> int:
        """Largest magnitude of a stored code; raises NetworkError for floating point, which has none."""
        if not self.is_integer:
            raise NetworkError(f"{self} has no integer codes; ask for int4, int8 or int16")
        return (1 << (self.bits - 1)) - 1

    def stored_bytes(self, elements: int) -> int:
        """Bytes that ``elements`` values occupy; an odd int4 count fills its last byte with a zero nibble."""
        return (elements * self.bits + 7) // 8
