"""Our models as a `PreTrainedModel`: padded inputs, and the final embedding as `pooler_output`."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import PreTrainedModel

from kernels import dispatch
from kernels.layers import moe_layers
from moe_retrieval.models.huggingface_config import RetrieverConfig
from moe_retrieval.models.retriever import Retriever
from moe_retrieval.models.serving import Serving, freeze, signature

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
        self._frozen: dict[tuple[str, torch.dtype], tuple[object, Serving | None]] = {}
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
        core, serving = self._core[0], self._serving()
        hidden_TH = core.hidden_states(tokens_T, cu_seqlens, max_len, serving)
        hidden_PLH = hidden_TH.new_zeros(*live_PL.shape, hidden_TH.shape[-1])
        hidden_PLH = hidden_PLH.masked_scatter(live_PL[..., None], hidden_TH)
        return BaseModelOutputWithPooling(hidden_PLH, core.embed(hidden_TH, tokens_T, cu_seqlens, serving))

    def _serving(self) -> Serving | None:
        """The frozen pass for the weights as they are at this call: no caller freezes them again."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        (core,) = self._core
        if core.training:
            core.eval()
        weight = cast(Tensor, cast(Any, core.encoder.blocks[0]).qkv.weight)
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        key = dispatch.pick(weight.device, dtype).name, dtype
        own = signature([*self.parameters(), *self.buffers()])
        known, serving = self._frozen.get(key, (None, None))
        if known != own:
            serving = freeze(core, dtype)
            self._frozen = {**self._frozen, key: (own, serving)}
        return serving if serving is not None and serving.encoder.can_run else None
