"""Real translations as work that another implementation can repeat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normtrain.errors import UserError
from normtrain.tasks.translation.corpora import load_corpus
from normtrain.tasks.translation.decoding.translate import translate_lines
from normtrain.tasks.translation.evaluate import search_settings
from normtrain.training.checkpoint import read_checkpoint

PAD, EOS = 0, 2


class Watched(nn.Module):
    """A model that records its source batches and counts the rows of its steps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.batches, self.rows = model, list[Tensor](), 0

    def start(self, source: Tensor, beams: int, max_length: int) -> Any:
        self.batches.append(source)
        return self.model.start(source, beams, max_length)

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        self.rows += tokens.numel()
        return self.model.step(tokens, state)


class WatchedCodec:
    """A tokenizer that records the length of each output, EOS included, in decoding order."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.lengths = tokenizer, list[int]()
        self.encode_batch = tokenizer.encode_batch

    def decode(self, ids: list[int]) -> str:
        self.lengths.append(len(ids) + 1)
        return self.tokenizer.decode(ids)


class EndAt:
    """A logits processor for ``transformers`` that ends every sentence at a given length.

    Args:
        lengths: target tokens of each sentence, EOS included, ``(batch,)``.
        beam: rows per sentence.
    """

    def __init__(self, lengths: Tensor, beam: int) -> None:
        self.lengths = lengths.repeat_interleave(beam)[:, None]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ends = self.lengths <= input_ids.size(1)  # the start token counts as this one
        end_scores = torch.where(ends, scores[:, EOS : EOS + 1], -torch.inf)
        scores = scores.masked_fill(ends, -torch.inf)
        scores[:, PAD] = -torch.inf  # as in this project's search
        scores[:, EOS : EOS + 1] = end_scores
        return scores


class RealWork:
    """A trained model, sentences, and the batches and output lengths of translating them.

    Args:
        run: a run folder or a checkpoint.
        data: a corpus; None takes the run's.
        split: split of the corpus.
        sentences: their number, evenly spaced over the split; 0 takes all.
        beam: beam width of both sides.
        device: where the models run.

    Raises:
        UserError: the run or the data cannot be used.
    """

    def __init__(
        self, run: Path, data: str | None, split: str, sentences: int, beam: int, device: str
    ) -> None:
        checkpoint = read_checkpoint(run)
        self.recipe, self.tokenizer = checkpoint.recipe, checkpoint.tokenizer
        self.model = checkpoint.model().to(device)
        self.beam = beam
        corpus = load_corpus(data or self.recipe.data.source, splits=[split])
        lines = [line for line in corpus.splits[split].source if line.strip()]
        if not lines:
            raise UserError(f"split {split} has no sentence to translate")
        count = min(sentences or len(lines), len(lines))
        self.lines = [lines[i * len(lines) // count] for i in range(count)]
        watched, codec = Watched(self.model), WatchedCodec(self.tokenizer)
        self.tokens = self._translate(watched, codec, self.lines)
        assert sum(codec.lengths) == self.tokens
        self.batches: list[tuple[Tensor, Tensor]] = []
        lengths = torch.tensor(codec.lengths, device=device)
        for source in watched.batches:
            self.batches.append((source, lengths[: len(source)]))
            lengths = lengths[len(source) :]
        # Rows fed to the decoder, summed over steps: ours, and with batches that never shrink.
        self.rows = watched.rows
        self.their_rows = sum(beam * len(s) * int(n.max()) for s, n in self.batches)

    def _translate(self, model: Any, codec: Any, lines: list[str]) -> int:
        settings = search_settings(self.recipe, beam=self.beam)
        return translate_lines(model, codec, lines, settings).tokens

    def ours(self, batches: list[tuple[Tensor, Tensor]]) -> int:
        """Translate as many lines as the batches hold, from text to text; return target tokens."""
        count = sum(len(source) for source, _ in batches)
        return self._translate(self.model, self.tokenizer, self.lines[:count])

    def theirs(self, model: Any, batches: list[tuple[Tensor, Tensor]]) -> int:
        """Let ``generate`` translate the batches; return the target tokens of its output."""
        tokens = 0
        for source, lengths in batches:
            out = model.generate(
                source,
                attention_mask=(source != PAD).long(),
                num_beams=self.beam,
                max_length=int(lengths.max()) + 1,  # includes the start token
                length_penalty=self.recipe.decode.length_penalty,
                early_stopping=True,
                do_sample=False,
                logits_processor=[EndAt(lengths, self.beam)],
            )
            # Up to the first EOS: with a padding id of 0, generate pads with EOS.
            written = (out == EOS).int().argmax(1)
            assert torch.equal(written, lengths), (written.tolist(), lengths.tolist())
            tokens += int(written.sum())
        return tokens

    def sizes(self) -> dict[str, int]:
        """Return the model's sizes under the names of the benchmark's options."""
        model = self.recipe.model
        if model.encoder_layers != model.decoder_layers:
            layers = f"{model.encoder_layers} and {model.decoder_layers}"
            raise UserError(f"model.encoder_layers must equal model.decoder_layers, got {layers}")
        return {
            "d_model": model.d_model,
            "heads": model.heads,
            "layers": model.encoder_layers,
            "d_ff": model.d_ff,
            "vocab": self.tokenizer.vocab_size,
        }
