"""The report of a run: one self-contained HTML file, plots inside."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #cf222e; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 70rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
td { white-space: nowrap; } th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
figure { margin: 1.2rem 0; } img { max-width: 100%; background: white; border-radius: 6px; }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
.note { color: #777; font-size: .92rem; }
"""


def percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f'<figure>{image}<figcaption class="note">{text}</figcaption></figure>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def summary_rows(report: dict[str, Any]) -> list[list[str]]:
    """The table that a run ends in: a row for each precision."""
    return [
        [
            precision,
            percent(r["baseline_accuracy"]),
            percent(r["accuracy_on_dram"]),
            f"{r['vdd_mv']} mV, {r['trcd_ps'] / 1000:g} ns",
            f"{r['ber']:.1e}",
            f"{r['ber_tolerated_before']:.1e} → {r['ber_tolerated_after']:.1e}",
            f"{r['flips_read']}",
            percent(r["accuracy_predicted"]),
            f"{r['next_point']['vdd_mv']} mV: {percent(r['next_point_accuracy'])}"
            if r["next_point"]
            else "none scanned",
            "yes" if r["target_met"] else "NO",
        ]
        for precision, r in report["precisions"].items()
    ]


SUMMARY_COLUMNS = [
    "precision",
    "baseline",
    "on DRAM",
    "operating point",
    "BER",
    "tolerated before → after",
    "flips read",
    "predicted",
    "next point",
    "target met",
]


