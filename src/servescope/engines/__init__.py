"""How to start real engines on this machine, one file each.

Every file has `started(...)`: a context manager that runs the engine as a child process on
loopback and yields its base URL. `_child.py` is what they share.
"""
