"""Commands that are imported when they are called: `eden scan` and `eden rail` do not wait for PyTorch or pictures."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

import typer
from typer._click import Command, Context  # typer gives them no other name
from typer.core import TyperCommand, TyperGroup

MARKUP: Final = "markdown"


class Deferred(TyperCommand):
    """Stands for a command, or a group of commands, in the help of the group that it is in; fetches it when called."""

    def __init__(self, name: str, place: str, summary: str) -> None:
        super().__init__(name, help=summary, rich_markup_mode=MARKUP)
        self._name, self._place = name, place

    def fetched(self) -> Command:
        """The command itself."""
        module, _, attribute = self._place.partition(":")
        found = getattr(import_module(module), attribute)
        group = typer.Typer(rich_markup_mode=MARKUP)
        if isinstance(found, typer.Typer):
            group.add_typer(found, name=self._name)
        else:
            group.command(self._name)(found)
        return typer.main.get_group(group).commands[self._name]

    def make_context(
        self, info_name: str | None, args: list[str], parent: Context | None = None, **extra: Any
    ) -> Context:
        """The context that runs it, of the command itself."""
        return self.fetched().make_context(info_name, args, parent, **extra)


def deferring(commands: Mapping[str, tuple[str, str]]) -> type[TyperGroup]:
    """A class of groups for `typer.Typer` that have ``commands`` beside those of their own.

    Args:
        commands: by name, where each lies, MODULE:FUNCTION or MODULE:APP, and the first paragraph of its help.
    """

    class Group(TyperGroup):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            for name, (place, summary) in commands.items():
                self.add_command(Deferred(name, place, summary))

    return Group
