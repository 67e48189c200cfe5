"""One tensor's place in DRAM."""

from pydantic import BaseModel, ConfigDict, Field

from profiles.schema import OperatingPoint


class Piece(BaseModel):
    """Cells ``first_cell .. first_cell + cells - 1`` of a module, and how they are read.

    Attributes:
        partition: name of the partition that they lie in.
        first_cell: cell index (`profiles.geometry`) over the mapping's modules, one after the other, at the start of a
            burst.
        cells: bits reserved.
        point: operating point that they are read at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    partition: str
    first_cell: int = Field(ge=0)
    cells: int = Field(gt=0)
    point: OperatingPoint


class Placement(Piece):
    """The cells that hold a tensor, bit ``k`` in the ``k``-th: its first piece, and those that it goes on in.

    Attributes:
        tensor: the tensor's name.
        more: further pieces, in the order of the tensor's bits; empty where it lies in one piece.
    """

    tensor: str
    more: tuple[Piece, ...] = ()

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All of its pieces, in the order of the tensor's bits."""
        return (self, *self.more)

    @property
    def partitions(self) -> list[str]:
        """Names of the partitions that its pieces lie in, each once."""
        return sorted({piece.partition for piece in self.pieces})

    @property
    def reserved(self) -> int:
        """Bits reserved in all pieces."""
        return sum(piece.cells for piece in self.pieces)
