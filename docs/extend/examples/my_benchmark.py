"""A benchmark with a metric of its own: the share of reference words that the answer contains."""

from dataclasses import dataclass
from typing import Any

from vlm import register_benchmark
from vlm.tasks.benchmarks.base import EvalOptions, Prediction, Questions, Result, ask, prompt_of


@register_benchmark("word_recall")
class WordRecall:
    """Recall of reference words, averaged over the questions."""

    @dataclass
    class Config(EvalOptions):
        """Options under ``run.benchmark``."""

        ignore: str = "a an the"

    def run(self, engine: Any, dataset: Questions, options: Config) -> Result:
        """Ask every question and score; with several processes each answers its share inside ``ask``."""
        from vlm import Generation

        greedy = Generation(do_sample=False, max_new_tokens=options.max_new_tokens)
        answers = ask(engine, dataset, greedy, options.batch_size)
        predictions, recalls = [], []
        for index, answer in enumerate(answers):
            if answer.error:  # e.g. a damaged image: marked, counted, and not scored
                predictions.append(Prediction(str(index), "", "", error=answer.error))
                continue
            sample = dataset[index]
            question = prompt_of(sample)[-1].text
            reference = sample.messages[-1].text
            wanted = set(reference.lower().split()) - set(options.ignore.split())
            recalls.append(len(wanted & set(answer.lower().split())) / max(len(wanted), 1))
            predictions.append(Prediction(sample.id or str(index), question, answer, reference))
        return Result({"recall": sum(recalls) / len(recalls), "count": len(recalls)}, predictions)
