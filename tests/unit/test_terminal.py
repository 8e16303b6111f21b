"""The terminal: JSON is for programs, whatever the terminal can show."""

import io
import json
import re
from pathlib import Path

from rich.console import Console

from infra.terminal import print_json

ROOT = Path(__file__).resolve().parents[2]


def test_json_has_no_colour_no_line_broken_and_no_letter_that_an_encoding_may_lack() -> None:
    found = {"name": "naïve ≥ [bold]x[/] :smile: " + "long " * 60, "costs": [0.1, None, True]}
    written = io.StringIO()
    print_json(Console(file=written, force_terminal=True, color_system="truecolor", width=40), json.dumps(found))
    assert json.loads(written.getvalue()) == found
    assert written.getvalue().isascii()
    assert "\x1b" not in written.getvalue()


def test_nothing_prints_json_in_richs_own_colours() -> None:
    coloured = re.compile(r"\w\.print_" + r"json\((?!console)")
    for file in sorted((ROOT / "infra").glob("*.py")):
        assert not coloured.search(file.read_text(encoding="utf-8")), file.name