def _curves(results: dict[str, Any], target: float) -> Figure:
    """Accuracy over BER: baseline, error-free control and boosted network."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for label, colour in (("before", "#888888"), ("control", "#d1842b"), ("after", "#1f6feb")):
        curve = results["curves"][label]
        ber, accuracy = [p["ber"] for p in curve], [100 * p["accuracy"] for p in curve]
        low, high = [100 * p["low"] for p in curve], [100 * p["high"] for p in curve]
        names = {"before": "baseline", "control": "error-free retraining", "after": "boosted"}
        axes.plot(ber, accuracy, "o-", ms=3, color=colour, label=names[label])
        axes.fill_between(ber, low, high, color=colour, alpha=0.15, lw=0)
    axes.axhline(100 * target, color="black", lw=0.8, ls="--", label="target")
    axes.set(xscale="log", xlabel="bit error rate", ylabel="validation accuracy, %")
    axes.set_ylim(bottom=max(0.0, 100 * target - 12))
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return figure


def _next_point(r: dict[str, Any]) -> str:
    point = r["next_point"]
    if point is None:
        return "<p>The grid holds no harsher point; scan deeper to see where the network fails.</p>"
    outcome = "misses the target" if r["next_point_fails"] else "still meets the target on these images"
    return (
        f"<p>The next harsher point, {point['vdd_mv']} mV, {point['trcd_ps'] / 1000:g} ns "
        f"(BER {point['ber']:.2e}), gives {percent(r['next_point_accuracy'])}: it {outcome}.</p>"
    )


def _section(precision: str, r: dict[str, Any]) -> str:
    mood = "good" if r["target_met"] else "bad"
    verdict = "meets" if r["target_met"] else "misses"
    sentences = (
        f'<p>The {precision} network <span class="{mood}">{verdict} the target</span>: '
        f"{percent(r['accuracy_on_dram'])} ({percent(r['accuracy_low'])} … {percent(r['accuracy_high'])}, 95 %) with "
        f"every weight and IFM read from DRAM at {r['vdd_mv']} mV and {r['trcd_ps'] / 1000:g} ns, against "
        f"{percent(r['baseline_accuracy'])} in reliable memory. "
        f"{r['flips_read']} bits were read wrong (BER {r['ber_observed']:.2e}). "
        f"{html.escape(r['error_model_sentence'])} predicts {percent(r['accuracy_predicted'])} "
        f"({percent(r['predicted_low'])} … {percent(r['predicted_high'])}), the profile's own cells "
        f"{percent(r['accuracy_predicted_cells'])}: "
        f"{'they agree' if r['prediction_agrees'] else 'they DISAGREE'} within their joint uncertainty.</p>"
        f"{_next_point(r)}"
        f"<p>{html.escape(r['certificate_sentence'])}</p>"
        f"<p>{html.escape(r['boost_sentence'])}</p>"
    )
    tensors = _table(
        ["tensor", "kind", "KiB", "tolerates BER", "partition", "BER there", "VDD, tRCD", "flips read"],
        [
            [
                *(t["name"], t["kind"], f"{t['bits'] / 8192:.1f}"),
                *("–" if t["ber_tolerated"] is None else f"{t['ber_tolerated']:.1e}", t["partition"]),
                *(f"{t['ber']:.1e}", f"{t['vdd_mv']} mV, {t['trcd_ps'] / 1000:g} ns", f"{t['flips_read']}"),
            ]
            for t in r["tensors"]
        ],
    )
    savings = _table(
        ["platform", "DRAM energy saved", "by any law", "DRAM time", "waits for DRAM", "speed-up", "by any share"],
        [
            [
                *(s["platform"], percent(s["energy_saved"])),
                f"{percent(s['energy_saved_low'])} … {percent(s['energy_saved_high'])}",
                f"-{percent(1 - s['dram_time_ratio'])}",
                percent(s["stall_share"]),
                *(percent(s["speed_up"]), f"{percent(s['speed_up_low'])} … {percent(s['speed_up_high'])}"),
            ]
            for s in r["savings"]
        ],
    )
    measured = _measured_power(r.get("rail_power"))
    curves = _figure(_curves(r, r["target_accuracy"]), "Accuracy over bit error rate, on validation images.")
    return f"<h2>{precision}</h2>{sentences}{curves}{tensors}{savings}{measured}"


def _measured_power(power: dict[str, float] | None) -> str:
    """What the rail took (`host.cli.rail_power`), in the place of a law."""
    if power is None:
        return "<p class=note>The supply measured no power: energy is by the datasheet's currents and a law of VDD.</p>"
    saved = 1 - power["reduced_mw"] / power["nominal_mw"]
    return (
        f"<p>The supply measured {power['nominal_mw']:.0f} mW at nominal VDD and {power['reduced_mw']:.0f} mW at this "
        f"point while the scan read the same cells at one tRCD: {percent(saved)} of the module's energy saved, by no "
        "law. Where it and the band above differ, this is what holds for such reads.</p>"
    )


def write_html(
    path: Path, report: dict[str, Any], figures: Sequence[tuple[str, Figure]], fits: Sequence[Sequence[str]]
) -> None:
    """Write the report; ``figures`` are (caption, figure) of the profile, ``fits`` rows of the error model table."""
    module = report["module"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>EDEN run on {html.escape(report['board'])}</title><style>{_STYLE}</style>",
        f"<h1>{html.escape(report['network'])} from approximate DRAM</h1>",
        f"<p class=note>{html.escape(module['manufacturer'])} {html.escape(module['part_number'])}, "
        f"{module['dram_type']}, board {html.escape(report['board'])}; nominal "
        f"{report['nominal_vdd_mv']} mV, {report['nominal_trcd_ps'] / 1000:g} ns; "
        f"at most {report['target_drop_pct']:g} % of {report['n_test']} test images lost; seed {report['seed']}.</p>",
        _table(SUMMARY_COLUMNS, summary_rows(report)),
        *(_section(precision, results) for precision, results in report["precisions"].items()),
        "<h2>The module</h2>",
        *(_figure(figure, caption) for caption, figure in figures),
        "<h2>Error models</h2>",
        _table(["operating point", "written at", "model", "log likelihood", "parameters", "BIC", "chosen"], fits),
        "<h2>What stands behind these figures</h2><ul>",
        *(f"<li>{html.escape(note)}</li>" for note in report["notes"]),
        "</ul></html>",
    ]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("\n".join(parts), encoding="utf-8")
    temporary.replace(path)
