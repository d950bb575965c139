"""`atropos watch`: what it reads as a run writes, what its pages are told, and that it writes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from rich.console import Console

from environments.common.run_folder import append_line
from environments.common.settings import ConfigError
from environments.tools.watch import Feed, application
from environments.tools.watch_records import Tail, Watched
from environments.tools.watch_terminal import picture, remaining_s, watch
from tests.report.browser import CHROMIUM, browser
from tests.report.made_run import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten steps of a run that is to take eighty, without a lock."""
    return make_run(tmp_path / "mine", steps=10)


def one_more_step(run: Path) -> None:
    """What the processes write in a step: a group with a rollout, then the trainer's row."""
    for name in ("environment.jsonl", "rollouts/step-00009.jsonl", "metrics.jsonl"):
        row: dict[str, Any] = json.loads((run / name).read_text().splitlines()[-1])
        row |= {"step": 11} if name == "metrics.jsonl" else {"group_id": "new", "problem_id": "newest"}
        append_line(run / name, json.dumps(row))


def test_a_torn_line_waits_for_its_end_and_a_file_written_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    path, damaged = tmp_path / "rows.jsonl", Counter[str]()
    tail = Tail(path)
    assert tail.more(damaged) == []
    path.write_text('{"a": 1}\n{"a"')
    assert tail.more(damaged) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": 2}\nnonsense\n')
    assert tail.more(damaged) == [{"a": 2}]
    assert damaged == {"rows.jsonl": 1}
    path.write_text('{"a": 3}\n')
    assert tail.more(damaged) == [{"a": 3}]


def test_a_look_finds_what_is_new_and_a_page_gets_that_alone(run: Path) -> None:
    watched = Watched(run)
    assert watched.look()
    assert not watched.look()
    seen = watched.position
    one_more_step(run)
    assert watched.look()
    news = watched.since(*seen)
    assert [one["group"] for one in news["rollouts"]] == ["new"]
    assert list(news["problems"]) == ["newest"]
    assert list(news["groups"]) == ["new"]
    assert news["axes"]["steps"][-1] == 11
    assert len(watched.page()["rollouts"]) == seen[0] + 1


def test_only_the_newest_rollouts_are_kept_and_positions_still_count_all(run: Path) -> None:
    watched = Watched(run, most_rollouts=5)
    watched.look()
    seen = watched.position
    one_more_step(run)
    watched.look()
    assert len(watched.rollouts) == 5
    assert [one["group"] for one in watched.since(*seen)["rollouts"]] == ["new"]


def test_a_process_that_ends_is_a_change(run: Path) -> None:
    watched = Watched(run)
    with (run / "trainer.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        watched.look()
        assert watched.state().kind == "running"
    assert watched.look()
    assert watched.state().kind == "died"


def test_watching_writes_nothing(run: Path) -> None:
    def files() -> dict[Path, tuple[int, int]]:
        return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in run.rglob("*")}

    before = files()
    watched = Watched(run)
    watched.look()
    watched.page()
    watch(run, Console(file=None, quiet=True))
    assert files() == before


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Watched(tmp_path / "absent")


async def test_a_position_of_another_start_makes_the_page_load_again(run: Path) -> None:
    feed = Feed(Watched(run))
    for after in ("", "other,1,2,3", f"{feed.name},x", f"{feed.name},1,2"):
        assert [event async for event in feed.events(after)] == ["event: reload\ndata: {}\n\n"]


async def first(events: AsyncIterator[str]) -> dict[str, Any]:
    """The data of the first event."""
    async for event in events:
        return dict(json.loads(event.split("data: ", 1)[1]))
    raise AssertionError("the stream ended")


async def test_what_changes_between_page_and_connection_is_told(run: Path) -> None:
    feed = Feed(Watched(run), every_s=0.01)
    page = await feed.page()
    after = page.split('"live":"/events?after=')[1].split('"')[0]
    one_more_step(run)
    looking = asyncio.create_task(feed.run())
    news = await asyncio.wait_for(first(feed.events(after)), 60)
    assert [one["group"] for one in news["rollouts"]] == ["new"]
    looking.cancel()


# -- In the terminal ----------------------------------------------------------------------------------------


