"""What vLLM's own worker lacks, mixed into it by `worker_extension_cls`."""

from __future__ import annotations

from typing import Any


class Newer:
    """Loads newer weights. On a CPU vLLM keeps a packed copy of each matrix, and forgets that of a head that is tied to
    the embedding when it loads again.
    """

    def newer(self: Any, weights: str) -> None:
        """The weights of a folder."""
        self.reload_weights(weights_path=weights)
        head: Any = getattr(self.model_runner.get_model(), "lm_head", None)
        if hasattr(head, "cpu_linear"):
            head.quant_method.process_weights_after_loading(head)
