"""A moving average of what learns: elementwise, swapped in and out without a trace, restored to the bit."""

import pytest
import torch
from torch import nn

from mmblocks.errors import CheckpointError, ConfigError
from mmblocks.train.ema import EMA


class Two(nn.Module):
    """One learning weight and one that is frozen."""

    def __init__(self, value=0.0):
        super().__init__()
        self.learns = nn.Parameter(torch.full((3, 2), value))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def put(model, value):
    with torch.no_grad():
        model.learns.fill_(value)


def averaged(ema, model):
    with ema.use_averages(model):
        return model.learns.detach().clone()


def test_the_first_updates_forget_faster():
    model, want = Two(), 0.0
    ema = EMA(model, decay=0.5)
    for n, decay in enumerate([2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5, 0.5], start=1):
        put(model, float(n))
        ema.update_average(model)
        want = decay * want + (1 - decay) * n
    torch.testing.assert_close(averaged(ema, model), torch.full((3, 2), want))


def test_weights_that_stand_still_are_their_own_average():
    model = Two(0.7)
    ema = EMA(model, decay=0.999)
    for _ in range(50):
        ema.update_average(model)
    assert torch.equal(averaged(ema, model), model.learns)


def test_the_learning_weights_come_back_to_the_bit_also_after_an_error():
    model = Two(1.0)
    ema = EMA(model, decay=0.9)
    put(model, 3.0)
    ema.update_average(model)
    before = model.learns.detach().clone()
    average = averaged(ema, model)
    assert not torch.equal(average, before)
    with pytest.raises(KeyError), ema.use_averages(model):
        raise KeyError
    assert torch.equal(model.learns, before)
    assert torch.equal(averaged(ema, model), average)


def test_an_average_goes_on_from_its_state_to_the_bit():
    whole, model = Two(), Two()
    one, first = EMA(whole, 0.9), EMA(model, 0.9)
    for n in range(4):
        put(whole, n / 3)
        one.update_average(whole)
    for n in range(2):
        put(model, n / 3)
        first.update_average(model)
    second = EMA(model, 0.9)
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    for n in range(2, 4):
        put(model, n / 3)
        second.update_average(model)
    assert torch.equal(averaged(second, model), averaged(one, whole))


def test_only_what_learns_is_kept():
    assert sorted(EMA(Two(), 0.9).state_dict()) == ["learns", "updates"]


def test_the_state_of_other_parameters_is_refused():
    ema = EMA(Two(), 0.9)
    with pytest.raises(CheckpointError, match=r"other parameters: learns, teaches"):
        ema.load_state_dict({"updates": torch.tensor(1), "teaches": torch.zeros(3, 2)})


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_is_a_share(decay):
    with pytest.raises(ConfigError, match=f"ema={decay}"):
        EMA(Two(), decay)


def moved(model, ema):
    """Five made-up optimizer steps, the same on whole and on sharded weights."""
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9).add_(0.01)
        ema.update_average(model)


def test_the_average_of_sharded_weights_is_that_of_whole_ones(tiny_spec, tiny_model, together):
    import mmblocks
    from mmblocks.train.distributed import gather_state_dict, shard_model

    def averages(world):
        model = mmblocks.build(tiny_spec, seed=0)
        shard_model(model, world, "float32")
        ema = EMA(model, 0.9)
        moved(model, ema)
        with ema.use_averages(model):
            return {name: value.clone() for name, value in gather_state_dict(model, world).items()}

    ema = EMA(tiny_model, 0.9)
    moved(tiny_model, ema)
    theirs = together(averages)[0]
    with ema.use_averages(tiny_model):
        ours = tiny_model.state_dict()
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
