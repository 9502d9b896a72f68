# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""From a config and a command line to a frozen model and labeled images."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from mmaselect.analysis.encoded import EncodedImages
from mmaselect.diffusion import FrozenDiT, ModelSource
from mmaselect.diffusion.devices import pick_device
from mmaselect.diffusion.families import FEATURES, family_of
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.images.labeled import LabeledImages
from mmaselect.launch.config import get_toolbox, load_config
from mmaselect.launch.flags import add_cfg_options, add_device
from mmaselect.openmmlab.labeled_images import build_labeled_images
from mmaselect.selection import Criterion, SelectionOptions
from mmaselect.selection.defaults import FIRST_IMAGES
from mmaselect.selection.identity import weights_fingerprint
from mmaselect.selection.scoring import build_criteria
from mmaselect.terminal.progress import progress_bar
from mmaselect.terminal.tool import make_tool_parser, user_path

#: Toolbox to what its heads do.
TASKS = {'mmpretrain': 'classification', 'mmseg': 'segmentation'}
#: Arguments of ASelecTDiT that say where the frozen model is read, and all that it is built from.
#: Entries of a backbone's config that were fields of ``pretrained`` in another form.
OLD_SOURCE_KEYS = ('base', 'vae', 'original', 'lora', 'lora_scale', 'load_kwargs', 'hub_kwargs')


def make_parser(description: str, examples: str) -> argparse.ArgumentParser:
    """A parser with what every analysis tool takes."""
    parser = make_tool_parser(description, examples)
    parser.add_argument(
        'config',
        help='config of MMPretrain or MMSegmentation whose backbone is mmaselect.ASelecTDiT',
    )
    parser.add_argument(
        '--out', type=user_path, help='folder for results; default: work_dirs/CONFIG_NAME/TOOL_NAME'
    )
    parser.add_argument(
        '--blocks',
        nargs='+',
        help="blocks to read, negative ones count from the end, or 'all'; default: the config's",
    )
    parser.add_argument(
        '--feature',
        '--features',
        nargs='+',
        help="query, key, value, attention, output, or 'all' of them; default: the config's",
    )
    parser.add_argument(
        '--image-size',
        nargs='+',
        type=int,
        metavar='PIXELS',
        help='side, or height and width, that images are scaled and cropped to; default: '
        "selection.image_size of the config's backbone, else the model's own training size",
    )
    parser.add_argument('--batch-size', type=int, default=32, help='images per pass; default: 32')
    parser.add_argument(
        '--seed', type=int, default=0, help='of the choice of images and of the noise; default: 0'
    )
    add_device(parser)
    add_cfg_options(
        parser,
        'override settings of the config, such as '
        'model.backbone.pretrained=work_dirs/pretrain/my_dit',
    )
    return parser


def add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    """What tools take that score criteria."""
    parser.add_argument(
        '--num-images',
        type=int,
        help='calibration images, of the training set; default: selection.num_images of the '
        f"config's backbone, else {FIRST_IMAGES}",
    )


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    """What tools take that fit probes."""
    parser.add_argument(
        '--num-train',
        type=int,
        help='training images of the probes, kept in memory as latents; default: all',
    )
    parser.add_argument(
        '--num-test', type=int, help='images that probes are measured on; default: all of them'
    )
    parser.add_argument(
        '--split',
        choices=['val', 'test'],
        default='val',
        help='which dataloader of the config gives the images that probes are measured on; '
        'default: val',
    )
    parser.add_argument(
        '--pixels-per-image',
        type=int,
        default=32,
        help='segmentation: labeled pixels of each training image that probes are fitted on; '
        'default: 32',
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='probes fitted at the same time; default: 1'
    )


