"""The instruction that an adapter reads with a picture (Dai et al. 2023, InstructBLIP, section 2.3), as token ids.

It is what the user says in the example, in all of the user's turns, a line each:

    <image> What is this? | A duck. | What does it do?   ->   "What is this?\\nWhat does it do?" and the end token

A picture's visual tokens are made once and every branch sees them, so that branches must ask the same.
"""

from collections.abc import Container, Sequence

import numpy as np
from jaxtyping import Int32

from data_pipelines.examples import Example, Text
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered
from data_pipelines.tokenizers import Tokenizer
from vlm_jax.errors import UserError


def instruction_ids(example: Example, tokenizer: Tokenizer, length: int, vocabulary: int) -> Int32[np.ndarray, " Q"]:
    """Ids of an example's instruction, filled up with 0; all 0 where the user says nothing.

    Args:
        example: what is to be rendered.
        tokenizer: opens the text if it opens texts, and its end token ends it. An id 0 within it counts as padding.
        length: Q.
        vocabulary: how many ids the adapter embeds.

    Raises:
        BadRecord: if branches ask for different things, or the instruction is too long.
        UserError: if the adapter does not embed what the tokenizer gives.
    """
    trunk = _said(example.trunk)
    asked = {_said(branch) for branch in example.branches}
    if len(asked) > 1:
        raise BadRecord(
            f"{len(asked)} branches ask for different things, but the adapter reads one instruction with a picture: "
            "take one of a record, Instruct(questions=1) or Captions(captions=1)",
            example.id,
        )
    text = "\n".join((*trunk, *(asked.pop() if asked else ())))
    filled = np.zeros(length, np.int32)
    if not text:
        return filled
    opening = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    ids = [*opening, *tokenizer.encode(text), tokenizer.end_id]
    if len(ids) > length:
        raise BadRecord(
            f"its instruction has {len(ids)} tokens, but the adapter reads {length}: raise adapter.instruction, or "
            "leave the record out",
            example.id,
        )
    if max(ids) >= vocabulary:
        raise UserError(
            f"the adapter embeds {vocabulary} ids of an instruction, but the tokenizer gives {max(ids)}: set "
            f"adapter.qformer.text_vocabulary to {tokenizer.vocabulary_size}"
        )
    filled[: len(ids)] = ids
    return filled


def slot_instructions(
    rows: Sequence[Sequence[Rendered]], images: int, length: int, bad: Sequence[Container[int]] = ()
) -> Int32[np.ndarray, "B I Q"]:
    """`Batch.instructions` of packed rows: beside every image slot, the instruction of its example.

    Args:
        rows: the examples of every row.
        images: I, image slots a row.
        length: Q.
        bad: for every row, the examples whose pictures cannot be decoded; () = none.
    """
    made = np.zeros((len(rows), images, length), np.int32)
    for row, examples in enumerate(rows):
        slot = 0
        for number, rendered in enumerate(examples):
            if rendered.instruction is not None and not (bad and number in bad[row]):
                made[row, slot : slot + rendered.slots] = rendered.instruction
            slot += rendered.slots
    return made


def _said(segments: Sequence[object]) -> tuple[str, ...]:
    """What the user says."""
    return tuple(segment.text for segment in segments if isinstance(segment, Text) and segment.role == "user")
