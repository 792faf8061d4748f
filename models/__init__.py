"""Networks: importing this package registers every backbone, neck, head and model."""

import models.presets  # noqa: F401  with the composer of bricks, `EncoderDecoder`
from utils.registry import import_submodules

for _package in ("models.backbones", "models.necks", "models.heads", "models.networks"):
    import_submodules(_package)
