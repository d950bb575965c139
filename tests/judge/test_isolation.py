"""Layers: probed, reported, refused when strong isolation is required; the same without root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from verifier_app.judge import Judge, JudgeError

REPOSITORY = Path(__file__).resolve().parents[2]
REQUEST = {"code": "print(int(input()) ** 2)", "tests": [{"input": "2", "output": "4"}]}
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="the host's full layers need root")
LAYERS = {
    "unshare": {"pid_namespace", "net_namespace", "ipc_namespace", "private_root"},
    "mount": {"private_root"},
    "setuid": {"uid"},
    "seccomp": {"seccomp"},
    "landlock": {"landlock"},
}


def report(deny: tuple[str, ...] = ()) -> dict[str, Any]:
    """The isolation that a host without these calls reports; its verdict is right all the same."""
    with Judge(deny=deny) as judge:
        verdict = judge.verify(REQUEST)
    assert verdict["status"] == "accepted"
    return dict(verdict["isolation"])


def layers(found: dict[str, Any]) -> set[str]:
    return {name.rstrip("0123456789") for name in found["layers"]}


@NEEDS_ROOT
@pytest.mark.parametrize("denied", LAYERS)
def test_a_denied_call_takes_its_layers_away_and_no_other(denied: str) -> None:
    assert layers(report()) - layers(report((denied,))) == LAYERS[denied] & layers(report())


@NEEDS_ROOT
def test_a_host_with_nothing_reports_weak_and_why() -> None:
    found = report(tuple(LAYERS))
    assert layers(found) == {"rlimits", "no_new_privs"}
    assert found["level"] == "weak"
    assert len(found["weak"]) == 4
    assert found["missing"].keys() == set().union(*LAYERS.values())
    assert "Operation not permitted" in found["weak"][0]


def test_strong_isolation_is_refused_where_the_host_is_weak() -> None:
    with Judge("strong", deny=tuple(LAYERS)) as judge, pytest.raises(JudgeError) as caught:
        judge.verify(REQUEST)
    assert caught.value.kind == "weak_isolation"
    assert "signal" in caught.value.message


def test_an_unknown_level_is_a_bad_request() -> None:
    with pytest.raises(JudgeError, match="give any or strong"):
        Judge("stronger")


UNPRIVILEGED = """
import json, os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.path.insert(0, sys.argv[1])
from verifier_app.judge import Judge
with Judge(deny=tuple(sys.argv[3:])) as judge:
    print(json.dumps([judge.verify(request) for request in json.loads(sys.argv[2])]))
"""
HARMFUL = [
    REQUEST,
    {**REQUEST, "code": "import os\nos.kill(-1, 9)"},
    {**REQUEST, "code": "import os, time\nif os.fork() == 0:\n  os.setsid(); time.sleep(60)"},
    {**REQUEST, "code": "open('/etc/passwd')\nimport socket; socket.create_connection(('127.0.0.1', 1))"},
]


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder right below /tmp that every user may enter."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder)


LIES_BELOW_TMP = """
import json, sys
sys.path.insert(0, sys.argv[1])
from verifier_app.judge import Judge
with Judge() as judge:
    print(json.dumps(judge.verify(json.loads(sys.argv[2]))))
"""


@NEEDS_ROOT
def test_an_interpreter_below_tmp_is_seen_read_only_and_tmp_is_still_the_programs() -> None:
    code = """
import json, os, sortedcontainers, sys
open('/tmp/mine', 'w').close()
seen = []
for act in (lambda: open(sys.prefix + '/new', 'w'), lambda: os.rename(sys.prefix, sys.prefix + '2')):
    try: seen.append(act() and 'written')
    except OSError: seen.append('refused')
print(*seen, len(os.listdir('/tmp')))
"""
    with open_folder() as folder:
        environment = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
        packages = next(environment.glob("lib/python*/site-packages"))
        packages.joinpath("sortedcontainers.py").touch()
        about = packages / "sortedcontainers-1.dist-info"
        about.mkdir()
        about.joinpath("METADATA").write_text("Metadata-Version: 2.1\nName: sortedcontainers\nVersion: 1\n")
        about.joinpath("RECORD").write_text("sortedcontainers.py,,\n")
        request = {"code": code, "tests": [{"input": "", "output": "refused refused 2"}]}
        command = [str(environment / "bin" / "python"), "-c", LIES_BELOW_TMP, str(REPOSITORY), json.dumps(request)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["status"] == "accepted", verdict["message"]
    assert "private_root" in verdict["isolation"]["layers"]


@NEEDS_ROOT
@pytest.mark.parametrize("deny", [(), ("unshare",)], ids=["user_namespace", "nothing_but_filters"])
def test_without_root_no_attack_pays_either(deny: tuple[str, ...]) -> None:
    python = Path("/usr/bin/python3")  # the tests' own interpreter may lie in a folder that only root can enter
    if not python.exists():
        pytest.skip("no system Python that every user can run")
    with open_folder() as folder:  # and so may the checkout
        shutil.copytree(REPOSITORY / "verifier_app", folder / "verifier_app")
        command = [str(python), "-c", UNPRIVILEGED, str(folder), json.dumps(HARMFUL), *deny]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd="/", check=False)
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    assert [verdict["status"] == "accepted" for verdict in verdicts] == [True, False, False, False]
    found = verdicts[0]["isolation"]
    assert "uid" not in layers(found)
    assert ("pid_namespace" in layers(found)) == (found["level"] == "strong") == (not deny)
    assert deny or {"user_namespace", "private_root"} <= layers(found)


DOCKER = {0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31}  # the capabilities of root in a Docker container
JUDGES = """
import json, sys
sys.path.insert(0, sys.argv[1])
from verifier_app.judge import Judge
with Judge() as judge:
    print(json.dumps([judge.verify(request) for request in json.loads(sys.argv[2])]))
"""
DROPS = """
import ctypes, os, sys
for number in map(int, sys.argv[1].split(",")):
    ctypes.CDLL(None).prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[2:]])
"""


@NEEDS_ROOT
@pytest.mark.parametrize("kept", [DOCKER, set()], ids=["docker", "none"])
def test_root_of_a_container_makes_its_layers_in_a_user_namespace_where_the_kernel_allows(kept: set[int]) -> None:
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    dropped = ",".join(str(number) for number in range(last + 1) if number not in kept)
    command = [sys.executable, "-c", DROPS, dropped, JUDGES, str(REPOSITORY), json.dumps(HARMFUL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    verdicts = json.loads(done.stdout)
    assert [verdict["status"] == "accepted" for verdict in verdicts] == [True, False, False, False]
    found = verdicts[0]["isolation"]
    if "user_namespace" in layers(found):
        assert found["level"] == "strong"
        assert LAYERS["unshare"] <= layers(found)
    if kept:  # without CAP_SETFCAP Linux maps no uid 0; gVisor does
        assert {"user_namespace", "uid"} <= layers(found)
