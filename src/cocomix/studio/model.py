"""What the page needs of one model, independent of the page. Any thread may call any method.

Strengths are multiples of a concept's usual activation if `cocomix inspect` has measured it, else raw logits.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cocomix.base import artifacts
from cocomix.base.compute import ComputeConfig
from cocomix.base.devices import this_machine
from cocomix.base.errors import CocomixError, reason_of
from cocomix.data.tokenizer import load_tokenizer
from cocomix.modeling.loading import load_causal_lm, product_size
from cocomix.modeling.model import CoCoMixForCausalLM
from cocomix.modeling.weight_order import order_for_single_tokens
from cocomix.steering.concept_metadata import ConceptMetadata, metadata_of
from cocomix.steering.concept_names import NAMES_NAME, rename_concept
from cocomix.steering.modes import DEFAULT_MODE
from cocomix.steering.steer import steer
from cocomix.studio.runs import NamedFolder
from cocomix.tools.inspect.cards import CardReader, ConceptCard, Context

# Shapes: T tokens, K active concepts, C concepts, V vocabulary.

NUM_ENTRIES = 12
#: Concepts that are tried for the first view.
NUM_OPENINGS = 4
NUM_OPENING_TOKENS = 24
#: Between a touch and much; at it most concepts of the demo rise in the text that follows.
OPENING_STRENGTH = 0.5
NUM_NEXT_TOKENS = 8
#: Names that resemble the searched text less than this are not suggested.
NEAREST_CUTOFF = 0.4


@dataclass(frozen=True)
class ConceptEntry:
    """A concept as an entry of a list."""

    concept: int
    name: str
    strength: float | None = None
    """Its activation, if the list belongs to some text."""


@dataclass(frozen=True)
class Opening:
    """What the page shows to somebody who asked for nothing."""

    prompt: str
    concept: int
    strength: float
    """Of the default mode."""


@dataclass(frozen=True)
class NextToken:
    """One candidate for the next token and its probability without and with the edits."""

    text: str
    before: float
    after: float


class Reading:
    """A prompt as the model reads it.

    Args:
        pieces: the text of each token.
        concepts: of each token, in the order of their activation, strongest first.
        strengths: of the same.
        names: of concepts.
    """

    def __init__(
        self,
        pieces: list[str],
        concepts: list[list[int]],
        strengths: list[list[float]],
        names: Mapping[int, str],
    ) -> None:
        self.pieces, self.concepts, self.strengths, self._names = pieces, concepts, strengths, names

    def __len__(self) -> int:
        return len(self.pieces)

    def at(self, position: int) -> list[ConceptEntry]:
        """The concepts predicted at one token, strongest first."""
        pairs = zip(self.concepts[position], self.strengths[position], strict=True)
        return [ConceptEntry(concept, _name(self._names, concept), strength) for concept, strength in pairs]


class UnwantedError(Exception):
    """A forward pass was ended because nobody waits for its result."""


class StudioModel:
    """One model with a concept mixer, its tokenizer, its names and its cards.

    Args:
        run: its folder.
        inspections: finished inspections; the one of this model gives the cards.
        compute: device and precision; None: float32, on CUDA if there is any.

    Raises:
        CocomixError: the folder holds no model that can be loaded, or the model has no concepts.
    """

    def __init__(
        self, run: NamedFolder, inspections: Sequence[CardReader] = (), compute: ComputeConfig | None = None
    ) -> None:
        self.name, self.path = run.name, run.path
        self.fingerprint = artifacts.fingerprint_of_path(run.path)  # every byte is checked
        self.machine = this_machine(compute or ComputeConfig(), functools.partial(product_size, run.path, 1))
        model = load_causal_lm(run.path, self.machine)
        if not isinstance(model, CoCoMixForCausalLM):
            raise CocomixError(f"{run.path} is a plain decoder; the studio steers models with a concept mixer")
        order_for_single_tokens(model)
        self.model = model
        self._thread, self._renaming = threading.local(), threading.Lock()
        for module in model.modules():
            module.register_forward_pre_hook(self._end_if_unwanted)
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(run.path)
        self.end_token_id = self.tokenizer.eos_token_id
        self.num_concepts = int(model.config.num_concepts)
        self.context_length = int(model.config.max_position_embeddings)
        fitting = (cards for cards in inspections if cards.manifest.settings.get("model") == self.fingerprint)
        self.cards = next(fitting, None)

    def metadata(self) -> ConceptMetadata:
        """Names and statistics of the concepts; checks the files, so that a name edited on disk shows at once."""
        return metadata_of(self.model)

    @property
    def unit(self) -> str:
        """Of strengths, as `cocomix.steer` takes it."""
        return "raw" if self.metadata().statistics is None else "usual"

    def rename(self, concept: int, name: str) -> None:
        """Give a concept another name, in the file beside the model; all that is written there stays.

        Raises:
            CocomixError: the name is none, another concept has it, or the file can't be written.
        """
        with self._renaming:
            try:
                rename_concept(self.path, concept, name.strip(), self.num_concepts)
            except OSError as error:
                raise CocomixError(
                    f"{self.path / NAMES_NAME} can't be written: {reason_of(error)}; the name stays as it was"
                ) from error

    def describe_unit(self) -> str:
        """What a strength of 1 is, in words."""
        if self.metadata().statistics is not None:
            return "units of its usual activation: the mean size of its value where it is active"
        return "raw logits, as `cocomix inspect` has not measured its usual activation"

    def name_of(self, concept: int) -> str:
        return _name(self.metadata().names, concept)

    def resolve(self, concept: str) -> int:
        """The concept with an index or a name; see `ConceptMetadata.resolve`."""
        return self.metadata().resolve(concept)

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt.

        Raises:
            CocomixError: it is longer than the model's context.
        """
        ids: list[int] = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) > self.context_length:
            raise CocomixError(
                f"the prompt has {len(ids)} tokens, and the context of {self.name} holds {self.context_length}: "
                f"shorten it by {len(ids) - self.context_length}"
            )
        return ids

    def decoder(self) -> Callable[[int], str]:
        """A function from one token after another to its text; a character of several tokens comes with the last of them."""
        stream = DecodeStream(skip_special_tokens=False)
        return lambda token: stream.step(self.tokenizer.backend_tokenizer, token) or ""

    @torch.no_grad()
    def read(self, prompt: str) -> Reading:
        """The concepts predicted at every token of a prompt."""
        ids = self.encode(prompt)
        if not ids:
            return Reading([], [], [], {})
        concepts, strengths = self._active(ids)
        names = self.metadata().names
        return Reading(list(map(self.decoder(), ids)), concepts.tolist(), strengths.tolist(), names)

    def search_names(self, text: str) -> list[ConceptEntry]:
        """Concepts by name, best first, then (with cards) by context and promoted token.

        Raises:
            CocomixError: no concept fits; the error suggests the nearest names.
        """
        wanted, names = text.strip().casefold(), self.metadata().names
        if not wanted:
            return []
        if wanted.lstrip("#").isdecimal():
            concept = self.resolve(wanted.lstrip("#"))
            return [ConceptEntry(concept, self.name_of(concept))]
        fitting = [concept for concept, name in names.items() if wanted in name.casefold()]
        fitting.sort(key=lambda concept: (names[concept].casefold().find(wanted), len(names[concept])))
        if self.cards is not None:
            fitting += [concept for concept in self.cards.find(text.strip(), NUM_ENTRIES) if concept not in fitting]
        if not fitting:
            raise CocomixError(self._nothing_called(text.strip()))
        return [ConceptEntry(concept, self.name_of(concept)) for concept in fitting[:NUM_ENTRIES]]

    @torch.no_grad()
    def search_example(self, text: str) -> list[ConceptEntry]:
        """The concepts that are most typical of a text: those whose mean activation most exceeds their mean on any text."""
        ids = self.encode(text)
        if not ids:
            return []
        concepts, strengths = self._active(ids)
        mean = torch.zeros(self.num_concepts).index_add_(0, concepts.flatten(), strengths.flatten()) / len(ids)
        statistics = self.metadata().statistics
        excess = mean
        if statistics is not None:
            excess = mean - statistics.activation_rate * statistics.mean / statistics.mean_abs
        best = excess.topk(min(NUM_ENTRIES, self.num_concepts)).indices.tolist()
        return [
            ConceptEntry(concept, self.name_of(concept), float(excess[concept]))
            for concept in best
            if excess[concept] > 0
        ]

    @torch.no_grad()
    def opening(self) -> Opening | None:
        """Among the concepts with the largest measured effects, each on a prompt of another one, that which changes the next
        token most; None if no inspection has measured any that has a direction."""
        statistics = self.metadata().statistics
        if self.cards is None or statistics is None or statistics.directions is None:
            return None
        has_direction = statistics.directions.any(-1).tolist()
        effects = dict(enumerate(self.cards.columns("measured_change")["measured_change"]))
        ranked = sorted((c for c in effects if effects[c] and has_direction[c]), key=lambda c: -effects[c])
        ranked = ranked[:NUM_OPENINGS]
        best: tuple[float, Opening] | None = None
        for concept, other in zip(ranked, [*ranked[1:], *ranked[:1]], strict=True):
            contexts = self.cards.card(other).contexts
            prompt = max(
                (prompt_before(context, self.tokenizer.eos_token) for context in contexts), key=len, default=""
            )
            found = Opening(prompt, concept, OPENING_STRENGTH)
            ids = self.encode(prompt)
            if ids:
                before = self._next_probabilities(ids)
                with self.steered({concept: found.strength}, DEFAULT_MODE):
                    change = float((self._next_probabilities(ids) - before).abs().sum())
                    written = self._continued(ids)
                loops = len(set(written)) < len(written) / 2
                # A text that repeats itself, as small models write it, shows less than any other.
                best = max(filter(None, (best, (change - 2 * loops, found))), key=lambda pair: pair[0])
        return None if best is None else best[1]

    def card(self, concept: int) -> ConceptCard | None:
        """The card of a concept; None if no inspection of this model was found."""
        return None if self.cards is None else self.cards.card(concept)

    @contextlib.contextmanager
    def interruptible(self, is_unwanted: Callable[[], bool]) -> Iterator[None]:
        """End the forward passes of this thread between two modules once nobody wants them: one pass can take seconds.

        Raises:
            UnwantedError: a pass was ended.
        """
        self._thread.is_unwanted = is_unwanted
        try:
            yield
        finally:
            del self._thread.is_unwanted

    def _end_if_unwanted(self, *_: object) -> None:
        is_unwanted = getattr(self._thread, "is_unwanted", None)
        if is_unwanted is not None and is_unwanted():
            raise UnwantedError

    @contextlib.contextmanager
    def steered(self, strengths: Mapping[int, float], mode: str) -> Iterator[None]:
        """Steer in this thread; no strengths: change nothing.

        Args:
            strengths: by concept.
            mode: how they act; see `cocomix.steer`.
        """
        if not strengths:
            yield
            return
        with steer(self.model, dict(strengths), mode, unit=self.unit, metadata=self.metadata()):
            yield

    @torch.no_grad()
    def next_tokens(self, prompt: str, strengths: Mapping[int, float], mode: str) -> list[NextToken]:
        """The likeliest next tokens by the larger of both probabilities, and the one that the edits promote most."""
        ids = self.encode(prompt)
        if not ids:
            return []
        before = self._next_probabilities(ids)
        if strengths:
            with self.steered(strengths, mode):
                after = self._next_probabilities(ids)
        else:
            after = before
        best = torch.maximum(before, after).topk(min(NUM_NEXT_TOKENS, len(before))).indices.tolist()
        # What is promoted most, by its part of the divergence, shows what an edit does, and may be far from the likeliest.
        promoted = int(torch.xlogy(after, after / before.clamp(min=torch.finfo().tiny)).argmax())
        if strengths and promoted not in best:
            best[-1] = promoted
        texts = self.tokenizer.batch_decode([[token] for token in best])
        return [
            NextToken(text, float(before[token]), float(after[token])) for text, token in zip(texts, best, strict=True)
        ]

    def _active(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Active concepts and their strengths, both [T, K], strongest first."""
        output = self._read(ids)
        concepts, strengths = output.concept_indices[0].cpu(), output.concept_values[0].float().cpu()
        statistics = self.metadata().statistics
        if statistics is None:
            return concepts, strengths
        strengths, order = (strengths / statistics.mean_abs[concepts]).sort(dim=-1, descending=True)
        return concepts.gather(-1, order), strengths

    def _next_probabilities(self, ids: Sequence[int]) -> Tensor:
        """[V]."""
        logits: Tensor = self._read(ids).logits[0, -1].float().cpu()
        return logits.softmax(-1)

    def _continued(self, ids: Sequence[int]) -> list[int]:
        """The likeliest next tokens, one after another, as far as the context reaches."""
        input_ids = torch.tensor([list(ids)], device=self.model.device)
        num_tokens = max(1, min(NUM_OPENING_TOKENS, self.context_length - len(ids)))
        with self.machine.products():
            written = self.model.generate(input_ids, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0)
        return list(map(int, written[0, len(ids) :]))

    def _read(self, ids: Sequence[int]) -> Any:
        """The model's output, with the logits of the last token."""
        input_ids = torch.tensor([list(ids)], device=self.model.device)
        with self.machine.products():
            return self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1)

    def _nothing_called(self, text: str) -> str:
        names = {name.casefold(): name for name in self.metadata().names.values()}
        if not names:
            return (
                f"nothing is called {text!r}: the concepts of {self.name} have no names yet (`cocomix inspect` writes them); "
                f"search by example, or by an index from 0 to {self.num_concepts - 1}"
            )
        nearest = difflib.get_close_matches(text.casefold(), names, 3, NEAREST_CUTOFF) or sorted(names)[:3]
        return f"nothing is called {text!r}; the nearest names are " + ", ".join(repr(names[name]) for name in nearest)


def prompt_before(context: Context, end: str) -> str:
    """Up to three lines of text before a token, without parts of words at both ends, and without spaces at its end.

    Args:
        context: of the token.
        end: what ends a document in it; the text of another one is left out.
    """
    text = context.before.rpartition(end)[2]
    text = text.partition(" ")[2].lstrip() or text
    if text[-1:].isalnum() and context.token[:1].isalnum():
        text = text.rpartition(" ")[0] or text
    return "\n".join(text.split("\n")[-3:]).rstrip(" ")


def _name(names: Mapping[int, str], concept: int) -> str:
    return names.get(concept, f"concept {concept}")
