"""The page in a real browser: both widths and schemes, the token map, and hostile data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser
from inputs import HOSTILE

from pipelines.analysis.token_text import TokenText
from pipelines.analysis.training_text import excerpts, read_training_text
from pipelines.data.new_tokenizer import build_tokenizer
from pipelines.data.packing import pack
from pipelines.recipe.schema import SourceConfig, TokenizerConfig
from pipelines.report import write_report
from pipelines.run_dir.paths import RunDir

SHOWN = "[...document.querySelectorAll('.sequence')].filter((s) => !s.hidden).length"
# Texts of charts that leave the chart, or whose boxes overlap by more than the space of a line.
CROWDED = """[...document.querySelectorAll('.chart svg, .wheel svg')].flatMap((svg) => {
  const all = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].filter((text) => text.textContent);
  const boxes = texts.map((text) => text.getBoundingClientRect());
  const over = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top < b.bottom - 4 && b.top < a.bottom - 4;
  return texts.flatMap((text, i) => [
    ...(boxes[i].left < all.left - 1 || boxes[i].right > all.right + 1 ? [text.textContent] : []),
    ...texts.filter((_, j) => j > i && over(boxes[i], boxes[j]))
      .map((other) => `${text.textContent} on ${other.textContent}`),
  ]);
})"""
# Texts of charts with a dot of a chart on them.
DOTTED = """[...document.querySelectorAll('.chart svg')].flatMap((svg) => {
  const texts = [...svg.querySelectorAll('text')].filter((text) => text.textContent);
  const dots = [...svg.querySelectorAll('circle')].map((dot) => dot.getBoundingClientRect());
  return texts.filter((text) => {
    const box = text.getBoundingClientRect();
    return dots.some((dot) => dot.left < box.right && box.left < dot.right
      && dot.top < box.bottom - 3 && box.top + 3 < dot.bottom);
  }).map((text) => `${text.textContent} of ${svg.ariaLabel}`);
})"""
OPEN = "document.querySelectorAll('details[open]').length"
HIDDEN_FACTS = """[...document.querySelectorAll('dd')]
  .filter((fact) => !fact.checkVisibility({contentVisibilityAuto: true})
    || !fact.getBoundingClientRect().height).length"""
CHOOSE_PROSE = """((select) => {
  select.value = 'prose';
  select.dispatchEvent(new Event('change'));
})(document.querySelector('[data-filter=domain]'))"""
TIP = "document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent"


@pytest.fixture(scope="module")
def page(analyzed_run: Path) -> Path:
    return write_report(RunDir(analyzed_run))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_renders(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints == []
    assert browser.requested == [page.resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") == width
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, background[4:-1].split(","))) > 3 * 128
    assert light == (scheme == "light")
    # A small chart's text stays readable: at least 9 px of 11.5.
    drawn = browser.value("document.querySelector('.chart svg').getBoundingClientRect().width")
    assert drawn / 420 > 0.8
    toc = browser.value("getComputedStyle(document.querySelector('nav')).display")
    assert toc == ("block" if width == 1280 else "none")


def test_no_text_of_a_chart_leaves_it_or_lies_on_another(browser: Browser, page: Path) -> None:
    browser.open(page)
    crowded = browser.value(CROWDED)
    assert crowded == []
    assert browser.value("document.querySelectorAll('.hollow').length") == 8
    assert browser.value(DOTTED) == []


def hidden_facts(browser: Browser) -> int:
    """Facts of the provenance that cannot be seen, in the next picture that is drawn."""
    browser.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return int(browser.value(HIDDEN_FACTS))


def on_paper(browser: Browser, page: Path) -> None:
    """Open a page at the width of A4 less margins, as it is printed."""
    browser.open(page, width=718)
    browser.call("Emulation.setEmulatedMedia", media="print")


def test_paper_shows_what_the_screen_folds(browser: Browser, page: Path) -> None:
    browser.open(page)
    folded = hidden_facts(browser)
    assert folded == browser.value("document.querySelectorAll('dd').length") > 50
    browser.value("dispatchEvent(new Event('beforeprint'))")
    folds = browser.value("document.querySelectorAll('details').length")
    assert browser.value(OPEN) == folds and hidden_facts(browser) == 0
    browser.value("dispatchEvent(new Event('afterprint'))")
    assert browser.value(OPEN) == 0
    try:
        on_paper(browser, page)
        assert browser.value(OPEN) == 0 and hidden_facts(browser) == 0
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_paper_has_two_charts_beside_each_other(browser: Browser, page: Path) -> None:
    try:
        on_paper(browser, page)
        columns = (
            "getComputedStyle(document.querySelector('#training .charts')).gridTemplateColumns"
        )
        assert len(browser.value(columns).split()) == 2
        assert browser.value("document.documentElement.scrollWidth") == 718
        crowded, dotted = browser.value(CROWDED), browser.value(DOTTED)
        assert (crowded, dotted) == ([], [])
        for heading in ("h2", ".lead", "figcaption", "summary"):
            style = f"getComputedStyle(document.querySelector('{heading}')).breakAfter"
            assert browser.value(style) == "avoid", heading
    finally:
        browser.call("Emulation.setEmulatedMedia", media="")


def test_a_token_tells_its_numbers(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value(TIP) == ""
    browser.point_at(".t.h4")
    data = browser.value("Object.values(document.querySelector('.t.h4').dataset)")
    weight, d, logprob, reference = data
    assert float(weight) == pytest.approx(1.2, abs=0.026)
    assert float(reference) - float(logprob) == pytest.approx(float(d), abs=0.002)
    told = f"weight {weight}\nd {d}\nlog p {logprob}\nreference {reference}"
    assert browser.value(TIP) == told
    # The keys: into the text, one token on, and away.
    browser.value("document.querySelector('.t').focus({preventScroll: true})")
    assert browser.value(TIP) == "not a target: no weight"
    browser.press("ArrowRight")
    second = browser.value("document.querySelectorAll('.t')[1].dataset.weight")
    assert browser.value("document.activeElement.dataset.weight") == second
    assert browser.value(TIP).startswith(f"weight {second}\n")
    browser.press("Escape")
    assert browser.value(TIP) == ""


def test_the_filters(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value(SHOWN) == 7
    browser.value(CHOOSE_PROSE)
    assert browser.value(SHOWN) == 3
    assert browser.value("document.getElementById('shown').textContent") == "3 of 7 texts"
    assert browser.value("location.hash") == "#domain=prose"
    # The address alone brings the same choice back.
    browser.open(page, place="domain=prose&licence=CC0-1.0")
    assert browser.value(SHOWN) == 0
    browser.open(page, place="source=world")
    assert browser.value(SHOWN) == 3


def test_script_in_data_is_inert(browser: Browser, hostile_run: Path) -> None:
    path = write_report(RunDir(hostile_run))
    browser.open(path)
    assert browser.complaints == []
    assert browser.value("document.title") == "hostile: remit report"
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.images.length") == 0
    assert browser.value("document.querySelector('.t').textContent") == HOSTILE


def hostile_excerpts(folder: Path) -> list[dict[str, Any]]:
    """What an analysis keeps of a JSON Lines file whose texts and domains are script tags."""
    lines = [json.dumps({"text": f"{HOSTILE} {i}", "domain": HOSTILE}) for i in range(20)]
    (folder / "web.jsonl").write_text("\n".join(lines))
    sources = {"web": SourceConfig(path="web.jsonl", licence=HOSTILE)}
    bpe = TokenizerConfig(kind="bpe", vocab_size=300, train_characters=2_000)
    tokenizer = build_tokenizer(bpe, sources, folder, 0)
    dataset = pack(
        sources, tokenizer, sequence_length=64, document_mask=True, num_tokens=64 * 8, seed=0,
        data_root=folder, out_dir=folder / "packed", data_sha256={"web": ""},
    )  # fmt: skip
    text = read_training_text(dataset, 8, TokenText(tokenizer), sources, folder, 0)
    ones = np.ones(len(text.ids), dtype=np.float32)
    values = {name: ones for name in ("weights", "d", "logprobs", "ref_logprobs")}
    return excerpts(text, sources, values, count=4)


def test_script_in_training_data_is_inert(
    browser: Browser, analyzed_run: Path, tmp_path: Path
) -> None:
    """The way of a training text into the page: source, packing, tokens, excerpt, token map."""
    run = Path(shutil.copytree(analyzed_run, tmp_path / "web"))
    pieces = hostile_excerpts(tmp_path)
    assert HOSTILE in "".join(token for piece in pieces for token in piece["tokens"])
    assert {piece["domain"] for piece in pieces} == {HOSTILE}
    result = run / "analysis" / "result.json"
    values = json.loads(result.read_text())
    for each in values["rounds"]:
        each["sequences"] = pieces
    result.write_text(json.dumps(values))
    browser.open(write_report(RunDir(run)))
    assert browser.complaints == []
    assert browser.value("document.title") == "web: remit report"
    assert browser.value("document.scripts.length") == 1
    assert browser.value("document.images.length") == 0
    assert HOSTILE in browser.value("document.querySelector('.sequence').textContent")


def test_without_scripts_it_reads(browser: Browser, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.value("document.querySelector('h1').textContent").startswith("ReMiT round 1")
        filters = "document.querySelector('.filters')"
        assert browser.value(f"getComputedStyle({filters}).display") == "none"
        browser.value("document.querySelector('.t.h4').focus()")
        token = "document.querySelector('.t.h4')"
        shown = browser.value(f"getComputedStyle({token}, '::after').content")
        assert "weight" in shown and "log p" in shown
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
