"""The one table of the Debian packages that the real corpora are made from: version, checksum, licence, what is in it.

`vlm data fetch --output RAW` takes them through apt and unpacks each into RAW/NAME, so that its files lie in
RAW/NAME/usr/….
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
    Package(
        "unicode-cldr-core",
        "41-0.1",
        "35d30d5d3bee4d8244e95236259c4c2a0db06e21bad696515751fcfeee4d0260",
        "Unicode-DFS-2016",
        "names and keywords of emoji in English and Russian",
    ),
    Package(
        "fonts-dejavu-core",
        "2.37-6",
        "8892669e51aab4dc56682c8e39d8ddb7d70fad83c369344e1e240bf3ca22bb76",
        "Bitstream-Vera AND LicenseRef-public-domain",
        "fonts with Cyrillic: DejaVu Sans, Serif, Mono",
    ),
    Package(
        "fonts-dejavu-extra",
        "2.37-6",
        "6cb7ed32de6df209c065e9e5cc5154a2f36d4c334d9a0af534fabb67d38ab75b",
        "Bitstream-Vera AND LicenseRef-public-domain",
        "fonts with Cyrillic: DejaVu's condensed and oblique cuts",
    ),
    Package(
        "fonts-paratype",
        "20181108-3",
        "1826b728a79fbb8ed1b6c1ddc240ad6cce39b84c98bb568d8b10f7b7d4f99745",
        "LicenseRef-ParaType-Free-Font-License",
        "fonts with Cyrillic: PT Sans, Serif, Mono",
    ),
    Package(
        "fonts-liberation2",
        "2.1.5-1",
        "35ffaa54f117e633e89a5da89af235a073b34dbe582726fbf6989568f7fd9bda",
        "OFL-1.1",
        "fonts with Cyrillic: Liberation Sans, Serif, Mono",
    ),
    Package(
        "fonts-freefont-ttf",
        "20120503-10",
        "4ca1c21ebc479198a3a5879d236c8317d6f7b2f1c403f7890e24c02eead05615",
        "GPL-3.0-or-later WITH Font-exception-2.0",
        "fonts with Cyrillic: FreeSans, FreeSerif, FreeMono",
    ),
    Package(
        "fonts-lato",
        "2.0-2.1",
        "86f50af146a7df9eca4e69f0262e73e708908435ebfa833df797adfa08843bc5",
        "OFL-1.1",
        "fonts with Cyrillic: Lato",
    ),
    Package(
        "fonts-roboto-unhinted",
        "2:0~20170802-3",
        "f89cf7d8a589489daecf750031ec50456ab3e648d49ff544f0f08753268fbd91",
        "Apache-2.0",
        "fonts with Cyrillic: Roboto, Roboto Slab",
    ),
    Package(
        "fonts-open-sans",
        "1.11-2",
        "ed8c4258af6c23e5105fa18940544f060f3c9664fbe881f25130fe0c65bc1485",
        "Apache-2.0",
        "fonts with Cyrillic: Open Sans",
    ),
    Package(
        "fonts-play",
        "1.002+20150307.1-0.1",
        "274f6e95f668f1fff3441056e968a4c947ac975b29000d9c513bd06bb7f7f9d4",
        "Apache-2.0",
        "fonts with Cyrillic: Play",
    ),
    Package(
        "fonts-jura",
        "5.103-3",
        "4fa907bfa547d7a24d554330d1be0a74a65c01f168ce9e175242b837be1f3510",
        "OFL-1.1",
        "fonts with Cyrillic: Jura",
    ),
    Package(
        "fonts-comfortaa",
        "3.001-3",
        "33c65e81b201177a56e6528f7ea5fd6b19f2db0bb6f4f95346b9483691851929",
        "OFL-1.1",
        "fonts with Cyrillic: Comfortaa",
    ),
    Package(
        "fonts-linuxlibertine",
        "5.3.0-6",
        "5c77471e910189b3e4e2eda2b1c5f549ddcaf4de8f9640b97773643970d29087",
        "OFL-1.1",
        "fonts with Cyrillic: Linux Libertine, Biolinum",
    ),
    Package(
        "fonts-oldstandard",
        "2.2really-4",
        "c8c240cf91654f9ae5357b123436612c05820259dd5569f1c090185cb2ec1fdd",
        "OFL-1.1",
        "fonts with Cyrillic: Old Standard",
    ),
    Package(
        "fonts-vollkorn",
        "4.105-2",
        "0c7039de3ede6c96727829635c5b10a536114029cbddf98e14716578d936307f",
        "OFL-1.1",
        "fonts with Cyrillic: Vollkorn",
    ),
    Package(
        "fonts-jetbrains-mono",
        "2.242+ds-3",
        "516b8e3bacc9a30cf615543fa1fdaf0c5312284f2c4459b7838fd008fd9936bc",
        "Apache-2.0",
        "fonts with Cyrillic: JetBrains Mono",
    ),
    Package(
        "fonts-anonymous-pro",
        "1.003-4",
        "4333e24bc646dcfbb6fda3d9c349d753980b3222c9849cfa50ad6d89731c29e3",
        "OFL-1.1",
        "fonts with Cyrillic: Anonymous Pro",
    ),
    Package(
        "fonts-crosextra-carlito",
        "20220224-1",
        "673689e3a887cd150ca5018c26e1a4162709add3a1bdc0a2527af6fd073980d7",
        "OFL-1.1",
        "fonts with Cyrillic: Carlito",
    ),
    Package(
        "fonts-yanone-kaffeesatz",
        "2.0+git20211102+ds-1",
        "f877e8ad4fd0aa8c20ac104c9eef69b54dcdc93e2e0d09a01fe5acfc89371980",
        "OFL-1.1",
        "fonts with Cyrillic: Yanone Kaffeesatz",
    ),
    Package(
        "fonts-tuffy",
        "20120614-2.1",
        "e77e30607b5653a109f2e4a6527c43df55c7d7a6c23e77f8734a86110e6cbd08",
        "LicenseRef-public-domain",
        "fonts with Cyrillic: Tuffy",
    ),
    Package(
        "fonts-fantasque-sans",
        "1.7.2~alpha.3~dfsg-2",
        "a9ee4dd09015af2835b3d3858d488eb97dceadbab094c0ef11294ba60ed3a269",
        "OFL-1.1",
        "fonts with Cyrillic: Fantasque Sans Mono",
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
            f"{package(name).version}; run `vlm data fetch --output {raw} --only {name}` first"
        )
    return path
