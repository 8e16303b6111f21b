"""What Prefect's processes log: as it is shipped, but for websockets, which writes passwords and headers at DEBUG."""

import importlib.util
from pathlib import Path

MADE = "# Made by Headrace at every start; take this line away to keep what you write here.\n"
_LOGGERS = "\nloggers:\n"
_QUIET = "  websockets:\n    level: INFO\n\n"


def write_logging(home: Path) -> None:
    """Write Prefect's logging.yml into its home folder, where it looks for it; one of the user's own is left alone."""
    found = importlib.util.find_spec("prefect")
    if found is None or not found.submodule_search_locations:
        return
    file = home / "logging.yml"
    if file.is_file() and not file.read_text().startswith(MADE):
        return
    shipped = (Path(found.submodule_search_locations[0]) / "logging" / "logging.yml").read_text()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file.write_text(MADE + shipped.replace(_LOGGERS, _LOGGERS + _QUIET, 1))
