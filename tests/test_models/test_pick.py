# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The life of a pick, without a model: config, init_weights, checkpoint, copy, move."""

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from mmaselect.diffusion import build_process
from mmaselect.diffusion.timestep_plan import TimestepPlan
from mmaselect.models.backbones.pick import Pick

PROCESS = build_process(dict(_class_name='DDPMScheduler', num_train_timesteps=1000))


class Backbone(nn.Module):
    def __init__(self, timestep):
        super().__init__()
        self.pick = Pick(self, TimestepPlan.parse(timestep), PROCESS)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        with self.pick.loading(state_dict, prefix):
            super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.fixture
def said(caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger.name)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_a_given_timestep_is_there_at_once():
    pick = Backbone(40).pick
    assert pick.timestep == pick.found == 40 and str(pick) == '40'
    assert not pick.is_needed() and not pick.is_overdue()
    with pytest.raises(ValueError, match='timestep 1000 is out of range'):
        pick.timestep = 1000


def test_auto_has_none_until_one_is_picked():
    model = Backbone('auto')
    assert model.pick.found is None and str(model.pick) == 'auto' and model.pick.is_needed()
    with pytest.raises(RuntimeError, match='no timestep yet'):
        _ = model.pick.timestep
    model.pick.timestep = 25
    assert model.state_dict() == {'picked_timestep': torch.tensor(25)}
    assert str(Backbone(dict(steps=['auto', 3], fusion='mean')).pick) == "[auto, 3], fusion='mean'"


def test_a_checkpoint_that_is_awaited(said):
    model = Backbone('auto')
    model.pick.expects_checkpoint = True
    assert not model.pick.is_needed()
    model.load_state_dict(Backbone(70).state_dict())
    assert model.pick.timestep == 70 and not model.pick.is_overdue()
    assert 'timestep 70 comes from the checkpoint, nothing is selected' in said.text


def test_a_checkpoint_that_brings_none(said):
    model = Backbone('auto')
    model.pick.expects_checkpoint = True
    assert not model.pick.is_needed()
    model.load_state_dict({}, strict=False)
    assert model.pick.is_overdue() and not model.pick.is_overdue()
    assert 'no checkpoint brought a timestep' in said.text


@pytest.mark.parametrize(
    ('source', 'expected', 'words'),
    [
        ('checkpoint', 70, "in use now in place of the config's 40 (given)"),
        ('config', 40, "the config's timestep 40 (given) is in use"),
    ],
)
def test_a_checkpoint_against_the_config(said, source, expected, words):
    model = Backbone(dict(steps=40, source=source))
    model.load_state_dict(Backbone(70).state_dict())
    assert model.pick.timestep == expected == int(model.picked_timestep)
    assert words in said.text
    model.load_state_dict(Backbone('auto').state_dict())  # of a model that had none
    assert model.pick.timestep == expected


def test_config_wins_before_anything_is_selected():
    model = Backbone(dict(source='config'))
    model.pick.expects_checkpoint = True
    assert model.pick.is_needed()


def test_copies_and_moves_have_picks_of_their_own():
    model = Backbone('auto')
    other = copy.deepcopy(model)
    model.pick.timestep = 5
    assert other.pick.found is None
    other.picked_timestep.fill_(9)  # as an average of models, or a broadcast, does
    assert other.pick.timestep == 9 and model.pick.timestep == 5
    moved = other.to('meta').to_empty(device='cpu')
    moved.pick.timestep = 11
    assert int(moved.picked_timestep) == 11
