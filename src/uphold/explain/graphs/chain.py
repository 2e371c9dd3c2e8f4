"""The weighted layers of a feed-forward classifier as one path, found by tracing it.

Whatever lies above a layer can then be run by itself on other numbers than the layer gave, for many cuts at once, and
without a weight being touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import fx, nn

from uphold.core.errors import ModelError, UsageError
from uphold.models.sites.run import ready

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Layer(NamedTuple):
    """A linear or convolutional layer on the path."""

    name: str
    """Its path in the model."""
    module: Any
    kind: Literal["linear", "conv"]
    inputs: int
    """Units that it takes: neurons, or channels."""
    outputs: int
    """Units that it gives."""
    block: int
    """Features of a linear layer that are one unit: the places of a flattened map; 1 for a convolution."""
    node: fx.Node


class Clean(NamedTuple):
    """A run of all images with nothing cut."""

    inputs: tuple[torch.Tensor, ...]
    """What each layer took, shape (n, ...)."""
    outputs: tuple[torch.Tensor, ...]
    """What each layer gave, before any activation function, shape (n, units, ...)."""
    logits: torch.Tensor
    """Shape (n, classes)."""

    def rows(self, index: torch.Tensor) -> Clean:
        """The same for some images, repeated ones included."""
        inputs, outputs = (tuple(one[index] for one in values) for values in (self.inputs, self.outputs))
        return Clean(inputs, outputs, self.logits[index])


@dataclass(frozen=True)
class Chain:
    """A classifier, and its weighted layers in the order in which they run."""

    model: nn.Module
    layers: tuple[Layer, ...]
    nodes: tuple[fx.Node, ...]
    constants: tuple[fx.Node, ...]
    tails: tuple[tuple[fx.Node, ...], ...]
    """What runs after each layer, without the output node."""
    result: fx.Node

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self.layers[-1].outputs

    def index(self, name: str) -> int:
        """Where on the path a layer stands.

        Raises:
            UsageError: there is none of that name.
        """
        names = [layer.name for layer in self.layers]
        if name not in names:
            raise UsageError(f"no layer '{name}' on the path: it has {', '.join(names)}")
        return names.index(name)

    def run(
        self, images: torch.Tensor, instead: Mapping[int, Callable[[torch.Tensor], torch.Tensor]] | None = None
    ) -> torch.Tensor:
        """Logits of images, shape (n, classes).

        Args:
            images: shape (n, ...).
            instead: by number of a layer, what is computed of its input in its place.
        """
        by_node = {self.layers[number].node: function for number, function in (instead or {}).items()}
        values: dict[fx.Node, Any] = {}
        with ready(self.model):
            for node in self.nodes:
                function = by_node.get(node)
                if node.op == "placeholder":
                    values[node] = images
                elif function is not None:
                    values[node] = function(values[_only_input(node)])
                elif node.op != "output":
                    values[node] = _step(self.model, node, values)
        return values[self.result]  # type: ignore[no-any-return]

    def clean(self, images: torch.Tensor) -> Clean:
        """Run images and keep what every layer takes and gives."""
        inputs, outputs = [], []

        def kept(layer: Layer) -> Callable[[torch.Tensor], torch.Tensor]:
            def function(taken: torch.Tensor) -> torch.Tensor:
                given: torch.Tensor = layer.module(taken)
                # An activation function that works in place would change what is kept.
                inputs.append(taken.clone())
                outputs.append(given.clone())
                return given

            return function

        logits = self.run(images.clone(), {number: kept(layer) for number, layer in enumerate(self.layers)})
        return Clean(tuple(inputs), tuple(outputs), logits)

    def above(self, number: int, given: torch.Tensor, grad: bool = False) -> torch.Tensor:
        """Logits that follow where layer `number` gives `given`, shape (n, units, ...) -> (n, classes)."""
        with ready(self.model, grad):
            values = self._through(self.tails[number], number, given)
        return values[self.result]  # type: ignore[no-any-return]

    def between(self, number: int, given: torch.Tensor) -> torch.Tensor:
        """What the next layer takes (the logits, for the last one) where layer `number` gives `given`."""
        last = number + 1 == len(self.layers)
        end = self.result if last else _only_input(self.layers[number + 1].node)
        tail = self.tails[number]
        with ready(self.model):
            part = () if end is self.layers[number].node else tail[: tail.index(end) + 1]
            return self._through(part, number, given)[end]  # type: ignore[no-any-return]

    def _through(self, nodes: tuple[fx.Node, ...], number: int, given: torch.Tensor) -> dict[fx.Node, Any]:
        values: dict[fx.Node, Any] = {self.layers[number].node: given}
        for node in (*self.constants, *nodes):
            values[node] = _step(self.model, node, values)
        return values


def trace(model: nn.Module, images: torch.Tensor) -> Chain:
    """Find the path of weighted layers.

    Args:
        model: a classifier of images or vectors whose linear and convolutional layers run one after the other; what
            is between them treats units apart (activation functions, pooling, flattening, batch norm).
        images: at least one, shape (n, ...).

    Raises:
        ModelError: it is none: branches, residual connections, layers that run twice or of other kinds, or something
            that mixes units between two layers.
    """
    with ready(model):
        try:
            graph = fx.Tracer().trace(model)
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelError(
                f"the model cannot be traced ({reason[:200]}); "
                "give an nn.Sequential, or a forward without branches on values"
            ) from error
    nodes = tuple(graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    (end,) = [node for node in nodes if node.op == "output"]
    result = end.args[0]
    if len(placeholders) != 1 or not isinstance(result, fx.Node):
        raise ModelError(
            f"the model takes {len(placeholders)} arguments or returns no single tensor; "
            "a causal graph needs images in, logits out"
        )
    varying = _descendants(nodes, placeholders[0])
    needed = _ancestors(result)
    constants = tuple(node for node in nodes if node not in varying and node in needed and node is not placeholders[0])
    weighted = [node for node in nodes if node in varying and node in needed and _weighted(model, node)]
    if not weighted:
        raise ModelError("the model has no linear or convolutional layer; put a bare layer into nn.Sequential")
    _check_attributes(model, constants)
    tails = tuple(_tail(model, node, nodes, needed, set(constants), weighted) for node in weighted)
    chain = Chain(model, (), nodes, constants, tails, result)
    return _with_units(chain, weighted, images[:1])


def _only_input(node: fx.Node) -> fx.Node:
    (found,) = node.all_input_nodes
    return found


def _step(model: nn.Module, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    target: Any = node.target
    if node.op == "get_attr":
        found: Any = model
        for part in target.split("."):
            found = getattr(found, part)
        return found
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return model.get_submodule(target)(*args, **kwargs)
    if node.op == "call_method":
        itself, *rest = args
        return getattr(itself, target)(*rest, **kwargs)
    return target(*args, **kwargs)


def _weighted(model: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a layer with weights of two or more dimensions."""
    if node.op != "call_module":
        return False
    module = model.get_submodule(str(node.target))
    if not any(weight.dim() > 1 for weight in module.parameters()):
        return False
    if not isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        raise ModelError(
            f"{node.target} is a {type(module).__name__}; causal graphs know linear and convolutional layers only"
        )
    return True


