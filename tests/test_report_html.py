"""`multicrop report`: the page opens in a browser without an error or a network, sorts, filters, shows images; names are text."""

import io
import re
import shutil
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest
import records
from PIL import Image

from multicrop import cli
from multicrop.compare import page as pages
from multicrop.compare.collect import collect
from multicrop.compare.leaderboard import blocks
from multicrop.compare.tables import leaderboard_table
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


def opened(browser, path, scheme="light", width=1200):
    """The page, and all that it said or asked for."""
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
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


def column(shown, number, table="board"):
    return shown.eval_on_selector_all(f"#{table} tbody tr td:nth-child({number})", "cells => cells.map(c => c.textContent)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_an_error_or_a_network_in_light_and_dark(browser, few, scheme):
    shown, said = opened(browser, few, scheme)
    assert said.console == [] and [url for url in said.asked if not url.startswith(("file:", "data:"))] == []
    assert shown.locator("#board tbody tr").count() == 7  # of one data set: four methods, the global view, crops averaged of two policies
    for name in ("cost", "grid", "forest"):
        assert shown.locator(f"#{name} .main-svg").count() > 0, name
    assert "null" not in shown.locator("#grid").text_content()  # cells without a run are empty
    back = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", back)[:3])) > 600 if scheme == "light" else sum(map(int, re.findall(r"\d+", back)[:3])) < 150
    shown.context.close()


def test_columns_sort_both_ways_and_filters_keep_what_they_name(browser, few):
    shown, said = opened(browser, few)
    below = shown.eval_on_selector_all("#notes li", "items => items.map(i => i.textContent)")  # of the data that is shown, and no other
    assert len(below) == 2 and "the 4 zero_shot methods" in below[0] and below[1].startswith("3 other run(s)")
    accuracy = [float(text) for text in column(shown, 2)]
    assert accuracy == sorted(accuracy, reverse=True)
    shown.click("th[data-column=accuracy] button")
    assert [float(text) for text in column(shown, 2)] == sorted(accuracy)
    shown.click("th[data-column=label] button")
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


OVER = """() => [...document.querySelectorAll('body *')].filter(e => {
  if (e.closest('.scroll table, .plot svg, #js-plotly-tester, #sources')) return false;
  const box = e.getBoundingClientRect();
  return box.width && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => `${e.tagName} ${e.id} ${e.className}`)"""
LONG = [f"class {c}, persevering face, smiling face with smiling eyes and fried shrimp" if c % 2 else f"class {c}" for c in range(344)]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixty runs of twelve aggregators and five crop policies on 344 classes, some with long names."""
    folder = tmp_path_factory.mktemp("many")
    aggregators = ["dnd", "awt", "mean_feature", "max", "wca", "vote", "soft_match", "global", "entropy_weighted", "top_k", "ot", "mta"]
    crops = [("global", 1), ("random_k4", 5), ("grid", 10), ("random_k16", 17), ("random_resized_with_a_long_name", 17)]
    shown = [records.example("rescued", LONG[1:]), records.example("lost", LONG[1:], (20, 90, 200))]
    for number, (aggregator, (crop, views)) in enumerate(product(aggregators, crops)):
        accuracy = 0.4 + 0.5 * number / 60
        how = {"aggregator": aggregator, "crop": crop, "views": views, "accuracy": accuracy, "draw": number}
        records.write(folder / str(number), **how, names=LONG, images=344, examples=shown)
    return report(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_of_sixty_runs_overflows_and_the_accuracy_is_seen(browser, many, width, scheme):
    shown, said = opened(browser, many, scheme, width)
    assert shown.locator("#board tbody tr").count() > 60  # and the baselines
    assert shown.evaluate("document.documentElement.scrollWidth") == width and shown.evaluate(OVER) == []
    frame, cells = shown.locator(".frame").first.bounding_box(), shown.locator("#board tbody tr").first.locator("td")
    for place in range(3):  # method, top-1, difference
        box = cells.nth(place).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= frame["x"] + frame["width"], place
    for label in shown.locator(".plot .ytick text, .plot .xtick text, .plot .legendtext, .plot .textpoint text").all():
        box = label.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width, label.text_content()
    picture = Image.open(io.BytesIO(shown.screenshot(full_page=True))).convert("RGB")
    back = (255, 255, 255) if scheme == "light" else (20, 22, 26)
    assert picture.width == width and picture.getpixel((2, 2)) == back and len(picture.getcolors(1 << 24)) > 500
    assert said.console == []
    shown.context.close()


def test_what_goes_on_is_said_until_its_end_is_reached(browser, many):
    from playwright.sync_api import expect

    shown, _ = opened(browser, many, width=400)
    line, frame = shown.locator(".more").first, shown.locator(".frame").first
    assert line.text_content() == "More columns to the right and rows below: scroll, or use the arrow keys."
    assert frame.get_attribute("data-right") == frame.get_attribute("data-below") == ""
    shown.locator(".scroll").first.evaluate("e => e.scrollTo(e.scrollWidth, 0)")
    expect(line).to_have_text(re.compile("^More rows below:"))
    shown.locator(".scroll").first.evaluate("e => e.scrollTo(e.scrollWidth, e.scrollHeight)")
    expect(line).to_have_text("")
    assert frame.get_attribute("data-right") is frame.get_attribute("data-below") is None
    shown.context.close()


def test_the_keyboard_sorts_and_chooses(browser, few):
    shown, _ = opened(browser, few)
    accuracy = column(shown, 2)
    shown.focus("th[data-column=accuracy] button")
    shown.keyboard.press("Enter")
    assert column(shown, 2) == accuracy[::-1]
    assert shown.evaluate("document.activeElement.closest('th').dataset.column") == "accuracy"  # a second key turns the order again
    assert shown.locator("th[data-column=accuracy]").get_attribute("aria-sort") == "ascending"
    shown.keyboard.press("Space")
    assert column(shown, 2) == accuracy
    shown.locator("#board tbody tr button").nth(2).focus()
    shown.keyboard.press("Enter")
    assert shown.locator("#board tr[aria-selected=true] td").first.text_content() == first_cells(shown)[2]
    assert shown.locator("#chosen").text_content().startswith(first_cells(shown)[2])
    shown.context.close()


def test_all_classes_can_be_read_and_sorted(browser, many):
    shown, _ = opened(browser, many, width=400)
    rows = shown.locator("#classes tbody tr")
    assert rows.count() == 344 and sorted(column(shown, 1, "classes")) == sorted(LONG)
    assert rows.first.locator("td").first.evaluate("td => parseFloat(getComputedStyle(td).fontSize)") >= 12
    gains = [float(text) for text in column(shown, 4, "classes")]
    assert gains == sorted(gains, reverse=True)
    shown.click("#classes th[data-column=name] button")
    assert column(shown, 1, "classes") == shown.evaluate("names => names.sort((a, b) => a.localeCompare(b))", LONG)
    row = shown.locator("#classes tbody tr").first
    own, base = (float(row.locator("td").nth(place).text_content()) for place in (1, 2))
    assert (
        row.locator(".own").evaluate("i => i.style.left") == f"{own:g}%"
        and row.locator(".base").evaluate("i => i.style.left") == f"{base:g}%"
    )
    shown.context.close()


def test_ticks_are_values_and_points_are_labelled(browser, few):
    shown, _ = opened(browser, few)
    assert shown.locator("#cost .xtick text").all_text_contents() == ["1", "4", "5", "16"]  # 17 would touch 16
    labels = [text for text in shown.locator("#cost .textpoint text").all_text_contents() if text]
    assert {"global, global", "dnd, random_k16"} <= set(labels)
    shown.select_option("select[name=images]", index=1)
    assert shown.locator("#shots .xtick text").all_text_contents() == ["1", "4", "16"]
    shown.context.close()


def test_a_single_cell_or_point_is_no_picture(browser, tmp_path):
    records.write(tmp_path / "one")
    shown, said = opened(browser, report(tmp_path))
    assert shown.locator("#cost-figure").is_visible()
    shown.fill("input[name=text]", "dnd")  # without the baselines
    assert [shown.locator(f"#{name}-figure").is_visible() for name in ("cost", "grid", "forest", "shots")] == [False] * 4
    assert shown.locator("#board tbody tr").count() == 1 and said.console == []
    shown.context.close()


def test_plots_are_of_one_task(browser, tmp_path):
    for number, task in enumerate(["zero_shot", "zero_shot", "few_shot", "few_shot"]):
        knobs = {"shots": 4} if task == "few_shot" else {}
        records.write(tmp_path / str(number), task=task, knobs=knobs, crop=f"random_k{4 + number}", views=5 + number, draw=number)
    shown, _ = opened(browser, report(tmp_path))
    for task, crops in {"zero_shot": ["random_k4", "random_k5"], "few_shot": ["random_k6", "random_k7"]}.items():
        shown.select_option("select[name=task]", task)
        assert shown.locator("#grid .xtick text").all_text_contents() == ["global", *crops]
        calls = {1} | {int(name[8:]) + extra for name in crops for extra in (0, 1)}  # crops averaged need no global view
        assert shown.locator("#cost .xtick text").all_text_contents() == [str(count) for count in sorted(calls)]
    shown.context.close()


def test_the_page_rounds_as_the_terminal_does(tmp_path, browser, capsys):
    """One of 80 images is lost: -1.25 points, which is -1.2 in both, where JavaScript makes -1.3 of it."""
    folder = records.write(tmp_path / "0", images=80, base=1.0, accuracy=1.0)
    run = collect([folder])[0][0]
    rows = {row: values.copy() for row, values in run.predictions.rows.items()}
    rows["final"][:] = rows["global"][:] = run.predictions.label
    rows["final"][0] = (run.predictions.label[0] + 1) % 4
    replace(run.predictions, rows=rows).write(folder / "predictions.parquet")
    write_manifest(folder, sorted(path.name for path in folder.iterdir() if path.name != "manifest.json"))
    found = blocks(collect([tmp_path])[0])
    table = leaderboard_table(found[0], "global")
    entries = pages.page_data(found, "global", 0)["entries"]
    assert table.cells() == [[entry["cells"][name] for name in table.columns] for entry in entries]
    entry = next(entry for entry in entries if entry["label"].startswith("dnd"))
    assert entry["cells"]["vs global [95 %]"].startswith("-1.2 [")
    label = run.predictions.label[0]
    assert entry["gains"][label] == -50 and entry["classes"][label] == 950
    shown, _ = opened(browser, report(tmp_path))
    shown.fill("input[name=text]", "dnd")
    assert column(shown, 2) == [entry["cells"]["top-1 %"]] == ["98.8"] and column(shown, 3)[0].startswith("-1.2 [")
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
        assert shown.locator("#classes tbody tr").count() == 4
    shown.wait_for_timeout(200)
    assert shown.evaluate("window.hurt") is None and said.console == []
    assert shown.locator("#classes img, #images img[src=x], #board img, .plot img").count() == 0
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