def find_backbone(config: Config, path: str | Path) -> ConfigDict:
    """The backbone's config.

    Raises:
        ValueError: If it is not ``ASelecTDiT``.
    """
    backbone = config.model.get('backbone') or {}
    if str(backbone.get('type', '')).rpartition('.')[2] != 'ASelecTDiT':
        raise ValueError(
            f'{str(path)!r}: model.backbone is {backbone.get("type")!r}; this tool needs '
            f"type='mmaselect.ASelecTDiT'"
        )
    return backbone


def build_frozen(
    backbone: Mapping[str, Any],
    blocks: Sequence[int] | None,
    features: Sequence[str],
    device: torch.device,
) -> FrozenDiT:
    """The frozen model of a backbone's config, at other blocks and features.

    Args:
        backbone: Arguments of ``ASelecTDiT``.
        blocks: See :meth:`FrozenDiT.from_pretrained`.
        features: See there.
        device: Where it goes.
    """
    arguments = {key: backbone[key] for key in ('dtype', 'condition') if key in backbone}
    dit = FrozenDiT.from_pretrained(
        source_of(backbone), blocks=blocks, feature=features, **arguments
    )
    return dit.follow(device)


def source_of(backbone: Mapping[str, Any]) -> ModelSource:
    """Which model a backbone's config describes."""
    flat = {key: backbone[key] for key in OLD_SOURCE_KEYS if key in backbone}
    return ModelSource.gather(backbone['pretrained'], flat)


@dataclass
class Study:
    """A frozen model, and where its labeled images are.

    Attributes:
        config: The whole config.
        backbone: Its backbone.
        task: ``'classification'`` or ``'segmentation'``.
        dit: The frozen model, at all wanted blocks and features.
        num_classes: Number of classes.
        image_size: Side, or (height, width), in pixels.
        batch_size: Images per pass.
        seed: Seed of images and noise.
        out: Folder for results.
    """

    config: Config
    backbone: ConfigDict
    task: str
    dit: FrozenDiT
    num_classes: int
    image_size: int | tuple[int, int]
    batch_size: int
    seed: int
    out: Path

    @property
    def selection(self) -> SelectionOptions:
        """How the config's backbone selects."""
        return SelectionOptions.parse(self.backbone.get('selection'))

    def images(self, split: str, num_images: int | None) -> LabeledImages:
        """Labeled images of the config's ``train``, ``val`` or ``test`` dataloader.

        Raises:
            ValueError: If the config has no such dataloader.
        """
        loader = self.config.get(f'{split}_dataloader')
        if not loader:
            raise ValueError(f'the config has no {split}_dataloader')
        return build_labeled_images(
            loader.dataset,
            self.task,
            self.image_size,
            num_images,
            self.seed,
            self.selection.array_order,
        )

    def encode(self, images: LabeledImages, first: int = 0, title: str = 'encoding') -> Encoded:
        """Encode images, with a progress bar; measures the time."""
        start = time.perf_counter()
        with progress_bar('images') as bar:
            task = bar.add_task(title, total=len(images))
            encoded = EncodedImages(
                self.dit,
                images,
                self.batch_size,
                self.seed,
                first,
                on_batch=lambda count: bar.advance(task, count),
            )
        return Encoded(encoded, time.perf_counter() - start)

    def calibration_images(
        self, num_images: int | None, criteria: Mapping[str, Criterion]
    ) -> LabeledImages:
        """Training images to score criteria on, with views where a criterion compares views.

        Args:
            num_images: As many as the config says if None.
            criteria: By name.
        """
        images = self.images('train', num_images or self.selection.first_images)
        if any(criterion.views for criterion in criteria.values()):
            return images.with_views(self.selection.views)
        return images

    def criteria_configs(self, fisher: bool) -> list[dict[str, Any]]:
        """Configs of :meth:`criteria`."""
        configs = [
            dict(type=config) if isinstance(config, str) else dict(config)
            for config in (self.selection.criterion, *self.selection.others)
        ]
        if fisher and not any(config['type'] == 'FisherScore' for config in configs):
            configs.append(dict(type='FisherScore', num_classes=self.num_classes))
        return configs

    def criteria(self, fisher: bool) -> dict[str, Criterion]:
        """The config's criteria, the one that picks first; then, if wanted, the Fisher score."""
        return build_criteria(self.criteria_configs(fisher))

    def settings(self) -> dict[str, Any]:
        """What any result of this study depends on."""
        dit = self.dit
        return dict(
            task=self.task,
            pretrained=str(self.backbone.pretrained),
            weights=weights_fingerprint(dit),
            dtype=str(dit.dtype),
            condition=self.backbone.get('condition'),
            blocks=list(dit.blocks),
            features=list(dit.feature_names),
            num_classes=self.num_classes,
            image_size=self.image_size,
            seed=self.seed,
        )

    def level(self, timestep: int, num_tokens: int) -> dict[str, float | None]:
        """Noise level of a timestep, for tables."""
        level = self.dit.process.at(timestep, num_tokens)
        finite = level.sigma > 0 and level.alpha > 0
        return dict(noise_level=level.sigma, log_snr=level.log_snr if finite else None)


