# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import copy
import gc
import io
import logging
import os
import shutil
import sysconfig
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda
from mmengine.dataset import BaseDataset
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model.averaged_model import ExponentialMovingAverage
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.runner import Runner, load_checkpoint
from PIL import Image
from torch._dynamo.testing import CompileCounter
from toy_segmentor import Segmentor

from mmaselect.apis import FeatureExtractor
from mmaselect.diffusion import FrozenDiT, draw_noise
from mmaselect.models import ASelecTDiT

GRID = [0, 200, 600]


def make(folder, photos=None, **options):
    selection = dict(timesteps=GRID, num_images=6, image_size=32, batch_size=3)
    selection.update(options.pop('selection', {}))
    options.setdefault('blocks', [1, -2])
    return ASelecTDiT(folder, calibration=photos, selection=selection, **options)


@pytest.mark.parametrize('size', [(32, 32), (40, 33), (16, 64)])
def test_one_map_per_block(tiny_latent_dit, size):
    model = make(tiny_latent_dit, blocks=[2, 4, 2], timestep=100).eval()
    maps = model(torch.rand(2, 3, *size))
    assert isinstance(maps, tuple) and len(maps) == 3
    assert all(m.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4)) for m in maps)
    assert all(m.dtype == torch.float32 for m in maps)
    assert torch.equal(maps[0], maps[2]) and not torch.equal(maps[0], maps[1])
    assert model.out_channels == [16, 16, 16] and model.stride == 4


def test_built_by_any_toolbox_registry(tiny_dit):
    for scope in ('mmengine', 'mmseg', 'mmpretrain'):
        model = ROOT_MODELS.build(
            dict(type='mmaselect.ASelecTDiT', pretrained=tiny_dit, timestep=5, _scope_=scope)
        )
        assert isinstance(model, ASelecTDiT)


def test_the_data_preprocessor_is_undone(tiny_dit):
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    pixels = torch.randint(0, 256, (1, 3, 32, 32)).float()  # RGB, 0..255
    noise = draw_noise((3, 32, 32), [0])
    expected = dit.features(pixels / 127.5 - 1, 70, noise)[2, 'query']
    mean = torch.tensor([123.675, 116.28, 103.53])
    std = torch.tensor([58.395, 57.12, 57.375])
    normalized = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    model = make(
        tiny_dit, blocks=2, timestep=70, input_mean=mean.tolist(), input_std=std.tolist()
    ).eval()
    assert torch.allclose(model(normalized)[0], expected, atol=1e-5)
    bgr = make(
        tiny_dit, blocks=2, timestep=70, channel_order='bgr',
        input_mean=mean.flip(0).tolist(), input_std=std.flip(0).tolist(),
    ).eval()  # fmt: skip
    assert torch.allclose(bgr(normalized.flip(1))[0], expected, atol=1e-5)


def test_a_wrong_normalization_is_noticed(tiny_dit):
    model = make(tiny_dit, timestep=70)
    with pytest.raises(ValueError, match=r'pixels span .* instead of -1 to 1\. Give the backbone'):
        model(torch.randn(1, 3, 32, 32).clamp(-2.1, 2.6) * 2)


def test_noise_modes(tiny_dit):
    images = torch.rand(2, 3, 32, 32)
    model = make(tiny_dit, timestep=500)
    model.eval()
    first = model(images)[0]
    assert torch.equal(first, model(images)[0])
    # of the batch, its order, and what ran before: nothing matters
    assert torch.allclose(model(images.flip(0))[0].flip(0), first, atol=1e-6)
    assert torch.allclose(model(images[1:])[0], first[1:], atol=1e-6)
    model(torch.rand(1, 3, 16, 16))
    assert torch.equal(first, model(images)[0])
    model.train()
    assert not torch.equal(model(images)[0], model(images)[0])
    fixed = make(tiny_dit, timestep=500, noise='fixed').train()
    assert torch.equal(fixed(images)[0], first)
    other_seed = make(tiny_dit, timestep=500, noise=dict(mode='fixed', seed=1))
    assert not torch.equal(other_seed(images)[0], first)
    fresh = make(tiny_dit, timestep=500, noise='fresh').eval()
    assert not torch.equal(fresh(images)[0], fresh(images)[0])


