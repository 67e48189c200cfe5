"""How much of the error log a number of reads can fill."""

from hypothesis import given
from hypothesis import strategies as st

from gateware import errorlog

_BURST_BITS = st.sampled_from([32, 64, 128, 256, 512, 1024])


@given(st.integers(1, 10_000), _BURST_BITS)
def test_the_reserve_holds_the_worst_case(reads: int, burst_bits: int) -> None:
    """Every bit of every burst fails, each far from the last, beginning in a block that has no room left."""
    words = 2 + burst_bits // 32
    filled, left = 0, 0
    for _ in range(reads):
        if left < words:
            filled, left = filled + 1, errorlog.PAYLOAD_WORDS
        left -= words
    assert filled <= errorlog.worst_case_blocks(reads, burst_bits)


@given(st.integers(2, 4096), _BURST_BITS)
def test_reads_that_fit_need_no_more_blocks_than_given(blocks: int, burst_bits: int) -> None:
    fit = errorlog.reads_that_fit(blocks, burst_bits)
    assert errorlog.worst_case_blocks(fit, burst_bits) <= blocks
    assert errorlog.worst_case_blocks(fit + 1, burst_bits) > blocks
