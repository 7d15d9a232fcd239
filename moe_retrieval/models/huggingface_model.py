"""Our models as a `PreTrainedModel`: padded inputs, and the final embedding as `pooler_output`."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from kernels.layers import moe_layers
from moe_retrieval.models.huggingface_config import RetrieverConfig
from moe_retrieval.models.retriever import Retriever

ALIGNMENT = 64
"""Bytes, of what torch allocates."""


class RetrieverModel(PreTrainedModel):
    """`model(input_ids, attention_mask).pooler_output` is what `moe_retrieval.load(...).encode` returns."""

    config_class = RetrieverConfig
    base_model_prefix = ""
    main_input_name = "input_ids"

    def __init__(self, config: RetrieverConfig):
        super().__init__(config)
        core = Retriever(config.settings)
        self.encoder, self.block = core.encoder, core.block  # the same names in the state as in ours
        self._core = (core,)  # not a module of this one: it is the same modules
        self.post_init()

    def _init_weights(self, module: Any) -> None:
        """The constructor has done it; transformers would overwrite what was loaded."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        result = super().from_pretrained(*arguments, **options)
        model = result[0] if isinstance(result, tuple) else result
        for tensor in (*model.parameters(), *model.buffers()):
            if (
                tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT
            ):  # a part of the file: BLAS gives other last bits than for our copy
                tensor.data = tensor.data.clone()
        for layer in moe_layers(model).values():  # made on the meta device, where loading builds a model
            layer.sums.clear(layer.router.weight)
        return result

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **unused: Any
    ) -> BaseModelOutputWithPooling:
        """input_ids [sequences, length]; where attention_mask is 0 there is no token, on either side."""
        live_PL = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
        lengths_P = live_PL.sum(1)
        cu_seqlens = F.pad(lengths_P.cumsum(0), (1, 0)).int()
        max_len = int(lengths_P.max()) if len(lengths_P) else 0
        tokens_T = input_ids[live_PL]
        core = self._prepared()
        hidden_TH = core.hidden_states(tokens_T, cu_seqlens, max_len)
        hidden_PLH = hidden_TH.new_zeros(*live_PL.shape, hidden_TH.shape[-1])
        hidden_PLH = hidden_PLH.masked_scatter(live_PL[..., None], hidden_TH)
        return BaseModelOutputWithPooling(hidden_PLH, core.embed(hidden_TH, tokens_T, cu_seqlens))

    def _prepared(self) -> Retriever:
        """Frozen with the first forward that serves."""
        (core,) = self._core
        if core.training != self.training:
            core.train(self.training)
        weight = cast(Tensor, core.encoder.get_parameter("blocks.0.qkv.weight"))
        autocast = torch.is_autocast_enabled(weight.device.type)
        dtype = torch.get_autocast_dtype(weight.device.type) if autocast else weight.dtype
        if not self.training and not torch.is_grad_enabled() and core.frozen_for != dtype:
            core.freeze(dtype)
        elif torch.is_grad_enabled():
            core.thaw()
        return core

    def _apply(self, fn, recurse=True):
        self._core[0].thaw()
        return super()._apply(fn, recurse)
