"""Descriptions made by a language model: a tiny local one, and a server on this machine that fails, recovers and is killed for."""

import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import forked
import pytest
from refusals import refused
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from multicrop.cli import main
from multicrop.text.audit.check import check
from multicrop.text.descriptions import read_description_set
from multicrop.text.descriptions.files import read_texts
from multicrop.text.make.make import QUESTIONS, Job, make, phrases_of, read_questions
from multicrop.text.make.writers import ATTEMPTS, local_writer, server_writer

UNKNOWN, END = "[UNK]", "[END]"
KEY = "sk-secret-0123456789"
ANSWER = "Sure! Here are some features:\n1. Long striped tail\n2. **soft fur**\n- a tail of the CLASS\n- long striped tail\n"


@pytest.mark.parametrize(
    ("answer", "phrases"),
    [
        ("- long tail\n* Short legs.\n• round eyes", ["long tail", "short legs", "round eyes"]),
        ("3) \"curved bill\"\n(4) pale chin", ["curved bill", "pale chin"]),
        ("Sure, here are the parts:\nlong tail\nNote: tails vary\nIs it long?", ["long tail"]),
        ("**Tail:** \n- `ringed tail`", ["ringed tail"]),
        ("It has a long tail; the bird has short legs", ["long tail", "short legs"]),
        ("long tail, short legs, round eyes", ["long tail", "short legs", "round eyes"]),
        ("\nlong tail, short legs, round eyes\n", ["long tail", "short legs", "round eyes"]),
        ("black, white", ["black, white"]),
        ("tail\nthis line goes on and on and on for more than eight words", []),
        ("LED headlights in a row\nT-shaped head\nA tail fin", ["LED headlights in a row", "T-shaped head", "tail fin"]),
        ("As an AI language model, I cannot see.\nlong tail", []),
        ("12 34\n--- ---\n\x00\x01 \x02", []),
        ("", []),
    ],
)  # fmt: skip
def test_answers_are_parsed_into_short_phrases(answer, phrases):
    assert phrases_of(answer) == phrases


def test_questions_name_the_class_with_its_article():
    assert all("an okapi" in prompt and "{" not in prompt for prompt in Job("m").prompts("okapi"))
    assert all("a cat" in prompt for prompt in Job("m").prompts("cat"))


class TestMake:
    def test_deduplicated_without_leaks_and_each_class_asked_about_once(self, tmp_path):
        asked = []
        ask = lambda questions, seed: asked.append((questions, seed)) or [ANSWER.replace("CLASS", "cat")] * len(questions)  # noqa: E731
        assert dict(make({"cat": "cat"}, ask, Job("m"), tmp_path)) == {"cat": ["long striped tail", "soft fur"]}
        assert dict(make({"cat": "cat"}, ask, Job("m"), tmp_path, keep_leaks=True))["cat"][2] == "tail of the cat"
        assert len(asked) == 1 and len(asked[0][0]) == len(QUESTIONS)
        for other in (Job("other"), Job("m", seed=1), Job("m", ["{class}?"]), Job("m", settings={"temperature": 1}), Job("m", version="2")):
            list(make({"cat": "cat"}, ask, other, tmp_path))
        assert len(asked) == 6

    def test_a_torn_cache_file_is_asked_for_again(self, tmp_path):
        ask = lambda questions, seed: ["long tail"] * len(questions)  # noqa: E731
        list(make({"cat": "cat"}, ask, Job("m"), tmp_path))
        (file,) = tmp_path.iterdir()
        for torn in ('{"answers": ["sho', '{"answers": 3}', "[]", '{"answers": [3]}'):
            file.write_text(torn)
            assert dict(make({"cat": "cat"}, ask, Job("m"), tmp_path)) == {"cat": ["long tail"]}


@pytest.fixture(scope="module")
def local_model(tmp_path_factory):
    """A language model of random weights with a tokenizer of a few words, as transformers saves them."""
    folder = tmp_path_factory.mktemp("models") / "tiny_lm"
    words = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(
        ["long striped tail soft fur pale chin curved bill , ;"], trainers.WordLevelTrainer(special_tokens=[UNKNOWN, END])
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token=UNKNOWN, eos_token=END)
    tokenizer.save_pretrained(folder)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=256, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


