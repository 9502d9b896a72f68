# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Every config builds its model and takes a training step's loss; names say what is inside."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from detection import why_no_detection
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, HOOKS, METRICS, TRANSFORMS, DefaultScope
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.structures import InstanceData, PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmaselect.diffusion.place_search import BlockSearch
from mmaselect.launch.config import load_config
from mmaselect.launch.entries import check_entries
from mmaselect.leaderboard.paper import ROWS
from mmaselect.selection import DEFAULT_CRITERION, SelectionOptions

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
FILES = sorted(path for path in CONFIGS.rglob('*.py') if '_base_' not in path.parts)
NAME = re.compile(
    r'aselect_(?P<backbone>[a-z0-9]+-[a-z0-9-]+)_(?P<head>upernet|fcn|segformer|deeplabv3plus|mask2former|bnlinear|linear|attnpool|mask-rcnn-sfp|mask-rcnn-f2p)_'
    r'(?P<gpus>\d+)xb(?P<batch>\d+)-(?P<length>\d+)(?P<unit>e|k)_[a-z0-9-]+'
)
#: Backbones by their short names: what configs load, and the width of its features as published.
BACKBONES = {
    'dit-tiny': ('mmaselect://dit_cifar10', 224),
    'dit-digits': ('mmaselect://dit_digits', 96),
    'dit-xl2-256': ('facebook/DiT-XL-2-256', 1152),
    'dit-xl2-512': ('facebook/DiT-XL-2-512', 1152),
    'sd3-medium': ('stabilityai/stable-diffusion-3-medium-diffusers', 1536),
    'sd35-medium': ('stabilityai/stable-diffusion-3.5-medium', 1536),
    'flux1-dev': ('black-forest-labs/FLUX.1-dev', 3072),
}


#: Of the configs that are written from the paper's table, those that ``make test`` builds.
DAILY = (('cub', 'paper'), ('ade20k', 'ours'))


def config_id(path):
    return path.relative_to(CONFIGS).with_suffix('').as_posix()


def skip_without_toolbox(config):
    """MMDetection is an extra, and needs ops that most installs of MMCV lack."""
    needs_detection = config.default_scope == 'mmdet' or head_of(config).type == 'Mask2FormerHead'
    if needs_detection and why_no_detection():
        pytest.skip(why_no_detection())


@pytest.fixture(scope='module')
def tiny_folder(tiny_dit, tiny_latent_dit, tmp_path_factory):
    """A pipeline folder of the true classes in miniature, in place of what a config loads."""
    sys.path.insert(0, str(Path(__file__).parent / 'test_diffusion' / 'test_families'))
    try:
        from test_flux import save_pipeline as save_flux
        from tiny_sd3 import save_sd3
    finally:
        sys.path.pop(0)
    folders = {'mmaselect': tiny_dit, 'facebook': tiny_latent_dit}
    makers = {
        'stabilityai/stable-diffusion-3-medium-diffusers': save_sd3,
        'stabilityai/stable-diffusion-3.5-medium': lambda folder: save_sd3(
            folder, dual_attention_layers=(0, 1), qk_norm='rms_norm'
        ),
        'black-forest-labs/FLUX.1-dev': save_flux,
    }

    def folder(pretrained):
        key = pretrained if pretrained in makers else re.match(r'\w+', pretrained)[0]
        if key not in folders:
            folders[key] = str(tmp_path_factory.mktemp('pipeline'))
            makers[key](folders[key])
        return folders[key]

    return folder


def replace(config, old, new):
    """Replace a number wherever it stands in nested lists and dictionaries."""
    if isinstance(config, dict):
        return type(config)({key: replace(value, old, new) for key, value in config.items()})
    if isinstance(config, (list, tuple)):
        return type(config)(replace(value, old, new) for value in config)
    return new if config == old and isinstance(config, int) else config


def build(config, tiny_folder):
    """The model as MMEngine's Runner builds it, with everything narrowed, at a given timestep."""
    model = config.model
    backbone = model.backbone
    (width,) = {width for name, width in BACKBONES.values() if name == backbone.pretrained}
    search = BlockSearch.parse(backbone.blocks) if isinstance(backbone.blocks, str) else None
    count = len(backbone.blocks) if search is None else search.count
    backbone.update(
        pretrained=tiny_folder(backbone.pretrained),
        blocks=[0] * count,
        feature='query' if backbone.get('feature') == 'auto' else backbone.get('feature', 'query'),
        dtype='fp32',
        timestep=50,
    )
    transformer = json.loads(Path(backbone.pretrained, 'transformer', 'config.json').read_text())
    narrow = transformer['num_attention_heads'] * transformer['attention_head_dim']
    if model.get('decode_head', {}).get('type') == 'Mask2FormerHead':
        shrink_mask2former(model)
    # Only the true width becomes the miniature's: any other number in a head will not fit.
    for part in ('neck', 'head', 'decode_head', 'auxiliary_head'):
        if part in model:
            model[part] = replace(model[part], width, narrow)
            if 'head' in part:
                narrowed = {'channels', 'embed_dims'} & model[part].keys()
                wide = narrow * len(
                    backbone.blocks
                )  # a linear head is as wide as its maps together
                channels = wide if model[part].get('num_convs') == 0 else 16
                model[part].update(dict.fromkeys(narrowed, channels))
    if config.get('data_preprocessor'):
        model.setdefault('data_preprocessor', config.data_preprocessor)
    return MMENGINE_MODELS.build(model)


