"""What the progress file keeps in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GROWTH = """
import sys
from pathlib import Path
from environments.livecode.recovery.progress_file import Change, KeptGroup, ProgressFile

def held():
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("Private_Dirty:"))

body, file = bytes(range(256)) * (100 << 10), ProgressFile(Path(sys.argv[1]))
before = held()
file.write([Change(group=KeptGroup("g", "p", 1), body=body)])
file.write([Change(delivered="g")])
file.tidy()
print(held() - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="this kernel does not say what a process holds"
)
def test_a_group_of_25_mb_leaves_few_pages_in_memory(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", GROWTH, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 6 << 10  # KB; about 3 MB, and 11 with the pages that SQLite keeps by itself
