# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Where the frozen model is, how it moves, and what it takes in memory."""

import pytest
import torch
from fake_cuda import FakeCuda

from mmaselect.diffusion import FrozenDiT, frozen_dit
from mmaselect.diffusion.placing import of_this_rank
from mmaselect.models import ASelecTDiT


@pytest.mark.parametrize(
    ('device_map', 'ranks', 'expected'),
    [
        (0, 1, 0),
        (0, 2, {'': 1}),
        ('cuda', 2, {'': 1}),
        ('cuda:1', 2, {'': 1}),
        ({'': 'cuda:0'}, 2, {'': 1}),
        ({'': 'cpu'}, 2, {'': 'cpu'}),
        ('cpu', 2, 'cpu'),
        ('auto', 1, 'auto'),
        ({'a': 0, 'b': 'cpu'}, 2, {'a': 1, 'b': 'cpu'}),
        ({'a': 'disk', 'b': 'cpu'}, 2, {'a': 'disk', 'b': 'cpu'}),
    ],
)
def test_a_rank_keeps_to_its_own_accelerator(device_map, ranks, expected):
    given = dict(device_map=device_map, low_cpu_mem_usage=True)
    found = of_this_rank(given, ranks, lambda: 1)
    assert found == dict(device_map=expected, low_cpu_mem_usage=True)
    assert of_this_rank({}, ranks, lambda: 1) == {}


@pytest.mark.parametrize('device_map', ['auto', {'a': 0, 'b': 1}])
def test_a_map_that_takes_several_accelerators_is_one_process_s(device_map):
    with pytest.raises(ValueError, match=r'device_map=.* spreads .* 2 ranks run here'):
        of_this_rank(dict(device_map=device_map), 2, lambda: 1)


@pytest.fixture
def placed(tiny_latent_dit):
    return dict(model=tiny_latent_dit, load_kwargs=dict(device_map={'': 'cpu'}))


def test_a_placed_transformer_stays(tiny_latent_dit, placed):
    dit = FrozenDiT.from_pretrained(placed, blocks=[2])
    free = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[2])
    assert dit.is_placed and not free.is_placed
    for move in (lambda one: one.follow('meta'), lambda one: one.to('meta')):
        for one in (dit, free):
            assert move(one) is one and one.device.type == 'meta'
            assert next(one.codec.parameters()).is_meta and one.condition_class_labels.is_meta
        assert dit.transformer.device.type == 'cpu' and free.transformer.device.type == 'meta'


def test_a_backbone_moves_the_rest(placed):
    model = ASelecTDiT(placed, blocks=[2], timestep=50)
    model.to(torch.float64)  # no change of device: nothing moves
    model.dit.follow('cpu')
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    expected = ASelecTDiT(placed['model'], blocks=[2], timestep=50).eval()(images)[0]
    assert torch.equal(model.float().eval()(images)[0], expected)


def test_a_vae_is_given_so_many_pixels_at_a_time(tiny_latent_dit, monkeypatch):
    dit = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[2])
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    whole = dit.encode(images)
    sizes = []
    dit.codec.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    monkeypatch.setattr(frozen_dit, 'MAX_ENCODED_PIXELS', 2 * 32 * 32)
    assert torch.allclose(dit.encode(images), whole, atol=1e-6)
    monkeypatch.setattr(frozen_dit, 'MAX_ENCODED_PIXELS', 10)
    assert dit.encode(images[:2]).shape == whole[:2].shape
    assert sizes == [2, 2, 1, 1, 1]


@pytest.mark.parametrize('where', ['codec', 'transformer'])
def test_a_full_device_says_what_can_be_smaller(tiny_latent_dit, where):
    dit = FrozenDiT.from_pretrained(tiny_latent_dit, blocks=[2])

    def fail(*_):
        raise torch.OutOfMemoryError('CUDA out of memory')

    getattr(dit, where).register_forward_pre_hook(fail)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        latent = dit.encode(torch.zeros(3, 3, 32, 32))
        dit.features(latent, 5, torch.zeros_like(latent))
    for word in ('batch_size', 'image_size', "dtype to 'bf16'", 'GiB in float32', 'CUDA out of'):
        assert word in str(caught.value)


def test_auto_is_the_default_and_is_said(tiny_dit, caplog):
    with caplog.at_level('INFO', 'mmaselect'):
        assert FrozenDiT.from_pretrained(tiny_dit, blocks=[2]).dtype == torch.float32
    assert f'{tiny_dit}: read in float32' in caplog.text


def test_a_checkpoint_of_another_precision_loads_with_a_line(tiny_dit, caplog):
    state = ASelecTDiT(tiny_dit, blocks=[2], timestep=50, dtype='fp32').state_dict()
    for dtype, said in (('bf16', True), ('fp32', False)):
        caplog.clear()
        with caplog.at_level('INFO', 'mmaselect'):
            ASelecTDiT(tiny_dit, blocks=[2], timestep=50, dtype=dtype).load_state_dict(state)
        assert ('in another precision than bfloat16' in caplog.text) == said


@pytest.mark.parametrize('moved', ['transformer alone', 'nothing'])
def test_the_rest_follows_the_images_onto_a_gpu(placed, moved):
    model = ASelecTDiT(
        placed if moved == 'transformer alone' else placed['model'],
        blocks=[2], timestep=50, noise='fixed',
    ).eval()  # fmt: skip
    with FakeCuda() as device:
        if moved == 'transformer alone':  # as accelerate or bitsandbytes puts it there
            model.dit.transformer.to('cuda')
        images = torch.zeros(2, 3, 32, 32, device='cuda')
        model.gate._check = lambda images: None  # the first batch is looked at
        model._finite_watch.check = lambda *_: None
        (found,) = model(images)
        assert found.device.type == 'cuda' and found.shape == (2, 16, 8, 8)
        assert next(model.dit.codec.parameters()).is_cuda
        assert model.dit.transformer.device.type == 'cuda'
        device.forget()
        model(images)
        assert not device.waits
