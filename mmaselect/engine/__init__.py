# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
from mmaselect.engine.hooks import SelectionHook

__all__ = ['SelectionHook']
