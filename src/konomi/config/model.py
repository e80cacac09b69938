"""The settings of the model that a job trains."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from konomi.config.section import Positive, Section


class ModelConfig(Section):
    """The language model that is moved."""

    name: str = "embedded:gemma3-270m"
    """A hub name, a directory, a run (its model is meant), a .gguf file, or an embedded model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off: such a model is refused."""
    chat_template: str | None = None
    """A file with a chat template (Jinja), or the template itself, in the place of the tokenizer's own. It is saved with the
    trained model."""
    freeze: Literal["none", "embeddings"] = "none"
    """embeddings: the token embeddings and the vocabulary head stay as they are. Saves much time and memory where the
    vocabulary is most of the model (Gemma 3 270M: 168 of 268 M parameters); policy and reference then share them."""
    top_layers: Positive | None = None
    """Train only this many layers from the top, the norm after them and the value head: the layers below run once for
    policy and reference together, and no gradient passes through them. Usual 2. None: all layers are trained."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Precision of matrix products. auto: bf16 where the processor or GPU has it in hardware, else fp32. fp64 is for tests."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of layers for the backward pass, and compute the layers anew there: much less memory for long texts,
    about a third more time. Changes no result."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA): two small matrices are trained beside each weight, and the weights stay as they are."""

    rank: Positive | None = None
    """Rank of the adapters, usual 8 to 64; needs pip install "konomi[lora]". With its adapters off the model is the reference: no
    second copy, and gradients and optimiser state of the adapters and the new head only. The learning rate has to be about ten
    times that of a run without adapters. Not set: no adapters."""
    alpha: Positive = 32
    """What the adapters add to a weight is multiplied by alpha / rank. Higher: larger steps."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as ["q_proj", "v_proj"]. Empty: all but the heads."""
    quantize: Literal["none", "nf4"] = "none"
    """nf4 (QLoRA): the linear layers under the adapters are held in 4 bits, about half a byte a weight, by bitsandbytes: pip
    install "konomi[qlora]". Each product makes its weight anew, which costs time; embeddings and head take 4 bytes a weight,
    with ppo.weights = "bf16" 2. The initial model is then the one in 4 bits."""

    @model_validator(mode="after")
    def _on(self) -> LoraConfig:
        fields = type(self).model_fields
        changed = [name for name in ("alpha", "targets", "quantize") if getattr(self, name) != fields[name].default]
        if self.rank is None and changed:
            raise ValueError(f"{changed[0]} is of no use without rank, which turns the adapters on; set rank, for example to 16")
        return self


class TrainedModel(Section):
    """What the jobs that train a model begin with."""

    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="after")
    def _one_choice(self) -> TrainedModel:
        if self.lora.rank is not None and self.model.top_layers is not None:
            raise ValueError(
                f"model.top_layers = {self.model.top_layers} with lora.rank = {self.lora.rank}: the first trains weights of some "
                "layers, the second adapters of all; set one of them"
            )
        return self
