"""One tensor's place in DRAM."""

from pydantic import BaseModel, ConfigDict, Field

from profiles.schema import OperatingPoint


class Placement(BaseModel):
    """Cells ``first_cell .. first_cell + cells - 1`` of the module hold the tensor, bit ``k`` in the ``k``-th.

    Attributes:
        tensor: the tensor's name.
        partition: name of the partition that holds it.
        first_cell: module cell index (`profiles.geometry`), at the start of a burst.
        cells: bits reserved.
        point: operating point that the tensor is read at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tensor: str
    partition: str
    first_cell: int = Field(ge=0)
    cells: int = Field(gt=0)
    point: OperatingPoint
