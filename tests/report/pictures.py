"""Pictures of reports for README and docs: `python -m tests.report.pictures --rollouts runs/demo`; see CONTRIBUTING.md.

The first page is of a run whose records are in benchmarks/results/learning. The browser of rollouts needs a run with
recorded rollouts, which one's own demo leaves. Each light and dark, as small as a palette makes it.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
import time
from pathlib import Path

from PIL import Image

from environments.tools.report.page import write_report
from tests.report.browser import Page, browser

WIDTH, HEIGHT, SCALE = 1360, 850, 1.5
MOST_BYTES = 200_000
COLOURS = 160
FIRST_PAGE = Path("benchmarks/results/learning/seed-0")
OPEN_A_ROLLOUT = """document.querySelector('[data-name=rollouts]').click();
  side = "tokens";
  const tokens = (one) => data.tokens[`${one.group}/${one.index}`];
  const trained = data.rollouts.filter((one) => one.finish === "stop" && tokens(one)?.trained);
  reveal(trained.sort((one, other) => other.length - one.length)[0] || data.rollouts[0]);
  document.activeElement.blur();
  scrollTo(0, 0)"""
"""The longest one that was trained on, with its tokens coloured by how sure the sampler was."""
POINT_AT_A_TOKEN = """["p5", "p4", "p3", "p2", "p1", "p0"].map((name) => $("pre.tokens ." + name)).find(Boolean)
  ?.dispatchEvent(new MouseEvent("mouseover", { bubbles: true }))"""
"""The one that the sampler was least sure of."""


def main() -> None:
    """Writes docs/images/report-VIEW-SCHEME.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=FIRST_PAGE, help="a run's folder, for the first page")
    parser.add_argument("--rollouts", type=Path, help="one with rollouts, for their browser; none: no such picture")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    words = parser.parse_args()
    words.out.mkdir(parents=True, exist_ok=True)
    views = [("overview", words.run, ""), ("rollouts", words.rollouts, OPEN_A_ROLLOUT)]
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile", WIDTH) as page:
        for view, run, script in views:
            if run is None:
                continue
            report = write_report(run, Path(folder) / f"{view}.html")
            for scheme in ("light", "dark"):
                path = words.out / f"report-{view}-{scheme}.png"
                path.write_bytes(picture(page, report, scheme, script))
                size = path.stat().st_size
                print(f"{path}  {size} bytes")
                assert size < MOST_BYTES, f"{path} is larger than {MOST_BYTES}: take a smaller window"


def picture(page: Page, report: Path, scheme: str, script: str) -> bytes:
    """The window's picture as a PNG with a palette, after `script` has run in the page."""
    size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": SCALE, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **size)
    page.call("Emulation.setScrollbarsHidden", hidden=True)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(report)
    if script:
        page.run(script)
        while page.run("document.querySelector('#detail [aria-busy]') !== null"):
            time.sleep(0.02)
        page.run(POINT_AT_A_TOKEN)
    page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    raw = base64.b64decode(page.call("Page.captureScreenshot", format="png")["data"])
    small = Image.open(io.BytesIO(raw)).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    small.save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    main()
