"""A family of someone else's: StableLM, built like Llama but for its norms."""

from __future__ import annotations

from typing import ClassVar

import cocomix


@cocomix.register_adapter
class StableLmAdapter(cocomix.DecoderAdapter):
    """The defaults fit."""

    families: ClassVar = {"stablelm": "StableLM"}
