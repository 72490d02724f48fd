"""Instruct sets: over those caption sets whose texts are good enough to be answers. Open Clip Art's titles are not."""

from data_pipelines.prepare import emoji, gcompris, gimp, tuxpaint
from data_pipelines.prepare.instruct import instruct_set

SETS = tuple(
    instruct_set(captions)
    for module in (tuxpaint, gcompris, emoji, gimp)
    for captions in module.SETS
    if captions.kind == "captions"
)
