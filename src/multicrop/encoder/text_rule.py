"""How each family reads texts: cleaning, context, padding, mask; and what decides its tokens."""

import html
import json
import string
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from multicrop.encoder.open_clip_texts import OpenClipTokenizer

UNMASKED = ("siglip_text_model", "siglip2_text_model")  # trained on texts padded to the context, without a mask, in lower case
TEXT_CLEANINGS = ("lower", "canonical")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@runtime_checkable
class Tokenizer(Protocol):
    """A tokenizer, as transformers has it (`PreTrainedTokenizerBase`)."""

    model_max_length: int

    def __call__(self, text: list[str], **knobs: Any) -> Any:
        """The token ids of texts, as ``input_ids``."""
        ...


@dataclass(frozen=True)
class TextRule:
    """How a family reads texts.

    Most towers mask the padding, or are causal and pooled at the end token: there, trimming to the longest text of a batch is exact.
    SigLIP pools the last position and attends to the padding, so every text is padded to the context, and no mask is passed.

    Args:
        context: Tokens that the tower reads at most.
        padded: Whether texts are padded to the context, without a mask.
        cleaning: None: the tokenizer alone cleans texts. ``"lower"``: lower case, as transformers (whose SentencePiece tokenizer of SigLIP
            drops punctuation as well; that of SigLIP 2 keeps it). ``"canonical"``: as open_clip and big_vision, lower case without
            punctuation, an underscore being a space, and HTML entities resolved.
    """

    context: int
    padded: bool
    cleaning: str | None = None

    def cleaned(self, text: str) -> str:
        """The text as the tokenizer expects it."""
        if self.cleaning == "canonical":
            plain = html.unescape(html.unescape(text)).replace("_", " ").translate(NO_PUNCTUATION)
            return " ".join(plain.lower().split())
        return text.lower() if self.cleaning == "lower" else text

    def lengths(self, tokenizer: Tokenizer, texts: list[str]) -> list[int]:
        """The number of tokens of each text."""
        return [len(ids) for ids in tokenizer([self.cleaned(text) for text in texts])["input_ids"]]

    def tokens(self, tokenizer: Tokenizer, texts: list[str]) -> dict[str, Tensor]:
        """The arguments of the text tower for one batch."""
        if self.padded:
            return {"input_ids": tokenizer(texts, padding="max_length", max_length=self.context, return_tensors="pt")["input_ids"]}
        return dict(tokenizer(texts, padding=True, return_attention_mask=True, return_tensors="pt"))


def text_rule(model: nn.Module, tokenizer: Tokenizer, cleaning: str | None = None) -> TextRule:
    """The rule of this model: its context is the size of its position table, or the tokenizer's limit if that is smaller.

    Raises ValueError for a cleaning that is unknown, or not for this family.
    """
    config = model.config.text_config
    padded = config.model_type in UNMASKED
    if cleaning is not None and (cleaning not in TEXT_CLEANINGS or not padded):
        raise ValueError(
            f"model.text_cleaning is {' or '.join(TEXT_CLEANINGS)} for SigLIP and SigLIP 2, and null for other families, whose tokenizers "
            f"clean texts; got {cleaning!r} for {config.model_type}"
        )
    context = config.max_position_embeddings
    for name, module in model.text_model.named_modules():
        if isinstance(module, nn.Embedding) and name.endswith(("position_embedding", "position_embeddings")):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa's positions start after its padding index
            context = module.num_embeddings - reserved
    return TextRule(context if padded else min(context, tokenizer.model_max_length), padded, (cleaning or "lower") if padded else None)


def make_causal(model: nn.Module) -> None:
    """Let the text tower of AIMv2 mask later tokens, whatever the lengths of a batch.

    Under torch's fused attention transformers leaves out the causal mask of a batch without padding, and AIMv2 has no other: the features
    of a text would depend on its neighbours.
    """
    if model.config.text_config.model_type == "aimv2_text_model":
        model.text_model.set_attn_implementation("eager")


def tokenizer_facts(tokenizer: Tokenizer) -> str:
    """All that decides how a tokenizer cuts texts, as JSON, without padding and truncation, which calls change."""
    if isinstance(tokenizer, OpenClipTokenizer):
        inner = getattr(tokenizer.own, "tokenizer", None)  # a HuggingFace one, of which a vocabulary does not say all
        return json.dumps([tokenizer.facts(), None if inner is None else tokenizer_facts(inner)])
    if not hasattr(tokenizer, "backend_tokenizer"):
        return json.dumps([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs], sort_keys=True, default=str)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({name: value for name, value in backend.items() if name not in ("padding", "truncation")}, sort_keys=True)
