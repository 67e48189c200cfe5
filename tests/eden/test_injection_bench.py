"""The benchmark's figures have the shape that every benchmark of this project prints."""

from eden.injection_bench import figures


def test_figures_are_complete_and_consistent() -> None:
    found = figures(elements=4000, repeats=3)
    assert [(figure["name"].split(",")[0]) for figure in found] == ["fp32"] * 3 + ["int8"] * 3
    for figure in found:
        assert set(figure) == {"bench", "name", "value", "unit", "bound", "ratio", "goal", "met"}
        assert figure["ratio"] == figure["value"] / figure["bound"]
        assert figure["met"] == (figure["ratio"] <= figure["goal"])