def _check_attributes(model: nn.Module, constants: tuple[fx.Node, ...]) -> None:
    for node in constants:
        value = _step(model, node, {}) if node.op == "get_attr" else None
        if isinstance(value, nn.Parameter) and value.dim() > 1:
            raise ModelError(
                f"the model uses the weight {node.target} outside a layer; make an nn.Linear or nn.Conv2d of it"
            )


def _descendants(nodes: tuple[fx.Node, ...], start: fx.Node) -> set[fx.Node]:
    found = {start}
    for node in nodes:
        if any(before in found for before in node.all_input_nodes):
            found.add(node)
    return found


def _ancestors(end: fx.Node) -> set[fx.Node]:
    found, left = set(), [end]
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _tail(
    model: nn.Module,
    layer: fx.Node,
    nodes: tuple[fx.Node, ...],
    needed: set[fx.Node],
    constants: set[fx.Node],
    weighted: list[fx.Node],
) -> tuple[fx.Node, ...]:
    """What runs after a layer.

    Raises:
        ModelError: something there does not pass through the layer.
    """
    if sum(node.target == layer.target for node in weighted) > 1:
        raise ModelError(f"{layer.target} runs more than once; causal graphs need layers that run one after the other")
    behind = _descendants(nodes, layer)
    tail = tuple(node for node in nodes if node in behind and node in needed and node is not layer)
    for node in tail:
        for before in node.all_input_nodes:
            if before not in behind and before not in constants:
                raise ModelError(
                    f"'{node.name}' takes '{before.name}', which does not pass through {layer.target}: causal graphs "
                    "need layers that run one after the other, without branches, residual connections or sizes taken "
                    "further below"
                )
    for node in weighted:
        if node not in behind and nodes.index(node) > nodes.index(layer):
            raise ModelError(
                f"{node.target} runs beside {layer.target}: causal graphs need layers that run one after the other"
            )
    return tail


