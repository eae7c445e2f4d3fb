"""The page in a real browser: nothing sticks out, whatever the width and the colour scheme."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dropserve.manifest import CheckRecord
from dropserve.report.evidence import Evidence, HeldOut
from dropserve.report.page import compose, render

Make = Callable[..., Evidence]
Rows = Callable[..., HeldOut]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
# A frame has the width that is asked for; a window of the headless browser is never narrower than 500 pixels.
PROBE = """<!doctype html>
<iframe id="f" width="{width}" height="900" srcdoc="{page}"></iframe><p id="found"></p>
<script>
document.getElementById("f").onload = event => {{
  const inner = event.target.contentDocument, root = inner.documentElement;
  const out = [...inner.querySelectorAll("body *")].filter(e => !e.closest("svg") && !e.closest(".wide")
    && e.getBoundingClientRect().right > {width} + 0.5).map(e => e.tagName + "." + e.className);
  const drawn = e => e.getBoundingClientRect().height > 100;
  const view = event.target.contentWindow;
  document.getElementById("found").textContent = ["width", root.scrollWidth, "out", out.slice(0, 5).join(" "),
    "ground", view.getComputedStyle(inner.body).backgroundColor,
    "drawn", [...inner.querySelectorAll("figure > svg")].filter(drawn).length,
    "pictures", [...inner.images].filter(i => i.naturalWidth === 8).length, "end"].join("|");
}};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_sticks_out(make: Make, tmp_path: Path, width: int, dark: bool) -> None:
    long = "a_name_without_any_place_to_break_" * 8
    records = (
        CheckRecord(name=long, verdict="waived", evidence=long, remedy=long, where=long),
        CheckRecord(name="forward-runs", verdict="passed", evidence=long),
    )
    page = compose(make(name=long, labels=(long, "b", "c", "d"), checks=records, seconds={long: 1.0}))
    # The frame's own policy forbids scripts; the probe's script runs outside of it.
    content = render(page)
    file = tmp_path / "probe.html"
    file.write_text(PROBE.format(width=width, page=html.escape(content)), encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [
        *(str(BROWSER), *FLAGS, scheme, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1500,1000"),
        *("--virtual-time-budget=5000", "--dump-dom", file.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    line = re.search(r'<p id="found">(.*?)</p>', done.stdout)
    assert line, done.stderr[-2000:]
    parts = line[1].split("|")
    found = dict(zip(parts[::2], parts[1::2], strict=False))
    assert found["out"] == ""
    assert int(found["width"]) <= width
    assert found["ground"] == ("rgb(20, 23, 28)" if dark else "rgb(255, 255, 255)")
    assert int(found["drawn"]) == 10
    assert int(found["pictures"]) == 16
