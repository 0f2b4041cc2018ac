"""Laws that every projector obeys, whoever wrote it: those of mmblocks.testing, asked one by one."""

import pytest
import torch

from mmblocks.components import projectors
from mmblocks.shapes import Size
from mmblocks.testing import CHECKS
from mmblocks.testing.conformance import Subject


@pytest.mark.parametrize("check", CHECKS["projector"], ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", [name for name in projectors if not projectors.find_info(name).preset_of])
def test_a_projector_conforms(name, check):
    check(Subject.from_part(projectors, name, {}))


@pytest.mark.parametrize("name", [name for name in projectors if projectors.find_info(name).preset_of])
def test_every_preset_can_be_weighed_without_memory(name):
    with torch.device("meta"):
        projector = projectors.build(name, in_dim=1152, out_dim=3584, grid=Size(24, 24))
    assert all(p.is_meta for p in projector.parameters())
