"""The benchmark's figures have the shape that every benchmark of this project prints."""

from eden.injection_bench import figures


def test_figures_are_complete_and_consistent() -> None:
    found = list(figures(elements=4000, repeats=3))
    names = [figure["name"] for figure in found]
    assert sum("thread" in name for name in names) == 12
    assert sum("one draw a bit" in name for name in names) == 2
    assert sum("profile cells" in name for name in names) == 1
    for figure in found:
        assert set(figure) == {"bench", "name", "value", "unit", "bound", "ratio", "goal", "met"}
        assert figure["value"] > 0
        assert figure["ratio"] == figure["value"] / figure["bound"]
        assert figure["met"] == (figure["ratio"] <= figure["goal"])
