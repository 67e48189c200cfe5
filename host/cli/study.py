"""`eden study`: measurements of the method, and of what it saves; each a command of its own."""

import typer

from host.cli.deferred import deferring

COMMANDS = {
    "boost": (
        "host.cli.boost_study:boost",
        "Tolerable BER of boosted networks over that of the unboosted, on Fashion-MNIST, bounding on in both.",
    ),
    "certificates": (
        "host.cli.certificates_study:certificates",
        "How often certificates of tolerance are wrong, and how much of the true BER they certify, by planted truth.",
    ),
    "fine": (
        "host.cli.fine_study:fine",
        "DRAM energy and latency saved by fine mapping over coarse mapping, both certified (EDEN, section 3).",
    ),
    "headline": (
        "host.cli.headline_study:headline",
        "Energy and time that EDEN's operating points save, networks x platforms x precisions, beside the paper's.",
    ),
    "mapping": (
        "host.cli.mapping_study:mapping",
        "Exact mapping against EDEN's greedy Algorithm 1: proven gap in limited time, and cost saved.",
    ),
    "models": (
        "host.cli.models_study:models",
        "What the error model that a network is boosted with, and the curriculum, are worth on the device itself.",
    ),
    "networks": (
        "host.cli.networks_study:networks",
        "Accuracy without errors, and tolerable BER, of every network's recipe: vision, speech and language.",
    ),
    "placement": (
        "host.cli.placement_study:placement",
        "Tolerable BER with the bits that matter on cells that hold, against the same network stored as it comes.",
    ),
    "sweep": (
        "host.cli.sweep_study:sweep",
        "Accuracy on validation images over bit error rate: network x precision x rate x seed.",
    ),
}

study_app = typer.Typer(cls=deferring(COMMANDS), no_args_is_help=True)


@study_app.callback()
def study() -> None:
    """Studies of the method and of what it saves: figures with their uncertainty and goals."""
