"""Beam search, by the rules of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor
from torch.nn import functional

from finetune.models.decoding import Decoding
from finetune.models.kv_cache import TokenReader
from finetune.models.logits import processed
from finetune.models.streaming import Writer


def beam_search(
    reader: TokenReader, decoding: Decoding, eos_ids: set[int], writers: Sequence[Writer] = ()
) -> list[list[int]]:
    """Return the best finished beam of each row, by summed log-probability / length ** length_penalty.

    A beam is finished by an EOS, by a stop string in its text, or by the last token that it has room for.

    The rules are those of transformers 5 (`GenerationMixin._beam_search`): only the best `num_beams` of the
    candidates may finish; a row is done when its `num_beams` finished ones score no less than the best
    running one at its present length, or, with `early_stopping`, as soon as there are that many.

    Args:
        writers: of each row, with the stop strings; they are left as they are. Without them, none is looked
            for.
    """
    num_beams, device = decoding.num_beams, reader.device
    num_candidates = max(2, 1 + len(eos_ids)) * num_beams  # enough that `num_beams` of them are not finished
    limits = torch.tensor(reader.limits, device=device)[:, None]
    batch_size = len(limits)
    end_ids = torch.tensor(sorted(eos_ids), dtype=torch.long, device=device)
    running = torch.empty((batch_size, 1, 0), dtype=torch.long, device=device)  # (B, beams, tokens)
    scores = torch.zeros((batch_size, 1), device=device)
    best = torch.zeros((batch_size, num_beams, reader.steps), dtype=torch.long, device=device)
    best_scores = torch.full((batch_size, num_beams), -torch.inf, device=device)
    lengths = torch.zeros((batch_size, num_beams), dtype=torch.long, device=device)
    done = torch.zeros((batch_size, 1), dtype=torch.bool, device=device)
    ids = reader.ids
    beam_writers = [[writer] for writer in writers]
    for step in range(1, reader.steps + 1):
        first_rows = torch.arange(batch_size, device=device)[:, None] * running.shape[1]  # rows of the cache
        log_probs = reader.read(ids).log_softmax(-1)
        previous = torch.cat((reader.previous, running.flatten(0, 1)), 1)
        banned = eos_ids if step <= decoding.min_new_tokens else ()
        log_probs = processed(log_probs, previous, decoding, banned, reader.forced(step - 1, reader.steps))
        vocab_size = log_probs.shape[-1]
        totals = (log_probs.view(batch_size, -1, vocab_size) + scores[..., None]).flatten(1)
        totals, index = totals.topk(min(num_candidates, totals.shape[1]))  # (B, num_candidates)
        beams, tokens = index // vocab_size, index % vocab_size
        grown = torch.cat((_beams_at(running, beams), tokens[..., None]), 2)
        ended = torch.isin(tokens, end_ids) | (step == limits)
        grown_writers = _grown_writers(beam_writers, beams, tokens, ended | done, num_beams)
        for row, row_writers in enumerate(grown_writers):
            if over := [at for at, writer in row_writers.items() if writer.over]:
                ended[row, over] = True

        final_scores = (totals / step**decoding.length_penalty).masked_fill(~ended | done, -torch.inf)
        best_scores, order = torch.cat((best_scores, final_scores[:, :num_beams]), 1).topk(num_beams)
        finished = functional.pad(grown[:, :num_beams], (0, reader.steps - step))
        best = _beams_at(torch.cat((best, finished), 1), order)
        lengths = torch.cat((lengths, torch.full_like(beams[:, :num_beams], step)), 1).gather(1, order)

        scores, order = totals.masked_fill(ended, -torch.inf).topk(num_beams)
        running = _beams_at(grown, order)
        beam_writers = [  # a beam without one is among the finished, or its row is: no token is added to it
            [row_writers.get(at, before[0]) for at in row_order]
            for row_writers, before, row_order in zip(
                grown_writers, beam_writers, order.tolist() if beam_writers else [], strict=True
            )
        ]
        worst = best_scores[:, -1:]  # -inf until `num_beams` are finished
        done |= (scores[:, :1] / step**decoding.length_penalty <= worst) | (step == limits)
        if decoding.early_stopping:
            done |= worst > -torch.inf
        if done.all():
            break
        reader.select((first_rows + beams.gather(1, order)).flatten())
        ids = running[:, :, -1].reshape(-1, 1)
    return [row[:length] for row, length in zip(best[:, 0].tolist(), lengths[:, 0].tolist(), strict=True)]


def _beams_at(beams: Tensor, index: Tensor) -> Tensor:
    """Select the beams at index (B, M) among beams (B, N, T)."""
    return beams.gather(1, index[..., None].expand(-1, -1, beams.shape[2]))


def _grown_writers(
    beam_writers: Sequence[Sequence[Writer]], beams: Tensor, tokens: Tensor, ended: Tensor, num_beams: int
) -> list[dict[int, Writer]]:
    """Return for each row the writers of its candidates, by their place, after their newest token.

    Args:
        beam_writers: of each row, of its running beams.
        beams, tokens: (B, candidates) the beam that each candidate continues, and with what.
        ended: (B, candidates) True where no text is needed.
        num_beams: candidates that go on at most, the first that are not over.
    """
    grown_writers: list[dict[int, Writer]] = []
    if not beam_writers:
        return grown_writers
    columns = (beams.tolist(), tokens.tolist(), ended.tolist())
    for before, row_beams, row_tokens, row_ended in zip(beam_writers, *columns, strict=True):
        grown_writers.append(grown := {})
        going = 0
        for at, (beam, token, is_ended) in enumerate(zip(row_beams, row_tokens, row_ended, strict=True)):
            if is_ended:
                continue
            grown[at] = writer = copy(before[beam])
            writer.write(token)
            going += not writer.over
            if going == num_beams:  # the worse candidates neither go on nor finish
                break
    return grown_writers
