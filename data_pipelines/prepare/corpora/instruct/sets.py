"""Instruct sets: over those caption sets whose texts are good enough to be answers. Open Clip Art's titles are not."""

from data_pipelines.prepare.corpora.instruct.triplets import instruct_set
from data_pipelines.prepare.corpora.manuals import gimp
from data_pipelines.prepare.corpora.pictures import emoji, gcompris, tuxpaint

SETS = tuple(
    instruct_set(captions)
    for module in (tuxpaint, gcompris, emoji, gimp)
    for captions in module.SETS
    if captions.kind == "captions"
)
