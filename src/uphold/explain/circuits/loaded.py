"""The layout of a model however it is named."""

from __future__ import annotations

from uphold.core.errors import ModelError
from uphold.models.load import ModelLike, load_module
from uphold.models.sites.layout import Layout, read_layout


def layout_for(model: ModelLike) -> Layout:
    """Where the heads of a model are; a module needs no tokenizer, prompts are tokens already.

    Raises:
        ModelError: it cannot be loaded, or has no attention heads that are known here.
    """
    module = load_module(model)
    layout = read_layout(module)
    if not layout.layers or not layout.heads or not layout.head_width:
        raise ModelError(
            f"{type(module).__name__} has no attention heads that are known here: expected a decoder of transformers"
        )
    return layout
