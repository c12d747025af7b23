"""Compression of a student that stays a Keras model."""

from kdlite.compress.fake_quant import FakeQuant as FakeQuant
from kdlite.compress.fake_quant import FoldedLayer as FoldedLayer
from kdlite.compress.qat import float_layers as float_layers
from kdlite.compress.qat import for_export as for_export
from kdlite.compress.qat import freeze_batch_norm as freeze_batch_norm
from kdlite.compress.qat import is_quantize_aware as is_quantize_aware
from kdlite.compress.qat import quantize_aware as quantize_aware
from kdlite.compress.recipes import Recipe as Recipe
from kdlite.compress.recipes import recipe as recipe
