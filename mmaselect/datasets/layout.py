# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Check of the folder that a data set reads."""

import os.path as osp
from collections.abc import Sequence


def require_layout(
    dataset: str, root: str, needed: Sequence[str], layout: str, source: str
) -> None:
    """Check that a data set's files are where its class looks for them.

    Args:
        dataset: Name of the data set, for the message.
        root: The data folder that the config names.
        needed: Files and folders that must exist, relative to ``root``.
        layout: The expected folder tree, for the message.
        source: Address of the public page that the data comes from.

    Raises:
        FileNotFoundError: If ``root`` or any of ``needed`` does not exist.
    """
    if not osp.isdir(root):
        problem = f'there is no folder {osp.abspath(root)!r}'
    else:
        missing = [path for path in needed if not osp.exists(osp.join(root, path))]
        if not missing:
            return
        problem = f'{osp.abspath(root)!r} has no {", ".join(map(repr, missing))}'
    raise FileNotFoundError(
        f'{dataset}: {problem}.\nExpected layout:\n{layout.strip()}\n'
        f'Get the data from {source}, then set `data_root` in the config or link the folder there.'
    )
