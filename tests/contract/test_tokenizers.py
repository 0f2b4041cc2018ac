"""Laws that every visual tokenizer obeys: those of mmblocks.testing, asked one by one, presets too."""

import pytest

from mmblocks.components import tokenizers
from mmblocks.testing import LAWS
from mmblocks.testing.laws import Subject


@pytest.mark.parametrize("law", LAWS["tokenizer"], ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", list(tokenizers))
def test_a_tokenizer_keeps_the_law(name, law):
    law(Subject.of(tokenizers, name, {}))