def shrink_mask2former(model):
    """One layer of each kind; what is wide stays so."""
    model.decode_head.pixel_decoder.encoder.num_layers = 1
    model.decode_head.transformer_decoder.num_layers = 1
    model.decode_head.train_cfg.num_points = 64


def batch_for(config, size=32):
    """Two noise images with labels of the right kind and range, as a dataloader gives them."""
    images = [torch.randint(0, 256, (3, size, size), dtype=torch.uint8) for _ in range(2)]
    if config.default_scope == 'mmpretrain':
        samples = [DataSample().set_gt_label(config.num_classes - 1 - n) for n in range(2)]
    elif config.default_scope == 'mmdet':
        samples = [detection_sample(config, size) for _ in images]
    else:
        config.model.data_preprocessor.size = (size, size)
        classes = config.model.decode_head.num_classes
        samples = [
            SegDataSample(
                gt_sem_seg=PixelData(data=torch.randint(0, classes, (1, size, size))),
                metainfo=dict(img_shape=(size, size), ori_shape=(size, size)),
            )
            for _ in range(2)
        ]
    return dict(inputs=images, data_samples=samples)


def detection_sample(config, size):
    """An image's annotation: one thing of the last class, as large as half of the image."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.bbox import HorizontalBoxes
    from mmdet.structures.mask import BitmapMasks

    mask = torch.zeros(1, size, size, dtype=torch.uint8)
    mask[:, : size // 2, : size // 2] = 1
    return DetDataSample(
        gt_instances=InstanceData(
            bboxes=HorizontalBoxes(torch.tensor([[0.0, 0.0, size / 2, size / 2]])),
            labels=torch.tensor([config.model.roi_head.bbox_head.num_classes - 1]),
            masks=BitmapMasks(mask.numpy(), size, size),
        ),
        ignored_instances=InstanceData(bboxes=HorizontalBoxes(torch.zeros(0, 4))),
        metainfo=dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0)),
    )


def is_costly(path):
    """Whether a config differs from one that is built daily by its data alone."""
    rows = {row.config: row for row in ROWS}
    row = rows.get(path.relative_to(CONFIGS.parent).as_posix())
    return row is not None and (row.data.name, row.form) not in DAILY


@pytest.mark.parametrize(
    'path',
    [pytest.param(p, marks=[pytest.mark.thorough] if is_costly(p) else []) for p in FILES],
    ids=config_id,
)
def test_builds_and_takes_a_loss(path, tiny_folder):
    config = Config.fromfile(path)
    skip_without_toolbox(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        batch = batch_for(config)
        model = build(config, tiny_folder)
        check_entries(model)
        data = model.data_preprocessor(batch, training=True)
        losses, _ = model.parse_losses(model(**data, mode='loss'))
        losses.backward()
        assert torch.isfinite(losses)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert trained and not any(name.startswith('backbone') for name in trained)
        assert all(p.grad is not None for p in trained.values())
        before = [p.detach().clone() for p in trained.values()]
        torch.optim.SGD(trained.values(), lr=1.0).step()
        assert any(not torch.equal(*pair) for pair in zip(before, trained.values(), strict=True))


def test_child_config_of_the_docs(tiny_folder, tmp_path):
    """An installed toolbox's own config, by the lines that docs/training.md gives."""
    page = (CONFIGS.parent / 'docs' / 'training.md').read_text(encoding='utf-8')
    (code,) = re.findall(r"```python\n(_base_ = 'mmseg::.*?)```", page, re.DOTALL)
    path = tmp_path / 'child.py'
    path.write_text(code)
    config = load_config(path)
    untouched = config.model.data_preprocessor
    assert not {'input_mean', 'input_std', 'channel_order'} & config.model.backbone.keys()
    with DefaultScope.overwrite_default_scope(config.default_scope):
        batch = batch_for(config)
        model = revert_sync_batchnorm(build(config, tiny_folder))
        assert untouched.mean != [127.5] * 3
        scale = torch.tensor(untouched.std).view(3, 1, 1) / 127.5
        assert torch.allclose(model.backbone.gate.scale, scale)
        losses, _ = model.parse_losses(
            model(**model.data_preprocessor(batch, training=True), mode='loss')
        )
        assert torch.isfinite(losses)


