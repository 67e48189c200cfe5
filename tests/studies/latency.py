"""The error models against real modules: ``python -m tests.studies.latency CSV``.

The file is the DDR3 data set of Chang et al., "Understanding Latency Variation in Modern DRAM Chips" (SIGMETRICS 2016),
in its published layout (repository CMU-SAFARI/DRAM-Latency-Variation-Study, BSD-3-Clause). It holds bit error rates of
banks, no addresses and no trials, so that of the error models only the data dependence can be put to it: Model 0 says
that a bank fails as often whatever is stored, Model 3 that its rate is linear in the share of ones.

Rows where tRP is swept are left out (bank 0 is untested in most and stands as 0), as are temperatures other than 20 °C.
Repeats are reduced to their median, since some depend on what was tested before them.
"""

import csv
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from profiles.errors import EdenError, ProfileError

ONES = {"0x0": 0.0, "0xaa": 0.5, "0xcc": 0.5, "0xff": 1.0}
BANKS, TEMPERATURE_C, NOMINAL_NS, TRCD_NS = 8, 20.0, 12.5, 5.0
CLEAN_NS = 10.0  # no module failed at this tRCD or a longer one
SHARE_OF_MODEL_3 = 28 / 30  # of all DIMMs of the study
PREDICTED_WITHIN = 0.03  # vendor C


@dataclass(frozen=True)
class Dimm:
    """One module at `TRCD_NS`.

    Attributes:
        vendor, label: the study's names.
        rates: float64[4, 8], median bit error rate by pattern (in the order of `ONES`) and bank.
        worst_clean: highest rate of any bank at `CLEAN_NS` or longer.
    """

    vendor: str
    label: str
    rates: npt.NDArray[np.float64]
    worst_clean: float

    @property
    def slope(self) -> float:
        """Change of a bank's rate from all zeros to all ones, over its mean: least squares, one for all banks."""
        share = np.array(list(ONES.values()))[:, None] - 0.5
        return float((share * self._relative).sum() / (share**2).sum() / BANKS)

    @property
    def bic_gain(self) -> float:
        """BIC of Model 0 less that of Model 3, with normal residuals around each bank's rate: positive for Model 3."""
        share = np.array(list(ONES.values()))[:, None] - 0.5
        residuals = ((self._relative - 1) ** 2).sum(), ((self._relative - 1 - self.slope * share) ** 2).sum()
        count = self._relative.size
        return float(count * np.log(residuals[0] / residuals[1]) - np.log(count))

    @property
    def excess(self) -> tuple[float, float]:
        """How far 0xAA and 0xCC lie above what Model 3 predicts from 0x00 and 0xFF, as a share of that."""
        zeros, checkered, paired, ones = self.rates.mean(axis=1)
        mix = (zeros + ones) / 2
        return float(checkered / mix - 1), float(paired / mix - 1)

    @property
    def _relative(self) -> npt.NDArray[np.float64]:
        relative: npt.NDArray[np.float64] = self.rates / self.rates.mean(axis=0)
        return relative


def dimms(path: Path) -> Iterator[Dimm]:
    """The modules of the file.

    Raises:
        ProfileError: the file cannot be read or lacks a column.
    """
    tested, clean = defaultdict(lambda: defaultdict(list)), defaultdict(float)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if float(row["tRP"]) != NOMINAL_NS or float(row["Temperature"]) != TEMPERATURE_C:
                    continue
                dimm, trcd = (row["VendorMask"], row["Label"]), float(row["tRCD"])
                rates = [float(row[f"Bank{bank}"]) for bank in range(BANKS)]
                if trcd >= CLEAN_NS:
                    clean[dimm] = max(clean[dimm], *rates)
                if trcd == TRCD_NS:
                    tested[dimm][row["Pattern"]].append(rates)
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"cannot read {path} ({error}); give the study's CSV file") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{path} lacks {error}; give the study's CSV file as it was published") from error
    for dimm, patterns in sorted(tested.items()):
        if set(ONES) <= set(patterns):
            rates = np.array([np.median(patterns[pattern], axis=0) for pattern in ONES])
            yield Dimm(*dimm, rates, clean[dimm])


def check(modules: list[Dimm]) -> None:
    """Raises AssertionError where the models do not describe the modules as the study's data do."""
    assert modules, "no module was tested with all four patterns"
    assert all(dimm.worst_clean == 0 for dimm in modules)
    wins = sum(dimm.bic_gain > 0 for dimm in modules)
    assert wins >= SHARE_OF_MODEL_3 * len(modules), f"Model 3 beats Model 0 in {wins} of {len(modules)} modules"
    worst = max(abs(each) for dimm in modules if dimm.vendor == "C" for each in dimm.excess)
    assert worst <= PREDICTED_WITHIN, f"vendor C is off by {worst:.1%}"


def main(arguments: list[str]) -> int:
    """Print the table and check it."""
    if len(arguments) != 1:
        print("usage: python -m tests.studies.latency CSV", file=sys.stderr)
        return 2
    try:
        modules = list(dimms(Path(arguments[0])))
    except EdenError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{'vendor':>6} {'module':>6} {'BER 0x00':>9} {'BER 0xFF':>9} {'BIC 0 - 3':>10} {'0xAA off':>9} {'0xCC off':>9}"
    )
    for dimm in modules:
        checkered, paired = dimm.excess
        zeros, ones = dimm.rates[0].mean(), dimm.rates[-1].mean()
        print(
            f"{dimm.vendor:>6} {dimm.label:>6} {zeros:9.3g} {ones:9.3g} {dimm.bic_gain:10.1f} "
            f"{checkered:9.1%} {paired:9.1%}"
        )
    print(f"Model 3 beats Model 0 in {sum(dimm.bic_gain > 0 for dimm in modules)} of {len(modules)} modules at 5 ns")
    check(modules)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
