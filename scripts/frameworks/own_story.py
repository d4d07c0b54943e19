"""The story model as classes of a user's: one that can do what a class can, and a plain one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers
import xgrammar

from truthgpt_serve import register_model


class _Story:
    """Loads the model, and computes one request after the other."""

    repeats_prompt = False
    max_model_len: int

    def load(self, cfg: dict[str, Any]) -> None:
        """Loads model and tokenizer."""
        path = cfg["model"]["name_or_path"]
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype="float32").eval()
        self.max_model_len = self.model.config.max_position_embeddings

    def infer(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Returns the whole answer."""
        items = list(self.stream(inputs))
        answer = {**items[-1], "text": "".join(item["text"] for item in items)}
        for name in ("logprobs", "prompt_logprobs"):
            if any(name in item for item in items):
                answer[name] = [entry for item in items for entry in item.get(name, ())]
        return answer

    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the answer as it comes."""
        raise NotImplementedError


@register_model("own-story")
class OwnStory(_Story):
    """Says of itself all that a class can say."""

    accepts_token_ids = True
    gives_logprobs = True
    gives_prompt_logprobs = True
    takes_logit_bias = True
    takes_stop_token_ids = True
    takes_constraint = True

    @property
    def vocab_size(self) -> int:
        """How many logits there are."""
        return int(self.model.config.vocab_size)

    @torch.inference_mode()
    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields a token's text and what was asked for beside it."""
        prompt = inputs.get("token_ids") or self.tokenizer.encode(
            inputs["text"], add_special_tokens=inputs.get("add_special_tokens", True)
        )
        num_top = inputs.get("logprobs")
        given = self.model(torch.tensor([prompt]), use_cache=True)
        if inputs.get("prompt_logprobs"):
            first = {"token_id": prompt[0], "logprob": None, "top": []}
            rest = [_entry(given.logits[0, at], token, num_top) for at, token in
                    enumerate(prompt[1:])]  # fmt: skip
            yield {"text": "", "prompt_logprobs": [first, *rest]}
        bound = inputs.get("constraint")
        matcher = None if bound is None else xgrammar.GrammarMatcher(bound)
        made: list[int] = []
        told, reason = "", "length"
        for _ in range(inputs["max_new_tokens"]):
            logits = given.logits[0, -1].float()
            token = self._choose(logits.clone(), inputs, matcher)
            if token in (self.tokenizer.eos_token_id, *inputs.get("stop_token_ids", ())):
                reason = "stop"
                break
            made.append(token)
            text = self.tokenizer.decode(made, skip_special_tokens=True)
            new = "" if text.endswith("\ufffd") else text[len(told) :]
            told += new
            item: dict[str, Any] = {"text": new}
            if num_top is not None:
                item["logprobs"] = [_entry(logits, token, num_top)]
            yield item
            given = self.model(
                torch.tensor([[token]]), past_key_values=given.past_key_values, use_cache=True
            )
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(made)}
        yield {"text": "", "finish_reason": reason, "usage": usage}

    def _choose(self, scores: torch.Tensor, inputs: dict[str, Any], matcher: Any) -> int:
        for token, bias in inputs.get("logit_bias", {}).items():
            scores[token] += bias
        if matcher is not None:
            mask = xgrammar.allocate_token_bitmask(1, self.vocab_size)
            matcher.fill_next_token_bitmask(mask)
            xgrammar.apply_token_bitmask_inplace(scores.unsqueeze(0), mask)
        if (temperature := inputs.get("temperature", 0)) > 0:
            token = int(torch.multinomial((scores / temperature).softmax(-1), 1))
        else:
            token = int(scores.argmax())
        if matcher is not None:
            matcher.accept_token(token)
        return token


@register_model("plain-story")
class PlainStory(_Story):
    """Takes a text and gives a text, and has a tokenizer."""

    @torch.inference_mode()
    def stream(self, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yields the whole answer at once."""
        ids = self.tokenizer(
            inputs["text"],
            add_special_tokens=inputs.get("add_special_tokens", True),
            return_tensors="pt",
        ).input_ids
        made = self.model.generate(ids, max_new_tokens=inputs["max_new_tokens"], do_sample=False)
        yield {"text": self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)}


def _entry(logits: torch.Tensor, token: int, num_top: int | None) -> dict[str, Any]:
    scores = logits.float().log_softmax(-1)
    values, ids = scores.topk(num_top or 0)
    top = [
        {"token_id": one, "logprob": value}
        for one, value in zip(ids.tolist(), values.tolist(), strict=True)
    ]
    return {"token_id": token, "logprob": float(scores[token]), "top": top}
