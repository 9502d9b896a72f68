# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A pick as a folder of a few kB, which others load: on disk, or on the Hugging Face hub.

The folder has no weights. It names the model and says where it is read.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from mmaselect.checks import check_path
from mmaselect.diffusion import FrozenDiT, ModelSource
from mmaselect.diffusion.hub import NotOnHub, Repository
from mmaselect.diffusion.locate import SHIPPED_PREFIX
from mmaselect.files import write_atomically, write_json
from mmaselect.selection import SelectionResult
from mmaselect.selection.result import images_seen
from mmaselect.version import __version__

#: ``model_type`` of the config, by which ``transformers`` finds the class.
MODEL_TYPE = 'mmaselect'
CONFIG, SELECTION, CARD = 'config.json', 'selection.json', 'README.md'
#: What a selection depends on, and a change of which would make it another model's.
_FIXED = (
    *('pretrained', 'timestep', 'blocks', 'out_indices', 'out_features', 'features', 'feature'),
    *('condition', 'calibration', 'selection'),
)


@dataclass(frozen=True)
class SharedPick:
    """What is needed to read a model as somebody else did.

    Attributes:
        pretrained: Fields of :class:`~mmaselect.diffusion.ModelSource`; the revision is the commit
            that was read.
        timestep: The timestep, or a dict of ``steps`` and ``fusion``.
        blocks: Blocks that are read; None where the names in ``features`` have them.
        features: Features that are read, such as ``['query']`` or ``['2.attention', '4.query']``.
        precision: Precision of the frozen weights, such as ``'float32'``.
        seed: Seed of the noise.
        condition: Class label or prompt; None for the empty condition.
        settings: Further arguments of the class that saved it.
        result: The selection, where the timestep was selected.
    """

    pretrained: dict[str, Any]
    timestep: int | dict[str, Any]
    blocks: list[int] | None
    features: list[str]
    precision: str
    seed: int = 0
    condition: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    result: SelectionResult | None = None

    @classmethod
    def of(
        cls,
        dit: FrozenDiT,
        source: ModelSource,
        timesteps: Sequence[int],
        fusion: str,
        result: SelectionResult | None,
        **more: Any,
    ) -> SharedPick:
        """The pick of a model that is loaded.

        Raises:
            ValueError: If blocks or features are still to be picked.
        """
        if dit.search is not None:
            raise ValueError('block and feature are not picked yet: select first')
        blocks, features = dit.place_arguments
        timestep = timesteps[0] if len(timesteps) == 1 else dict(steps=[*timesteps], fusion=fusion)
        return cls(
            (dit.source or source).as_dict(),
            timestep,
            blocks,
            features,
            str(dit.dtype).removeprefix('torch.'),
            result=result,
            **more,
        )

    @classmethod
    def load(cls, shared: str | Path, **hub_kwargs: Any) -> SharedPick:
        """Read what :meth:`save` wrote.

        Args:
            shared: Folder, or hub id.
            hub_kwargs: ``revision``, ``token``, ``cache_dir`` and ``local_files_only``.

        Raises:
            FileNotFoundError: If there is no such folder and no such repository.
            ValueError: If it holds something else than a pick, or the selection is damaged.
        """
        folder = Path(shared).expanduser()
        if folder.is_dir():
            config = folder / CONFIG
            selection: Path | None = folder / SELECTION
            if not config.is_file():
                raise ValueError(_not_shared(shared, f'it has no {CONFIG}'))
        else:
            given = {name: value for name, value in hub_kwargs.items() if value is not None}
            repository = Repository(repr(str(shared)), str(shared), given)
            config = repository.file(CONFIG)
            try:
                selection = repository.file(SELECTION)
            except NotOnHub:
                selection = None
        try:
            data = json.loads(config.read_text(encoding='utf-8'))
            model_type = data.get('model_type')
        except (ValueError, AttributeError) as error:
            raise ValueError(_not_shared(shared, f'{CONFIG} is not a JSON object')) from error
        if model_type != MODEL_TYPE:
            raise ValueError(_not_shared(shared, f'its model_type is {model_type!r}'))
        if missing := {'pretrained', 'timestep', 'blocks', 'features', 'precision'}.difference(
            data
        ):
            raise ValueError(_not_shared(shared, f'{CONFIG} lacks {", ".join(sorted(missing))}'))
        pick = cls.of_config(data)
        if selection is None or not selection.is_file():
            return pick
        return replace(pick, result=SelectionResult.load(selection))

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> SharedPick:
        """The pick that a ``config.json`` holds, without the selection."""
        names = {each.name for each in fields(cls)} - {'result'}
        return cls(**{name: config[name] for name in names if name in config})

    def config(self) -> dict[str, Any]:
        """What ``config.json`` holds."""
        data = {each.name: getattr(self, each.name) for each in fields(self)}
        del data['result']
        return dict(
            model_type=MODEL_TYPE,
            architectures=['TransformersBackbone'],
            **data,
            mmaselect_version=__version__,
        )

    def save(self, folder: str | Path) -> list[Path]:
        """Write ``config.json``, ``README.md`` and, of a selection, ``selection.json``."""
        folder = Path(folder)
        written = [
            write_json(folder / CONFIG, self.config()),
            write_atomically(folder / CARD, self.card()),
        ]
        if self.result is not None:
            written.append(self.result.save(folder / SELECTION))
        return written

    def arguments(self, changes: Mapping[str, Any], blocks: str = 'blocks') -> dict[str, Any]:
        """Arguments of the class that loads it.

        Args:
            changes: What the caller gives in addition: device, precision, batch size, ...
            blocks: Name of the argument that has the blocks.

        Raises:
            ValueError: If a change would make the selection another model's.
        """
        if changed := [name for name in _FIXED if name in changes]:
            raise ValueError(
                f'{changed[0]} is part of the pick that is loaded: leave it out, or build the '
                f'model without from_pretrained'
            )
        given = dict(
            pretrained=self.pretrained,
            timestep=self.steps(),
            dtype=self.precision,
            seed=self.seed,
            condition=self.condition,
            **{blocks: self.blocks},
            **self.settings,
        )
        feature = self.features[0] if len(self.features) == 1 else self.features
        return {**given, 'feature': feature, **changes}

    def steps(self) -> Any:
        """``timestep`` as readers take it: the selection stands for the timestep that it picked."""
        plan = self.timestep
        steps = plan['steps'] if isinstance(plan, Mapping) else [plan]
        result = self.result
        found = [result if result and step == result.timestep else step for step in steps]
        return dict(plan, steps=found) if isinstance(plan, Mapping) else found[0]

    def local_parts(self) -> list[str]:
        """Paths of this machine that the model is made of: nobody else has these."""
        source = ModelSource.parse(self.pretrained)
        parts = [source.model, source.base, source.vae, *(path for path, _ in source.loras)]
        names = [str(part) for part in parts if part is not None]
        return [
            name
            for name in names
            if not name.startswith(SHIPPED_PREFIX) and Path(name).expanduser().exists()
        ]

    def card(self) -> str:
        """The model card: Markdown, with the entries by which the hub finds it."""
        source = ModelSource.parse(self.pretrained)
        model = str(source.model)
        is_on_hub = not model.startswith(SHIPPED_PREFIX) and model not in self.local_parts()
        head = ['---', 'library_name: mmaselect', 'tags:', '- mmaselect', '- feature-extraction']
        head += [f'base_model: {model}'] if is_on_hub else []
        where = ', '.join(self.features)
        if self.blocks is not None:
            where += f' of block {", ".join(map(str, self.blocks))}'
        timestep = self.timestep if isinstance(self.timestep, int) else self.timestep['steps']
        lines = [
            *head,
            '---',
            '',
            f'# {model}: where its features are read',
            '',
            f'A pick of mmaselect: {where}, at timestep '
            f'{timestep}. There are no weights here; `{model}` has them.',
            '',
            '```python',
            'from mmaselect import FeatureExtractor',
            '',
            "extract = FeatureExtractor.from_pretrained('THIS REPOSITORY, OR ITS FOLDER')",
            '```',
        ]
        if self.result is not None:
            result = self.result
            lines += [
                '',
                '## How it was picked',
                '',
                f'- timestep {result}, sigma {result.noise_level:.3f}',
                f'- by {result.criterion}, {images_seen(result)}, '
                f'{result.model_evaluations} model evaluations',
                f'- precision: {self.precision}',
                *(f'- warning: {warning}' for warning in result.warnings),
                '',
                'In a config:',
                '',
                '```python',
                result.config_snippet(),
                '```',
            ]
        return '\n'.join(lines) + '\n'


