"""Texts of an open_clip model: its own tokenizer as `TextRule` calls one, and its text tower, cut to the longest text where exact."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from multicrop.encoder.open_clip_source import Source
from multicrop.files.hub import hub_answers

if TYPE_CHECKING:
    import open_clip  # an extra

AT_THE_END = ("argmax", "eos")  # pools of a text: the state of its end token


class OpenClipTexts(nn.Module):
    """The text tower.

    Where it is causal and pooled at the end token (CLIP, PE-Core, EVA), a batch may be cut to its longest text (`trims`): open_clip's own
    forward takes no other length than the context, so the parts are called here. A HuggingFace tower masks its padding, and may be cut as
    well. Others (SigLIP, CoCa, CLIPA, MobileCLIP-S) read their padding, and get texts of full length.

    Args:
        own: The model where its text tower has no module of its own (`open_clip.CLIP`), else that module.
    """

    def __init__(self, own: nn.Module) -> None:
        super().__init__()
        self.pool = getattr(own, "text_pool_type", getattr(own, "pool_type", None))
        mask = getattr(own, "attn_mask", None)
        causal = mask is not None and self.pool in AT_THE_END and getattr(own, "cls_emb", None) is None
        self.trims = causal or hasattr(own, "pooler")  # that of a HuggingFace tower
        self.whole = None if causal or hasattr(own, "visual") else own
        if self.whole is None:
            self.end = getattr(own, "text_eos_id", getattr(own, "eos_id", None))
            self.token_embedding, self.transformer, self.ln_final = own.token_embedding, own.transformer, own.ln_final
            self.positional_embedding, self.text_projection = own.positional_embedding, own.text_projection
            self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Features (texts, dim), not normalised, of token ids (texts, tokens)."""
        if self.whole is not None:
            output = self.whole(ids)
            return output[0] if isinstance(output, tuple) else output
        from open_clip.transformer import text_global_pool

        tokens = ids.shape[1]
        states = self.token_embedding(ids) + self.positional_embedding[:tokens]
        states = self.ln_final(self.transformer(states, attn_mask=None if self.mask is None else self.mask[:tokens, :tokens]))
        pooled = text_global_pool(states, ids, self.pool, eos_token_id=self.end)
        if self.text_projection is None:
            return pooled
        return self.text_projection(pooled) if isinstance(self.text_projection, nn.Module) else pooled @ self.text_projection


class OpenClipTokenizer:
    """open_clip's own tokenizer of a model, under the calls of `TextRule`.

    Cleaning, special tokens and padding are its own. It truncates silently; here a text that is too long is counted as it is, and refused
    by the encoder.

    Args:
        own: The tokenizer that open_clip's `get_tokenizer` returned.
        trims: Whether a batch may be cut to its longest text.
        facts: What decides it beside its vocabulary, as JSON values.
    """

    def __init__(self, own: "open_clip.SimpleTokenizer", *, trims: bool, facts: dict[str, Any]) -> None:
        self.own, self.trims, self._facts = own, trims, facts
        self.model_max_length: int = own.context_length

    def __call__(self, text: Sequence[str], padding: bool | str = False, **_: Any) -> dict[str, Any]:
        """Token ids: a list per text or, with padding, a tensor of one length."""
        rows = [self._ids(each) for each in text]
        if not padding:
            return {"input_ids": rows}
        ids = self.own(list(text), context_length=self.model_max_length)
        return {"input_ids": ids[:, : max(map(len, rows))] if self.trims else ids}

    def __len__(self) -> int:
        return len(self._vocabulary())

    def facts(self) -> str:
        """All that decides how texts are cut into tokens, as JSON."""
        return json.dumps([type(self.own).__name__, self._facts, self._vocabulary()], sort_keys=True, default=str)

    def _ids(self, text: str) -> list[int]:
        if hasattr(self.own, "encode"):
            return [self.own.sot_token_id, *self.own.encode(text), self.own.eot_token_id]
        if self.own.tokenizer_mode == "clips":  # begin and end are added, and a class token at the end of the context
            return [0, *self.own.tokenizer(self.own.clean_fn(text), add_special_tokens=False)["input_ids"], 0, 0]
        return list(self.own.tokenizer(self.own.clean_fn(text))["input_ids"])

    def _vocabulary(self) -> dict[str, int]:
        return self.own.encoder if hasattr(self.own, "encode") else self.own.tokenizer.get_vocab()


def tokenizer_knobs(source: Source) -> dict[str, bool]:
    """How a HuggingFace tokenizer is loaded; the `tokenizer_kwargs` of a checkpoint could ask for code of its own."""
    if not source.config["text_cfg"].get("hf_tokenizer_name"):
        return {}
    here = source.model.startswith("local-dir:") or not hub_answers()
    return {"trust_remote_code": False} | ({"local_files_only": True} if here else {})
