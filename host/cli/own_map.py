"""A module's own cells as memory of any bit error rate: what a network is boosted with for one DIMM alone."""

import math
from collections.abc import Mapping
from functools import cached_property

from eden.approximate import ApproximateNetwork
from eden.mapping import DramMapping
from eden.memory import ApproximateMemory
from host.cli import stages
from host.cli.inference import moved_to
from host.cli.modules import Footprint, Modules
from profiles.errors import PlanError
from profiles.schema import OperatingPoint
from profiles.storage import Profile


class OwnMap:
    """The cells that a network lies in, as a profile knows them; every operating point reads the same ones.

    Called with a rate and a seed, it gives the memory at the operating point whose bit error rate there is nearest: the
    same cells for every seed, which draws what they do in each read.

    Args:
        profile: of the module; its grid says how fine rates can be told apart.
        network: calibrated; it takes the rows with fewest errors at the harshest operating point.
        images: batch size that IFMs have room for.

    Raises:
        CapacityError, PlanError: the network does not fit the known cells, or no operating point has errors there.
    """

    def __init__(self, profile: Profile, network: ApproximateNetwork, images: int) -> None:
        self._modules = Modules([profile])
        self._points = sorted(self._modules.common_points(), key=str)
        harshest = min(self._points, key=lambda point: (point.vdd_mv, point.trcd_ps))
        anywhere = {tensor.name: 1.0 for tensor in network.tensors()}
        self._mapping = stages.map_at(network, anywhere, self._modules.partitions(), harshest, images)

    def __call__(self, ber: float, seed: int) -> ApproximateMemory:
        return self._nearest(ber).memory(seed)

    def measured_ber(self, ber: float) -> float:
        """Bit error rate of the memory that is given where ``ber`` is asked for; 0 stays 0."""
        return self._nearest(ber).mean_ber if ber else 0.0

    @property
    def highest_ber(self) -> float:
        """Of the operating point with most errors."""
        return max(place.mean_ber for place in self._places.values())

    def _nearest(self, ber: float) -> Footprint:
        return min(self._places.values(), key=lambda place: abs(math.log(place.mean_ber / ber)))

    @cached_property
    def _places(self) -> Mapping[OperatingPoint, Footprint]:
        places = {point: self._modules.footprint(self._at(point)) for point in self._points}
        erring = {point: place for point, place in places.items() if place.mean_ber > 0}
        if not erring:
            raise PlanError(
                f"no operating point of {self._modules.profiles[0].path} has errors where the network lies; scan "
                "deeper into the cliff, or boost with an error model (--model)"
            )
        return erring

    def _at(self, point: OperatingPoint) -> DramMapping:
        return moved_to(self._mapping, lambda _: point)
