"""Texts of data, prompts and models as HTML: always escaped, never read as HTML or Markdown."""

import html
import json
from collections.abc import Mapping
from typing import Any

import streamlit as st

MOST_CHARS = 4_000
"""Of one text on a page; what is longer is cut, and the cut is told."""
MOST_LINES = 400

STYLE = """
<style>
  .hr-text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: "Source Code Pro", monospace;
             font-size: 0.8rem; line-height: 1.4; background: #f3f5f7; padding: 0.5rem 0.75rem; margin: 0 0 0.75rem;
             max-height: 24rem; overflow: auto; unicode-bidi: plaintext; }
  .hr-text .plus { background: #d9f0e6; display: block; }
  .hr-text .minus { background: #fbe3d6; display: block; }
  .hr-text .place { color: #00567d; display: block; }
  .hr-text .same { display: block; }
  .hr-sides { display: flex; flex-wrap: wrap; gap: 0 1.5rem; }
  .hr-sides > div { flex: 1 1 18rem; min-width: 0; }
  .hr-row { border-top: 2px solid #1b1f24; padding-top: 0.5rem; margin-top: 0.75rem; }
  .hr-row h3 { font-size: 1rem; padding: 0; margin: 0 0 0.25rem; overflow-wrap: anywhere; }
  .hr-row p { margin: 0 0 0.35rem; font-size: 0.875rem; overflow-wrap: anywhere; }
  .hr-row .aside { color: #4b5563; font-size: 0.8rem; }
</style>
"""


def dress() -> None:
    """The look of texts; once a page that shows some."""
    st.html(STYLE)


def shown(value: Any) -> str:
    """A value of data as text: a string as it is, anything else as JSON; one field a line where there are fields."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "\n".join(f"{name}: {shown(part)}" for name, part in value.items())  # pyright: ignore[reportUnknownVariableType]
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def block(value: Any, *, name: str, most: int = MOST_CHARS) -> str:
    """A text as a box that can be scrolled with the keyboard; `most` characters of it."""
    text = shown(value)
    cut = f"\n… and {len(text) - most:,} characters more" if len(text) > most else ""
    return _box(html.escape(text[:most] + cut), name)


def unified(diff: str, *, name: str) -> str:
    """A unified diff; each line keeps its sign, so that colour is not all that tells."""
    lines = diff.splitlines()
    body = "".join(f'<span class="{_class(line)}">{html.escape(line) or " "}</span>' for line in lines[:MOST_LINES])
    more = f'<span class="place">… and {len(lines) - MOST_LINES:,} lines more</span>' if len(lines) > MOST_LINES else ""
    return _box(body + more, name)


def _box(body: str, name: str) -> str:
    # The browser's cleaner takes an attribute away that could end a tag if it were read as one, and a box has a name.
    label = html.escape(name.replace("<", "‹").replace(">", "›"))
    return f'<div class="hr-text" dir="auto" tabindex="0" role="region" aria-label="{label}">{body}</div>'


def _class(line: str) -> str:
    return {"+": "plus", "-": "minus", "@": "place"}.get(line[:1], "same")
