//! Python's pickles as data: read by a machine that knows a few instructions and calls nothing,
//! and written. Source of the format: `pickletools.py` of CPython.
