"""Open-VQA: open questions about images and videos, in classes; answers judged by rules or by a judge of your own."""

from __future__ import annotations

from dataclasses import dataclass

from vlm.common.bounds import Count
from vlm.common.registry import register_benchmark
from vlm.tasks.benchmarks.question_answering import QuestionAnswering


@register_benchmark("open_vqa")
class OpenVqa(QuestionAnswering):
    """Questions judged by what an answer says.

    The class of a question is the field ``type`` (corpora ``open_vqa_images`` and ``open_vqa_videos``).
    """

    @dataclass
    class Config(QuestionAnswering.Config):
        """As for exact answers, with room for a sentence."""

        max_new_tokens: Count = 64
        judge: str = "open"