class TestLocalModel:
    def test_answers_every_question_and_depends_on_the_seed_alone(self, local_model):
        ask = local_writer(str(local_model), max_tokens=12, temperature=1.0)
        questions = ["tail ?", "a longer question about fur"]
        one, same, other = ask(questions, 1), ask(questions, 1), ask(questions, 2)
        assert len(one) == 2 and one == same != other
        greedy = local_writer(str(local_model), max_tokens=12, temperature=0.0)
        assert greedy(questions, 1) == greedy(questions, 2)

    def test_the_command_writes_a_bank_with_its_header(self, local_model, tmp_path, capsys):
        (tmp_path / "classes.json").write_text(json.dumps({"n1": "cat", "n2": "dog"}))
        (tmp_path / "ask.yaml").write_text("- What does a {class} look like?\n- Parts of a {class}?\n")
        arguments = ["--classes", tmp_path / "classes.json", "--out", tmp_path / "zoo.json", "--model", local_model, "--max-tokens", 40]
        code, printed = run(capsys, *arguments, "--questions", tmp_path / "ask.yaml", "--temperature", 1.5)
        table = json.loads((tmp_path / "zoo.json").read_text())
        bank = read_description_set(tmp_path / "zoo.json")
        assert bank.classes == {"n1": "cat", "n2": "dog"} and table["model"] == "tiny_lm" and table["set"] == "zoo"
        assert table["questions"] == ["What does a {class} look like?", "Parts of a {class}?"] and table["date"] >= "2026"
        assert table["settings"] == {"max_tokens": 40, "temperature": 1.5, "seed": 0}
        errors = [f for f in check(read_texts(tmp_path / "zoo.json"), ["cat", "dog"], ["n1", "n2"]) if f.severity == "error"]
        assert code == bool(errors) and "2 classes" in printed
        code, printed = run(capsys, *arguments)
        assert code == 2 and "exists" in printed and "--force" in printed

    def test_no_model_there(self, tmp_path):
        with refused("no causal language model in safetensors", "--server"):
            local_writer(str(tmp_path), max_tokens=8, temperature=0.0)


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as done:
        main(["describe", "make", *map(str, arguments)])
    printed = capsys.readouterr()
    return done.value.code, printed.out + printed.err


