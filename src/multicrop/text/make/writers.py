"""Answers the questions of `make` with a causal language model on this machine or an OpenAI-compatible server."""

import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from multicrop.files.hub import local_files_only

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)
ATTEMPTS = 6
RETRY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
LONGEST_WAIT = 60.0  # seconds


def local_writer(path: str, *, max_tokens: int, temperature: float, device: str | None = None) -> Callable[[list[str], int], list[str]]:
    """Load a causal language model that answers questions; safetensors only, and no code of the model is run.

    Args:
        path: A folder, or the id of a model on the HuggingFace hub, which needs the network.
        max_tokens: Most tokens of an answer.
        temperature: Of the sampling; 0 takes the most probable token.
        device: Device of torch; None: a GPU where there is one.

    Returns:
        What maps questions and the seed of the sampling to one answer per question.

    Raises:
        ValueError: If the model cannot be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    safe = {"trust_remote_code": False, "local_files_only": local_files_only(path)}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left", **safe)
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, dtype="auto", **safe)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"--model {path} is no causal language model in safetensors that transformers can load ({str(error).splitlines()[0]}). Pass a "
            "folder with config, tokenizer and weights, a hub id with the network on, or --server for a model behind an API"
        ) from error
    model = model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}

    def ask(questions: list[str], seed: int) -> list[str]:
        texts = [_chat(tokenizer, question) for question in questions]
        tokens = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not tokenizer.chat_template).to(model.device)
        tokens.pop("token_type_ids", None)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            output = model.generate(**tokens, **sampling, max_new_tokens=max_tokens, pad_token_id=tokenizer.pad_token_id)
        return tokenizer.batch_decode(output[:, tokens["input_ids"].shape[1] :], skip_special_tokens=True)

    return ask


def _chat(tokenizer: "PreTrainedTokenizerBase", question: str) -> str:
    """The question in the model's own chat format, where it has one."""
    if not tokenizer.chat_template:
        return f"{question}\n\n"
    return tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)


def server_writer(
    model: str,
    *,
    max_tokens: int,
    temperature: float,
    timeout: float = 60.0,
    wait: Callable[[float], None] = time.sleep,
) -> Callable[[list[str], int], list[str]]:
    """Ask the chat-completions server at OPENAI_BASE_URL, with the key in OPENAI_API_KEY where there is one.

    Too many requests, server errors and lost connections are tried again, with pauses that double. The key is neither logged nor part of
    an error.

    Args:
        model: The name of the model at the server.
        max_tokens: Most tokens of an answer.
        temperature: Of the sampling.
        timeout: Seconds to wait for an answer.
        wait: What waits between two attempts, for tests.

    Returns:
        What maps questions and a seed to one answer per question. It raises ValueError for a request that the server refuses, and where no
        attempt is answered.

    Raises:
        ValueError: If there is no base URL, or the key holds characters that no key has.
    """
    base, key = os.environ.get("OPENAI_BASE_URL", "").rstrip("/"), os.environ.get("OPENAI_API_KEY", "")
    if not base.startswith(("http://", "https://")):
        raise ValueError(
            "--server wants the server's address in the environment variable OPENAI_BASE_URL, such as http://localhost:8000/v1, "
            f"got {base!r}; its key goes into OPENAI_API_KEY"
        )
    if not (key.isascii() and key.isprintable()):
        raise ValueError("OPENAI_API_KEY holds characters that no key has; copy it again, without line breaks")
    client = httpx.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=timeout)

    def ask(questions: list[str], seed: int) -> list[str]:
        body = {"model": model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        url = f"{base}/chat/completions"
        return [_answer(_post(client, url, {**body, "messages": [{"role": "user", "content": q}]}, key, wait), base) for q in questions]

    return ask


def _post(client: httpx.Client, url: str, body: dict, key: str, wait: Callable[[float], None]) -> httpx.Response:
    """The response to one request, after as many attempts as it takes, at most ATTEMPTS."""
    trouble = ""
    for attempt in range(ATTEMPTS):
        pause = min(LONGEST_WAIT, 2.0**attempt)
        try:
            response = client.post(url, json=body)
        except httpx.TransportError as error:
            trouble = f"{type(error).__name__}: {_without_key(str(error), key)}"
        except httpx.InvalidURL as error:
            raise ValueError(f"OPENAI_BASE_URL makes no address ({error}); it wants one such as http://localhost:8000/v1") from error
        else:
            if response.status_code < 300:
                return response
            trouble = f"HTTP {response.status_code}: {_without_key(response.text, key)[:200]}"
            if response.status_code not in RETRY:
                advice = {401: "check OPENAI_API_KEY", 403: "check OPENAI_API_KEY", 404: "check OPENAI_BASE_URL and --model"}
                raise ValueError(
                    f"{url} refuses the request ({trouble}); {advice.get(response.status_code, 'check --model and the knobs')}"
                )
            pause = _asked_pause(response, pause)
        if attempt + 1 < ATTEMPTS:
            log.info("%s: %s; trying again in %.0f s", url, trouble, pause)
            wait(pause)
    raise ValueError(
        f"{url} gave no answer in {ATTEMPTS} attempts (the last: {trouble}). Check OPENAI_BASE_URL and the server, then call the same "
        "command again: the classes that are answered are kept"
    )


def _asked_pause(response: httpx.Response, usual: float) -> float:
    """The seconds that the server asks to wait (Retry-After), at most LONGEST_WAIT, else the usual ones."""
    asked = response.headers.get("retry-after", "")
    return min(LONGEST_WAIT, float(asked)) if asked.isdigit() else usual


def _answer(response: httpx.Response, base: str) -> str:
    """The text of a chat completion; raises ValueError when the response is something else."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"the server at {base} does not answer as chat completions do (no choices[0].message.content); check that OPENAI_BASE_URL ends "
            "where /chat/completions begins, often in /v1"
        ) from error
    return content or ""


def _without_key(text: str, key: str) -> str:
    return text.replace(key, "***") if key else text