def printed(run: Path, width: int) -> str:
    watched, console = Watched(run, 0), Console(width=width, record=True, file=io.StringIO())
    watched.look()
    console.print(picture(watched, 4, width))
    return console.export_text()


def test_the_terminal_shows_state_speed_steps_and_faults(run: Path) -> None:
    text = printed(run, 150)
    assert "mine  Died after step 10 of 80" in text
    assert "61.5 GiB, fullest rank" in text
    assert "generate+judge/train/sync s" in text
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:2] in ("7 ", "8 ", "9 ", "10")] == [
        *("7", "8", "9", "10")
    ]
    assert "What went wrong" in text


def test_before_the_first_step_the_terminal_tells_what_is_under_way(run: Path) -> None:
    (run / "metrics.jsonl").write_text("")
    (run / "evaluations").mkdir()
    (run / "evaluations" / "held-out.partial.jsonl").write_text('{"index": 0}\n' * 3)
    (run / "logs" / "trainer.log").write_text("waiting for a batch\n")
    with (run / "trainer.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        text = printed(run, 150)
        (spoken,) = (line for line in printed(run, 24).splitlines() if line.startswith("trainer.log"))
    assert "Before the first step" in text
    assert "groups finished   60, with a signal" in text
    assert "3 samples judged" in text
    assert "trainer.log: waiting for a batch" in text
    assert len(spoken) <= 24  # one line, whatever the width


@pytest.mark.parametrize("width", [60, 80, 150])
def test_no_line_is_wider_than_the_terminal(run: Path, width: int) -> None:
    text = printed(run, width)
    assert max(map(len, text.splitlines())) <= width
    assert "pass@1" in text


def test_the_remaining_time_is_the_last_steps_speed_times_the_steps_to_come() -> None:
    rows = [{"step": n, "time": 100.0 * n} for n in range(1, 21)]
    assert remaining_s(rows, 30) == 1000
    assert remaining_s(rows, 20) == 0
    assert remaining_s(rows[:1], 30) is None
    assert remaining_s([{"step": 1, "time": 5.0, "seconds_step": 60.0}], 3) == 120
    assert remaining_s(rows, None) is None


# -- Over HTTP ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(run: Path) -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(application(Watched(run), 0.05), port=0, log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def until(holds: Callable[[], Any]) -> None:
    """Waits; the test's own limit ends what never holds."""
    while not holds():
        time.sleep(0.02)


def test_a_page_that_comes_by_another_name_gets_nothing(run: Path) -> None:
    with served(run) as address:
        assert httpx.get(address).status_code == 200
        assert httpx.get(address, headers={"Host": "evil.example"}).status_code == 400
        assert httpx.post(address).status_code == 405


def test_a_signal_ends_the_server_and_its_streams_without_a_word(run: Path) -> None:
    command = [sys.executable, "-m", "environments.cli", "watch", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[0]
        after = httpx.get(address, timeout=60).text.split('"live":"/events?after=')[1].split('"')[0]
        with httpx.stream("GET", f"{address}/events?after={after}", timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            server.send_signal(signal.SIGINT)
            assert list(stream.iter_lines()) == []
        assert server.communicate(timeout=60)[1] == ""
    assert server.returncode == 0


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")
def test_an_open_page_follows_the_run(run: Path, tmp_path: Path) -> None:
    with served(run) as address, browser(tmp_path / "profile") as page:
        page.open(address)
        until(lambda: page.run("document.querySelector('#live').textContent.startsWith('live')"))
        page.run("document.querySelector('[data-name=rollouts]').click()")
        before = page.run("[data.rollouts.length, open.group, open.index]")
        one_more_step(run)
        until(lambda: page.run("data.rollouts.length") == before[0] + 1)
        assert page.run("document.querySelector('#found').textContent") == f"{before[0] + 1} of {before[0] + 1}"
        assert page.run("[open.group, open.index]") == before[1:]  # what is read stays open
        assert page.run("data.problems.newest.length") == 1
        assert "step 11 of 80" in page.run("document.querySelector('#state').textContent")
        shutil.rmtree(run / "logs")  # what the folder loses ends nothing
        one_more_step(run)
        until(lambda: page.run("data.rollouts.length") == before[0] + 2)
        assert page.complaints == []
