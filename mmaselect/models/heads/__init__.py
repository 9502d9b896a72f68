# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Heads that the toolboxes lack."""

from mmaselect.models.heads.attention_pool_cls_head import AttentionPoolClsHead

__all__ = ['AttentionPoolClsHead']
