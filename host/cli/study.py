"""`eden study`: measurements of the method, and of what it saves; each a command of its own."""

import typer

from host.cli.boost_study import boost
from host.cli.certificates_study import certificates
from host.cli.fine_study import fine
from host.cli.headline_study import headline
from host.cli.mapping_study import mapping
from host.cli.models_study import models
from host.cli.networks_study import networks
from host.cli.placement_study import placement
from host.cli.sweep_study import sweep

study_app = typer.Typer(
    no_args_is_help=True, help="Studies of the method and of what it saves: figures with their uncertainty and goals."
)
study_app.command()(boost)
study_app.command()(certificates)
study_app.command()(fine)
study_app.command()(headline)
study_app.command()(mapping)
study_app.command()(models)
study_app.command()(networks)
study_app.command()(placement)
study_app.command()(sweep)