@pytest.mark.parametrize('path', FILES, ids=config_id)
def test_everything_named_is_registered(path):
    config = Config.fromfile(path)
    skip_without_toolbox(config)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        registered = {
            kind: registry.switch_scope_and_registry(None)
            for kind, registry in dict(
                data=DATASETS, transform=TRANSFORMS, hook=HOOKS, metric=METRICS
            ).items()
        }
        with registered['data'] as datasets, registered['transform'] as transforms:
            for dataset in find_datasets(config):
                assert datasets.get(dataset.type) is not None, dataset.type
                for transform in dataset.get('pipeline', []):
                    assert transforms.get(transform.type) is not None, transform.type
        with registered['hook'] as hooks, registered['metric'] as metrics:
            for hook in [*config.default_hooks.values(), *config.get('custom_hooks', [])]:
                assert hooks.get(hook.type) is not None, hook.type
            for metric in (config.val_evaluator, config.test_evaluator):
                assert metrics.get(metric.type) is not None, metric.type


def find_datasets(config):
    """Configs of all data sets, the calibration's and those inside others included."""
    found = [config.model.backbone.calibration]
    found += [config[f'{part}_dataloader'].dataset for part in ('train', 'val', 'test')]
    return found + [dataset.dataset for dataset in found if 'dataset' in dataset]


@pytest.mark.parametrize('path', FILES, ids=config_id)
def test_parts_agree(path):
    config = Config.fromfile(path)
    backbone = config.model.backbone
    preprocessor = config.get('data_preprocessor') or config.model.data_preprocessor
    turns = preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb')
    assert bool(turns) != (backbone.get('channel_order') == 'rgb'), 'the order is known, once'
    assert not {'input_mean', 'input_std'} & backbone.keys(), 'the preprocessor has them'
    skip_without_toolbox(config)
    head = head_of(config)
    with (
        DefaultScope.overwrite_default_scope(config.default_scope),
        DATASETS.switch_scope_and_registry(None) as datasets,
    ):
        for dataset in find_datasets(config):
            metainfo = getattr(datasets.get(dataset.type), 'METAINFO', {})
            names = dataset.get('metainfo', metainfo).get('classes')
            assert not names or head.num_classes == len(names)


def head_of(config):
    """The head that knows the classes."""
    model = config.model
    return model.get('head') or model.get('decode_head') or model.roi_head.bbox_head


@pytest.mark.parametrize('path', [p for p in FILES if NAME.match(p.stem)], ids=config_id)
def test_name_says_what_is_inside(path):
    config = Config.fromfile(path)
    name = NAME.match(path.stem).groupdict()
    assert config.train_dataloader.batch_size == int(name['batch'])
    if name['unit'] == 'e':
        assert config.train_cfg.max_epochs == int(name['length'])
    else:
        assert config.train_cfg.max_iters == int(name['length']) * 1000
    assert config.model.backbone.pretrained == BACKBONES[name['backbone']][0]
    neck = config.model.get('neck')
    first, last = (neck[0], neck[-1]) if isinstance(neck, list) else (neck, neck)
    if name['head'].startswith('mask-rcnn'):
        assert config.model.type == 'MaskRCNN'
        necks = dict(sfp=last, f2p=first)[name['head'].rpartition('-')[2]]
        assert necks.type in ('mmaselect.SimpleFeaturePyramid', 'mmseg.Feature2Pyramid')
        return
    assert (
        head_of(config).type
        == dict(
            upernet='UPerHead',
            fcn='FCNHead',
            segformer='SegformerHead',
            deeplabv3plus='DepthwiseSeparableASPPHead',
            mask2former='Mask2FormerHead',
            bnlinear='FCNHead',
            linear='LinearClsHead',
            attnpool='mmaselect.AttentionPoolClsHead',
        )[name['head']]
    )


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
def test_rows_of_the_paper_say_which_criterion_picks(row):
    config = load_config(CONFIGS.parent / row.config)
    backbone = config.model.backbone
    options = SelectionOptions.parse(backbone.selection)
    expected = dict(type='PaperHFR') if row.form == 'paper' else DEFAULT_CRITERION
    assert options.criterion == expected and options.image_size == 512
    assert backbone.dtype == ('bf16' if row.model.name == 'sd35-medium' else 'fp16')
    assert backbone.pretrained == row.model.pretrained
    if row.form == 'paper':
        assert set(backbone.blocks) == {9} and backbone.feature == 'query'
    else:
        wanted = 'auto:4' if row.data.task == 'segmentation' else 'auto'
        assert (backbone.blocks, backbone.feature) == (wanted, 'auto')
    assert config.test_dataloader.dataset.type.rpartition('.')[2] == row.data.dataset


def test_short_names():
    long = CONFIGS / 'segmentation' / 'aselect_dit-xl2-512_upernet_4xb4-80k_ade20k-512x512.py'
    short = CONFIGS / 'aselect_dit_ade20k.py'
    assert Config.fromfile(short).pretty_text == Config.fromfile(long).pretty_text
    others = [path for path in FILES if not NAME.match(path.stem)]
    demos = [CONFIGS / 'demo' / f'aselect_dit-{name}_fcn_demo.py' for name in ('digits', 'tiny')]
    assert others == [short, *demos]
