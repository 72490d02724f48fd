"""One side of benchmarks/loader.py, in a process of its own: our loader, or a torch DataLoader, over the same files.

    python benchmarks/loader_sides.py '{"side": "ours", "folder": …, …}'      prints what it measured as JSON

FOLDER holds records.jsonl (a record of a caption set a line), its pictures, and a tokenizer; the parent makes it.
"""

import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image

from data_pipelines.examples import Image
from data_pipelines.images import ImagePreprocessing, prepare
from data_pipelines.kinds import Captions
from data_pipelines.kinds.captions import REQUESTS
from data_pipelines.loader import DataConfig, make_loader
from data_pipelines.mixture import MixtureEntry
from data_pipelines.sources import JSONLines
from data_pipelines.template import Processor, TemplateConfig
from data_pipelines.tokenizers import load_tokenizer

RECORDS = "records.jsonl"
LATER, KEEP = "ours, later epochs", 2048
ROWS, SLOTS, LENGTH, PROMPT_TOKENS = 8, 8, 1024, 16
"""Of our batches; a batch of torch's holds ROWS · SLOTS pictures too."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What a side is to do."""

    side: Literal["ours", "ours, later epochs", "torch", "torch, our decoding"]
    """Of "later epochs", only those after the first are measured, with all pictures kept in memory."""
    folder: str
    interpolation: Literal["area", "bilinear", "bicubic", "pillow_bicubic"]
    workers: int
    """Threads of ours, 0 = by default; processes of torch, 0 = none but the one that asks."""
    seconds: float
    size: int = 224


def our_batches(job: Job) -> Iterator[tuple[int, int]]:
    """(pictures, tokens of text) of batch after batch of our loader."""
    folder = Path(job.folder)
    size = (job.size, job.size)
    images = ImagePreprocessing("squash", job.interpolation)
    processor = Processor(load_tokenizer(folder), TemplateConfig(), images, size, PROMPT_TOKENS)
    entry = MixtureEntry(JSONLines(str(folder / RECORDS)), Captions())
    keep = KEEP if job.side == LATER else 0
    stage = SimpleNamespace(name="captions", data=DataConfig((entry,), ROWS, LENGTH, SLOTS, keep_pictures=keep))
    loader = make_loader(stage, processor, seed=0, threads=job.workers)
    for batch, _ in loader:
        assert batch.image_ids is not None
        assert batch.visual_index is not None
        yield int((batch.image_ids > 0).sum()), int(((batch.segment_ids > 0) & (batch.visual_index < 0)).sum())


def decode_by_hand(path: str, job: Job) -> np.ndarray:
    """As one writes it with OpenCV and NumPy: no check of the file, transparency over white, resized. [H, W, 3]."""
    pixels: Any = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    elif pixels.shape[2] == 4:
        opacity = pixels[:, :, 3:].astype(np.float32) / 255
        pixels = (pixels[:, :, 2::-1] * opacity + 255 * (1 - opacity) + 0.5).astype(np.uint8)
    else:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)
    if job.interpolation == "pillow_bicubic":
        picture = PIL.Image.fromarray(pixels).resize((job.size, job.size), PIL.Image.Resampling.BICUBIC)
        return np.asarray(picture)
    ways = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    return cv2.resize(pixels, (job.size, job.size), interpolation=ways[job.interpolation])


def decode_as_we_do(path: str, job: Job) -> np.ndarray:
    """With our checks and our way over white. [H, W, 3]."""
    return prepare(Image(path=path), (job.size, job.size), ImagePreprocessing("squash", job.interpolation))


def torch_batches(job: Job) -> Iterator[tuple[int, int]]:
    """(pictures, tokens of text) of batch after batch of a torch DataLoader, padded to the longest text."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    folder = Path(job.folder)
    decode: Callable[[str, Job], np.ndarray] = decode_by_hand if job.side == "torch" else decode_as_we_do

    class Captioned(Dataset):
        def __init__(self) -> None:
            self.records = [json.loads(line) for line in (folder / RECORDS).read_text().splitlines()]
            self.tokenizer = load_tokenizer(folder)

        def __len__(self) -> int:
            return len(self.records)

        def __getitem__(self, index: int) -> tuple[np.ndarray, list[int]]:
            record = self.records[index]
            tokenizer: Any = self.tokenizer
            turn = [tokenizer.user_id], [tokenizer.assistant_id]
            ids = [tokenizer.bos_id]
            for caption in record["captions"]:
                requests = REQUESTS[caption["language"]]
                request = requests[int(torch.randint(len(requests), ()))]
                ids += [*turn[0], *tokenizer.encode(request), tokenizer.end_id]
                ids += [*turn[1], *tokenizer.encode(caption["text"]), tokenizer.end_id]
            return decode(str(folder / record["image"]), job), ids

    def collate(examples: list[tuple[np.ndarray, list[int]]]) -> tuple[Any, Any]:
        tokens = np.zeros((len(examples), max(len(ids) for _, ids in examples)), np.int32)
        for row, (_, ids) in enumerate(examples):
            tokens[row, : len(ids)] = ids
        return torch.from_numpy(np.stack([pixels for pixels, _ in examples])), torch.from_numpy(tokens)

    options: dict[str, Any] = {}
    if job.workers:
        options = {"persistent_workers": True, "worker_init_fn": _one_thread}
    loader = DataLoader(
        Captioned(), ROWS * SLOTS, shuffle=True, num_workers=job.workers, collate_fn=collate, drop_last=True, **options
    )
    for images, tokens in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield len(images), int((tokens > 0).sum())


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(1)  # one process a core; OpenCV's own threads would only get in each other's way


def measure(job: Job) -> dict[str, float]:
    """Pictures and tokens a second, after the first batches."""
    batches = our_batches(job) if job.side in ("ours", LATER) else torch_batches(job)
    records = sum(1 for _ in (Path(job.folder) / RECORDS).open())
    warm = records // (ROWS * SLOTS) + 4 if job.side == LATER else 6
    for _ in itertools.islice(batches, warm):
        pass
    images, tokens, start = 0, 0, time.perf_counter()
    while time.perf_counter() - start < job.seconds:
        some_images, some_tokens = next(batches)
        images, tokens = images + some_images, tokens + some_tokens
    seconds = time.perf_counter() - start
    return {"images_per_second": images / seconds, "tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    print(json.dumps(measure(Job(**json.loads(sys.argv[1])))), flush=True)
    os._exit(0)  # the workers of a DataLoader that is left in the middle take seconds to be collected
