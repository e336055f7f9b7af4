"""What shape each aten operation gives, with sizes as unknowns (`fastlstm.converters.torch.sizes`).

A rule returns the shape of each output and joins or fixes sizes where the operation asks for it. An operation
without a rule, or called in a way that its rule does not know, raises `UnknownShapeError`.
"""

from __future__ import annotations

from collections.abc import Mapping

from fastlstm.converters.torch.aten import shapes_layers, shapes_movement
from fastlstm.converters.torch.aten.shapes_call import CallShapes, Rule, UnknownShapeError

__all__ = ["RULES", "CallShapes", "Rule", "UnknownShapeError"]

RULES: Mapping[str, Rule] = {**shapes_layers.RULES, **shapes_movement.RULES}
"""Rules by the operation's name without its overload."""
