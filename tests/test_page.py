"""The page in a browser: whole, readable in both themes, on paper and on a phone."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from comparing import three_seeds

from kdlite.reporting.comparison import Comparison
from kdlite.reporting.examples import picture, text_of
from kdlite.reporting.markup import PAGE
from kdlite.reporting.page import page, summary
from kdlite.reporting.plots import Plots
from kdlite.reporting.sections import curves

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return three_seeds()


@pytest.fixture(scope="module")
def text(comparison) -> str:
    return page(comparison)


class _Parsed(HTMLParser):
    """All elements of a page, with a check that each is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.found if name == tag]


def test_page_is_whole_and_fetches_nothing(text) -> None:
    parsed = _Parsed(text)
    assert "http" not in text and "<script" not in text and "@import" not in text
    sources = [a.get("src") or a.get("href") or "" for _, a in parsed.found]
    assert all(s.startswith(("data:", "#")) for s in sources if s)
    assert len(text) < 2_000_000
    # What users name is text, never markup.
    assert "<hat>" not in text and "<b>size" not in text


def test_sections_are_those_that_there_is_something_for(text, comparison) -> None:
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert headings == [
        "What was gained, and what it cost",
        "Does the difference separate?",
        "Against size and latency",
        "How it learned",
        "How sure, and how right",
        "Where it is wrong",
        "What the files changed",
        "Where they differ",
        "Energy and CO2",
        "Gates",
        "Settings",
    ]