def test_draws_are_averaged(tiny_dit):
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    model = make(tiny_dit, blocks=2, timestep=300, noise=dict(draws=3)).eval()
    maps = [
        model.dit.features(images, 300, draw_noise((3, 32, 32), [seed]))[2, 'query']
        for seed in range(3)
    ]
    assert torch.allclose(model(images)[0], torch.stack(maps).mean(0), atol=1e-6)


@pytest.mark.parametrize('seed', [0, 1, 7])
def test_a_seed_means_the_same_noise_for_the_extractor(tiny_dit, seed):
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    model = make(tiny_dit, blocks=2, timestep=500, noise=dict(mode='fixed', seed=seed))
    extract = FeatureExtractor(tiny_dit, 500, blocks=2, seed=seed, device='cpu')
    assert torch.equal(model(images)[0], extract(list(images))[2, 'query'])


def test_each_of_many_draws_is_another(tiny_dit):
    model = make(tiny_dit, blocks=2, timestep=500, noise=dict(mode='fixed', draws=130))
    latent = torch.zeros(1, 3, 8, 8)
    draws = torch.cat([model._fixed_noise.draw(latent, number) for number in range(130)])
    noise = dict(mode='fixed', seed=1, draws=130)
    other = make(tiny_dit, blocks=2, timestep=500, noise=noise)
    draws = torch.cat([draws, *(other._fixed_noise.draw(latent, number) for number in range(130))])
    assert len(draws.flatten(1).unique(dim=0)) == 260


# -- selection ------------------------------------------------------------------------------------
def test_init_weights_picks_and_forward_reads_there(tiny_dit, photos):
    model = make(tiny_dit, photos, blocks=[2])
    model.init_weights()
    result = model.selection_result
    assert model.timestep == result.timestep in GRID
    assert result.num_images == 6
    images = torch.rand(1, 3, 32, 32)
    fixed = make(tiny_dit, blocks=[2], timestep=result.timestep)
    assert torch.equal(model.eval()(images)[0], fixed.eval()(images)[0])


def test_a_given_timestep_needs_no_selection(tiny_dit):
    model = make(tiny_dit, timestep=40)
    model.init_weights()
    assert model.timestep == 40 and model.selection_result is None


def test_a_second_start_finds_the_result(tiny_dit, photos, monkeypatch):
    first = make(tiny_dit, photos)
    first.init_weights()
    second = make(tiny_dit, photos)
    monkeypatch.setattr(FrozenDiT, 'features', None)  # calling it would raise
    second.init_weights()
    assert second.timestep == first.timestep


@DATASETS.register_module()
class PhotosForCalibration(BaseDataset):
    """Entries with paths, or with BGR arrays in memory, as toolbox datasets have them."""

    def __init__(self, in_memory=False, **kwargs):
        self.in_memory = in_memory
        super().__init__(**kwargs)

    def load_data_list(self):
        from pathlib import Path

        paths = sorted(Path(self.data_root).glob('*.png'))
        if not self.in_memory:
            return [dict(img_path=str(p), gt_label=i % 2) for i, p in enumerate(paths)]
        return [dict(img=np.asarray(Image.open(p))[..., ::-1]) for p in paths]


def test_registered_datasets_calibrate_like_the_folder(tiny_dit, photos):
    results = []
    for calibration, order in (
        (photos, 'rgb'),
        (dict(type='PhotosForCalibration', data_root=photos, pipeline=[dict(type='X')]), 'rgb'),
        (dict(type='PhotosForCalibration', data_root=photos, in_memory=True), 'bgr'),
    ):
        model = make(tiny_dit, calibration, selection=dict(array_order=order))
        results.append(model.select_timestep(progress=False).curve.scores)
    assert results[0] == results[1] == results[2]


def test_labels_of_a_dataset_reach_the_criterion(tiny_dit, photos):
    calibration = dict(type='PhotosForCalibration', data_root=photos)
    selection = dict(criterion=dict(type='FisherScore', num_classes=2), others=[])
    model = make(tiny_dit, calibration, selection=selection)
    assert model.select_timestep(progress=False).criterion == 'FisherScore'


