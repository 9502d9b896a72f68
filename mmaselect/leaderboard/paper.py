# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The paper as a table: a config for each number, the value that is public, and what a run costs.

The configs in ``configs/*/aselect_sd3*`` are written from this table by
``tools/dev/write_generated.py``; ``tools/reproduce.py`` runs its rows.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from itertools import product

from mmaselect.selection.defaults import PRESET_NOTES

#: Where the values come from: the paper's own tables are not quoted in full by any public page.
SOURCE = 'arXiv 2603.25758, as public summaries quote it'
#: The six fine-grained data sets' average.
PAPER_AVERAGE = 82.5
#: How many times cheaper a selection is than an exhaustive search.
PAPER_SPEEDUP = 21
#: Sustained speed that hours are counted at, in FLOP/s: a third of what an A100 has at best.
COUNTED_SPEED = 1e14


@dataclass(frozen=True)
class PaperModel:
    """A frozen model of the paper.

    Attributes:
        name: As config names have it.
        pretrained: Its hub id.
        title: What its publisher calls it.
        gflops: Gflops of an image of 512 pixels: VAE, and transformer to block 9
            (``docs/cost.md``).
        gigabytes: Files to download without T5 (``docs/families.md``).
    """

    name: str
    pretrained: str
    title: str
    gflops: float
    gigabytes: float


@dataclass(frozen=True)
class PaperData:
    """A data set of the paper, and how its heads are trained.

    Attributes:
        name: As ``tools/reproduce.py --only`` and ``mmaselect data get`` have it.
        title: What its publisher calls it.
        dataset: Class of the config's test set, as the leaderboard names it.
        task: Folder of the config.
        head: As config names have it.
        run: GPUs, images of each and length, as config names have them.
        data: Data set and size, as config names have them.
        base: File in ``configs/_base_/datasets``.
        schedule: File in ``configs/_base_/schedules``.
        images: Images that training, validation and the final test read in all.
        head_gflops: Head gflops of the head, forward, an image (``docs/cost.md``).
        train_images: How many of ``images`` are trained on.
        paper: The paper's value in percent; None if no public page states it.
        extra: Further lines of the config.
    """

    name: str
    title: str
    dataset: str
    task: str
    head: str
    run: str
    data: str
    base: str
    schedule: str
    train_images: int
    images: int
    head_gflops: float
    paper: float | None = None
    extra: str = ''


MODELS = (
    PaperModel(
        'sd35-medium',
        'stabilityai/stable-diffusion-3.5-medium',
        'Stable Diffusion 3.5 medium',
        1118 + 1035,
        4.6,
    ),
    PaperModel(
        'sd3-medium',
        'stabilityai/stable-diffusion-3-medium-diffusers',
        'Stable Diffusion 3 medium',
        1118 + 803,
        3.9,
    ),
)


def _fine_grained(
    name: str,
    title: str,
    dataset: str,
    data: str,
    base: str,
    epochs: int,
    parts: tuple[int, int, int],
    paper: float | None = None,
) -> PaperData:
    """A fine-grained set in the authors' settings; ``parts`` are train, val and test images."""
    train, val, test = parts
    return PaperData(
        name=name,
        title=title,
        dataset=dataset,
        task='classification',
        head='attnpool',
        run=f'1xb8-{epochs}e',
        data=f'{data}-512px',
        base=base,
        schedule=f'cls_{epochs}e',
        train_images=epochs * train,
        images=epochs * (train + val) + test,
        head_gflops=24,
        paper=paper,
    )


DATA = (
    _fine_grained(
        'cub', 'CUB-200-2011', 'CUB', 'cub', 'cub_512', 100, (5394, 600, 5794)
    ),
    _fine_grained(
        'flowers', 'Oxford Flowers 102', 'Flowers102', 'flowers102', 'flowers102_512', 100,
        (1020, 1020, 6149), 90.6,
    ),
    _fine_grained(
        'cars', 'Stanford Cars', 'StanfordCars', 'cars', 'stanford_cars_512', 100,
        (7330, 814, 8041), 86.1,
    ),
    _fine_grained(
        'dogs', 'Stanford Dogs', 'StanfordDogs', 'dogs', 'stanford_dogs_512', 28,
        (10800, 1200, 8580),
    ),
    _fine_grained(
        'aircraft', 'FGVC-Aircraft', 'FGVCAircraft', 'aircraft', 'fgvc_aircraft_512', 100,
        (3334, 3333, 3333),
    ),
    _fine_grained(
        'nabirds', 'NABirds', 'NABirds', 'nabirds', 'nabirds_512', 28, (21536, 2393, 24633)
    ),
    PaperData(
        name='imagenet',
        title='ImageNet-1k',
        dataset='ImageNet',
        task='classification',
        head='attnpool',
        run='8xb32-28e',
        data='in1k-512px',
        base='imagenet_512',
        schedule='cls_28e',
        train_images=28 * 1281167,
        images=28 * (1281167 + 50000) + 50000,
        head_gflops=24,
        # The authors' settings are those of CUB: 8 images an iteration.
        extra="# Eight GPUs: 256 images an iteration.\n"
        'optim_wrapper = dict(optimizer=dict(lr=1e-3))\n'
        'auto_scale_lr = dict(base_batch_size=256)\n',
    ),
    PaperData(
        name='ade20k',
        title='ADE20K',
        dataset='ADE20KDataset',
        task='segmentation',
        head='upernet',
        run='4xb4-80k',
        data='ade20k-512x512',
        base='ade20k_512x512',
        schedule='seg_80k',
        train_images=80000 * 16,
        images=80000 * 16 + 10 * 2000,
        head_gflops=579,
    ),
)  # fmt: skip
#: Forms of a config: its suffix, and what picks the timestep.
FORMS = {'paper': '_paper', 'ours': ''}
#: Data sets of the paper's average.
SIX = ('cub', 'nabirds', 'flowers', 'dogs', 'cars', 'aircraft')


@dataclass(frozen=True)
class Row:
    """A number of the paper that a training gives.

    Attributes:
        model: The frozen model.
        data: The data set.
        form: ``'paper'``, with the paper's criterion, block and head; or ``'ours'``, with the
            paper's head at the block, feature and timestep that the default criterion picks.
    """

    model: PaperModel
    data: PaperData
    form: str

    @property
    def name(self) -> str:
        """What ``tools/reproduce.py`` calls it."""
        return f'{self.data.name}/{self.model.name}/{self.form}'

    @property
    def config(self) -> str:
        """The config, from the root of the repository."""
        data = self.data
        stem = f'aselect_{self.model.name}_{data.head}_{data.run}_{data.data}{FORMS[self.form]}'
        return f'configs/{data.task}/{stem}.py'

    @property
    def paper(self) -> float | None:
        """The paper's value, where this is the paper's model, head and criterion.

        Which of both models a quoted value is of is not public: the authors' command for CUB, and
        the examples of their code, name Stable Diffusion 3.5 medium.
        """
        is_papers = self.form == 'paper' and self.model.name == 'sd35-medium'
        return self.data.paper if is_papers else None

    @property
    def petaflops(self) -> float:
        """PFLOP of a run: a pass of the frozen part each image, and of the head, trained or not."""
        data = self.data
        giga = data.images * (self.model.gflops + data.head_gflops)
        return (giga + 2 * data.train_images * data.head_gflops) / 1e6

    @property
    def hours(self) -> float:
        """Of one GPU at :data:`COUNTED_SPEED`. Decoding of images is not counted."""
        return self.petaflops * 1e15 / COUNTED_SPEED / 3600


ROWS = tuple(Row(model, data, form) for data, model, form in product(DATA, MODELS, FORMS))


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, or a number that is not an accuracy, and the command that makes it.

    Attributes:
        name: What ``tools/reproduce.py`` calls it.
        what: Subject of the row.
        tool: Script in ``tools/analysis_tools``.
        flags: Its flags, without the config and the folder.
        paper: What public pages say of it.
    """

    name: str
    what: str
    tool: str
    flags: tuple[str, ...]
    paper: str = ''


#: All are drawn of the row ``flowers/sd35-medium/paper``, the set that Fig. 5 is of.
FIGURES = (
    Figure(
        'fig1',
        'accuracy of a linear probe and of the head, and criteria, over timesteps; cost of a '
        'selection and of a search',
        'probe_timesteps',
        ('--timesteps', '0:1000:50', '--others', 'InstanceSensitivity', '--head-epochs', '10'),
        f'a selection is {PAPER_SPEEDUP} times cheaper than an exhaustive search',
    ),
    Figure(
        'fig3',
        'low and high frequencies of a feature map',
        'frequency_maps',
        ('--num-images', '3', '--timesteps', '0,50,150,400,800'),
    ),
    Figure('fig4', 'criteria and the Fisher score over timesteps', 'fisher_score', ()),
    Figure(
        'fig5',
        'accuracy by block and by query, key, value, attention and output',
        'block_feature_grid',
        ('--blocks', '3', '6', '9', '12', '15', '18', '--feature', 'all'),
        'query 90.6, value 88.7; middle blocks win',
    ),
)
#: The row whose config the figures read.
FIGURE_ROW = next(row for row in ROWS if row.name == 'flowers/sd35-medium/paper')


def _paper_note() -> str:
    """What the paper's criterion loses, as a comment of a config."""
    note = PRESET_NOTES['paper'].partition(': ')[2]
    text = f'{note[0].upper()}{note[1:]} (docs/criteria.md).'
    return textwrap.fill(
        text, 98, initial_indent='# ', subsequent_indent='# ', break_on_hyphens=False
    )


def config_text(row: Row) -> str:
    """The config of a row.

    Example:
        >>> print(config_text(ROWS[0]).splitlines()[-3].strip())
        backbone=dict(selection=dict(preset='paper'), calibration=_base_.calibration),
    """
    data, model = row.data, row.model
    # Which head the paper has on ADE20K is not public.
    head_words = "the paper's head" if data.head == 'attnpool' else 'UperNet'
    what = f'# {data.title} with a frozen {model.title}: {head_words} '
    if row.form == 'paper':
        what += (
            "on the\n# paper's block, at the timestep that the paper's criterion picks.\n"
            f'{_paper_note()}\n'
        )
        choice = "selection=dict(preset='paper'), "
    else:
        what += 'where the\n# default criterion picks: block, feature and timestep.\n'
        blocks = 'auto:4' if data.task == 'segmentation' else 'auto'
        choice = f"blocks='{blocks}', feature='auto', "
    backbone = f'    backbone=dict({choice}calibration=_base_.calibration),\n'
    head = '' if data.task == 'segmentation' else '    head=dict(num_classes=_base_.num_classes),\n'
    body = f'model = dict(\n{backbone}{head})\n'
    runtime = 'seg' if data.task == 'segmentation' else 'cls'
    return (
        '# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.\n'
        '# Made from mmaselect/leaderboard/paper.py by tools/dev/write_generated.py.\n'
        f'{what}'
        '_base_ = [\n'
        f"    '../_base_/models/aselect_{model.name}_{data.head}.py',\n"
        f"    '../_base_/datasets/{data.base}.py',\n"
        f"    '../_base_/schedules/{data.schedule}.py',\n"
        f"    '../_base_/default_runtime_{runtime}.py',\n"
        ']\n'
        f'{body}{data.extra}'
    )
