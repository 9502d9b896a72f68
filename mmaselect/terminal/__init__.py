# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The terminal: progress bars, boxes, tables, and errors in one line."""
