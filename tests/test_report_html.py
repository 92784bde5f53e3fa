"""`multicrop report`: the page opens in a browser without an error or a network, sorts, filters, shows images; names are text."""

import re
import shutil
from types import SimpleNamespace

import pytest
import records

from multicrop import cli
from multicrop.compare import page as pages
from multicrop.compare.collect import collect
from multicrop.compare.leaderboard import blocks
from multicrop.files import write_manifest

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
EVIL = ["<script>window.hurt=1</script>", "<img src=x onerror='window.hurt=1'>", "a & b", "</span></script>"]


def report(folder, *arguments):
    with pytest.raises(SystemExit) as done:
        cli.main(["report", str(folder), "-o", str(folder / "report.html"), *arguments])
    assert done.value.code == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, where the machine has it."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def opened(browser, path, scheme="light"):
    """The page, and all that it said or asked for."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": 1200, "height": 900})
    shown = context.new_page()
    said = SimpleNamespace(console=[], asked=[])
    shown.on("console", lambda message: said.console.append(message.text))
    shown.on("pageerror", lambda error: said.console.append(str(error)))
    shown.on("request", lambda request: said.asked.append(request.url))
    shown.goto(path.as_uri())
    shown.wait_for_selector("body[data-ready=yes]", timeout=60_000)
    return shown, said


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Two data sets, three aggregators, two crop policies, few-shot curves, evil names."""
    folder = tmp_path_factory.mktemp("few")
    shown = [records.example("rescued", EVIL), records.example("lost", EVIL, (20, 90, 200), EVIL[0])]
    number = 0
    for aggregator, crop, accuracy, views in [
        ("dnd", "random_k4", 0.9, 5),
        ("max", "random_k4", 0.6, 5),
        ("dnd", "random_k16", 0.95, 17),
        ("global", "global", 0.62, 1),
    ]:
        records.write(
            folder / str(number), aggregator=aggregator, crop=crop, accuracy=accuracy, views=views, names=EVIL, draw=number, examples=shown
        )
        number += 1
    for shots in (1, 4, 16):
        records.write(
            folder / f"<b>{number}", task="few_shot", knobs={"shots": shots}, draw=number, fingerprint="other", accuracy=0.5 + shots / 50
        )
        number += 1
    return report(folder)


def first_cells(shown):
    return shown.eval_on_selector_all("#board tbody tr td:first-child", "cells => cells.map(c => c.textContent)")


