"""An encoder's own parts, beside its layers of experts: attention, residual norms, and the whole encoder, fused."""
