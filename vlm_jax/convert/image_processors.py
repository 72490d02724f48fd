"""transformers' image processors, as preprocessor_config.json describes them, and how pictures are prepared here."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.images import ImagePreprocessing
from vlm_jax.convert.tilings import canvas_tiling, read_tiling, write_tiling
from vlm_jax.errors import UserError
from vlm_jax.models.convnext import ConvNeXtConfig
from vlm_jax.models.encoders import EncoderConfig
from vlm_jax.models.tile_vit import TileViTConfig
from vlm_jax.models.vit import ViTConfig
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.pictures import Tiling

log = logging.getLogger(__name__)

Numbers = tuple[float, float, float]

_FILTERS: dict[int, Any] = {1: "pillow_lanczos", 2: "pillow_bilinear", 3: "pillow_bicubic"}
"""Pillow's numbers of its resize filters."""

_NEAREST_FILTER = {"bilinear": 2, "bicubic": 3, "area": 4}
"""What comes next to OpenCV's: 4 is Pillow's box filter."""

_IDEFICS3_LARGEST = 4096
"""Pixels: the processor scales nothing beyond this."""

_CONVNEXT_SQUASHES_FROM = 384
"""Pixels: ConvNeXt's processor crops smaller pictures only."""


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """From a decoded picture to what an encoder sees."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""
    preprocessing: ImagePreprocessing
    mean: Numbers
    std: Numbers
    tiling: Tiling | None = None
    """How pictures are cut into tiles of `image_size`; None = they are not."""


def read_image_processor(plain: Mapping[str, Any], where: str = "preprocessor_config.json") -> ImageProcessor:
    """From the content of preprocessor_config.json (or of `image_processor` in processor_config.json).

    Args:
        plain: as written by the processors of CLIP, LLaVA, SigLIP, DINOv2 (BiT), ViT, ConvNeXt, and those that cut
            pictures into tiles: LLaVA-NeXT, InternVL (GOT-OCR 2), Idefics 2 and 3 (SmolVLM) and Llama 3.2 Vision.
            Idefics 2's, which keeps the shape of pictures, is read as one that brings all to its longest edge.
        where: the file, for messages.

    Raises:
        UserError: if it does what cannot be done here.
    """
    if not plain.get("do_resize", True) or not plain.get("do_rescale", True):
        raise UserError(
            f"{where}: pictures are not resized or not divided by 255; only processors that do both are known"
        )
    if abs(plain.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise UserError(f"{where}: rescale_factor is {plain['rescale_factor']}; only 1/255 is known")
    resample = plain.get("resample", _usual_filter(_kind(plain)))
    if resample not in _FILTERS:
        known = ", ".join(f"{number} ({name.removeprefix('pillow_')})" for number, name in _FILTERS.items())
        raise UserError(f"{where}: resample is {resample}; known are {known}")
    size, preprocessing = _geometry(plain, _FILTERS[resample], where)
    tiling = read_tiling(plain, _kind(plain), size, where)
    if not plain.get("do_normalize", True):
        return ImageProcessor(size, preprocessing, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), tiling)
    mean, std = (_three(plain, name, where) for name in ("image_mean", "image_std"))
    return ImageProcessor(size, preprocessing, mean, std, tiling)


def _kind(plain: Mapping[str, Any]) -> str:
    return str(plain.get("image_processor_type", plain.get("feature_extractor_type", "")))


def _usual_filter(kind: str) -> int:
    return 2 if kind.startswith(("Mllama", "Idefics2")) else 1 if kind.startswith(("Idefics3", "SmolVLM")) else 3


def _geometry(plain: Mapping[str, Any], filtered: Any, where: str) -> tuple[tuple[int, int], ImagePreprocessing]:
    size = plain.get("size", {})
    kind = _kind(plain)
    if kind.startswith("ConvNext"):
        edge = _edge(size, where)
        if edge >= _CONVNEXT_SQUASHES_FROM:
            return (edge, edge), ImagePreprocessing("squash", filtered)
        shortest = int(edge / (plain.get("crop_pct") or 224 / 256))
        return (edge, edge), ImagePreprocessing("shortest", filtered, shortest)
    if "max_image_size" in plain:
        return _longest_first(plain, filtered, where)
    if kind.startswith("Idefics2"):
        return _longest_both(plain, filtered, where)
    if kind.startswith("LlavaNext"):
        target = _height_width(size, where) if "height" in size else (_edge(size, where),) * 2
        if _height_width(plain.get("crop_size", target[0]), where) != target:
            raise UserError(f"{where}: crop_size is {plain['crop_size']}, but tiles are brought to {target[0]} pixels")
        return target, ImagePreprocessing("squash", filtered)
    if plain.get("do_pad") and kind.startswith("Llava"):
        raise UserError(f"{where}: do_pad is set; pictures that are made square before they are resized are not known")
    crops = plain.get("do_center_crop", kind.startswith(("CLIP", "Bit", "Llava")))
    if isinstance(size, Mapping) and "height" in size:
        target = _height_width(size, where)
        if crops and _height_width(plain.get("crop_size", size), where) != target:
            raise UserError(f"{where}: pictures are squashed and then cropped, which is not known")
        return target, ImagePreprocessing("squash", filtered)
    edge = _edge(size, where)
    if not crops:
        raise UserError(f"{where}: pictures keep their aspect ratio and are not cropped; only one size is known here")
    return _height_width(plain.get("crop_size", edge), where), ImagePreprocessing("shortest", filtered, edge)


def _longest_first(plain: Mapping[str, Any], filtered: Any, where: str) -> tuple[tuple[int, int], ImagePreprocessing]:
    """Idefics 3: the longer side is brought to one length; then all is squashed into a square, or cut into tiles."""
    edge, longest = (
        fields.get("longest_edge") if isinstance(fields, Mapping) else None
        for fields in (plain["max_image_size"], plain.get("size"))
    )
    if type(edge) is not int or type(longest) is not int or not 1 <= edge <= longest <= _IDEFICS3_LARGEST:
        raise UserError(f"{where}: max_image_size and size must have a longest_edge of 1 to {_IDEFICS3_LARGEST} pixels")
    return (edge, edge), ImagePreprocessing("squash", filtered, longest_edge=longest)


def _longest_both(plain: Mapping[str, Any], filtered: Any, where: str) -> tuple[tuple[int, int], ImagePreprocessing]:
    """Idefics 2: a picture keeps its shape, between two edges; here each has the longer one both ways."""
    size = plain.get("size", {"shortest_edge": 378, "longest_edge": 980})
    sides = size if isinstance(size, Mapping) else {}
    shortest, longest = (sides.get(name) for name in ("shortest_edge", "longest_edge"))
    if type(shortest) is not int or type(longest) is not int or not 1 <= shortest <= longest:
        raise UserError(f"{where}: size is {size!r}; it must have a shortest_edge and a longest_edge in pixels")
    return (longest, longest), ImagePreprocessing("squash", filtered)


def _edge(size: Any, where: str) -> int:
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if type(edge) is not int or edge < 1:
        raise UserError(f"{where}: size is {size!r}; it must be a number of pixels, shortest_edge, or height and width")
    return edge


def _height_width(size: Any, where: str) -> tuple[int, int]:
    height, width = (size.get("height"), size.get("width")) if isinstance(size, Mapping) else (size, size)
    if type(height) is not int or type(width) is not int or min(height, width) < 1:
        raise UserError(f"{where}: {size!r} is no size in pixels; it must be a number, or height and width")
    return height, width


def _three(plain: Mapping[str, Any], name: str, where: str) -> Numbers:
    value = plain.get(name)
    numbers = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(numbers, Sequence) or len(numbers) != 3 or not all(isinstance(n, (int, float)) for n in numbers):
        raise UserError(f"{where}: {name} is {value!r}; it must be three numbers")
    red, green, blue = (float(number) for number in numbers)
    return red, green, blue


def write_image_processor(processor: ImageProcessor) -> dict[str, Any]:
    """The content of preprocessor_config.json, for transformers' CLIP (or Idefics 3) processor, or one that cuts tiles.

    What Pillow resizes comes out the same there. In place of OpenCV's filters stand those of Pillow that come next to
    them, so that pixels differ a little; a warning says so.

    Raises:
        UserError: if there is no processor that does it.
    """
    (height, width), how = processor.image_size, processor.preprocessing
    numbers = {name: number for number, name in _FILTERS.items()} | _NEAREST_FILTER
    if how.interpolation in _NEAREST_FILTER:
        log.warning("pictures are resized by OpenCV's %s here, by Pillow's nearest filter there", how.interpolation)
    if how.reduce_jpeg:
        log.warning("large JPEGs are decoded at a fraction of their size here, at the whole of it there")
    common = {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": numbers[how.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(processor.mean),
        "image_std": list(processor.std),
    }
    if processor.tiling is not None:
        if how.resize != "squash":
            raise UserError(f"no image processor that cuts tiles resizes with '{how.resize}'; use 'squash'")
        return {**common, **write_tiling(processor.tiling, processor.image_size, how.longest_edge)}
    if how.longest_edge:
        if height != width:
            raise UserError(f"Idefics 3's processor makes square pictures, not {height} x {width}")
        tiles = {"do_image_splitting": False, "do_pad": True, "max_image_size": {"longest_edge": height}}
        size = {"longest_edge": how.longest_edge}
        return {"image_processor_type": "Idefics3ImageProcessor", **common, "size": size, **tiles}
    kind = {"image_processor_type": "CLIPImageProcessor", **common}
    if how.resize == "squash":
        return {**kind, "size": {"height": height, "width": width}, "do_center_crop": False}
    if how.resize == "pad" or (how.resize == "crop" and height != width):
        raise UserError(
            f"no image processor of transformers resizes with '{how.resize}' to {height} x {width}; use 'squash'"
        )
    edge = how.shortest_edge or min(height, width)
    crop = {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    return {**kind, "size": {"shortest_edge": edge}, **crop}


def encoder_processor(config: EncoderConfig) -> ImageProcessor:
    """The image processor of an encoder by itself, whose config does not say how pictures get their size."""
    tiling = canvas_tiling(config.tiles) if isinstance(config, TileViTConfig) else None
    return ImageProcessor(config.image_size, usual_preprocessing(config), config.mean, config.std, tiling)


def covering_processor(config: VLMConfig) -> ImageProcessor | None:
    """Idefics 3's image processor, whose tiles config.json does not tell; None for a model without these."""
    encoder, tiling = config.encoder, config.tiling
    if encoder is None or tiling is None or tiling.choose != "cover":
        return None
    longest = encoder.image_size[0] * min(max(grid) for grid in tiling.grids)
    how = ImagePreprocessing("squash", "pillow_lanczos", longest_edge=longest)
    return ImageProcessor(encoder.image_size, how, encoder.mean, encoder.std, tiling)


def usual_preprocessing(config: EncoderConfig) -> ImagePreprocessing:
    """How the published models of an encoder's kind have their pictures: SigLIP and BLIP squashed, others cropped;
    tiles are cut from what is laid on a canvas.
    """
    if isinstance(config, TileViTConfig):
        return ImagePreprocessing("squash", "pillow_bilinear")
    if isinstance(config, ViTConfig) and (not config.class_token or config.final_norm == "both"):
        return ImagePreprocessing("squash", "pillow_bicubic")
    margin = isinstance(config, ConvNeXtConfig) or (isinstance(config, ViTConfig) and config.layer_scale)
    edge = int(min(config.image_size) * 256 / 224) if margin else 0
    return ImagePreprocessing("shortest", "pillow_bicubic", edge)
