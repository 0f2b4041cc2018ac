"""Every registered vision encoder passes the conformance checks of mmblocks.testing, one by one."""

import pytest

from mmblocks.components import encoders
from mmblocks.testing import CHECKS
from mmblocks.testing.conformance import Subject


@pytest.mark.parametrize("check", CHECKS["encoder"], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [name for name in encoders if not encoders.find_info(name).preset_of])
def test_an_encoder_conforms(name, check):
    check(Subject.from_part(encoders, name, {}))