def column(shown, number):
    return shown.eval_on_selector_all(f"#board tbody tr td:nth-child({number})", "cells => cells.map(c => c.textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_an_error_or_a_network_in_light_and_dark(browser, few, scheme):
    shown, said = opened(browser, few, scheme)
    assert said.console == [] and [url for url in said.asked if not url.startswith(("file:", "data:"))] == []
    assert shown.locator("#board tbody tr").count() == 7  # of one data set: four methods, the global view, crops averaged of two policies
    for name in ("cost", "grid", "forest", "classes"):
        assert shown.locator(f"#{name} .main-svg").count() > 0, name
    back = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", back)[:3])) > 600 if scheme == "light" else sum(map(int, re.findall(r"\d+", back)[:3])) < 150
    shown.context.close()


def test_columns_sort_both_ways_and_filters_keep_what_they_name(browser, few):
    shown, said = opened(browser, few)
    below = shown.eval_on_selector_all("#notes li", "items => items.map(i => i.textContent)")  # of the data that is shown, and no other
    assert len(below) == 2 and "the 4 zero_shot methods" in below[0] and below[1].startswith("3 other run(s)")
    accuracy = [float(text) for text in column(shown, 3)]
    assert accuracy == sorted(accuracy, reverse=True)
    shown.click("th[data-column=accuracy]")
    assert [float(text) for text in column(shown, 3)] == sorted(accuracy)
    shown.click("th[data-column=label]")
    assert first_cells(shown) == sorted(first_cells(shown))
    shown.select_option("select[name=aggregator]", "max")
    assert [name.split(",")[0] for name in first_cells(shown)] == ["max"]
    shown.select_option("select[name=aggregator]", "")
    shown.select_option("select[name=crop]", "random_k16")
    assert sorted(first_cells(shown)) == ["crops averaged, random_k16", "dnd, random_k16"]
    shown.select_option("select[name=crop]", "")
    shown.select_option("select[name=images]", index=1)  # the task follows the images: one table is of one task
    assert shown.eval_on_selector("select[name=task]", "select => select.value") == "few_shot"
    assert len(first_cells(shown)) == 6 and sum("shots" in name for name in first_cells(shown)) == 3
    assert "the 4 few_shot methods" in shown.locator("#notes").text_content()
    assert shown.locator("#shots .main-svg").count() > 0
    shown.select_option("select[name=task]", "zero_shot")
    assert first_cells(shown) == []
    shown.select_option("select[name=task]", "few_shot")
    assert len(first_cells(shown)) == 6
    shown.fill("input[name=text]", "nothing like it")
    assert first_cells(shown) == [] and said.console == []
    shown.context.close()


def test_an_image_is_shown_with_its_boxes_and_the_text_of_each(browser, few):
    shown, said = opened(browser, few)
    shown.click("#board tbody tr:first-child")
    card = shown.locator("#images .card")
    assert card.count() == 1 and card.locator("svg rect").count() == 2
    assert card.locator("img").evaluate("img => img.complete && img.naturalWidth") == 60
    card.locator("svg rect").nth(1).hover(position={"x": 70, "y": 70})
    assert "crop 2: 80 % long legs" in card.locator(".match").text_content()
    shown.click("button[data-kind=lost]")
    assert EVIL[0] in shown.locator("#images .card").text_content()
    shown.click("button[data-kind=wrong]")
    assert shown.locator("#images .card").count() == 0 and said.console == []
    shown.context.close()


def test_names_are_shown_as_text_wherever_they_come(browser, few):
    shown, said = opened(browser, few)
    for row in range(shown.locator("#board tbody tr").count()):
        shown.locator("#board tbody tr").nth(row).click()
        shown.locator("#classes .xtick").first.wait_for(state="attached")
    shown.wait_for_timeout(200)
    assert shown.evaluate("window.hurt") is None and said.console == []
    assert shown.locator("#classes img, #images img[src=x], #board img").count() == 0
    source = few.read_text()
    assert not any(name in source for name in EVIL[:2]) and "<b>4" not in source
    shown.context.close()


def test_a_thousand_runs_make_a_page_that_opens_and_stays_small(tmp_path, browser):
    made = records.write(tmp_path / "0", images=80)
    for number in range(1, 1000):
        shutil.copytree(made, tmp_path / str(number))
        config = (made / "config.yaml").read_text().replace("x.dnd", f"x.dnd\n  epsilon: {number}")
        (tmp_path / str(number) / "config.yaml").write_text(config)
        write_manifest(tmp_path / str(number), ["config.yaml", "metrics.json"])
    path = report(tmp_path)
    assert path.stat().st_size < 2**20
    shown, said = opened(browser, path)
    assert shown.locator("#board tbody tr").count() == 1002 and said.console == []
    shown.fill("input[name=text]", "epsilon=77")
    assert shown.locator("#board tbody tr").count() == 11
    shown.context.close()


def test_pictures_are_kept_once_and_up_to_the_limit(tmp_path):
    same = records.example("rescued")
    for number in range(3):
        own = [records.example("lost", colour=(number * 80, 0, 0), image_id=f"{number}-{i}") for i in range(2)]
        records.write(tmp_path / str(number), draw=number, knobs={"fusion_weight": number}, examples=[same, *own])
    found = blocks(collect([tmp_path])[0])
    data = pages.page_data(found, "global", 300)
    assert len(data["pictures"]) == 4 and sorted(map(len, data["examples"].values())) == [3, 3, 3]
    few = pages.page_data(found, "global", 2)
    assert len(few["pictures"]) == 2
    assert pages.page_data(found, "global", 0)["examples"] == {}


def test_accuracy_by_class_is_the_mean_over_runs_and_empty_classes_are_blank(tmp_path):
    for seed in (1, 2):
        records.write(tmp_path / str(seed), seed=seed, draw=seed)
    data = pages.page_data(blocks(collect([tmp_path])[0]), "global", 0)
    entry = blocks(collect([tmp_path])[0])[0].entries[0]
    labels = entry.runs[0].sorted_predictions.label
    for c in range(4):
        by_hand = sum(r.sorted_predictions.correct()[labels == c].sum() for r in entry.runs) / (2 * (labels == c).sum())
        assert data["entries"][0]["classes"][c] == round(1000 * by_hand)
    more = records.write(tmp_path / "more", names=[*records.NAMES, "unseen"], images=4, draw=3)
    assert pages.page_data(blocks([collect([more])[0][0]]), "global", 0)["entries"][0]["classes"][4] is None
