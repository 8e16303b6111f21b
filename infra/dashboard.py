"""How the dashboard is served: Streamlit on one address, nothing fetched, nothing reported."""

import os
import sys
from collections.abc import Mapping
from typing import NoReturn

from infra import postgres
from infra.orphans import MARK
from infra.service import QUIET, ROOT
from infra.settings import Settings

OPTIONS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "server.maxUploadSize": "1",
    "server.enableStaticServing": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "client.showErrorDetails": "none",  # what went wrong is in the log; a browser need not know our paths
    "theme.base": "light",
    "theme.primaryColor": "#00567d",
    "theme.textColor": "#1b1f24",
    "theme.linkColor": "#00567d",
    "theme.secondaryBackgroundColor": "#f3f5f7",
}
KEPT = ("PATH", "HOME", "USER", "LANG", "LANGUAGE", "LC_", "TZ", "TMPDIR", "PGSSL", "PGHOSTADDR", "STREAMLIT_", MARK)
"""Variables of ours, or beginnings of their names, that the server keeps: none of them is a secret of the stack."""


def environment(settings: Settings, given: Mapping[str, str]) -> dict[str, str]:
    """What the server's process gets of ours: where the views are, the password of their role, and no other secret."""
    file = passfile(settings, given)
    return {
        **{name: value for name, value in given.items() if name.startswith(KEPT)},
        **QUIET,
        **({"PGPASSFILE": file} if file else {}),
        "HEADRACE_READER_URL": settings.reader_url or "",
        "PYTHONPATH": str(ROOT),
    }


def passfile(settings: Settings, given: Mapping[str, str]) -> str:
    """The password file for the server, "" for none: of ours the reader's own; one of the user's stays as it is."""
    file = given.get("PGPASSFILE", "")
    return str(postgres.reader_passfile(settings)) if file == str(postgres.passfile(settings)) else file


def serve(host: str, port: int, settings: Settings) -> NoReturn:
    """Become the dashboard's server, at http://host:port."""
    options = {**OPTIONS, "server.address": host, "server.port": str(port)}
    flags = [f"--{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "dashboards" / "entry" / "start.py"), *flags]
    os.execve(command[0], command, environment(settings, os.environ))  # noqa: S606 - our own command, no shell
