"""Which labels `transformers.Trainer` asks for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


class WithOptionalLabels:
    """A model's `forward` that computes a loss without `concept_labels` too.

    `Trainer` reads the class's signature for the labels without which it computes no loss, and the model's for the columns
    that it hands over. So the class does not show `concept_labels`, and the model does.

    Args:
        forward: the method.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward
        signature = inspect.signature(forward)
        needed = [each for each in signature.parameters.values() if each.name != "concept_labels"]

        @functools.wraps(forward)
        def of_class(*arguments: Any, **options: Any) -> Any:
            return forward(*arguments, **options)

        of_class.__signature__ = signature.replace(parameters=needed)  # type: ignore[attr-defined]
        self.of_class = of_class

    def __get__(self, model: Any, owner: type) -> Callable[..., Any]:
        return self.of_class if model is None else self.forward.__get__(model, owner)
