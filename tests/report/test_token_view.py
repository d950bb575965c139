"""A recorded rollout's tokens: what the records hold of them, and what a reader sees and does with the page."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from environments.common.packed import IDS, REALS, packed, unpacked
from environments.tools.report.collect import collect
from environments.tools.report.page import write_report
from environments.tools.report.token_data import split
from environments.tools.report.vocabulary import texts
from environments.tools.watch_records import Watched
from tests.report.browser import CHROMIUM, Page, barriers, browser, emulate
from tests.report.made_run import FLAGS_OF, LOGPROBS, TOKENS, make_run

TEXTS = ["print", "(", "◌", "é", ")\n", "<|end|>", "⟨9⟩"]


def test_packed_numbers_come_back_with_three_digits() -> None:
    assert unpacked(packed([5, 151_935, 0], IDS), IDS).tolist() == [5, 151_935, 0]
    values = [-1e-4, -0.123456, -17.25, float("-inf"), -1e9]
    back = unpacked(packed(values, REALS), REALS).astype(float)
    assert back[:3] == pytest.approx(values[:3], rel=1e-3)
    assert np.isneginf(back[3:]).all()
    assert np.isnan(unpacked(packed([float("nan")], REALS), REALS)).all()
    for damaged in ("", "AAAA", "é", packed([1], IDS)[:-4]):
        with pytest.raises(ValueError, match="not packed"):
            unpacked(damaged, IDS)


def test_a_tokens_bytes_come_from_either_kind_of_vocabulary(tmp_path: Path) -> None:
    file = {"decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}]},
            "model": {"vocab": {"\u2581sum": 0, "<0xC3>": 1, "é": 2}}}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    assert texts(tmp_path, {0, 1, 2, 7}) == {0: " sum", 1: "\u00c3", 2: "\u00c3\u00a9"}
    file = {"decoder": {"type": "ByteLevel"}, "model": {"vocab": {"Ġsum": 0, "Ã": 1, "Ċ": 2, "x": 3}}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(file))
    assert texts(tmp_path, {0, 1, 2}) == {0: " sum", 1: "\u00c3", 2: "\n"}
    (tmp_path / "tokenizer.json").write_text("[]")
    assert texts(tmp_path, {0}) == {}


def test_the_page_keeps_the_newest_rollouts_tokens_up_to_its_bound() -> None:
    rollouts = [{"group": "g", "index": n, "packed": {"ids": "x" * 60, "logprobs": "y" * 40}} for n in range(5)]
    rollouts.insert(2, {"group": "g", "index": 9, "packed": None})
    shown, kept = split(rollouts, {"g/4": {"step": 1, "old": "z" * 50}}, most=260)
    assert list(kept) == ["g/4", "g/3"]
    assert kept["g/4"]["trained"]["step"] == 1
    assert [one.get("tokens") for one in shown] == ["left out", "left out", None, "left out", "here", "here"]
    assert not any("packed" in one for one in shown)


def test_a_damaged_record_of_the_trainer_is_as_none_and_the_last_one_counts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", steps=2)
    path = run / "trained_tokens" / "step-00000001-0.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    path.write_text("nonsense\n" + json.dumps(row | {"old": None}) + "\n")
    name = f"{row['group_id']}/{row['index']}"
    data = collect(run, 100)
    assert "trained" not in data["tokens"][name]
    assert data["damaged"]["step-00000001-0.jsonl"] == 1
    (run / "trained_tokens" / "step-00000007-0.jsonl").write_text(json.dumps(row | {"step": 7}) + "\n")
    assert collect(run, 100)["tokens"][name]["trained"]["step"] == 7


def test_a_watched_page_gets_what_the_trainer_says_after_the_rollout(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", steps=3)
    late = run / "trained_tokens" / "step-00000003-0.jsonl"
    text = late.read_text()
    late.unlink()
    watched = Watched(run)
    watched.look()
    row = json.loads(text.splitlines()[0])
    name = f"{row['group_id']}/{row['index']}"
    assert "trained" not in watched.page()["tokens"][name]
    seen = watched.position
    late.write_text(text)
    watched.look()
    news = watched.since(*seen)
    assert news["rollouts"] == []
    assert news["tokens"][name]["trained"]["step"] == 3
    assert name in watched.page()["tokens"]
    assert watched.since(*watched.position)["tokens"] == {}


# -- In the browser -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: the page was not opened")
    folder = tmp_path_factory.mktemp("tokens")
    path = write_report(make_run(folder / "mine", steps=15))
    with browser(folder / "profile") as page:
        page.open(path)
        emulate(page, 1400)
        yield page


def show(page: Page, which: str) -> str:
    """Opens the tokens of the first rollout for which `which` holds; the text beside them."""
    page.run("document.querySelector('[data-name=rollouts]').click()")
    page.run(f"reveal(data.rollouts.find(one => {which}))")
    page.run("document.querySelector('[data-key=\"side tokens\"]').click()")
    while page.run("document.querySelector('#detail [aria-busy]') !== null"):
        time.sleep(0.02)
    return str(page.run("document.querySelector('#detail').innerText"))


def classes(page: Page, color: str) -> list[str]:
    page.run(f"{{ const s = document.querySelector('[name=token-color]'); s.value = '{color}'; "
             "s.dispatchEvent(new Event('change')); }")  # fmt: skip
    return list(page.run("[...document.querySelectorAll('pre.tokens span')].map(one => one.classList[0])"))


def test_a_trained_rollouts_tokens_say_what_sampler_and_trainer_made_of_them(page: Page) -> None:
    text = show(page, "one.tokens && !one.dropped")
    assert "2 of 7 clipped in step" in text
    assert "Advantage of every token: +0.75" in text
    assert page.run("[...document.querySelectorAll('pre.tokens span')].map(one => one.textContent)") == TEXTS
    assert classes(page, "logprob") == ["p0", "p0", "p2", "p0", "p5", "p0", "p1"]
    assert classes(page, "version") == ["v0"] * len(TOKENS)
    assert classes(page, "clip") == [f"f{flag}" for flag in FLAGS_OF]
    assert classes(page, "change") == ["p0", "p3", "p4", *["p0"] * 4]
    assert classes(page, "mismatch") == ["p3"] * len(LOGPROBS)
    assert barriers(page) == []
    assert page.complaints == []


def test_the_arrows_and_the_pointer_tell_of_one_token(page: Page) -> None:
    show(page, "one.tokens && !one.dropped")
    page.run("document.querySelector('pre.tokens').focus()")
    for _ in range(3):
        page.call("Input.dispatchKeyEvent", type="keyDown", key="ArrowRight", windowsVirtualKeyCode=39)
    told = page.run("document.querySelector('#detail output').textContent")
    assert told.startswith('token 2: "◌", id 2, log-probability -2.500, advantage +0.75, weights ')
    assert "old log-probability -2.250, ratio 0.607, clipped: below the range" in told
    page.run("document.querySelectorAll('pre.tokens span')[4].scrollIntoView()")
    x, y = page.run(
        "(({ x, y }) => [x + 4, y + 4])(document.querySelectorAll('pre.tokens span')[4].getClientRects()[0])"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert page.run("document.querySelector('#detail output').textContent").startswith("token 4: ")


def test_a_rollout_that_was_not_trained_on_or_not_recorded_says_so(page: Page) -> None:
    assert "Not trained on: its group was left out." in show(page, "one.tokens && one.dropped")
    assert page.run("[...document.querySelector('[name=token-color]').options].map(one => one.value)") == [
        *("logprob", "version")
    ]
    page.run("reveal(data.rollouts.find(one => !one.tokens))")
    assert page.run("document.querySelector('[data-key=\"side tokens\"]')") is None


def test_a_long_rollouts_tokens_come_in_parts(page: Page) -> None:
    ids, logprobs = packed([1] * 9000, IDS), packed([-0.5] * 9000, REALS)
    page.run(f"""{{ const one = data.rollouts.find(one => one.tokens && !one.dropped);
      data.tokens[`${{one.group}}/${{one.index}}`] = {{ ids: "{ids}", logprobs: "{logprobs}" }}; }}""")
    show(page, "one.tokens && !one.dropped")
    count = "document.querySelectorAll('pre.tokens span').length"
    assert page.run(count) == 4000
    page.run("document.querySelector('#detail .rest').click()")
    page.run("document.querySelector('#detail .rest').click()")
    assert page.run(count) == 9000
    assert page.run("document.querySelector('#detail .rest').hidden")


def test_a_damaged_record_of_tokens_is_told_in_its_place(page: Page) -> None:
    page.run("""{ const one = data.rollouts.find(one => one.tokens && one.dropped);
      data.tokens[`${one.group}/${one.index}`] = { ids: "AAAA", logprobs: "AAAA" }; }""")
    assert "The record of its tokens is damaged" in show(page, "one.tokens && one.dropped")
