"""Laws that every registered vision encoder obeys: those of mmblocks.testing, asked one by one."""

import pytest

from mmblocks.components import encoders
from mmblocks.testing import LAWS
from mmblocks.testing.laws import Subject


@pytest.mark.parametrize("law", LAWS["encoder"], ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", [name for name in encoders if not encoders.about(name).of])
def test_an_encoder_keeps_the_law(name, law):
    law(Subject.of(encoders, name, {}))
