# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Images in a folder for each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmaselect.images.labeled import LabeledSource
from mmaselect.images.reading import load_rgb
from mmaselect.images.sources import find_image_files

#: Names of the folders of a split, the training images first.
SPLITS = (('train', 'training'), ('test', 'val', 'validation'))


class ClassFolders(LabeledSource):
    """Images of a folder that has a sub-folder for each class.

    Args:
        folder: The folder.
        classes: Names of the classes; those of the sub-folders, sorted, if None.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there are fewer than two classes with images, or an unknown class.
    """

    task = 'classification'

    def __init__(self, folder: str | Path, classes: tuple[str, ...] | None = None) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f'there is no folder {str(folder)!r}')
        self.files = [
            path
            for path in find_image_files(self.folder)
            if len(path.relative_to(self.folder).parts) > 1
        ]
        names = [path.relative_to(self.folder).parts[0] for path in self.files]
        self.classes = tuple(sorted(set(names))) if classes is None else classes
        if len(self.classes) < 2:
            raise ValueError(
                f'{str(folder)!r} needs a sub-folder with images for each of two or more classes '
                f'(FOLDER/cat/*.jpg, FOLDER/dog/*.jpg); it has {list(self.classes)}'
            )
        if unknown := sorted(set(names).difference(self.classes)):
            raise ValueError(
                f'{str(folder)!r} has class folders that the training images lack: {unknown[:5]}'
            )
        self.labels = [self.classes.index(name) for name in names]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> np.ndarray:
        return load_rgb(self.files[index])

    def name(self, index: int) -> str:
        return str(self.files[index])

    def label(self, index: int) -> int:
        return self.labels[index]

    def class_label(self, index: int) -> int:
        return self.labels[index]

    def label_map(self, index: int) -> np.ndarray:
        """Images of class folders have no label maps.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f'{self.name(index)} has a class, and no label map')

    def identity(self, index: int) -> str:
        return f'{self.name(index)}{self.labels[index]}'


def split_folders(folder: str | Path) -> tuple[Path, Path | None]:
    """The folders of training and of test images below a folder; the folder itself if neither."""
    folder = Path(folder)
    found = [next((folder / n for n in names if (folder / n).is_dir()), None) for names in SPLITS]
    return (found[0], found[1]) if found[0] and found[1] else (folder, None)
