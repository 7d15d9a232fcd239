"""The parameters of a model that learn, as a module of their own: what an optimizer changes and a checkpoint keeps."""

from torch import nn


def learned(model: nn.Module) -> nn.ParameterDict:
    """By their names in the model, with / for a dot; parameters that are tied come once.

    >>> sorted(learned(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))))
    ['0/bias', '0/weight']
    """
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in own.items()})
