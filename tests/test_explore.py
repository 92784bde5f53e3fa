"""`multicrop explore`: changed controls answer as a classifier with these settings does; the page is clicked through in a browser."""

import io
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace

import httpx
import pytest
import torch
from PIL import Image, ImageDraw

from multicrop import Classifier
from multicrop.cli import explore as command
from multicrop.cli import main
from multicrop.data.images import ImageError
from multicrop.runs import explore
from multicrop.runs.explore import Explorer
from multicrop.show.explain.change import change_table, headline

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (path := shutil.which(name))), None)
CLASSES = {"lion": ["a mane", "golden yellow face"], "penguin": ["a white belly", "black wings"], "<b>pig": ["pink skin"]}
SMALL = {"model": "tiny", "aggregator": "dnd", "temperature": 10.0}  # so that no probability is 1


def drawn(colour="orange") -> bytes:
    """A PNG of a circle."""
    image, stream = Image.new("RGB", (120, 90), "white"), io.BytesIO()
    ImageDraw.Draw(image).ellipse((20, 10, 90, 80), fill=colour)
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer(Classifier(CLASSES, crop="random_k4", **SMALL).predictor)


@pytest.fixture
def photo(explorer):
    return explorer.photo("circle.png", drawn())


def probabilities(tmp_path, classes=CLASSES, crop="random_k4", **changed) -> torch.Tensor:
    """What a classifier with these settings says of the photo."""
    (tmp_path / "circle.png").write_bytes(drawn())
    return torch.from_numpy(Classifier(classes, crop=crop, **SMALL, **changed).predict_proba([tmp_path / "circle.png"])[0]).float()


class TestAnswers:
    def test_as_configured_they_are_those_of_the_classifier(self, explorer, photo, tmp_path):
        answer = explorer.answer(photo, explorer.configured)
        expected = probabilities(tmp_path)
        assert torch.allclose(answer.now, expected, atol=1e-5) and torch.allclose(answer.before, expected, atol=1e-5)
        assert answer.explanation.predicted.name == explorer.class_names[int(expected.argmax())]
        assert answer.explanation.probability == pytest.approx(float(expected.max()), abs=1e-5)

    def test_changed_controls_answer_as_a_classifier_with_these_settings(self, explorer, photo, tmp_path):
        answer = explorer.answer(photo, replace(explorer.configured, n_crops=6, size=(0.2, 0.4), fusion_weight=0.5))
        changed = ["crop.n_crops=6", "crop.min_side=0.2", "crop.max_side=0.4", "task.fusion_weight=0.5"]
        assert torch.allclose(answer.now, probabilities(tmp_path, overrides=changed), atol=1e-5)
        assert torch.allclose(answer.before, probabilities(tmp_path), atol=1e-5)
        assert not torch.allclose(answer.now, answer.before, atol=1e-4) and len(answer.explanation.boxes) == 6

    def test_edited_prompts_answer_as_a_classifier_with_these_prompts(self, explorer, photo, tmp_path):
        edited = {**CLASSES, "<b>pig": ["pink skin", "an orange circle", "a disc", "a curly tail"]}  # more than any class had
        row = Classifier(edited, crop="random_k4", **SMALL).predictor.session.prompts[2]
        before = explorer.session.text.features.clone()
        answer = explorer.answer(photo, replace(explorer.configured, prompts={"<b>pig": row}))
        assert torch.allclose(answer.now, probabilities(tmp_path, edited), atol=1e-5)
        assert not torch.allclose(answer.now, answer.before, atol=1e-4)
        assert torch.equal(explorer.session.text.features, before)

    def test_fewer_crops_are_the_first_of_more_and_not_encoded_again(self, explorer, photo, monkeypatch):
        encoded = []
        real = explore.encoded_views
        monkeypatch.setattr(explore, "encoded_views", lambda *args: encoded.append(args) or real(*args))
        boxes = [explorer.answer(photo, replace(explorer.configured, n_crops=n)).explanation.boxes for n in (7, 2)]
        assert len(encoded) == 1 and torch.equal(boxes[1], boxes[0][:2])
        explorer.answer(photo, replace(explorer.configured, size=(0.2, 0.4)))
        assert len(encoded) == 2

    @pytest.mark.parametrize(("crop", "size"), [("global", None), ("grid", None), ("random_resized", (0.08, 1.0))])
    def test_a_policy_has_the_controls_of_its_own_knobs(self, crop, size):
        other = Explorer(Classifier(CLASSES, crop=crop, **SMALL).predictor)
        assert other.configured.size == size and (other.configured.n_crops is None) == (size is None)
        photo = other.photo("circle.png", drawn())
        few = {"n_crops": 3, "size": (0.01, 0.02)} if size else {}
        boxes = other.answer(photo, replace(other.configured, fusion_weight=0.5, **few)).explanation.boxes
        if size:
            assert len(boxes) == 3 and float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).max()) < 0.05 * 120 * 90

    def test_what_cannot_be_answered_says_why(self, explorer, photo):
        with pytest.raises(ValueError, match="lion has no prompt"):
            explorer.answer(photo, replace(explorer.configured, prompts={"lion": []}))
        with pytest.raises(ValueError, match="descriptions are wanted"):
            explorer.answer(photo, replace(explorer.configured, prompts={"lion": ["a lion"]}))
        with pytest.raises(ImageError, match=r"broken\.png"):
            explorer.photo("broken.png", b"no image")
        alone = Explorer(Classifier(["lion"], model="tiny", crop="global", aggregator="global", overrides=["prompt=template"]).predictor)
        with pytest.raises(ValueError, match="compares two classes"):
            alone.answer(photo, alone.configured)


