"""Networks: importing this package registers every backbone, neck, head and model."""

from utils.registry import import_submodules

for _package in ("models.backbones", "models.necks", "models.heads", "models.networks", "models"):
    import_submodules(_package)