@dataclass(frozen=True)
class Encoded:
    """Encoded images, and the seconds that it took."""

    images: EncodedImages
    seconds: float


def parse_blocks(blocks: Sequence[str] | None, backbone: Mapping[str, Any]) -> Any:
    """``--blocks`` as block indices, ``'all'``, or the config's own.

    Raises:
        ValueError: If a block is not a whole number.
    """
    if not blocks:
        return backbone.get('blocks')
    if list(blocks) == ['all']:
        return 'all'
    try:
        return [int(block) for block in blocks]
    except ValueError as error:
        raise ValueError(f"--blocks takes numbers, or 'all'; got {list(blocks)}") from error


def open_study(args: argparse.Namespace, tool: str) -> Study:
    """Load the config, build the model.

    Args:
        args: What a parser of :func:`make_parser` returned.
        tool: Names the default output folder.
    """
    config = load_config(args.config, args.cfg_options)
    toolbox = get_toolbox(config)
    if toolbox not in TASKS:
        raise ValueError(
            f'{args.config} is a config of {toolbox}, and studies read labels of images or of '
            f'pixels: give a config of {" or ".join(TASKS)}'
        )
    init_default_scope(toolbox)
    backbone = find_backbone(config, args.config)
    device = pick_device(args.device)
    blocks = parse_blocks(args.blocks, backbone)
    features = args.feature or [backbone.get('feature', 'query')]
    if blocks == 'all' or list(features) == ['all']:
        family = family_of(PipelineSource(source_of(backbone)))
        if blocks == 'all':
            blocks = list(range(family.num_blocks))
        if list(features) == ['all']:
            features = [feature for feature in FEATURES if feature in family.features]
    dit = build_frozen(backbone, blocks, features, device)
    size = args.image_size or SelectionOptions.parse(backbone.get('selection')).image_size
    if isinstance(size, (list, tuple)):
        if len(size) not in (1, 2):
            raise ValueError(f'--image-size takes a side, or height and width; got {size}')
        size = size[0] if len(size) == 1 else tuple(size)
    return Study(
        config=config,
        backbone=backbone,
        task=TASKS[toolbox],
        dit=dit,
        num_classes=_num_classes(config),
        image_size=size or dit.native_size,
        batch_size=args.batch_size,
        seed=args.seed,
        out=Path(args.out or Path('work_dirs') / Path(args.config).stem / tool),
    )


def _num_classes(config: Config) -> int:
    """Classes of the config's head.

    Raises:
        ValueError: If it does not say.
    """
    for name in ('head', 'decode_head'):
        head = config.model.get(name)
        head = head[-1] if isinstance(head, (list, tuple)) and head else head
        if isinstance(head, Mapping) and head.get('num_classes'):
            return int(head['num_classes'])
    raise ValueError(
        'the config says neither model.head.num_classes nor model.decode_head.num_classes'
    )