class Shareable:
    """``save_pretrained`` and ``push_to_hub`` of what reads a frozen model."""

    def shared_pick(self) -> SharedPick:
        """What is saved."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path) -> list[Path]:
        """Write the pick to a folder: model, place, timestep and selection, and no weights.

        ``selection.json`` names the folder of the images and the command.

        Args:
            save_directory: The folder; made if it is not there.

        Returns:
            list: The files: ``config.json``, ``README.md`` and, where the timestep was selected,
            ``selection.json``.

        Raises:
            RuntimeError: If no timestep was picked yet.
        """
        pick = self.shared_pick()
        return pick.save(Path(check_path('save_directory', save_directory)).expanduser())

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = 'Add a pick of mmaselect',
    ) -> str:
        """Put what :meth:`save_pretrained` writes on the Hugging Face hub.

        Args:
            repo_id: ``'NAME/REPOSITORY'``; made if it is not there.
            private: Whether a new repository is private.
            token: Token of the hub; the stored one by default.
            revision: Branch.
            commit_message: Message of the commit.

        Returns:
            str: Address of the commit.

        Raises:
            ValueError: If the model is in a local folder, which nobody else has.
        """
        pick = self.shared_pick()
        if local := pick.local_parts():
            raise ValueError(
                f'{local[0]!r} is on this machine only, and users who load the pick need it: put '
                f'it on the hub too, and give its id as pretrained; or use save_pretrained'
            )
        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            pick.save(folder)
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
            )
        return str(commit.commit_url)


def _not_shared(shared: str | Path, why: str) -> str:
    return (
        f'{str(shared)!r} is not a pick that save_pretrained wrote: {why}. To read a model itself, '
        f'give a timestep: FeatureExtractor(MODEL, timestep=...)'
    )
