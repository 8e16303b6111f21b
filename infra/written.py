"""YAML files that people write, as pydantic models; every complaint names line, column and field."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from domain.errors import Place, WorkloadError

M = TypeVar("M", bound=BaseModel)


def read_written(file: Path, model: type[M]) -> M:
    """Read and validate a file; raises WorkloadError."""
    try:
        parsed: Any = YAML(typ="rt").load(file.read_text(encoding="utf-8"))
        plain = _plain(parsed)
    except MarkedYAMLError as error:
        mark = cast(Any, error.problem_mark)  # pyright: ignore[reportUnknownMemberType]
        place = Place(str(file), mark.line + 1, mark.column + 1) if mark else Place(str(file))
        raise WorkloadError(place, f"this is not YAML: {error.problem}") from error
    except UnicodeDecodeError as error:
        raise WorkloadError(Place(str(file)), "the file is not UTF-8") from error
    except (YAMLError, OSError) as error:
        raise WorkloadError(Place(str(file)), f"the file cannot be read: {error}"[:300]) from error
    except RecursionError as error:
        raise WorkloadError(Place(str(file)), "the file is nested too deep, or into itself") from error
    try:
        return model.model_validate(plain)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        line, column = _position(parsed, problem["loc"])
        field = ".".join(map(str, problem["loc"])) or None
        raise WorkloadError(Place(str(file), line, column, field), problem["msg"]) from error


def _plain(value: Any) -> Any:
    if isinstance(value, CommentedMap):
        return {str(key): _plain(item) for key, item in cast(dict[Any, Any], value).items()}
    if isinstance(value, CommentedSeq):
        return [_plain(item) for item in cast(list[Any], value)]
    return value


def _position(parsed: Any, path: Sequence[str | int]) -> tuple[int, int]:
    """1-based line and column of the deepest part of a path that stands in the file."""
    line, column = 0, 0
    here: Any = parsed
    for part in path:
        position = getattr(here, "lc", None)
        if position is None:
            break
        try:
            found: Any = position.key(part) if hasattr(here, "keys") else position.item(part)
            line, column = found
        except (KeyError, TypeError, IndexError):
            break
        here = here[part]
    return line + 1, column + 1
