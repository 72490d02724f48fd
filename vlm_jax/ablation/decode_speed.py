"""How fast an arm's model writes answers to questions about pictures."""

import dataclasses
import time
from typing import Any

from data_pipelines.sources import open_source
from vlm_jax.ablation.places import Run
from vlm_jax.checkpoints.reference import load_model
from vlm_jax.evaluation.questions import list_questions
from vlm_jax.generation import Engine, question
from vlm_jax.generation.requests import Request


class _Endless:
    """A tokenizer whose answers never end, so that all are of one length."""

    end_ids = (-1,)

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class AnswerSpeed:
    """Some answers that are decoded together, each to a question about another picture."""

    def __init__(self, run: Run, task: str, prompts: int, new_tokens: int) -> None:
        """Args:
        run: that is done.
        task: of its evaluation; the first question about each picture is asked, up to `prompts` of them.
        prompts: see above.
        new_tokens: length of each answer.
        """
        model = load_model(str(run.directory))
        processor = dataclasses.replace(model.processor, tokenizer=_Endless(model.processor.tokenizer))
        self._engine = Engine(model.config, model.params, processor, prompts)
        source = next(entry for entry in run.experiment.evaluation.tasks if entry.name == task).source
        asked = {entry.picture: entry for entry in list_questions(open_source(source))}
        self._requests = [
            Request(question(entry.record["question"], [entry.image], entry.id), new_tokens)
            for entry in list(asked.values())[:prompts]
            if entry.image is not None
        ]
        self.rows = len(self._requests)
        self._new_tokens = new_tokens

    def answer(self) -> dict[str, float]:
        """Streams all answers: tokens a second of those after the first, and the seconds until the first came.

        The latter include encoding the pictures and reading the prompts.
        """
        start = time.perf_counter()
        first = last = 0.0
        for _ in self._engine.stream_many(self._requests):
            last = time.perf_counter()
            first = first or last
        later = self.rows * (self._new_tokens - 1)
        return {"tokens_per_second": later / max(last - first, 1e-9), "first_token_seconds": first - start}
