"""Next-token training on conversations with images, for pretraining and fine-tuning alike."""

from __future__ import annotations

from vlm.common.registry import register_task
from vlm.tasks.base import Task


@register_task("image_text_pretrain")
class ImageTextPretrain(Task):
    """Cross entropy of the supervised tokens; what is supervised was decided when the labels were built."""
