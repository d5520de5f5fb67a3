"""What stands in for an engine where only its answers matter."""

from __future__ import annotations


class OneAnswer:
    """An answer that was there from the start."""

    def __init__(self, text: str) -> None:
        self.text = text

    def result(self) -> str:
        return self.text

    def cancel(self) -> None:
        pass


class Asked:
    """``submit_all`` by a ``generate`` that a test writes."""

    allow_urls = False

    def examples(self, conversations):
        return conversations

    def submit_all(self, asked, generation):
        return [OneAnswer(text) for text in self.generate(asked, generation)]
