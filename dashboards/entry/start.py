"""What Streamlit runs.

Beside `app.py` it would take the folder `pages` for pages of its own kind, and show an empty one to whoever opens a
link to a page before anybody has opened the first.
"""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "app.py"), run_name="__main__")