def test_errors_of_selection(tiny_dit, photos, tmp_path):
    with pytest.raises(ValueError, match='needs calibration images'):
        make(tiny_dit).init_weights()
    with pytest.raises(FileNotFoundError, match='does not exist'):
        make(tiny_dit, str(tmp_path / 'nowhere')).init_weights()
    with pytest.raises(ValueError, match='found no images'):
        make(tiny_dit, dict(type='PhotosForCalibration', data_root=str(tmp_path))).init_weights()
    with pytest.raises(ValueError, match=r"unknown keys \['images'\]: it takes criterion"):
        make(tiny_dit, photos, selection=dict(images=3))
    (tmp_path / 'x.png').write_bytes(b'no image')
    calibration = dict(type='PhotosForCalibration', data_root=str(tmp_path))
    with pytest.raises(ValueError, match=r'x\.png.*cannot be read'):
        make(tiny_dit, calibration).init_weights()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(timestep=1000), r'0 \(clean\) to 999'),
        (dict(timestep='best'), "must be 'auto' or a whole number"),
        (dict(noise='none'), 'auto, fresh, fixed'),
        (dict(noise=dict(draws=0)), 'from 1 to 4096'),
        (dict(channel_order='gbr'), 'rgb, bgr'),
        (dict(input_std=[1, 1, 0]), 'input_std must be .*greater than 0'),
        (dict(input_mean=[1]), r'input_mean must be one number or three .*got \[1\]'),
        (dict(blocks=[17]), 'block 17 is out of range'),
    ],
)
def test_errors_of_arguments(tiny_dit, options, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_dit, **{'timestep': 1, **options})


def test_no_pick_says_so(tiny_dit):
    with pytest.raises(RuntimeError, match=r'no timestep yet.*Load a checkpoint'):
        make(tiny_dit)(torch.rand(1, 3, 32, 32))


# -- life in MMEngine -----------------------------------------------------------------------------
def test_checkpoints_hold_the_pick_and_no_frozen_weights(tiny_dit, photos, tmp_path):
    model = Segmentor(make(tiny_dit, photos))
    model.init_weights()
    keys = set(model.state_dict())
    assert keys == {
        'backbone.picked_timestep', 'backbone.frozen_signature', 'backbone.read_from',
        'backbone.arrives_as', 'backbone.conditioned_on',
        'head.weight', 'head.bias',
    }  # fmt: skip
    path = tmp_path / 'model.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    assert path.stat().st_size < 10_000
    fresh = Segmentor(make(tiny_dit))
    load_checkpoint(fresh, str(path), strict=True)
    assert fresh.backbone.timestep == model.backbone.timestep
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_checkpoint_of_another_model_is_refused(tiny_dit, tiny_latent_dit, photos):
    state = make(tiny_latent_dit, timestep=4).state_dict()
    with pytest.raises(ValueError, match='made with another frozen model'):
        make(tiny_dit).load_state_dict(state)
    with pytest.raises(
        ValueError, match=r"feature 'query', the config says 'output'. Set feature "
    ):
        make(tiny_dit, feature='output').load_state_dict(make(tiny_dit, timestep=4).state_dict())
    # Half precision of the same model is the same model.
    make(tiny_dit, dtype='bf16').load_state_dict(make(tiny_dit, timestep=4).state_dict())


def test_a_checkpoint_that_replaces_the_configs_timestep_says_so(tiny_dit):
    model = make(tiny_dit, timestep=9)
    heard = io.StringIO()
    handler = logging.StreamHandler(heard)
    MMLogger.get_current_instance().addHandler(handler)
    model.load_state_dict(make(tiny_dit, timestep=4).state_dict())
    MMLogger.get_current_instance().removeHandler(handler)
    assert model.timestep == 4
    assert 'trained at timestep 4' in heard.getvalue()


def test_nothing_frozen_is_seen_by_optimizers_ddp_or_ema(tiny_dit):
    model = Segmentor(make(tiny_dit, timestep=4))
    assert {name for name, _ in model.named_parameters()} == {'head.weight', 'head.bias'}
    twin = copy.deepcopy(model)
    assert twin.backbone.dit is model.backbone.dit
    ema = ExponentialMovingAverage(model)
    assert ema.module.backbone.dit is model.backbone.dit
    ema.update_parameters(model)
    assert ema.module.backbone.timestep == 4