def _with_units(chain: Chain, weighted: list[fx.Node], image: torch.Tensor) -> Chain:
    """The chain with its layers' units, detected by shape and checked by changing some of them."""
    found: list[Layer] = []
    below = 0
    taken: list[torch.Tensor] = []
    for node in weighted:
        module: Any = chain.model.get_submodule(str(node.target))
        conv = isinstance(module, _CONVOLUTIONS)
        features = module.in_channels if conv else module.in_features
        inputs = below if below and not conv else features
        if features % inputs or (conv and below and below != features):
            raise ModelError(f"{node.target} takes {features} units and the layer below it gives {below}")
        outputs = module.out_channels if conv else module.out_features
        kind: Literal["linear", "conv"] = "conv" if conv else "linear"
        found.append(Layer(str(node.target), module, kind, inputs, outputs, features // inputs, node))
        below = outputs
    done = Chain(chain.model, tuple(found), chain.nodes, chain.constants, chain.tails, chain.result)
    clean = done.clean(image)
    taken = [*clean.inputs[1:], clean.logits]
    for number, (layer, above) in enumerate(zip(found, taken, strict=True)):
        if clean.inputs[number].dim() != (2 if layer.kind == "linear" else layer.module.weight.dim()):
            raise ModelError(
                f"{layer.name} takes numbers of shape {tuple(clean.inputs[number].shape[1:])} for an image; "
                "a linear layer must take a vector"
            )
        _check_apart(done, number, clean.outputs[number], above)
    return done


def _check_apart(chain: Chain, number: int, given: torch.Tensor, above: torch.Tensor) -> None:
    """Refuse what mixes units between two layers, or orders them anew, such as a softmax or a channel-last flatten."""
    layer = chain.layers[number]
    last = number + 1 == len(chain.layers)
    where = "the logits" if last else chain.layers[number + 1].name
    generator = torch.Generator().manual_seed(0)
    fits = above.dim() > 1 and above.shape[1] % layer.outputs == 0
    for _ in range(2):
        chosen = torch.randperm(layer.outputs, generator=generator)[: max(1, layer.outputs // 2)]
        noise = torch.randn(given[:, chosen].shape, generator=generator).to(given)
        other = given.clone()
        other[:, chosen] += noise * (1 + given.abs().mean())
        changed = chain.between(number, other) != above
        if not fits:
            break
        by_unit = changed.reshape(len(changed), layer.outputs, -1).any(-1)[0]
        by_unit[chosen] = False
        fits = not bool(by_unit.any())
    if not fits or (last and above.shape != (1, layer.outputs)):
        raise ModelError(
            f"what lies between {layer.name} and {where} mixes or reorders its {layer.outputs} units "
            "(a softmax, a layer norm, a channel-last flatten); causal graphs need units that stay apart"
        )
