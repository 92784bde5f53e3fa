"""The start of a run whose bank is at hand: what it does not import, and what stands in for the encoder that it does not load."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import forked
import pytest
from conftest import ROOT, session_of

from multicrop.config import EMBEDDED_MODEL
from multicrop.encoder import load_encoder
from multicrop.encoder.known import EncoderFacts
from multicrop.runs import known
from multicrop.runs.identity import run_identity

SMALL = ["crop=random_k1", "dataset.n_classes=4", "dataset.test_images=3", "dataset.train_images=2", "dataset.validation_images=1"]
QUIET = ["logger=none", "trainer.progress=false", "pictures=0"]
HEAVY = (
    *("lightning", "torchmetrics", "transformers", "tokenizers", "torchvision", "torch._dynamo", "sympy", "scipy.signal", "peft"),
    *("matplotlib", "sklearn", "ot", "wandb", "datasets", "webdataset"),
)
LOADED = """
import json, runpy, sys
sys.argv = ["run.py", *sys.argv[1:]]
try:
    runpy.run_path("run.py", run_name="__main__")
finally:
    import multicrop.features.view_dataset  # what the server that workers are forked from imports
    print("LOADED", json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("more", [[], ["-m", "aggregator=dnd,max"]], ids=["run", "sweep"])
def test_a_run_on_a_bank_at_hand_imports_nothing_heavy(more, tmp_path):
    words = [*more, *SMALL, *QUIET, f"paths.cache={tmp_path}/banks", f"paths.output={tmp_path}/runs"]
    assert forked.run(words).returncode == 0
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    again = subprocess.run([sys.executable, "-c", LOADED, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert ("already done" if more else "bank reused") in again.stdout
    loaded = set(json.loads(again.stdout.split("LOADED ")[1]))
    assert not loaded & set(HEAVY) and "torch" in loaded


def test_the_help_is_one_screen_and_needs_no_torch():
    done = subprocess.run([sys.executable, "-X", "importtime", "run.py", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and len(done.stdout.splitlines()) <= 40
    assert not {"torch", "pyarrow", "scipy", "rich.progress"} & {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}


def test_the_help_is_what_hydra_prints():
    ours, hydras = (
        subprocess.run([sys.executable, "run.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)
        for words in (["--help"], ["--help", "task=zero_shot"])
    )
    assert ours.returncode == hydras.returncode == 0 and "crop: attention, diverse" in ours.stdout and ours.stdout == hydras.stdout


@pytest.fixture
def model(tmp_path):
    """A copy of the embedded model."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in EMBEDDED_MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def session(tmp_path, model, *more):
    return session_of(*SMALL, *QUIET, "model=local", f"model.path={model}", f"paths.cache={tmp_path}/banks", *more)


def test_a_second_run_has_the_facts_and_texts_of_the_first_without_the_model(tmp_path, model, monkeypatch):
    first = session(tmp_path, model)
    bank = first.bank(first.dataset.test)
    text, identity = first.text, run_identity(first)
    assert first.facts == EncoderFacts.of(first.encoder) and not bank.reused
    monkeypatch.setattr("multicrop.encoder.loading.load_encoder", lambda *_, **__: pytest.fail("loaded"))
    second = session(tmp_path, model)
    assert second.facts == first.facts and run_identity(second) == identity and second.bank(second.dataset.test).reused
    assert second.text.features.equal(text.features) and second.text.mask.equal(text.mask) and second.text.prompts == text.prompts
    assert "encoder" not in second.__dict__


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_of_the_model_that_changes_is_read_again(name, tmp_path, model):
    before = session(tmp_path, model).facts
    content = (model / name).read_bytes()
    if name == "model.safetensors":
        content = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    else:
        values = json.loads(content)
        if name == "config.json":
            values["text_config"]["a_note"] = 1
        else:
            vocabulary = values["model"]["vocab"]
            one, two = list(vocabulary)[300:302]
            vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
        content = json.dumps(values).encode()
    (model / name).write_bytes(content)
    assert before != session(tmp_path, model).facts == EncoderFacts.of(load_encoder(str(model)))


def test_a_run_whose_cache_cannot_be_a_folder_reads_model_and_texts_anew(tmp_path, model):
    (tmp_path / "file").touch()
    made = session(tmp_path, model, f"paths.cache={tmp_path}/file/banks")
    assert made.facts == EncoderFacts.of(made.encoder) and len(made.text.prompts) == len(made.dataset.class_names)


def test_knobs_of_the_model_have_facts_of_their_own(tmp_path, model):
    plain, half = session(tmp_path, model), session(tmp_path, model, "model.precision=bf16")
    assert plain.facts.fingerprint != half.facts.fingerprint and half.facts.precision == "bf16"
    values = plain.settings.part("model").values
    assert known.model_key(values) and not known.model_key({**values, "path": "some/hub-id"})
    assert not known.model_key({**values, "precision": "int8_static"}) and not known.model_key({**values, "_target_": "mine.load"})


def test_damaged_and_exchanged_files_are_made_again(tmp_path, model, caplog):
    first = session(tmp_path, model)
    facts, text = first.facts, first.text
    other = replace(facts, logit_scale=1.0, fingerprint="other")
    key = known.model_key(first.settings.part("model").values)
    (stored,) = (tmp_path / "banks" / "encoders").iterdir()
    known.write_facts(stored, {"key": "another", "facts": other.to_json()})
    assert session(tmp_path, model).facts == facts
    known.write_facts(stored, {"key": key, "facts": other.to_json()})
    assert session(tmp_path, model).facts == other  # the file is read, unless its key is another's
    stored.write_bytes(stored.read_bytes().replace(b"other", b"0ther"))
    assert session(tmp_path, model).facts == facts
    (texts,) = (tmp_path / "banks" / "texts").iterdir()
    content = bytearray(texts.read_bytes())
    content[-1] ^= 1
    texts.write_bytes(content)
    assert session(tmp_path, model).text.features.equal(text.features) and texts.name in caplog.text


def test_weights_that_change_under_a_run_stop_it(tmp_path, model):
    run = session(tmp_path, model)
    assert run.facts.name == "model"
    run.__dict__.pop("encoder")
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-2] ^= 1
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="were changed while this run read them"):
        _ = run.text
