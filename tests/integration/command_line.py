"""The command line without the seconds that a process of its own takes to import it."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from subprocess import CompletedProcess

import pytest

from infra import cli


def headrace(*words: str, **surroundings: str) -> CompletedProcess[str]:
    """What `headrace words…` prints and ends with, given these variables; `tests/e2e` starts it as people do."""
    out, err, code = StringIO(), StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["headrace", *words])
        for name, value in surroundings.items():
            patch.setenv(name, value)
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return CompletedProcess(list(words), code, out.getvalue(), err.getvalue())
