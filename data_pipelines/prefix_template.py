"""The template of PaliGemma (section 3.2.1 of its paper): a picture and a prompt that see each other, then the answer.

tokens     img img <bos> prompt \\n  answer <eos>
loss         0   0     0      0  0       1     1
block_ids    1   1     1      1  1       0     0
positions    1   2     3      4  5       6     7
"""

import dataclasses
from collections.abc import Sequence

from data_pipelines.examples import Example, Role, Text
from data_pipelines.quarantine import BadRecord
from data_pipelines.rendered import Rendered, Writer
from data_pipelines.tiles import Place
from data_pipelines.tokenizers import Tokenizer
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PrefixTemplate:
    """Pictures, <bos>, the prompt and its end, the answer and the tokenizer's end token.

    prompt_end: text between prompt and answer.
    first_position: position of the first token.
    """

    prompt_end: str = "\n"
    first_position: int = 1


def render_prefix(
    example: Example,
    tokenizer: Tokenizer,
    template: PrefixTemplate,
    places: Sequence[Place],
    *,
    open_turn: Role | None = None,
) -> Rendered:
    """Lays an example out as prefix and suffix.

    The prompt is the user's turn, or running text without loss; the answer is the assistant's turn, or running text
    with loss. Since a prompt and its pictures see each other, branches share nothing: each has its own copy of the
    pictures' places (the pictures are encoded once all the same), and the trunk is empty.

    Args:
        example: pictures first, then at most one prompt and at most one answer (in every branch).
        tokenizer: gives ids.
        template: how.
        places: what stands for each of its pictures.
        open_turn: 'assistant' ends the prompt, so that the answer is next.

    Raises:
        BadRecord: if the example is of another form, or a text cannot be encoded.
        UserError: if the tokenizer has no <bos> or no token for a picture's place.
    """
    if tokenizer.bos_id is None or (tokenizer.image_id is None and example.images):
        raise UserError("the tokenizer has no <bos> or no token for a picture's place, which this template needs")
    writer = Writer()
    try:
        for number, branch in enumerate(example.branches or ((),)):
            writer.branch = number + 1 if example.branches else 0
            writer.position = template.first_position
            texts = [segment for segment in (*example.trunk, *branch) if isinstance(segment, Text)]
            prompt, answer = _prompt_and_answer(texts, example)
            writer.start_over()
            for place in places:
                writer.add_picture(place, tokenizer, number + 1)
            # The prompt's end is encoded with it, as transformers' processor does.
            text = prompt + template.prompt_end
            ids, _ = tokenizer.encode_run(text, first=False)
            writer.add([tokenizer.bos_id, *ids], block=number + 1)
            if answer is not None and open_turn is None:
                ids, _ = tokenizer.encode_run(answer.text)
                writer.add([*ids, tokenizer.end_id], float(answer.loss))
    except UnicodeEncodeError as error:
        raise BadRecord(f"a text holds half of a surrogate pair ({error.reason})", example.id) from None
    return writer.finish(example, places)


def _prompt_and_answer(texts: list[Text], example: Example) -> tuple[str, Text | None]:
    roles = [text.role or ("assistant" if text.loss else "user") for text in texts]
    pictures_first = not any(isinstance(segment, Text) for segment in example.trunk[: len(example.images)])
    if roles not in ([], ["user"], ["assistant"], ["user", "assistant"]) or not pictures_first:
        raise BadRecord("this template takes pictures, then one prompt, then one answer, and nothing else", example.id)
    prompt = texts[0].text if roles[:1] == ["user"] else ""
    return prompt, texts[-1] if roles[-1:] == ["assistant"] else None
