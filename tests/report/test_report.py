"""The report: by value from a run's files, in a real browser, and nothing of what a model wrote runs in it."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments.common.settings import ConfigError
from environments.tools.report.code import tokens
from environments.tools.report.collect import MAX_TEXT, collect, cut
from environments.tools.report.page import render, write_report
from tests.report.browser import CHROMIUM, Page, browser
from trainer.metric_table import METRICS
from verifier_app.judge.compare import output_difference, value_difference

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\"><!--"
in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")


def rollout(number: int, **changes: Any) -> dict[str, Any]:
    passed = number % 3 == 0
    status = "accepted" if passed else "wrong_answer"
    verdict = {"status": status, "passed": 3 if passed else 1, "ran": 2, "total": 3,
               "failed_test": None if passed else 1,
               "message": "" if passed else output_difference("3", "4")}  # fmt: skip
    return {
        "group_id": "g", "problem_id": f"p{number}", "template": None, "difficulty": ("easy", "hard")[number % 2],
        "index": 0, "score": 1.0 if passed else -1.0, "status": verdict["status"], "verdict": verdict,
        "failing_test": None if passed else {"input": "1 2", "output": "4"}, "finish_reason": "stop",
        "prompt_tokens": 10, "length": 100 + number, "versions": [[number // 10, 0, 100 + number]], "dropped": None,
        "prompt": f"statement {number}", "completion": f"<think>why {number}</think>so",
        "code": f"print({number})  # ok",
    } | changes  # fmt: skip


def group(version: int, **changes: Any) -> dict[str, Any]:
    return {
        "weight_version": version, "difficulty": "easy", "kind": "stdin", "source": "s", "date": "2024-05-03T00:00:00",
        "verdicts": ["accepted", "wrong_answer", "accepted", "wrong_answer"], "dropped": None,
    } | changes  # fmt: skip


EVALUATION = {
    "set": "test", "temperature": 0.6, "n": 4, "greedy": False, "problems": 2, "correct": 3, "total": 8,
    "pass_at_1": 0.375, "ci95": [0.1, 0.6], "weight_version": 7, "overlong": 1, "no_verdict": 0, "mean_length": 12.4,
    "by": {"difficulty": {"easy": [3, 4], "hard": [0, 4]}, "month": {"2024-06": [2, 2], "2024-09": [1, 6]},
           "training": {"up to 2024-07-31": [2, 2], "after 2024-07-31": [1, 6]}},
    "without_known_bad": {"pass_at_1": 0.5}, "cutoff": "2024-07-31",
}  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    def make(rollouts: list[dict[str, Any]] | None = None, **files: str) -> Path:
        run = tmp_path / "my-run"
        (run / "rollouts").mkdir(parents=True)
        written = {
            "metrics": [{"step": step, "reward": step / 10, "pass_at_1": 0.5, "loss": 1} for step in (1, 2, 3)],
            "environment": [group(0), group(1, dropped="all_pass"), group(1, difficulty="hard", date=None)],
            "evaluations": [EVALUATION],
            "rollouts/step-00000": rollouts if rollouts is not None else [rollout(number) for number in range(30)],
        }
        for name, rows in written.items():
            text = "".join(json.dumps(row) + "\n" for row in rows) + files.get(name, "")
            (run / f"{name}.jsonl").write_text(text, encoding="utf-8")
        return run

    return make


def test_the_data_are_the_runs_by_value(make_run: Callable[..., Path]) -> None:
    data = collect(make_run(), 5000)
    assert data["title"] == "my-run"
    by_title = {curve["title"]: curve["series"] for curve in data["curves"]}
    assert [(one["name"], one["points"]) for one in by_title["Reward"]] == [("Reward", [[1, 0.1], [2, 0.2], [3, 0.3]])]
    assert by_title["Reward"][0]["hint"] == METRICS["reward"].sentence
    assert [(one["name"], one["points"]) for one in by_title["Groups left out"]] == [("all pass", [[0, 0], [1, 1]])]
    tables = {table["title"]: table["rows"] for table in data["tables"]}
    assert tables["Rollouts by difficulty"] == [["easy", 8, 0.5], ["hard", 4, 0.5]]
    assert tables["Rollouts by month"] == [["2024-05", 8, 0.5]]
    assert tables["Groups"] == [["trained on", 2, pytest.approx(2 / 3)], ["all_pass", 1, pytest.approx(1 / 3)]]
    assert len(data["rollouts"]) == 30
    assert data["damaged"] == {}


def test_damaged_records_are_counted_and_left_out(make_run: Callable[..., Path]) -> None:
    run = make_run(metrics='{"step": 4, "rew', environment="[1]\n\n", evaluations='{"other": 1}\n')
    data = collect(run, 5000)
    assert data["damaged"] == {"metrics.jsonl": 1, "environment.jsonl": 1}
    assert len(data["evaluations"]) == 1
    odd = rollout(1, verdict="none", code=5, versions=[], problem_id=None, status=None, message=float("nan"))
    assert render(collect(run, 5000) | {"rollouts": [data["rollouts"][0]]})
    (run / "rollouts" / "step-00001.jsonl").write_text(json.dumps(odd) + "\n")
    assert collect(run, 1)["rollouts"][0]["problem"] == ""


def test_the_newest_rollouts_are_kept(make_run: Callable[..., Path]) -> None:
    run = make_run()
    (run / "rollouts" / "step-00002.jsonl").write_text("".join(json.dumps(rollout(n)) + "\n" for n in (90, 91)))
    assert [one["problem"] for one in collect(run, 3)["rollouts"]] == ["p29", "p90", "p91"]
    assert collect(run, 0)["rollouts"] == []


def test_a_program_in_pieces_is_the_program() -> None:
    source = "def f(x):\n\treturn 'a\\'</script>' + str(x)  # é\n\n\nclass A: pass"
    pieces = tokens(source)
    assert "".join(text for _, text in pieces) == source
    assert ["k", "def"] in [[name, text.strip()] for name, text in pieces]
    assert "".join(text for _, text in tokens("no python ``` at all \x00")) == "no python ``` at all \x00"


def test_long_answers_keep_their_beginning_and_their_end() -> None:
    text = "a" * MAX_TEXT + "b" * MAX_TEXT
    assert cut(text).startswith("aaa")
    assert cut(text).endswith("bbb")
    assert f"[... {MAX_TEXT} characters ...]" in cut(text)


def test_the_page_is_one_file_without_outside_addresses(make_run: Callable[..., Path]) -> None:
    run = make_run([rollout(0, completion=EVIL, code=EVIL, prompt=EVIL, problem_id=EVIL)])
    page = write_report(run).read_text()
    head, _, rest = page.partition('<script type="application/json" id="data">')
    assert EVIL not in page
    assert rest.count("</script>") == 5
    ours = head + rest.split("</script>", 2)[2]
    assert re.findall(r"\w+://[\w./]+", ours) == ["https://github.com/leeoniya/uPlot"]  # in the chart library's comment
    assert not re.findall(r"\b(?:src|href|action)=|@import|url\(", ours)
    assert "default-src 'none'" in html.unescape(head)


@pytest.mark.parametrize(("name", "message"), [("absent", "no such folder"), ("empty", r"none of metrics\.jsonl")])
def test_what_is_no_run_is_said(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        write_report(tmp_path / name)


# -- In a browser -------------------------------------------------------------------------------------------


def visible(page: Page) -> str:
    return str(page.run("document.querySelector('main').innerText"))


def click(page: Page, what: str) -> None:
    page.run(f"document.querySelector({json.dumps(what)}).click()")


@in_a_browser
@pytest.mark.parametrize("width", [1400, 390])
def test_a_reader_clicks_through_a_run(make_run: Callable[..., Path], tmp_path: Path, width: int) -> None:
    path = write_report(make_run())
    with browser(tmp_path / "profile", width) as page:
        page.open(path)
        assert page.run("[...document.querySelectorAll('#tabs button')].map(one => one.textContent)") == [
            "Overview", "Curves", "Evaluations", "Breakdown", "Rollouts",
        ]  # fmt: skip
        assert "37.5 %" in visible(page)
        click(page, "[data-name=curves]")
        assert "Reward" in visible(page)
        assert page.run("document.querySelectorAll('#curves canvas').length") == 4
        click(page, "[data-name=evaluations]")
        assert "37.5 % [10.0 %, 60.0 %]" in visible(page)
        assert "75.0 %" in visible(page)
        assert "up to 2024-07-31: 100.0 % of 2 samples" in visible(page)
        assert "after 2024-07-31: 16.7 % of 6 samples" in visible(page)
        drawing = page.run("document.querySelector('#evaluations .months').getAttribute('aria-label')")
        assert drawing.startswith("pass@1 by month: 2024-06 100 %, 2024-09 17 %. ")
        click(page, "[data-name=groups]")
        assert "Rollouts by month" in visible(page)
        click(page, "[data-name=rollouts]")
        assert "30 of 30" in visible(page)
        assert page.run("document.querySelector('#sources').hidden")
        page.run("const f = document.querySelector('#filters'); f.status.value = 'wrong_answer'")
        page.run("f.difficulty.value = 'hard'; f.dispatchEvent(new Event('input'))")
        assert "10 of 30" in visible(page)
        page.run("f.problem.value = 'P11'; f.dispatchEvent(new Event('input'))")
        assert "1 of 30" in visible(page)
        click(page, "#list tbody button")
        shown = visible(page)
        assert "Test 1 failed" in shown
        assert page.run("[...document.querySelectorAll('#detail mark')].map(one => one.textContent)") == ["3", "4"]
        assert page.run("document.querySelector('#detail .code').textContent") == "print(11)  # ok"
        assert page.run("document.querySelector('#detail .code .c').textContent") == "# ok"
        assert "why 11" not in shown  # the reasoning is folded
        summaries = "[...document.querySelectorAll('#detail summary')]"
        page.run(summaries + ".find(one => one.textContent === 'reasoning').click()")
        assert "why 11" in visible(page)
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert page.complaints == []


@in_a_browser
def test_nothing_that_a_model_wrote_runs(make_run: Callable[..., Path], tmp_path: Path) -> None:
    evil = rollout(1, completion=EVIL, code=EVIL, prompt=EVIL, problem_id=EVIL, status=EVIL, difficulty=EVIL,
                   failing_test={"input": EVIL, "output": EVIL})  # fmt: skip
    evil["verdict"]["message"] = f"line 1: got '{EVIL}', expected '{EVIL}'"
    path = write_report(make_run([evil]))
    with browser(tmp_path / "profile") as page:
        page.open(path)
        click(page, "[data-name=rollouts]")
        click(page, "#list tbody button")
        assert EVIL in page.run("document.querySelector('#detail').textContent")
        assert page.run("document.title") == "my-run"
        assert page.run("document.querySelectorAll('img').length") == 0
        # and were a script to get in, the page's policy would refuse it
        page.run("const script = document.createElement('script'); script.textContent = \"document.title='owned'\"")
        page.run("document.body.append(script)")
        assert page.run("document.title") == "my-run"


def evaluated(run: Path, **texts: str) -> None:
    """Two problems with two samples each, graded twice, as `samples.Samples` leaves them."""
    folder = run / "evaluations"
    folder.mkdir(parents=True)
    wrong = {"status": "wrong_answer", "passed": 1, "ran": 2, "total": 3, "failed_test": 1,
             "message": output_difference("x\nab1", "x\nab2c")}  # fmt: skip
    right = {"status": "accepted", "passed": 3, "ran": 3, "total": 3}
    rows = [
        {"problem": problem, "index": index, "status": "wrong_answer" if index else "accepted", "length": 7,
         "verdicts": {"nouscoder": wrong if index else right, "livecodebench": wrong},
         "failing_test": {"input": "8 9", "output": "ab2c"} if index else None, "finish_reason": "stop",
         "code": f"print({index})", "text": f"<think>hm</think>sample {index}"}
        for problem in ("q1", "q2") for index in (1, 0)
    ]  # fmt: skip
    told = [{"id": f"q{n}", "difficulty": "hard", "prompt": f"statement of q{n}"} for n in (1, 2)]
    for name, lines in (("test-v3-1f", rows), ("test-v3-1f.problems", told)):
        text = "".join(json.dumps(line) + "\n" for line in lines) + texts.get(name, "")
        (folder / f"{name}.jsonl").write_text(text)


def test_an_evaluations_samples_are_shown_the_first_of_every_problem_first(tmp_path: Path) -> None:
    evaluated(tmp_path, **{"test-v3-1f": '{"problem": "q3"\n{"problem": "q3", "index": 0, "status": null}\n'})
    data = collect(tmp_path, 3)
    assert [(one["problem"], one["sample"], one["status"]) for one in data["rollouts"]] == [
        ("q1", 0, "accepted"), ("q2", 0, "accepted"), ("q1", 1, "wrong_answer"),
    ]  # fmt: skip
    last = data["rollouts"][-1]
    assert (last["from"], last["difficulty"], last["prompt"]) == ("test-v3-1f", "hard", "statement of q1")
    assert (last["passed"], last["total"], last["failed"]) == (1, 3, 1)
    assert last["graded"] == [["nouscoder", "wrong_answer"], ["livecodebench", "wrong_answer"]]
    assert last["test"] == {"input": "8 9", "output": "ab2c"}
    assert data["damaged"] == {"test-v3-1f.jsonl": 1}
    assert data["notes"] == []


def test_an_evaluation_that_is_not_finished_is_shown_as_such(tmp_path: Path) -> None:
    evaluated(tmp_path)
    path = tmp_path / "evaluations" / "test-v3-1f.jsonl"
    path.rename(path.with_suffix(".partial.jsonl"))
    data = collect(tmp_path, 5000)
    assert [one["difficulty"] for one in data["rollouts"]] == ["hard"] * 4
    assert data["notes"] == ["Evaluations without a score yet, since they are not finished: 1."]


@in_a_browser
def test_a_reader_tells_an_evaluations_samples_from_the_trainings(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run()
    evaluated(run)
    with browser(tmp_path / "profile") as page:
        page.open(write_report(run))
        click(page, "[data-name=rollouts]")
        assert "34 of 34" in visible(page)
        page.run("const f = document.querySelector('#filters'); f.from.value = 'test-v3-1f'")
        page.run("f.status.value = 'wrong_answer'; f.dispatchEvent(new Event('input'))")
        assert "2 of 34" in visible(page)
        click(page, "#list tbody button")
        shown = visible(page)
        assert "sample 1, 7 tokens" in shown
        assert "livecodebench: wrong_answer" in shown
        assert "statement of q1" in page.run("document.querySelector('#detail').textContent")
        assert page.run("[...document.querySelectorAll('#detail mark')].map(one => one.textContent)") == ["1", "2c"]
        assert page.complaints == []


@in_a_browser
@pytest.mark.parametrize(
    ("message", "marks"),
    [
        (output_difference("a b\nx", "a c\nx\ny"), ["b", "c"]),
        (value_difference([1, 2, 3], [1, 3]), ["2, ", ""]),
        (output_difference("it's", "its"), ['"it\'s"', "'its'"]),
        (output_difference("x" * 500 + "a" + "z" * 300, "x" * 500 + "b" + "z" * 300), ["a", "b"]),
        (output_difference("got 1, expected 2", "got 1, expected 3"), ["2", "3"]),
        ("IndexError: list index out of range", []),
    ],
)
def test_the_difference_is_marked(
    make_run: Callable[..., Path], tmp_path: Path, message: str, marks: list[str]
) -> None:
    failed = rollout(1)
    failed["verdict"]["message"] = message
    with browser(tmp_path / "profile") as page:
        page.open(write_report(make_run([failed])))
        click(page, "[data-name=rollouts]")
        click(page, "#list tbody button")
        assert page.run("[...document.querySelectorAll('#detail mark')].map(one => one.textContent)") == marks


@in_a_browser
def test_a_long_list_shows_its_beginning_and_more_when_asked(make_run: Callable[..., Path], tmp_path: Path) -> None:
    path = write_report(make_run([rollout(number) for number in range(450)]))
    with browser(tmp_path / "profile") as page:
        page.open(path)
        click(page, "[data-name=rollouts]")
        assert page.run("document.querySelectorAll('#list tbody tr').length") == 200
        click(page, "#more")
        click(page, "#more")
        assert page.run("document.querySelectorAll('#list tbody tr').length") == 450
        assert page.run("document.querySelector('#more').hidden")
