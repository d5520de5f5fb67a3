"""Imported before anything that needs ``transformers.modeling_utils``: loads it without bitsandbytes and torchao."""

from vlm.models.hf.blocked import without_quantisers

with without_quantisers():
    import transformers.modeling_utils  # noqa: F401
