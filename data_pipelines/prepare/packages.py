"""The one table of the Debian packages that the real corpora are made from: version, checksum, licence, what is in it.

`vlm data fetch RAW` takes them through apt and unpacks each into RAW/NAME, so that its files lie in RAW/NAME/usr/….
"""

import dataclasses
from pathlib import Path

from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Package:
    """A Debian package, pinned."""

    name: str
    version: str
    """Debian's version in full, with its epoch ('4:7.4.7-1+deb12u14')."""

    sha256: str
    """Of the .deb file."""

    licence: str
    """SPDX expression of the files that are used; the package's own copyright file has the whole of it."""

    what: str
    """What is taken from it."""

    copyright: str = ""
    """Where its copyright file lies below RAW, if the package itself only links to another's."""


PACKAGES: tuple[Package, ...] = (
    Package(
        "gimp-help-en",
        "2.10.34-2",
        "a2deec76763aaf2fcdd197bac0736cdcb0770ba993d48d233329e1c92b0bfe36",
        "GFDL-1.2-no-invariants-or-later",
        "GIMP's manual in English: pages with screenshots and captions",
        copyright="gimp-help-common/usr/share/doc/gimp-help-common/copyright",
    ),
    Package(
        "gimp-help-ru",
        "2.10.34-2",
        "6cc1afc044beda47a616cd2627ac5941bcca7ef7beb5edde7aa3b41cc61c3edd",
        "GFDL-1.2-no-invariants-or-later",
        "the same pages in Russian, partly translated",
        copyright="gimp-help-common/usr/share/doc/gimp-help-common/copyright",
    ),
    Package(
        "gimp-help-common",
        "2.10.34-2",
        "5186e5ba19dfca73c141965abb6fbd8cc8abae4a623af5dfea03195e07c4bda8",
        "GFDL-1.2-no-invariants-or-later",
        "authors and licence of GIMP's manual",
    ),
    Package(
        "gnome-user-docs",
        "43.0-2",
        "0d635a840747958ca84da778b40d341f1155603851f922c9a171f5a181d6a39f",
        "CC-BY-SA-3.0",
        "GNOME's help for users and administrators, English and Russian, with screenshots",
    ),
    Package(
        "libreoffice-help-en-us",
        "4:7.4.7-1+deb12u14",
        "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
        "MPL-2.0 AND Apache-2.0",
        "LibreOffice's help in English: text",
    ),
    Package(
        "libreoffice-help-ru",
        "4:7.4.7-1+deb12u14",
        "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2",
        "MPL-2.0 AND Apache-2.0",
        "the same pages in Russian, partly translated",
    ),
    Package(
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2.0-or-later",
        "cut-out pictures of things, each described in a sentence in English and Russian",
    ),
    Package(
        "gcompris-qt-data",
        "3.1-2",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
        "per file",
        "photographs of monuments, animals and paintings with descriptions in both languages",
    ),
    Package(
        "fonts-noto-color-emoji",
        "2.042-0+deb12u1",
        "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
        "OFL-1.1",
        "the pictures of emoji",
    ),
    Package(
        "openclipart-png",
        "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        "CC-PDDC",
        "drawings with English titles and keywords",
    ),
)


def package(name: str) -> Package:
    """The package of the table that has this name (KeyError if none has)."""
    return {each.name: each for each in PACKAGES}[name]


def package_path(raw: Path, name: str, inside: str) -> Path:
    """Where something of a package lies: RAW/NAME/INSIDE.

    Raises:
        UserError: if it is not there, because the package was not fetched or is another version of it.
    """
    path = raw / name / inside
    if not path.exists():
        raise UserError(
            f"{path}: not there, so Debian's package {name} was not unpacked here or is another version than "
            f"{package(name).version}; run `vlm data fetch {raw} --only {name}` first"
        )
    return path