def test_it_is_freed(tiny_dit):
    model = make(tiny_dit, timestep=4)
    frozen = weakref.ref(model.dit)
    del model
    gc.collect()
    assert frozen() is None


def test_train_never_reaches_the_frozen_part(tiny_dit):
    model = Segmentor(make(tiny_dit, timestep=4)).train()
    assert not model.backbone.dit.training
    assert not model.backbone.dit.transformer.training


@pytest.mark.parametrize('amp', [False, True])
def test_gradients_reach_the_head_alone(tiny_dit, amp):
    model = Segmentor(make(tiny_dit, timestep=4))
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    images, labels = torch.rand(2, 3, 32, 32), torch.randint(0, 2, (2, 8, 8))
    before = copy.deepcopy(model.head.weight)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        loss = model(images, labels, mode='loss')['loss']
    wrapper.update_params(loss)
    assert not torch.equal(model.head.weight, before)
    assert all(p.grad is None for p in model.backbone.dit.parameters())


def test_device_is_followed_and_precision_is_not(tiny_dit):
    model = Segmentor(make(tiny_dit, timestep=4))
    model.to(torch.float64)
    assert model.backbone.dit.dtype == torch.float32
    model.to('meta')  # the only other device that every machine has
    assert model.backbone.dit.device.type == 'cpu'


def test_a_run_with_ema_resumes_without_selecting_again(tiny_dit, photos, tmp_path, monkeypatch):
    data = [(torch.rand(3, 32, 32), torch.randint(0, 2, (8, 8))) for _ in range(4)]

    def runner(max_iters, resume):
        loader = torch.utils.data.DataLoader(data, batch_size=2)
        model = Segmentor(make(tiny_dit, photos))
        return Runner(
            model=model,
            work_dir=str(tmp_path),
            train_dataloader=loader,
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False)),
            custom_hooks=[dict(type='EMAHook'), dict(type='mmaselect.SelectionHook')],
            default_scope='mmengine',
            resume=resume,
            experiment_name=f'run{max_iters}',
        )

    first = runner(2, False)
    first.train()
    assert isinstance(next(h for h in first.hooks if isinstance(h, EMAHook)), EMAHook)
    pick = first.model.backbone.timestep
    for name in ('selection.json', 'selection.png'):
        assert (tmp_path / name).is_file()
    scalars = next(tmp_path.rglob('scalars.json')).read_text()
    assert scalars.count('selection/InstanceSensitivity') == len(GRID)
    assert list(tmp_path.rglob('vis_image/selection*.png'))
    assert (tmp_path / 'iter_2.pth').stat().st_size < 100_000

    def must_not_select(*args, **kwargs):
        raise AssertionError('selected again')

    monkeypatch.setattr('mmaselect.selection.stages.Stages.run', must_not_select)
    second = runner(4, True)
    second.train()
    assert second.iter == 4
    assert second.model.backbone.timestep == pick


# -- runs -----------------------------------------------------------------------------------------
def test_fresh_noise_of_a_run_depends_on_its_place(tiny_dit):
    hub = MessageHub.get_instance('a_run')
    images = torch.rand(1, 3, 32, 32)
    model = make(tiny_dit, timestep=500).train()

    def features(seed, iteration, stage='train'):
        hub.update_info_dict(dict(seed=seed, iter=iteration, loop_stage=stage))
        return model(images)[0]

    first = features(0, 7)
    torch.manual_seed(5)
    again = features(0, 7)
    assert not torch.equal(first, again), 'a second pass of the iteration is a new draw'
    others = [features(0, 8), features(1, 7), features(0, 7, 'val')]
    assert all(not torch.equal(first, other) for other in others)
    restarted = make(tiny_dit, timestep=500).train()
    hub.update_info_dict(dict(seed=0, iter=7, loop_stage='train'))
    assert torch.equal(restarted(images)[0], first)
    assert torch.equal(restarted(images)[0], again)
    hub.pop_info('loop_stage')
    torch.manual_seed(5)
    outside = model(images)[0]
    torch.manual_seed(5)
    assert torch.equal(model(images)[0], outside)


