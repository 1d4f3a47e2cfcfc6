"""Mixers, inserted between two blocks of the decoder: each is one class that owns everything about itself.

A new mixer is a subclass of `Mixer` with a `Config`, passed to `register_mixer`; `pause.py` is the shortest example.
"""
