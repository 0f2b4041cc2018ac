"""Laws that every registered vision encoder obeys: those of mmblocks.testing, asked one by one."""

import pytest

from mmblocks.components import encoders
from mmblocks.testing import CHECKS
from mmblocks.testing.laws import Subject


@pytest.mark.parametrize("law", CHECKS["encoder"], ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", [name for name in encoders if not encoders.find_info(name).preset_of])
def test_an_encoder_keeps_the_law(name, law):
    law(Subject.from_part(encoders, name, {}))
