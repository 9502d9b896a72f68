# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The data sets of the configs: where they come from, how they are checked and laid out.

``mmaselect data`` is made of this. Nothing here imports PyTorch or a toolbox.
"""

from mmaselect.fetch.catalog import DATA_SETS, Archive, DataSet, find_data_set
from mmaselect.fetch.get import check_data, get_data

__all__ = ['DATA_SETS', 'Archive', 'DataSet', 'check_data', 'find_data_set', 'get_data']
