"""The report for everybody: no barrier that axe finds, no sideways scrolling, the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from environments.tools.report.page import write_report
from tests.report.browser import CHROMIUM, Page, barriers, browser, emulate
from tests.report.made_run import make_run

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: the page was not opened")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("access")
    path = write_report(make_run(folder / "mine", steps=40))
    with browser(folder / "profile") as page:
        page.open(path)
        yield page


def press(page: Page, key: str, code: int = 0) -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, text=key if len(key) == 1 else "",
                  windowsVirtualKeyCode=code)  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400, 2560])
def test_no_view_has_a_barrier_or_scrolls_sideways(page: Page, width: int, scheme: str) -> None:
    emulate(page, width, scheme)
    for name in page.run("[...document.querySelectorAll('#tabs button')].map(one => one.dataset.name)"):
        page.run(f"document.querySelector('[data-name={name}]').click()")
        assert page.run("document.documentElement.scrollWidth <= innerWidth"), name
        if (width, scheme) in ((360, "light"), (1400, "dark"), (1400, "light")):
            assert barriers(page) == [], name
    assert page.complaints == []


def test_the_arrows_move_between_views(page: Page) -> None:
    emulate(page, 1400)
    page.run("document.querySelector('[data-name=overview]').focus()")
    page.run("document.querySelector('[data-name=overview]').click()")
    press(page, "ArrowRight", 39)
    assert page.run("document.activeElement.dataset.name") == "curves"
    assert page.run("document.querySelectorAll('#tabs [tabindex=\"0\"]').length") == 1


def test_a_zoom_by_numbers_reaches_every_chart_and_the_cursor_is_shared(page: Page) -> None:
    emulate(page, 1400)
    page.run("document.querySelector('[data-name=curves]').click()")
    page.run("""{ const set = (name, value) => { const field = document.querySelector(`[name=zoom-${name}]`);
      field.value = value; field.dispatchEvent(new Event("input")); }; set("from", 10); set("to", 20); }""")
    charts = "[...drawn].filter(([host]) => document.querySelector('#curves').contains(host)).map(([, chart]) => chart)"
    assert page.run(f"[...new Set({charts}.map(one => `${{one.scales.x.min}} ${{one.scales.x.max}}`))]") == ["10 20"]
    place = page.run(f"(({{ x, y }}) => [x, y])({charts}[0].over.getBoundingClientRect())")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0] + 100, y=place[1] + 20)
    assert page.run(f"new Set({charts}.map(one => one.data[0][one.cursor.idx])).size") == 1
    assert page.run(f"{charts}[1].cursor.idx") is not None
    page.run("document.querySelector('[data-key=whole]').click()")
    assert page.run(f"[...new Set({charts}.map(one => one.scales.x.max))]") != [20]


def test_a_lines_name_hides_it_and_says_what_it_means(page: Page) -> None:
    page.run("document.querySelector('[data-name=curves]').click()")
    button = "document.querySelector('[data-key=\"Reward/Reward\"]')"
    tip = page.run(f"document.getElementById({button}.getAttribute('aria-describedby')).textContent")
    assert tip == "Mean reward of the rollouts (+1 or -1)."
    page.run(f"{button}.click()")
    assert page.run(f"{button}.getAttribute('aria-pressed')") == "false"
    page.run(f"{button}.click()")


def test_keys_go_through_the_rollouts_of_which_the_first_is_open(page: Page) -> None:
    page.run("document.querySelector('[data-name=rollouts]').click()")
    page.run("document.activeElement.blur()")
    where = "document.querySelector('.moves span').textContent"
    assert page.run(where) == " 1 of 480 "
    for key in "jjk":
        press(page, key)
    assert page.run(where) == " 2 of 480 "
    press(page, "/")
    assert page.run("document.activeElement.name") == "text"
    page.run("document.activeElement.value = 'RETURN 7'; filter()")
    assert page.run("document.querySelector('.moves span').textContent").startswith(" 1 of ")
    assert page.run("chosen.every(one => one.problem === 'lcb_007')")
    page.run("document.querySelector('#filters').text.value = ''; filter()")


def open_rollouts(page: Page) -> None:
    emulate(page, 1400)
    page.run("document.querySelector('[data-name=rollouts]').click()")
    page.run("reveal(data.rollouts.find(one => one.group === 'g20-3' && one.index === 1))")


def press_side(page: Page, name: str) -> str:
    page.run(f"document.querySelector('[data-key=\"side {name}\"]').click()")
    assert barriers(page) == []
    return str(page.run("document.querySelector('#detail').innerText"))


def test_a_rollouts_group_shows_rewards_and_advantages(page: Page) -> None:
    open_rollouts(page)
    press_side(page, "group")
    group = page.run("data.groups['g20-3']")
    cells = page.run("[...document.querySelectorAll('#detail tbody tr')].map(row => row.cells[3].textContent)")
    assert [float(cell) for cell in cells] == pytest.approx(group["advantages"], abs=0.006)
    page.run("document.querySelector('#detail tbody button').click()")
    assert page.run("[open.group, open.index, side]") == ["g20-3", 0, "rollout"]


def test_a_rollouts_problem_shows_its_groups_over_time_and_the_tests_that_fail_it(page: Page) -> None:
    open_rollouts(page)
    text = press_side(page, "problem")
    passed = page.run("data.problems[open.problem].flatMap(one => one[1]).filter(one => one === 'accepted').length")
    assert f"{passed} of " in text
    assert "test 3: " in text
    squares = page.run("document.querySelectorAll('#detail .square').length")
    assert squares == page.run("data.problems[open.problem].flatMap(one => one[1]).length")
