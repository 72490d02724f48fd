"""From an Example to arrays: the templates, and the Processor that a checkpoint keeps."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from data_pipelines import images as image_functions
from data_pipelines.chat_template import ChatTemplate, render_chat
from data_pipelines.control_template import TemplateConfig, render
from data_pipelines.examples import Example, Image, Role
from data_pipelines.images import ImagePreprocessing, Pixels
from data_pipelines.instructions import instruction_ids
from data_pipelines.prefix_template import PrefixTemplate, render_prefix
from data_pipelines.rendered import Rendered
from data_pipelines.tiles import Cut, Place, cut_of, pixels_of, place_of, uncut
from data_pipelines.tokenizers import Tokenizer, load_tokenizer
from vlm_jax.errors import UserError
from vlm_jax.pictures import Pictures
from vlm_jax.serialise import from_plain, to_plain

__all__ = [
    "ChatTemplate",
    "PrefixTemplate",
    "Processor",
    "Rendered",
    "Template",
    "TemplateConfig",
    "load_processor",
    "render",
]

_FILE = "processor.json"
_INSTRUCTION = "instruction"
"""Directory of the instruction's tokenizer."""

Template = TemplateConfig | ChatTemplate | PrefixTemplate
"""How turns and pictures become tokens: by control tokens, by a model's own chat template, or as prefix and suffix."""


@dataclasses.dataclass(frozen=True)
class Processor:
    """Everything that turns an Example into arrays. Every checkpoint keeps one, as plain JSON and tokenizer files."""

    tokenizer: Tokenizer
    template: Template
    images: ImagePreprocessing
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    prompt_tokens: int
    """N, visual tokens that one image slot gives to the sequence."""
    pictures: Pictures = Pictures()
    """How pictures are cut into slots, and who sees them: `VLMConfig.pictures`."""
    instruction_tokenizer: Tokenizer | None = None
    """Of the instruction, where the adapter reads ids of another vocabulary (InstructBLIP's are BERT's)."""

    def render(self, example: Example, open_turn: Role | None = None) -> Rendered:
        """Lays an example out as token ids: see `render`, `render_chat` and `render_prefix`.

        open_turn: opens this role's turn at the end, for generation.

        Raises:
            BadImage: if pictures are cut, and this one's header cannot be read or no grid suits it.
            BadRecord: if the adapter reads an instruction with its pictures, and not one.
        """
        rendered = self._laid_out(example, open_turn)
        wanted = self.pictures
        if not wanted.instruction or not example.images:
            return rendered
        tokenizer = self.instruction_tokenizer or self.tokenizer
        ids = instruction_ids(example, tokenizer, wanted.instruction, wanted.instruction_vocabulary)
        return dataclasses.replace(rendered, instruction=ids)

    def _laid_out(self, example: Example, open_turn: Role | None) -> Rendered:
        template, tokenizer = self.template, self.tokenizer
        places = self.places(example)
        if isinstance(template, ChatTemplate):
            return render_chat(example, tokenizer, template, places, open_turn=open_turn)
        if isinstance(template, PrefixTemplate):
            return render_prefix(example, tokenizer, template, places, open_turn=open_turn)
        return render(example, tokenizer, template, places, open_turn=open_turn)

    def places(self, example: Example) -> list[Place]:
        """What stands in the sequence for each of an example's pictures.

        Raises:
            BadImage: as `cut`.
        """
        if self.pictures.tiling is None:
            return [uncut(self.prompt_tokens)] * len(example.images)
        return [place_of(self.cut(image), self.prompt_tokens, self.pictures) for image in example.images]

    def cut(self, image: Image) -> Cut:
        """How a picture fills image slots; of the picture only its size is read, and only where pictures are cut.

        Raises:
            BadImage: if its header cannot be read, or no grid suits it.
        """
        if self.pictures.tiling is None:
            return Cut()
        return cut_of(image_functions.size_as_seen(image), self.image_size, self.pictures, self.images)

    def tile_index(self, image: Image) -> Int32[np.ndarray, "T 3"]:
        """(number, rows, columns) of each of a picture's slots, as `Batch.tile_index` has them.

        Raises:
            BadImage: as `cut`.
        """
        return self.cut(image).tile_index

    def slots(
        self, image: Image, cut: Cut | None = None, change: Callable[[Pixels], Pixels] | None = None
    ) -> UInt8[np.ndarray, "T H W 3"]:
        """Decodes a picture and fills its image slots.

        Args:
            image: the picture.
            cut: as it was found before; None = it is found now.
            change: what is done to the whole picture before it is cut.

        Raises:
            BadImage: if it cannot be decoded, or has changed its size since.
        """
        if self.pictures.tiling is None:
            pixels = self.pixels(image)
            return (pixels if change is None else change(pixels))[None]
        cut = cut or self.cut(image)
        return pixels_of(image, cut, self.image_size, self.pictures.tiling, self.images, change)

    def pixels(self, image: Image) -> UInt8[np.ndarray, "H W 3"]:
        """Decodes a picture and brings it to `image_size`, uncut.

        Raises:
            BadImage: if it cannot be decoded.
        """
        return image_functions.prepare(image, self.image_size, self.images)

    def save(self, directory: epath.PathLike) -> None:
        """Writes processor.json and the tokenizer's files."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(directory)
        if self.instruction_tokenizer is not None:
            self.instruction_tokenizer.save(directory / _INSTRUCTION)
        plain = {
            "template": to_plain(self.template),
            "images": dataclasses.asdict(self.images),
            "image_size": list(self.image_size),
            "prompt_tokens": self.prompt_tokens,
            "pictures": to_plain(self.pictures),
        }
        (directory / _FILE).write_text(json.dumps(plain, indent=2) + "\n")


def load_processor(directory: epath.PathLike) -> Processor:
    """Reads what `Processor.save` wrote.

    Raises:
        UserError: if a file is missing or damaged.
    """
    directory = epath.Path(directory)
    path = directory / _FILE
    try:
        plain = json.loads(path.read_text())
    except OSError:
        raise UserError(f"{path}: cannot be read; give a directory that holds a saved processor") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON ({error}); restore the file or choose another checkpoint") from None
    try:
        height, width = (int(side) for side in plain["image_size"])
        instruction = directory / _INSTRUCTION
        return Processor(
            tokenizer=load_tokenizer(directory),
            template=_template(plain["template"]),
            images=_checked_choices(ImagePreprocessing(**plain["images"])),
            image_size=(height, width),
            prompt_tokens=int(plain["prompt_tokens"]),
            # Files of before pictures were cut or seen otherwise do not say how.
            pictures=_read(Pictures, plain.get("pictures", {}), "pictures"),
            instruction_tokenizer=load_tokenizer(instruction) if instruction.exists() else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error!r}); restore the file or choose another checkpoint") from None


def _checked_choices(config: ImagePreprocessing) -> ImagePreprocessing:
    for field in dataclasses.fields(config):
        choices, value = get_args(field.type), getattr(config, field.name)
        if choices and value not in choices:
            raise ValueError(f"{field.name} = {value!r}")
    return config


def _template(plain: dict[str, Any]) -> Template:
    # Files of before there were several kinds do not name theirs.
    return _read(Template, {"type": "TemplateConfig", **plain}, "template")


def _read(kind: Any, plain: Any, name: str) -> Any:
    try:
        return from_plain(kind, plain, name)
    except UserError as error:
        raise ValueError(str(error)) from None
