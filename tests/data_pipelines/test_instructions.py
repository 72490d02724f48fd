import contextlib
import dataclasses
import itertools
from typing import ClassVar

import numpy as np
import pytest

from data_pipelines.examples import Example, Image, Text
from data_pipelines.images import ImagePreprocessing
from data_pipelines.instructions import instruction_ids, slot_instructions
from data_pipelines.loader import make_loader
from data_pipelines.quarantine import BadRecord, Quarantine
from data_pipelines.template import Processor, TemplateConfig, load_processor
from vlm_jax.batch import Batch
from vlm_jax.errors import UserError
from vlm_jax.generation import as_image, question
from vlm_jax.generation.batches import prompt_batch
from vlm_jax.pictures import Pictures

LENGTH = 160
PICTURE = Image(data=b"never decoded")


def asked(text, answer="да"):
    return Text(text, role="user"), Text(answer, loss=True, role="assistant")


def ids_of(example, tokenizer, length=LENGTH, vocabulary=10_000):
    return instruction_ids(example, tokenizer, length, vocabulary)


def test_it_is_what_the_user_says_opened_and_ended(processor):
    tokenizer = processor.tokenizer
    example = Example((PICTURE, *asked("question 1?"), *asked("Круг?")), id="birds")
    found = ids_of(example, tokenizer)
    assert tokenizer.adds_bos
    said = [tokenizer.bos_id, *tokenizer.encode("question 1?\nКруг?"), tokenizer.end_id]
    assert found.tolist() == [*said, *[0] * (LENGTH - len(said))]
    assert not ids_of(Example((PICTURE, Text("A red circle.", loss=True))), tokenizer).any()


def test_branches_must_ask_the_same(processor):
    tokenizer = processor.tokenizer
    same = Example((PICTURE,), (asked("Круг?", "да"), asked("Круг?", "no")), id="pair")
    np.testing.assert_array_equal(ids_of(same, tokenizer), ids_of(Example((PICTURE,), (asked("Круг?"),)), tokenizer))
    with pytest.raises(BadRecord, match=r"2 branches ask for different things.*Instruct\(questions=1\)") as error:
        ids_of(Example((PICTURE,), (asked("Круг?"), asked("Квадрат?")), id="duck"), tokenizer)
    assert error.value.record_id == "duck"


def test_what_does_not_fit_is_said(processor):
    tokenizer = processor.tokenizer
    example = Example((PICTURE, *asked("question " * 9)), id="long")
    with pytest.raises(BadRecord, match=r"its instruction has \d+ tokens, but the adapter reads 4"):
        ids_of(example, tokenizer, length=4)
    with pytest.raises(UserError, match=f"set adapter.qformer.text_vocabulary to {tokenizer.vocabulary_size}"):
        ids_of(example, tokenizer, vocabulary=5)


def reading(processor, length=LENGTH):
    wanted = Pictures(instruction=length, instruction_vocabulary=processor.tokenizer.vocabulary_size)
    return dataclasses.replace(processor, pictures=wanted)


def test_every_slot_has_the_instruction_of_its_example(processor):
    processor = reading(processor)
    one = processor.render(Example((PICTURE, *asked("Круг?"))))
    two = processor.render(Example((PICTURE, PICTURE, *asked("Квадрат?"))))
    text = processor.render(Example(asked("Круг?")))
    found = slot_instructions([[one, text, two], []], 4, LENGTH)
    assert found.shape == (2, 4, LENGTH)
    np.testing.assert_array_equal(found[0], [one.instruction, two.instruction, two.instruction, 0 * one.instruction])
    assert text.instruction is None
    assert not found[1].any()
    np.testing.assert_array_equal(
        slot_instructions([[one, two]], 3, LENGTH, bad=[{0}])[0], [0 * one.instruction] + [two.instruction] * 2
    )


@dataclasses.dataclass(frozen=True)
class OneQuestion:
    """The first question of TinyKind's."""

    whole: object
    kind: ClassVar[str] = "one"

    def __call__(self, record, rng, source=""):
        example = self.whole(record, rng, source)
        return dataclasses.replace(example, branches=example.branches[:1])


def test_the_loader_gives_them_beside_pictures(tiny, processor):
    processor = reading(processor)
    stage = tiny(tiny.Entry(tiny.Source(records=12, bad_pictures=(4,)), OneQuestion(tiny.Kind())))
    with contextlib.closing(make_loader(stage, processor, seed=0, quarantine=Quarantine(limit=1.0))) as loader:
        batches = [batch for batch, _ in itertools.islice(loader, 3)]
    spec = Batch.spec(4, 160, images=4, image_size=processor.image_size, pictures=processor.pictures)
    assert spec.instructions is not None
    for batch in batches:
        assert batch.instructions.shape == spec.instructions.shape
        np.testing.assert_array_equal((batch.instructions != 0).any(-1), batch.image_ids != 0)
    made = np.concatenate([batch.instructions.reshape(-1, LENGTH) for batch in batches])
    texts = {processor.tokenizer.decode([id for id in row if id]) for row in made if row.any()}
    assert len(texts) > 3
    assert all("question 0 about" in text for text in texts)


def test_records_that_ask_for_several_things_are_quarantined(tiny, processor):
    quarantine = Quarantine(limit=1.0)
    stage = tiny(tiny.Source(records=30))
    with contextlib.closing(make_loader(stage, reading(processor), seed=0, quarantine=quarantine)) as loader:
        _, info = next(loader)
    # Those with a picture and more than one question; without a picture nobody reads the instruction.
    met = {id for row in info.example_ids for id in row}
    assert met
    assert all((int(id.split("/")[1]) % 3 == 0) or int(id.split("/")[1]) % 5 == 0 for id in met)
    assert sum(quarantine.counts().values()) > 0


def test_prompts_have_them_too(processor):
    processor = reading(processor)
    pixels = np.zeros((6, 8, 3), np.uint8)
    prompts = [question("Круг?", [as_image(pixels)]), question("Квадрат?"), question("no?", [as_image(pixels)] * 2)]
    rendered = [processor.render(prompt, open_turn="assistant") for prompt in prompts]
    batch, _ = prompt_batch(rendered, [[0], [], [1, 1]], 4, 0, processor.prompt_tokens, processor.pictures)
    assert batch.instructions.shape == (4, 2, LENGTH)
    np.testing.assert_array_equal(batch.instructions[0, 0], rendered[0].instruction)
    np.testing.assert_array_equal(batch.instructions[2], [rendered[2].instruction] * 2)
    assert not batch.instructions[[1, 3]].any()
    assert not batch.instructions[0, 1].any()


def test_a_processor_keeps_the_tokenizer_of_its_instructions(processor, tmp_path):
    processor = reading(processor)
    other = dataclasses.replace(processor, instruction_tokenizer=processor.tokenizer.with_ids(end_ids=(7,)))
    other.save(tmp_path)
    again = load_processor(tmp_path)
    assert again.instruction_tokenizer == other.instruction_tokenizer
    assert again.pictures == processor.pictures
    example = Example((PICTURE, *asked("Круг?")))
    assert 7 in again.render(example).instruction
    assert 7 not in processor.render(example).instruction
    plain = Processor(processor.tokenizer, TemplateConfig(), ImagePreprocessing(), (8, 6), 3)
    assert plain.instruction_tokenizer is None
    assert plain.render(example).instruction is None
