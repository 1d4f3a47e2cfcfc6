"""What stands between two blocks of the decoder: one class a mixer, with all that depends on it.

A new mixer is a subclass of `Mixer` with its `Config`, given to `register_mixer`; `pause.py` is the shortest example.
"""
