"""The client programs, and what each of them needs beside Python or Node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Program:
    """One client program; it runs in an environment of its own.

    Attributes:
        name: How the table calls it.
        file: Its file in `clients/`.
        packages: What is installed for it, from PyPI or npm.
        sees_product: Whether its environment also has the packages of the product's, which spares
            a second torch.
    """

    name: str
    file: str
    packages: tuple[str, ...]
    sees_product: bool = False

    @property
    def is_node(self) -> bool:
        """Whether Node runs it."""
        return self.file.endswith(".mjs")


PROGRAMS = (
    Program("openai", "with_openai.py", ("openai",)),
    Program("anthropic", "with_anthropic.py", ("anthropic",)),
    Program("instructor", "with_instructor.py", ("instructor", "anthropic")),
    Program(
        "langchain",
        "with_langchain.py",
        ("langchain", "langchain-openai", "langchain-anthropic"),
    ),
    Program("llama-index", "with_llama_index.py", ("llama-index-llms-openai-like",)),
    Program("pydantic-ai", "with_pydantic_ai.py", ("pydantic-ai-slim[openai,anthropic]",)),
    Program("openai-agents", "with_openai_agents.py", ("openai-agents",)),
    Program("litellm", "with_litellm.py", ("litellm[proxy]", "anthropic")),
    Program(
        "vercel",
        "with_vercel.mjs",
        ("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic", "zod"),
    ),
    Program("lm-eval", "with_lm_eval.py", ("lm-eval[api]",), sees_product=True),
)
