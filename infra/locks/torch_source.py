"""Where `make lock` finds torch for the CPU: pip's find-links, which uv does not read, or PyTorch's own index."""

import re
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from infra.bootstrap import TORCH_INDEX


def options() -> str:
    """The options for `uv pip compile`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    links = {word for text in re.findall(r"find-links='([^']*)'", listed) for word in text.split()}
    if links:
        return " ".join(f"--find-links {link}" for link in sorted(links))
    return f"--extra-index-url {TORCH_INDEX} --index-strategy unsafe-best-match"


if __name__ == "__main__":
    print(options())
