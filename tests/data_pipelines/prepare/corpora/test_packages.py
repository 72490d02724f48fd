import re

import pytest

from data_pipelines.prepare.corpora.packages import PACKAGES, package, package_path
from vlm_jax.errors import UserError


def test_the_table_pins_every_package_once():
    names = [each.name for each in PACKAGES]
    assert len(set(names)) == len(names)
    for each in PACKAGES:
        assert re.fullmatch(r"[0-9a-f]{64}", each.sha256), each.name
        assert each.version
        assert each.licence
        assert each.what
        assert not each.copyright or each.copyright.split("/")[0] in names


def test_a_package_that_is_not_there_is_named_with_the_command_that_brings_it(tmp_path):
    (tmp_path / "gimp-help-en" / "usr").mkdir(parents=True)
    assert package_path(tmp_path, "gimp-help-en", "usr") == tmp_path / "gimp-help-en" / "usr"
    with pytest.raises(UserError, match=r"vlm data fetch --output .* --only gimp-help-en") as error:
        package_path(tmp_path, "gimp-help-en", "usr/share")
    assert package("gimp-help-en").version in str(error.value)
