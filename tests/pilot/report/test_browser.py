"""The report in a real browser: it asks for nothing, complains about nothing, fits, draws and prints."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kvshift.pilot.report import write_report

pytestmark = pytest.mark.browser
KINDS = (
    "adopt_cost",
    "bigger_pilot",
    "harmful",
    "missing",
    "diverged",
    "self_test",
    "one_size",
    "values_only",
)
OVERFLOW = """[...document.querySelectorAll("body *")].filter(e => {
  if (e.closest(".scroll, pre, svg svg, .hidden, .skip")) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + "." + (e.getAttribute("class") || "") + ": " + e.textContent.trim().slice(0, 40))"""
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const paint = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const c of colours) { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.getClientRects().length || e.closest("script, style, .hidden, .skip, #tip")) continue;
    const style = getComputedStyle(e);
    const behind = [];
    for (let p = e; p; p = p.parentElement) behind.unshift(getComputedStyle(p).backgroundColor);
    const ground = paint(behind);
    const svg = e.closest("svg");
    const ink = light(paint([`rgb(${ground})`, svg ? style.fill : style.color]));
    const paper = light(ground);
    const ratio = (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
    if (ratio < 4.5) bad.push(e.className + " " + e.textContent.trim().slice(0, 30) + " " + ratio.toFixed(2));
  }
  return bad;
})()"""


@pytest.mark.parametrize("language", ["en", "ja"])
def test_every_kind_of_pilot_is_quiet_offline_and_fits_a_phone(browser, page, language) -> None:
    for kind in KINDS:
        file = page(kind, language)
        browser.open(file, width=375)
        assert browser.problems() == [], kind
        assert browser.requests() == [file.resolve().as_uri()], kind
        assert browser.run("document.documentElement.scrollWidth") == 375, kind
        assert browser.run(OVERFLOW) == [], kind


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_horizontal_scroll_at_any_width_and_theme_with_everything_open(browser, page, language) -> None:
    browser.open(page("adopt_cost", language))
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width, dark in itertools.product((375, 768, 1280), (False, True)):
        browser.resize(width)
        browser.theme(dark)
        assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
        assert browser.run(OVERFLOW) == [], (width, dark)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_against_its_ground(browser, page, dark) -> None:
    for kind in ("adopt_cost", "bigger_pilot", "harmful", "no_benefit", "diverged"):
        browser.open(page(kind), dark=dark)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run(CONTRAST) == [], kind


def test_the_theme_follows_the_system_while_the_page_is_open(browser, page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    browser.open(page("adopt"), dark=False)
    light = browser.run(ground)
    browser.theme(True)
    assert browser.run(ground) != light
    browser.theme(False)
    assert browser.run(ground) == light


def test_charts_are_drawn_with_every_seed_mean_and_head(browser, page, samples) -> None:
    browser.open(page("adopt_cost"))
    drawn = """(s) => [...document.querySelectorAll(s)].filter(e => {
      const b = e.getBoundingClientRect(); return b.width > 20 && b.height > 20; }).length"""
    assert browser.run(f"({drawn})('.multiple')") == 3
    assert browser.run(f"({drawn})('path.seed')") == 3 * 2 * 3
    assert browser.run(f"({drawn})('path.mean:not(.beyond)')") == 3 * 2 + 1
    assert browser.run("document.querySelectorAll('.forest .dot').length") == 3 + 1
    heads = len(samples.results("adopt_cost").taps)
    dots = browser.run("[...document.querySelectorAll('path.dots')].map(p => p.getAttribute('d')).join('')")
    assert dots.count("M") == heads
    # A path may have a box and be one stroke: the mean curve has as many points as evaluations, and falls.
    curve = browser.run("document.querySelector('path.mean.candidate').getAttribute('d')")
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", curve)[1:]]
    assert len(heights) == 20
    assert heights[-1] > heights[0] + 300


def test_pointing_at_a_curve_shows_both_arms_and_the_gain(browser, page) -> None:
    browser.open(page("adopt_cost"))
    x, y = browser.run("""(() => { const c = document.querySelector('[data-hover="curve-0"]');
      c.scrollIntoView({block: "center", behavior: "instant"});
      const b = c.getBoundingClientRect(); return [b.left + b.width * .6, b.top + 80]; })()""")
    browser.move(x, y)
    assert browser.run("document.getElementById('tip').hidden") is False
    said = browser.run("document.getElementById('tip').innerText")
    assert "Standard" in said
    assert "KV shift" in said
    assert re.search(r"Gain: \+0\.\d{3}", said)
    browser.move(2, 2)
    assert browser.run("document.getElementById('tip').hidden") is True


def test_details_open_by_keyboard_and_the_skip_link_comes_first(browser, page) -> None:
    browser.open(page("adopt"))
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.className") == "skip"
    browser.run("document.querySelector('.folds summary').focus()")
    assert browser.run("document.querySelector('.folds details').open") is False
    browser.press("Enter", 13)
    assert browser.run("document.querySelector('.folds details').open") is True
    outline = "getComputedStyle(document.querySelector('.folds summary')).outlineStyle"
    assert browser.run(outline) == "solid"


@pytest.mark.parametrize("kind", ["adopt_cost", "missing", "self_test"])
def test_landmarks_names_and_heading_order(browser, page, kind) -> None:
    browser.open(page(kind, "ja"))
    assert browser.run("document.documentElement.lang") == "ja"
    assert browser.run("document.querySelectorAll('main').length") == 1
    assert browser.run("document.querySelectorAll('h1').length") == 1
    levels = browser.run("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), levels
    unnamed = browser.run("""[...document.querySelectorAll("svg")].filter(s => !s.parentElement.closest("svg")
      && s.getAttribute("aria-hidden") !== "true" && !(s.getAttribute("role") === "img"
      && s.getAttribute("aria-label"))).length""")
    assert unnamed == 0
    regions = browser.run("""[...document.querySelectorAll(".scroll, pre")].filter(e => e.tabIndex !== 0
      || !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby"))).length""")
    assert regions == 0
    ids = browser.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert all(
        target[1:] in ids
        for target in browser.run(
            "[...document.querySelectorAll('a[href^=\"#\"]')].map(a => a.getAttribute('href'))"
        )
    )


def test_the_page_is_whole_without_scripts(browser, page) -> None:
    browser.open(page("adopt_cost"), script=False)
    try:
        nodes = browser.call("DOM.getDocument", depth=0)["root"]["nodeId"]
        marks = browser.call("DOM.querySelectorAll", nodeId=nodes, selector="path.seed")["nodeIds"]
        assert len(marks) == 18
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_text_is_shown_and_never_run(browser, samples, hostile, tmp_path) -> None:
    file = write_report(hostile.hostile(samples.results("adopt_cost")), tmp_path, "en")
    browser.open(file, width=375)
    assert browser.problems() == []
    assert not any(event["method"] == "Page.javascriptDialogOpening" for event in browser.events)
    assert browser.run("document.scripts.length") == 2
    shown = browser.run("document.body.textContent")
    assert shown.count("<script>alert(1)</script>") > 20
    assert "49" not in browser.run("document.querySelector('.subject').textContent")
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("document.documentElement.scrollWidth") == 375
    assert browser.run(OVERFLOW) == []


@pytest.mark.parametrize("language", ["en", "ja"])
def test_print_shows_everything_and_cuts_nothing(browser, page, language, tmp_path) -> None:
    browser.open(page("adopt_cost", language))
    file = tmp_path / "report.pdf"
    browser.pdf(file)
    assert file.read_bytes().startswith(b"%PDF")
    # As wide as A4 between its margins, in the print style: nothing may stick out.
    browser.resize(688)
    browser.call("Emulation.setEmulatedMedia", media="print")
    browser.run("window.dispatchEvent(new Event('beforeprint'))")
    try:
        wide = OVERFLOW.replace(".scroll, pre, ", "")
        assert browser.run(wide) == []
        assert browser.run("[...document.querySelectorAll('details')].every(d => d.open)")
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        browser.run("window.dispatchEvent(new Event('afterprint'))")
        browser.call("Emulation.setEmulatedMedia", media="")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    if shutil.which("pdftotext"):
        text = subprocess.run(
            ["pdftotext", "-raw", str(file), "-"], capture_output=True, text=True, check=True
        ).stdout
        last = json.loads(Path(page("adopt_cost", language)).with_name("report.json").read_text())["runs"][-1]
        assert last["name"] in re.sub(r"\s", "", text)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_no_line_ends_within_an_option_of_a_command(browser, samples, tmp_path, language) -> None:
    """A text as long as it takes to move each option over the end of a phone's line."""
    broken = []
    for length in range(1, 48, 3):
        results = samples.results("bigger_pilot")
        asked = {"sources": ("x" * length,), "learning_rate": 0.01, "batch_size": 8, "start": "identity"}
        settings = results.settings.model_copy(update=asked)
        results = results.model_copy(update={"settings": settings})
        browser.open(write_report(results, tmp_path / str(length), language), width=375)
        broken += browser.run(OPTIONS_ON_TWO_LINES)
    assert broken == []
    assert browser.run("document.querySelectorAll('.next .option').length") >= 4


OPTIONS_ON_TWO_LINES = """(() => {
  const bad = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    for (const match of node.textContent.matchAll(/--[a-z-]{2,}/g)) {
      const range = document.createRange();
      range.setStart(node, match.index);
      range.setEnd(node, match.index + match[0].length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) bad.push(match[0]);
    }
  }
  return bad;
})()"""