class Server:
    """A chat-completions server on the loopback; `script` gives the status of each request in turn, 200 when it is used up."""

    def __init__(self):
        self.requests, self.script, self.body, self.delay = [], [], None, 0.0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.requests.append((self.path, self.headers.get("authorization"), body))
                time.sleep(outer.delay)
                status = outer.script.pop(0) if outer.script else 200
                named = body["messages"][0]["content"]
                answer = {"choices": [{"message": {"content": ANSWER.replace("CLASS", "cat") + f"soft patch {len(named)}"}}]}
                text = json.dumps(outer.body or answer) if status == 200 else f"no: {self.headers.get('authorization')}"
                self.send_response(status)
                if status == 429:
                    self.send_header("retry-after", "7")
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    made = Server()
    monkeypatch.setenv("OPENAI_BASE_URL", made.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield made
    made.http.shutdown()


class TestServer:
    def ask(self, waits=None):
        wait = (lambda seconds: None) if waits is None else waits.append
        return server_writer("some-model", max_tokens=50, temperature=0.5, timeout=5.0, wait=wait)

    def test_asks_as_chat_completions_do(self, server):
        assert "Long striped tail" in self.ask()(["What?"], 3)[0]
        (request,) = server.requests
        messages = [{"role": "user", "content": "What?"}]
        body = {"model": "some-model", "max_tokens": 50, "temperature": 0.5, "seed": 3, "messages": messages}
        assert request == ("/v1/chat/completions", f"Bearer {KEY}", body)

    def test_tries_again_after_429_and_server_errors_as_long_as_it_is_asked_to_wait(self, server, caplog):
        caplog.set_level("DEBUG")
        server.script, waits = [429, 500, 503], []
        assert len(self.ask(waits)(["What?"], 0)) == 1
        assert len(server.requests) == 4 and waits == [7.0, 2.0, 4.0]
        assert KEY not in caplog.text and "HTTP 429" in caplog.text

    def test_gives_up_and_says_how_to_go_on(self, server):
        server.script, waits = [500] * ATTEMPTS, []
        with refused(f"no answer in {ATTEMPTS} attempts", "HTTP 500", "OPENAI_BASE_URL", "classes that are answered are kept"):
            self.ask(waits)(["What?"], 0)
        assert len(waits) == ATTEMPTS - 1

    @pytest.mark.parametrize(("status", "words"), [(401, ["OPENAI_API_KEY"]), (404, ["OPENAI_BASE_URL", "--model"]), (400, ["--model"])])
    def test_a_refusal_is_not_tried_again_and_does_not_tell_the_key(self, server, status, words):
        server.script = [status]
        with pytest.raises(ValueError, match=f"HTTP {status}") as caught:
            self.ask()(["What?"], 0)
        assert all(word in str(caught.value) for word in words) and KEY not in str(caught.value) and "***" in str(caught.value)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("body", [{"choices": []}, ["x"], {"error": "no"}, {"choices": [{"message": None}]}])
    def test_another_kind_of_answer(self, server, body):
        server.body = body
        with refused("does not answer as chat completions do", "OPENAI_BASE_URL"):
            self.ask()(["What?"], 0)

    def test_slow_and_absent_servers_count_as_lost_connections(self, server, monkeypatch):
        server.delay, waits = 0.5, []
        writer = server_writer("m", max_tokens=5, temperature=0.0, timeout=0.05, wait=waits.append)
        with refused("no answer in", "Timeout"):
            writer(["What?"], 0)
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        with refused("no answer in", "ConnectError"):
            self.ask()(["What?"], 0)

    @pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x"])
    def test_no_address(self, monkeypatch, url):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with refused("OPENAI_BASE_URL", "http://localhost:8000/v1", repr(url)):
            server_writer("m", max_tokens=5, temperature=0.0)

    def test_a_key_with_a_line_break(self, server, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", "sk\nx")
        with refused("OPENAI_API_KEY holds characters"):
            self.ask()

    def test_without_a_key_none_is_sent(self, server, monkeypatch):
        monkeypatch.delenv("OPENAI_API_KEY")
        self.ask()(["What?"], 0)
        assert server.requests[0][1] is None


def test_a_killed_run_goes_on_and_the_key_is_nowhere(server, tmp_path):
    names = ["cat", "dog", "okapi", "heron", "tram"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    out = tmp_path / "zoo.json"
    words = ["describe", "make", "--server", "--model", "some-model", "--classes", tmp_path / "classes.txt", "--out", out]
    command = {"arguments": words, "code": "from multicrop.cli import main; main()"}
    server.delay = 0.15
    process = forked.start(**command)
    while len(server.requests) < 2 * len(QUESTIONS) + 1:
        assert not process.ended(), process.wait()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    first = process.wait()
    done = len(list((tmp_path / "zoo.json.parts").glob("*.json")))
    assert not out.exists() and 2 <= done < len(names)
    server.delay, before = 0.0, len(server.requests)
    finished = forked.run(**command)
    assert finished.returncode == 0, finished.stderr
    assert len(server.requests) - before == (len(names) - done) * len(QUESTIONS)
    assert list(read_description_set(out).descriptions) == names and all(
        len(row) >= 2 for row in read_description_set(out).descriptions.values()
    )
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in files + first.stdout + first.stderr + finished.stdout + finished.stderr and "some-model" in files


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"- What is a {class}?\n- no class here", ["holds something else", "{class}"]),
        (b"[]", ["holds something else"]),
        (b"question: x", ["holds something else"]),
        (b"- 'open", ["cannot be read"]),
        (b"\xff\xfe", ["is not JSON or text in UTF-8"]),
    ],
)
def test_bad_questions(tmp_path, content, words):
    (tmp_path / "ask.yaml").write_bytes(content)
    with refused("ask.yaml", *words):
        read_questions(str(tmp_path / "ask.yaml"))
    with refused("does not exist", "{class}"):
        read_questions(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--classes", "{tmp}/none.txt"], ["none.txt does not exist", "one name per line"]),
        (["--classes", "{tmp}/twice.txt"], ["1 class names repeat", "stable key"]),
        (["--out", "{tmp}/nowhere/zoo.json"], ["its folder does not exist"]),
        (["--max-tokens", "0"], ["--max-tokens must be 1 or more"]),
        (["--temperature", "-1"], ["--temperature 0 or more"]),
        (["--model", "{tmp}"], ["no causal language model"]),
    ],
)
def test_bad_commands_end_with_status_2(tmp_path, capsys, change, words):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "twice.txt").write_text("cat\ncat\n")
    usual = {"--classes": f"{tmp_path}/classes.txt", "--out": f"{tmp_path}/zoo.json", "--model": f"{tmp_path}/none"}
    usual[change[0]] = change[1].replace("{tmp}", str(tmp_path))
    code, printed = run(capsys, *[part for pair in usual.items() for part in pair])
    assert code == 2 and all(word in printed for word in words), printed
