"""The `eden` command: one subcommand a stage, and `eden run` for all of them."""

import sys

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # typer gives them no other name

from host.cli.console import complain
from host.cli.deferred import MARKUP, deferring
from host.cli.stopping import STOPPED, heed
from profiles.errors import EdenError

COMMANDS = {
    "scan": (
        "host.cli.scan:scan",
        "Sweep VDD x tRCD x pattern over a board, or find each bank's cliffs, and write an error profile.",
    ),
    "fit": (
        "host.cli.fit:fit",
        "Fit Error Models 0-3, and wordlines, bitlines and data together (4), to one operating point, and choose.",
    ),
    "train": ("host.cli.networks:train", "Train a baseline network on reliable memory."),
    "boost": (
        "host.cli.networks:boost",
        "Raise a network's error tolerance by curricular retraining against a module's errors (EDEN, section 1).",
    ),
    "tolerance": (
        "host.cli.networks:tolerance",
        "The bit error rates that a network tolerates, with a certificate (EDEN, section 2).",
    ),
    "map": (
        "host.cli.networks:map_",
        "Place every tensor at the least cost that meets the target over the profile's own cells (EDEN, section 3).",
    ),
    "infer": (
        "host.cli.networks:infer",
        "Classify the test set with every weight and IFM stored in, and read back from, the boards' DRAM.",
    ),
    "report": ("host.cli.run:report", "Write report.html again from a finished run's report.json and profile."),
    "run": ("host.cli.run:run", "All stages from one plan: scan, fit, train, boost, tolerance, map, infer, report."),
    "serve": (
        "host.cli.serve:serve",
        "Show a page with the scans that run, their heat maps as they fill in, profiles and reports.",
    ),
    "board": ("host.cli.board:board_app", "A board, the link to it, and its DRAM."),
    "profile": ("host.cli.profile:profile_app", "Look at an error profile, and hand it over."),
    "rail": ("host.cli.rail:rail_app", "The supply of a board's DRAM: look at it, move it, bring it back."),
    "study": (
        "host.cli.study:study_app",
        "Studies of the method and of what it saves: figures with their uncertainty and goals.",
    ),
    "temperature": (
        "host.cli.temperature:temperature_app",
        "The temperature of a board's DRAM: its controller, set and waited for, and left safe.",
    ),
    "trace": (
        "host.cli.trace:trace_app",
        "What a network reads and writes in DRAM on a platform, burst by burst.",
    ),
}

app = typer.Typer(
    name="eden",
    cls=deferring(COMMANDS),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
)


@app.callback()
def eden() -> None:
    """Characterise approximate DRAM, and run neural networks from it.

    The stages, in order: **scan** a board into an error profile, look at it with **profile**, **fit** error models
    to it, **train** a network, **boost** its error tolerance, measure that **tolerance**, **map** its tensors to DRAM,
    **infer** from that DRAM, **report**. **run** does them all from one plan and goes on where it was stopped.
    **study** says what all of it saves, **trace** replays a network's DRAM traffic, **board** what is at the other end
    of a link, **rail** what feeds the DRAM, **temperature** what heats it; **serve** shows scans while they run,
    on a page.
    """


def main() -> None:
    """Entry point: every failure is one line that says what to do, and a non-zero exit status."""
    heed()
    try:
        typer.main.get_command(app).main(standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except ClickException as error:
        complain(f"{error.format_message()} See --help.")
        sys.exit(error.exit_code)
    except EdenError as error:
        complain(str(error))
        sys.exit(1)
    except OSError as error:
        complain(f"{error}; what was finished is kept: mend it and run the same command again")
        sys.exit(1)
    except SystemExit as leaving:
        if leaving.code in STOPPED:
            complain(
                f"{STOPPED[leaving.code]}; run the same command again: scans, runs, studies and boosting go on where "
                "they stopped"
            )
        raise


if __name__ == "__main__":
    main()
