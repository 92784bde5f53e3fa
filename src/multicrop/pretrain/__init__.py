"""Training of the embedded model: batched scene composition, captions, tokenizer and the LightningModule."""
