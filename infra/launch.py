"""Becomes one service: reads its launch file, notes its process id, gives up rights if asked, and executes.

Standard library only and quick to start: it stands between the supervisor and every program, so that the supervisor's
own configuration holds no secret and an orphan can be recognised by more than a number.
"""

import json
import os
import sys
from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; together with the id it names one process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in brackets and may itself hold blanks and brackets: count fields after the last one.
    return int(stat.rpartition(")")[2].split()[19])


def main(launch_file: str) -> None:
    """Read the launch file and turn into the program it names."""
    launch = json.loads(Path(launch_file).read_text())
    pid = os.getpid()
    record = {"pid": pid, "ticks": start_ticks(pid), "session": os.getsid(0), "stop_signal": launch["stop_signal"]}
    Path(launch["pid_file"]).write_text(json.dumps(record))
    for name in launch["unset"]:
        os.environ.pop(name, None)
    os.environ.update(launch["environment"])
    os.chdir(launch["folder"])
    if launch["uid"] is not None:
        os.setgroups([])
        os.setgid(launch["uid"])
        os.setuid(launch["uid"])
    os.execv(launch["argv"][0], launch["argv"])  # noqa: S606 - it becomes the service, no shell wanted


if __name__ == "__main__":
    main(sys.argv[1])