class TestChange:
    NAMES = ("cat", "<script>", "dog")

    def test_the_headline_names_the_class_as_configured_where_it_differs(self):
        before, now = torch.tensor([0.7, 0.1, 0.2]), torch.tensor([0.6, 0.1, 0.3])
        assert headline(self.NAMES, before, now) == "cat, 60 % (as configured: 70 %)"
        assert headline(self.NAMES, before, now.flip(0)) == "dog, 60 % (as configured: cat, 70 %)"

    def test_the_table_has_both_probabilities_and_their_difference_most_probable_first(self):
        html = change_table(self.NAMES, torch.tensor([0.7, 0.1, 0.2]), torch.tensor([0.25, 0.15, 0.6]))
        assert html.index("dog") < html.index("cat") < html.index("&lt;script&gt;") and "<script>" not in html
        assert "<td>70.0 %</td><td>25.0 %</td><td>-45.0</td>" in html and 'class="now" style="width:25.0%"' in html


@pytest.fixture(scope="module")
def site(explorer):
    """The address of the page."""
    pages = pytest.importorskip("multicrop.runs.explore_page", reason="no NiceGUI: pip install -e '.[explore]'")
    with pages.listening(0) as address:
        server = pages.server_of(explorer, None, "a configuration")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [address]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{address.getsockname()[1]}"
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def tab(site):
    """The page in headless Chromium, and all that it said or asked for."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        shown, said = chromium.new_page(viewport={"width": 1400, "height": 1000}), SimpleNamespace(console=[], asked=[])
        shown.on("console", lambda message: said.console.append(message.text) if message.type == "error" else None)
        shown.on("pageerror", lambda error: said.console.append(str(error)))
        shown.on("request", lambda request: said.asked.append(request.url))
        shown.goto(site)
        yield shown, said, api.expect
        chromium.close()


class TestPage:
    def test_it_is_clicked_through(self, tab, site, explorer):
        shown, said, expect = tab
        shown.set_input_files("input[type=file]", {"name": "circle.png", "mimeType": "image/png", "buffer": drawn()})
        before = explorer.answer(explorer.photo("circle.png", drawn()), explorer.configured)
        expect(shown.get_by_text("as configured: ")).to_have_text(headline(explorer.class_names, before.before, before.now))
        expect(shown.frame_locator("iframe").locator("h1")).to_contain_text("circle.png")
        expect(shown.frame_locator("iframe").locator("svg.whole rect")).to_have_count(4)

        predicted = before.explanation.predicted.name
        prompts = shown.get_by_label("Prompts, one per line, label prompt first")
        expect(prompts).to_have_value("\n".join(explorer.prompts(predicted)))
        shown.get_by_role("slider", name="Number of crops").locator("[tabindex]").press("ArrowRight")
        expect(shown.frame_locator("iframe").locator("svg.whole rect")).to_have_count(5)
        for _ in range(3):
            shown.get_by_role("slider", name="Fusion weight").locator("[tabindex]").press("ArrowLeft")
        fused = explorer.answer(explorer.photo("circle.png", drawn()), replace(explorer.configured, n_crops=5, fusion_weight=0.85))
        expect(shown.get_by_text("as configured: ")).to_have_text(headline(explorer.class_names, fused.before, fused.now))
        expect(shown.frame_locator("iframe").get_by_text("the whole image against the two label prompts")).to_have_count(1)

        prompts.fill("a drawing.\nan orange circle on white\na disc")
        expect(shown.frame_locator("iframe").get_by_text("an orange circle on white").first).to_be_attached()
        prompts.fill("")
        expect(shown.get_by_text(f"{predicted} has no prompt")).to_be_visible()
        shown.get_by_role("button", name="As configured").click()
        expect(shown.get_by_text("as configured: ")).to_have_text(headline(explorer.class_names, before.before, before.now))
        expect(prompts).to_have_value("\n".join(explorer.prompts(predicted)))
        shown.set_input_files("input[type=file]", {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"})
        expect(shown.get_by_text("broken.png: ")).to_be_visible()
        assert said.console == []
        assert [url for url in said.asked if not url.startswith((site, site.replace("http", "ws"), "data:", "blob:", "about:"))] == []

    def test_it_answers_to_the_names_of_this_machine_only(self, site):
        assert httpx.get(site).status_code == 200
        assert httpx.get(site, headers={"host": "evil.example"}).status_code == 400


class TestCommand:
    def refused(self, capsys, *words):
        with pytest.raises(SystemExit) as done:
            main(["explore", *words])
        assert done.value.code == 2
        return capsys.readouterr().err

    def test_without_the_extra_it_says_how_to_install_it(self, monkeypatch, capsys):
        monkeypatch.setattr(command, "find_spec", lambda name: None)
        assert "'.[explore]'" in self.refused(capsys, "--config", "chosen.yaml")

    def test_a_port_in_use_is_said(self):
        pages = pytest.importorskip("multicrop.runs.explore_page", reason="no NiceGUI: pip install -e '.[explore]'")
        with pages.listening(0) as taken:
            taken.listen()
            with pytest.raises(ValueError, match="pass another with --port"):
                pages.listening(taken.getsockname()[1])

    def test_it_serves_the_configuration_and_the_photo(self, monkeypatch, tmp_path):
        pages = pytest.importorskip("multicrop.runs.explore_page", reason="no NiceGUI: pip install -e '.[explore]'")
        Classifier(CLASSES, crop="random_k4", **SMALL).save(tmp_path / "saved")
        (tmp_path / "circle.png").write_bytes(drawn())
        served = {}
        monkeypatch.setattr(
            pages, "serve", lambda explorer, photo, title, **how: served.update(explorer=explorer, photo=photo, title=title, **how)
        )
        words = [str(tmp_path / "circle.png"), "--config", str(tmp_path / "saved"), "--port", "0", "--no-browser"]
        with pytest.raises(SystemExit) as done:
            main(["explore", *words])
        assert done.value.code == 0
        assert served["explorer"].class_names == list(CLASSES) and served["photo"].name == "circle.png"
        assert served["title"].startswith("saved, ") and (served["port"], served["open_browser"]) == (0, False)
