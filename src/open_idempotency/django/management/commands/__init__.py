"""Commands of ``manage.py``, found by their file names."""