@pytest.mark.parametrize(
    'name, value',
    [
        ('picked_timestep', torch.tensor(50.7)),
        ('picked_timestep', torch.tensor(True)),
        ('picked_timestep', torch.tensor(float('nan'))),
        ('picked_timestep', torch.empty(0, dtype=torch.long)),
        ('picked_timestep', torch.tensor(1000)),
        ('picked_timestep', torch.tensor([50])),
        ('picked_timestep', 50),
        ('read_from', torch.tensor([99, 1, 4])),
        ('read_from', torch.tensor([0.5, 1.0, 4.0])),
        ('read_from', torch.tensor([0, 1, 4], dtype=torch.bfloat16)),
        ('read_from', torch.empty(0, dtype=torch.long)),
        ('read_from', torch.tensor(0)),
        ('frozen_signature', torch.full((64,), float('nan'))),
        ('frozen_signature', torch.full((64,), float('inf'))),
        ('frozen_signature', torch.empty(0)),
        ('frozen_signature', torch.zeros(64, dtype=torch.long)),
        ('arrives_as', torch.full((8,), float('nan'))),
        ('arrives_as', torch.tensor([0.0, *[127.5] * 6, 2.0])),
        ('arrives_as', torch.zeros(7)),
        ('conditioned_on', torch.full((256,), 0.5)),
        ('conditioned_on', 'a bird'),
    ],
)
def test_a_checkpoint_with_impossible_values_is_refused_on_load(tiny_dit, name, value):
    model = make(tiny_dit, timestep=100)
    state = {**model.state_dict(), name: value}
    with pytest.raises(ValueError, match=f'(?s){name} must be .* Use another checkpoint'):
        model.load_state_dict(state)
    assert model.timestep == 100


def test_a_checkpoint_that_a_converter_cast_to_float32(tiny_dit):
    """zero_to_fp32.py of DeepSpeed casts all buffers."""
    state = make(tiny_dit, timestep=275).state_dict()
    cast = {name: value.float() for name, value in state.items()}
    model = make(tiny_dit, timestep='auto')
    model.load_state_dict(cast)
    assert model.timestep == 275
    assert {k: v.dtype for k, v in model.state_dict().items()} == {
        k: v.dtype for k, v in state.items()
    }
    with pytest.raises(ValueError, match='picked_timestep must be a whole number'):
        model.load_state_dict({name: value.bfloat16() for name, value in state.items()})


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_heads_in_16_bits(tiny_dit, dtype):
    """An engine casts heads, buffers and images; mean and std stay what they are."""
    options = dict(timestep=100, noise='fixed', input_mean=123.675, input_std=58.395)
    model, cast = make(tiny_dit, **options), make(tiny_dit, **options).to(dtype)
    assert torch.equal(cast.gate.scale, model.gate.scale)
    assert cast.dit.dtype == model.dit.dtype
    images = ((torch.rand(2, 3, 32, 32) * 255 - 123.675) / 58.395).to(dtype)
    for found, expected in zip(cast(images), model(images.float()), strict=True):
        assert found.dtype == dtype
        assert torch.equal(found, expected.to(dtype))


def test_features_that_are_not_finite_say_why(tiny_dit):
    images = torch.rand(1, 3, 32, 32)
    broken = make(tiny_dit, timestep=100)
    with torch.no_grad():
        broken.dit.transformer.transformer_blocks[0].attn1.to_q.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r'weights are not finite in .*to_q\.weight'):
        broken(images)

    overflowing = make(tiny_dit, timestep=100, dtype='fp16')
    with torch.no_grad():
        for block in overflowing.dit.transformer.transformer_blocks:
            block.attn1.to_q.weight.fill_(6e4)
            block.attn1.to_q.bias.fill_(6e4)
    with pytest.raises(FloatingPointError, match=r'overflows in it. Use dtype="bf16"'):
        overflowing(images)

    model = make(tiny_dit, timestep=100)
    model(images)
    with pytest.raises(FloatingPointError, match='images that reached the backbone'):
        model(torch.full((1, 3, 32, 32), torch.nan))
    with pytest.raises(ValueError, match='input_std'):
        make(tiny_dit, timestep=100, input_std=[float('nan')] * 3)
    copy.deepcopy(model)(images)