def test_those_who_do_not_see_or_point_have_all_of_it(text) -> None:
    parsed = _Parsed(text)
    assert parsed.all("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in parsed.all("img"))
    plots = parsed.all("svg")
    assert len(plots) > 6 and all(svg["aria-label"] for svg in plots)
    assert all(cell.get("scope") in ("row", "col") for cell in parsed.all("th"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    wide = [a for a in parsed.all("div") if a.get("class") == "wide"]
    assert all(a["tabindex"] == "0" and a["aria-label"] for a in wide)
    ids = [a["id"] for _, a in parsed.found if "id" in a]
    assert len(ids) == len(set(ids))


def test_every_colour_of_the_page_is_one_of_the_theme(text) -> None:
    used = set(re.findall(r"var\((--[\w-]+)", text)) - {"--v"}
    for theme in themes():
        assert used <= set(theme)


def themes() -> list[dict[str, str]]:
    """Light, dark and paper: the variables of each."""
    blocks = re.findall(r":root \{\{(.*?)\}\}", PAGE, re.DOTALL)
    return [dict(re.findall(r"(--\w+): (#\w{6})", block)) for block in blocks]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, 1.4.3: the ratio of relative luminances."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [
            p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark", "paper"])
def test_text_and_signs_stand_out_in_every_theme(theme) -> None:
    for ground in ("--paper", "--card"):
        for name in ("--ink", "--soft", "--good", "--bad"):
            assert contrast(theme[name], theme[ground]) >= 4.5, (name, ground)
        for name in ("--faint", *(f"--s{i}" for i in range(8))):
            assert contrast(theme[name], theme[ground]) >= 3, (name, ground)


def test_summary_is_about_the_file(comparison) -> None:
    words = summary(comparison)
    assert re.match(r"int8 file: top-1 [\d.]+ % in the mean of 3 seeds; ", words)
    assert "64,000 bytes, 62 times smaller" in words and "40 times faster" in words


def test_a_busy_computer_is_told_beside_the_speed(comparison, text) -> None:
    held_up = tuple(
        replace(c, cost=replace(c.cost, processor=0.31)) if c.cost.latency_ms else c
        for c in comparison.contenders
    )
    busy = replace(comparison, contenders=held_up)
    assert "40 times faster, by a busy computer" in summary(busy)
    assert "these runs had 31 % of a processor" in page(busy)
    assert "busy" not in text


def curves_told(comparison, student: dict, **others: dict) -> list[str]:
    """What is said below each plot of learning curves."""
    history = {"student": student, **others}
    told = curves(replace(comparison, history=history), Plots(list(history)))
    return re.findall("<figcaption>(.*?)</figcaption>", told)


def test_a_curve_that_is_another_one_is_told_and_not_drawn_again(comparison) -> None:
    nan = float("nan")
    student = {
        "val_loss": [2.0, nan, 1.0],
        "val_hard_loss": [2.0, nan, 1.0],
        "loss": [2.0, 1.5, 1.0],
        "hard_loss": [2.0, 1.5, 1.1],
    }
    drawn = ["loss: student from 2 to 1.", "hard loss: student from 2 to 1.1."]
    first = "val loss: student from 2 to 1"
    equal = "; equal to val hard loss."
    assert curves_told(comparison, student) == [first + equal, *drawn]
    # One has a curve more there: the plot still has the one that would be repeated.
    more = {"val_loss": [3.0, 2.0]}
    assert curves_told(comparison, student, other=more) == [
        f"{first}; other from 3 to 2{equal}",
        *drawn,
    ]
    # Another's curve is news.
    news = {"val_loss": [3.0, 2.0], "val_hard_loss": [3.0, 2.1]}
    assert curves_told(comparison, student, other=news) == [
        f"{first}; other from 3 to 2.",
        *drawn,
        "val hard loss: student from 2 to 1; other from 3 to 2.1.",
    ]


# --- samples


def test_pictures_keep_their_scale_and_are_small() -> None:
    import base64
    import io

    from PIL import Image

    def opened(sample):
        data = picture(sample[None], 0).partition("base64,")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))

    grey = np.full((4, 4, 1), 128, np.uint8)
    assert (opened(grey) == 128).all()
    assert (opened(grey / np.float32(255)) == 128).all()
    spread = opened(np.array([[[-1.0], [0.0]], [[1.0], [1.0]]]))
    assert spread.min() == 0 and spread.max() == 255
    assert max(opened(np.zeros((300, 500, 3), np.uint8)).shape) <= 112
    assert picture(np.zeros((2, 7)), 0) is None
    assert (opened(np.full((2, 2, 1), np.nan)) == 0).all()


def test_samples_that_are_no_images_are_words() -> None:
    assert text_of(np.array(["good <b>film</b>"]), 0) == "good <b>film</b>"
    assert text_of(np.arange(40.0).reshape(1, 40), 0).endswith("11, ... (40,)")


# --- in a browser


@pytest.fixture
def browser(tmp_path, text):
    if CHROMIUM is None:
        if os.environ.get("KDLITE_BROWSER_REQUIRED"):
            pytest.fail("there is no chromium, and KDLITE_BROWSER_REQUIRED is set")
        pytest.skip("there is no chromium: apt-get install chromium")

    def run(*flags: str, text: str = text) -> str:
        (tmp_path / "page.html").write_text(text)
        done = subprocess.run(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--user-data-dir={tmp_path / 'profile'}",
                *flags,
                f"file://{tmp_path / 'page.html'}",
            ],
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.mark.parametrize(
    ("scheme", "ground"), [(1, (255, 255, 255)), (0, (20, 23, 27))]
)
def test_rendered_light_and_dark(browser, tmp_path, scheme, ground) -> None:
    from PIL import Image

    shot = tmp_path / "shot.png"
    browser(
        f"--screenshot={shot}",
        "--window-size=1000,3000",
        f"--blink-settings=preferredColorScheme={scheme}",
    )
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert tuple(pixels[2, 2]) == ground
    # Words and plots are there: much of the page is other than its ground, and some of
    # it in the colours of the series.
    other = np.abs(pixels - ground).sum(-1) > 60
    assert 0.02 < other.mean() < 0.6
    theme = themes()[0 if scheme else 1]
    for name in ("--s0", "--s3"):
        colour = [int(theme[name][i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - colour).sum(-1) < 6).sum() > 40, name


@pytest.mark.parametrize("width", [400, 1000])
def test_nothing_is_wider_than_the_screen(browser, comparison, width) -> None:
    # A window is no narrower than 500: the page is in a frame of it.
    long = replace(comparison.contenders[-1], name="a file with a long name.tflite")
    told = page(replace(comparison, contenders=(*comparison.contenders[:-1], long)))
    framed = f"""<!doctype html><body></body><iframe width="{width}" height="900"
    srcdoc="{html.escape(told)}"></iframe><script>
    onload = () => {{
      const page = document.querySelector("iframe").contentDocument;
      const beyond = [...page.querySelectorAll("body *")].filter(e =>
        !e.closest(".wide > *") && !e.closest("svg *") &&
        e.getBoundingClientRect().right > {width + 1});
      // Tables scroll within themselves.
      const scrolling = [...page.querySelectorAll(".wide")].filter(e =>
        e.scrollWidth > e.clientWidth);
      document.body.dataset.beyond = beyond.map(e => e.outerHTML).join(" ");
      document.body.dataset.scrolling =
        scrolling.map(e => e.getAttribute("aria-label")).join("; ");
    }}</script>"""
    dom = browser("--dump-dom", "--window-size=1100,900", text=framed)
    assert re.search(r'data-beyond="(.*?)"', dom)[1] == ""
    scrolling = re.search(r'data-scrolling="(.*?)"', dom)[1]
    if width == 400:  # figures in many columns do, words in two do not
        assert "Costs" in scrolling and "Settings" not in scrolling
    else:
        assert scrolling == ""


def test_printed_on_paper(browser, tmp_path) -> None:
    pdf = tmp_path / "page.pdf"
    browser(f"--print-to-pdf={pdf}", "--no-pdf-header-footer")
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF")
    assert 1 < len(re.findall(rb"/Type\s*/Page\b", data)) < 12
