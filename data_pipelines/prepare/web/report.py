"""report.html of a run: the funnel as a table, and samples of what every rule dropped and of what was kept."""

import base64
from collections.abc import Sequence
from typing import Any

import cv2
from etils import epath

from data_pipelines.examples import Image
from data_pipelines.images import BadImage, decode
from data_pipelines.look.pages import page_template
from data_pipelines.manifest import Manifest
from data_pipelines.prepare.web.inputs import read_bytes

_THUMBNAIL = 160
_LIMIT = 30_000_000


def write_report(path: epath.Path, funnel: dict[str, Any], manifest: Manifest) -> None:
    """Writes the page; it needs nothing beside it. A picture that cannot be shown is left out."""
    rules = [
        {**rule, "samples": [_shown(sample) for sample in rule["samples"]]}
        for rule in funnel["rules"]
        if any(rule["dropped"].values())
    ]
    idle = [rule["name"] for rule in funnel["rules"] if not any(rule["dropped"].values())]
    page = page_template("prepare/web/web_report.html.j2").render(
        funnel=funnel, rules=rules, idle=idle, manifest=manifest, kept=[_shown(s) for s in funnel["samples"]]
    )
    path.write_bytes(page.encode("utf-8", "backslashreplace"))


def _shown(sample: dict[str, Any]) -> dict[str, Any]:
    locations = sample.get("pictures") or ([sample["location"]] if sample.get("location") else [])
    return {**sample, "thumbnails": [uri for uri in map(_thumbnail, locations) if uri]}


def _thumbnail(location: Sequence[Any]) -> str:
    data = read_bytes(location, _LIMIT)
    try:
        pixels = decode(Image(data=data or b""))
    except BadImage:
        return ""
    scale = min(1.0, _THUMBNAIL / max(pixels.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", small[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()