def test_a_compiled_model_gives_equal_features(tiny_dit):
    images = torch.rand(2, 3, 32, 32)
    model = make(tiny_dit, timestep=100).eval()
    expected = model(images)

    class Summed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = model
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, inputs):
            return sum(each.mean() for each in self.backbone(inputs)) * self.scale

    compiled = torch.compile(model, backend='aot_eager')
    assert all(torch.equal(*pair) for pair in zip(compiled(images), expected, strict=True))
    whole = torch.compile(Summed(), backend='aot_eager')(images)
    whole.backward()
    assert torch.allclose(whole, sum(each.mean() for each in expected) * 2)


def test_one_line_says_what_is_frozen(tiny_dit):
    model = ASelecTDiT(tiny_dit, blocks=[1, 3], timestep=50, dtype='bf16')
    (line,) = str(model).splitlines()
    count = sum(p.numel() for p in model.dit.transformer.parameters())
    for part in (
        'frozen=DiTTransformer2DModel',
        'blocks=[1, 3] of 6',
        'timestep=50',
        f'parameters={count / 1e6:.1f}M',
        'dtype=bfloat16',
    ):
        assert part in line


# -- the hot path ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    'options', [dict(noise='fixed'), dict(noise=dict(draws=2)), dict(dtype='bf16')]
)
def test_a_pass_never_waits_for_the_device(tiny_latent_dit, options):
    model = make(tiny_latent_dit, blocks=[2, 2, 4], timestep=100, **options)
    with FakeCuda() as device:
        images = torch.zeros(2, 3, 32, 32, device='cuda')
        for _ in range(4):  # values are looked at once, and fixed noise is drawn on the CPU, once
            device.forget()
            assert model(images)[0].shape == (2, 16, 8, 8)
        assert not device.waits
        images.amax().item()
        torch.arange(3).to('cuda')
        assert len(device.waits) == 2


def test_equal_blocks_share_one_map(tiny_dit):
    maps = make(tiny_dit, blocks=[3, 1, 3, 3], timestep=100, dtype='bf16')(torch.rand(1, 3, 32, 32))
    assert maps[0].dtype == torch.float32
    assert maps[0] is maps[2] is maps[3] and maps[1] is not maps[0]


@pytest.mark.parametrize('feature', ['query', 'output'])
def test_blocks_on_the_way_are_compiled(tiny_dit, feature):
    counter = CompileCounter()
    options = dict(blocks=[1, 4], feature=feature, timestep=100, noise='fixed')
    model = make(tiny_dit, compile=dict(backend=counter, fullgraph=True), **options)
    images = torch.rand(2, 3, 32, 32)
    expected = make(tiny_dit, **options)(images)
    assert all(torch.equal(*pair) for pair in zip(model(images), expected, strict=True))
    frames = counter.frame_count
    assert 1 <= frames <= 3, 'blocks 0, 2 and 3 share what is compiled'
    model(images)
    assert counter.frame_count == frames
    assert model.dit.compile_blocks() == [0, 2, 3]
    with pytest.raises(ValueError, match='compile must be True, False, or a dict'):
        make(tiny_dit, compile='yes', timestep=1)


def _can_compile():
    """Whether Inductor finds what it needs on a CPU."""
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    return shutil.which(os.environ.get('CXX', 'g++')) is not None and header.is_file()


@pytest.mark.thorough  # what is compiled, and that it is equal, is tested without a compiler above
@pytest.mark.skipif(not _can_compile(), reason='needs a C++ compiler and the headers of Python')
def test_compiled_by_inductor(tiny_dit):
    images = torch.rand(2, 3, 32, 32)
    options = dict(blocks=[2], timestep=100, noise='fixed')
    found = make(tiny_dit, compile=True, **options)(images)[0]
    assert torch.allclose(found, make(tiny_dit, **options)(images)[0], atol=1e-5)
