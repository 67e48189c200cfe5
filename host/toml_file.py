"""TOML files that people write, checked by pydantic models, with errors that name the line to mend."""

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from profiles.errors import PlanError

LIMIT_BYTES = 1 << 20

Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a pydantic model.

    Raises:
        PlanError: the file cannot be read, is no TOML, or holds an unknown key or an impossible value.
    """
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise PlanError(f"{path} is larger than {LIMIT_BYTES} bytes; that is no plan or settings")
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read {path}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{path} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise PlanError(f"{path}: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{where}'; remove it or check its spelling"
    return f"'{where}': {message} (got {problem['input']!r})"
