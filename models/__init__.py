"""Networks: importing this package registers every backbone, neck, head and model."""

import models.presets  # noqa: F401  with the composer of bricks, `EncoderDecoder`
from utils.registry import import_submodules

for _name in ("backbones", "necks", "heads", "networks"):
    import_submodules(f"{__name__}.{_name}")
