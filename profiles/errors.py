"""The toolkit's one exception hierarchy.

Every message carries the value that was wrong, the limit it broke and what to do next; the command line prints it
as one line and exits with status 1.
"""


class EdenError(Exception):
    """Root of everything this toolkit raises on purpose."""


class GeometryError(EdenError):
    """An address or a shape does not fit the DRAM's geometry."""


class ProfileError(EdenError):
    """A profile is truncated, foreign, of a future version, or does not reconcile with itself."""


class FitError(EdenError):
    """The data do not determine the error model that was asked for."""


class SurfaceError(EdenError):
    """An operating point is outside what was measured, or the measurements contradict each other."""


class ModelError(EdenError):
    """An error model's file is damaged, or the model cannot describe what was asked of it."""


class PlanError(EdenError):
    """A plan holds an unknown key, an impossible value, or asks for what the board cannot do."""


class ProgramError(EdenError):
    """A test-engine program cannot be encoded, or the engine refused or faulted on it."""


class BoardError(EdenError):
    """The board or a device on it did not answer as it must."""


class LinkError(BoardError):
    """The link to the board timed out, was cut, or delivered data that fail their check."""


class UnacknowledgedError(LinkError):
    """The link cannot tell whether the board took a write, which must not be done twice."""


class RailError(BoardError):
    """A supply voltage is outside its hard limits, or did not read back as it was set."""


class TemperatureError(BoardError):
    """A temperature is outside its limits, was not reached or did not hold, or its sensor or controller is gone."""


class NetworkError(EdenError):
    """A network, checkpoint or data set does not fit what was asked of it."""


class CapacityError(EdenError):
    """Tensors do not fit the DRAM partitions they may be placed in."""


class SweepError(EdenError):
    """The workers that share a study's tasks cannot be reached, or die."""
